"""Checkpoints on disk that load in a moment: a random 2-layer Llama and a byte-level tokenizer of its own."""

import json
from pathlib import Path

import torch

# Merges of the byte alphabet, in which a space is "Ġ"; "words" is another tokenizer over the same bytes.
MERGES = {
    "bytes": ["t h", "th e", "Ġ t", "i n", "e r"],
    "words": ["t h", "th e", "Ġ the", "a n", "an d", "Ġ and", "i n", "in g"],
}
CONTEXT = 64
END, BEGIN = "<end>", "<begin>"


def tiny_tokenizer(vocab="bytes", *, bos=False, chat_template=None):
    """A fast tokenizer of all bytes and a few merges; with ``bos`` it puts ``<begin>`` before every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    merges = [tuple(merge.split()) for merge in MERGES[vocab]]
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(merge) for merge in merges)]
    specials = [END, BEGIN] if bos else [END]
    numbers = {piece: number for number, piece in enumerate([*pieces, *specials])}
    tokenizer = Tokenizer(models.BPE(numbers, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BEGIN} $A", special_tokens=[(BEGIN, numbers[BEGIN])]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, **({"bos_token": BEGIN} if bos else {})
    )
    fast.chat_template = chat_template
    return fast


def tiny_model(vocabulary, *, seed=0, tied=False):
    """A random Llama of two layers whose losses differ from token to token."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=tied,
            bos_token_id=None,
            eos_token_id=None,
        )
        model = LlamaForCausalLM(config)
        model.get_input_embeddings().weight.data *= 20
        model.lm_head.weight.data *= 1 if tied else 20
        return model.eval()


def tiny_checkpoint(folder, *, seed=0, vocab="bytes", bos=False, chat_template=None, dtype=None, tied=False):
    """Save a safetensors folder of a random model with its tokenizer, as save_pretrained does.

    Args:
        folder: made if it is missing.
        seed: other seeds are other weights of the same model.
        vocab: ``"bytes"`` or ``"words"``, two tokenizers whose tokens are not the same.
        bos: the tokenizer puts a token before every text.
        chat_template: of the tokenizer, as Jinja.
        dtype: of the weights; None: float32.
        tied: the output layer is the embedding, and is not in the file.
    """
    folder = Path(folder)
    tokenizer = tiny_tokenizer(vocab, bos=bos, chat_template=chat_template)
    model = tiny_model(len(tokenizer), seed=seed, tied=tied)
    model.to(dtype or torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def lightning_checkpoint(path, folder, prefix="model.", *, step=100, extra=None, hyperparameters=None):
    """Save what Lightning's ``ModelCheckpoint`` does of a module that holds the model of ``folder``.

    Args:
        path: the ``.ckpt``.
        folder: a checkpoint's, as :func:`tiny_checkpoint` makes them.
        prefix: under which name the module holds the model.
        step: ``global_step``.
        extra: other entries of the module's state: metrics, an EMA ...
        hyperparameters: of the module, for instance one that is a ``Path``.
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    state = {prefix + name: value for name, value in model.state_dict().items()}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(
        {
            "epoch": 0,
            "global_step": step,
            "pytorch-lightning_version": "2.6.0",
            "state_dict": {**state, **(extra or {})},
            "loops": {},
            "callbacks": {},
            "optimizer_states": [],
            "lr_schedulers": [],
            "hparams_name": "kwargs",
            "hyper_parameters": hyperparameters or {},
        },
        path,
    )
    return path


def change_config(folder, **entries):
    """Other entries in a checkpoint's config.json."""
    path = Path(folder) / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, **entries}), encoding="utf-8")
