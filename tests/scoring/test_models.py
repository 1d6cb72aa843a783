"""Models load with all their weights and in silence, and what does not predict the next token is refused."""

import json
import logging
import re

import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig, BertLMHeadModel

from lightning_pce._errors import UserError
from lightning_pce.scoring.models import (
    check_vocabulary,
    choose_device,
    find_models,
    load_model,
    load_tokenizer,
    tokenizer_key,
)
from tests.helpers.tiny_checkpoints import CONTEXT, change_config, tiny_checkpoint, tiny_tokenizer

IDS = torch.arange(6)[None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


def loaded(path, **settings):
    (source,) = find_models([path])
    return load_model(source, **settings)


def logits_of(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_a_folder_gives_the_logits_of_its_model(folder):
    found = loaded(folder)
    assert torch.equal(logits_of(found.model), logits_of(AutoModelForCausalLM.from_pretrained(folder).eval()))
    assert not found.model.training
    assert not any(each.requires_grad for each in found.model.parameters())
    assert (found.dtype, found.context, found.vocabulary) == ("float32", CONTEXT, 262)
    assert (found.quantisation, found.notes) == (None, ())
    assert found.model.device.type == choose_device()


def test_positions_begin_behind_that_of_padding(tmp_path):
    from transformers import RobertaConfig, RobertaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = RobertaConfig(vocab_size=262, max_position_embeddings=34, is_decoder=True, **sizes)
    RobertaForCausalLM(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    found = loaded(tmp_path)
    assert found.context == 32
    assert found.model(input_ids=torch.zeros(1, found.context, dtype=torch.int64)).logits.shape[1] == 32


@pytest.mark.parametrize(("saved", "asked", "got"), [
    ("bfloat16", "auto", "bfloat16"),
    ("float16", "auto", "float16"),
    ("bfloat16", "float32", "float32"),
    ("float32", "bfloat16", "bfloat16"),
])  # fmt: skip
def test_dtype_is_that_of_the_checkpoint_unless_another_is_asked_for(tmp_path, saved, asked, got):
    tiny_checkpoint(tmp_path, dtype=getattr(torch, saved))
    found = loaded(tmp_path, dtype=asked)
    assert found.dtype == got
    assert {each.dtype for each in found.model.parameters()} == {getattr(torch, got)}


def test_loading_says_nothing_and_leaves_settings_as_they_were(folder, capfd):
    from transformers.utils import logging as theirs

    before = theirs.get_verbosity(), theirs.is_progress_bar_enabled(), logging.getLogger("peft").level
    (source,) = find_models([folder])
    load_model(source)
    load_tokenizer(source)
    with pytest.raises(UserError):
        loaded(folder, device="nonsense")
    assert capfd.readouterr() == ("", "")
    assert before == (
        theirs.get_verbosity(),
        theirs.is_progress_bar_enabled(),
        logging.getLogger("peft").level,
    )


def test_weights_that_are_not_there_are_not_made_up(folder, tmp_path):
    tiny_checkpoint(tmp_path)
    change_config(tmp_path, num_hidden_layers=3)
    with pytest.raises(
        UserError, match=r"9 weights of LlamaForCausalLM are not in its files: model\.layers\.2"
    ):
        loaded(tmp_path)
    change_config(tmp_path, num_hidden_layers=1)
    (note,) = loaded(tmp_path).notes
    assert re.match(r"9 weights of the files not used: model\.layers\.1", note)


def test_a_model_that_looks_ahead_is_refused(tmp_path):
    config = BertConfig(
        vocab_size=262, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    torch.manual_seed(0)
    BertLMHeadModel(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="its logits depend on later tokens"):
        loaded(tmp_path)
    change_config(tmp_path, is_decoder=True)
    assert loaded(tmp_path).vocabulary == 262


@pytest.mark.parametrize(("entries", "match"), [
    ({"hidden_size": 32}, "weights have other shapes in its files than by its config.json"),
    ({"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "c.M", "AutoConfig": "c.C"}}, "--trust"),
    pytest.param(
        {"model_type": "t5"}, "its model_type is not one of the causal", marks=pytest.mark.slow
    ),  # transformers lists all others: 1.6 s
    ({"model_type": "mine"}, "cannot be loaded: ValueError: .* `mine`"),
])  # fmt: skip
def test_what_transformers_cannot_load_is_said_in_one_line(tmp_path, entries, match):
    tiny_checkpoint(tmp_path)
    change_config(tmp_path, **entries)
    with pytest.raises(UserError, match=match) as refused:
        loaded(tmp_path)
    assert "\n" not in str(refused.value)


def test_code_of_a_model_runs_with_trust_only(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    tiny_checkpoint(tmp_path)
    change_config(tmp_path, model_type="mine", auto_map={"AutoModelForCausalLM": "c.M", "AutoConfig": "c.C"})
    (tmp_path / "c.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class C(LlamaConfig):\n    model_type = 'mine'\n"
        "class M(LlamaForCausalLM):\n    config_class = C\n",
        encoding="utf-8",
    )
    with pytest.raises(UserError, match="brings code of its own"):
        loaded(tmp_path)
    assert not (tmp_path / "ran").exists()
    assert loaded(tmp_path, trust=True).vocabulary == 262
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(("settings", "match"), [
    ({"dtype": "int8"}, "--dtype int8: expected one of auto, float32"),
    ({"device": "nonsense"}, "cannot be put on device nonsense"),
])  # fmt: skip
def test_settings_that_are_refused(folder, settings, match):
    with pytest.raises(UserError, match=match):
        loaded(folder, **settings)


def test_weights_in_a_pickle_are_read_as_tensors_alone(folder, tmp_path):
    from safetensors.torch import load_file

    tiny_checkpoint(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    assert torch.equal(logits_of(loaded(tmp_path).model), logits_of(loaded(folder).model))
    torch.save({**weights, "x": Opens(str(tmp_path / "ran"))}, tmp_path / "pytorch_model.bin")
    for trust in (False, True):
        with pytest.raises(UserError, match="save it as safetensors"):
            loaded(tmp_path, trust=trust)
    assert not (tmp_path / "ran").exists()


class Opens:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_the_tokenizer_is_that_of_the_folder(tmp_path):
    (source,) = find_models([tiny_checkpoint(tmp_path, vocab="words")])
    tokenizer = load_tokenizer(source)
    assert tokenizer("the sand")["input_ids"] == tiny_tokenizer("words")("the sand")["input_ids"]
    check_vocabulary(tokenizer, load_model(source), source.name)


def test_a_tokenizer_of_another_model_is_refused_but_an_added_token_is_not(folder):
    model = loaded(folder)
    with pytest.raises(UserError, match="ids up to 263 but the model embeddings of 262 tokens"):
        check_vocabulary(tiny_tokenizer("words"), model, "x")
    padded = tiny_tokenizer()
    padded.add_tokens(["<pad>"])
    check_vocabulary(padded, model, "x")


def test_a_tokenizers_key_is_what_makes_its_tokens():
    key = tokenizer_key(tiny_tokenizer())
    assert re.fullmatch("[0-9a-f]{16}", key)
    assert key != tokenizer_key(tiny_tokenizer("words"))
    assert key != tokenizer_key(tiny_tokenizer(bos=True))  # another added token
    other = tiny_tokenizer(chat_template="{{ messages }}")
    other("x", truncation=True, max_length=2)
    assert tokenizer_key(other) == key
    other.add_tokens(["<x>"])
    assert tokenizer_key(other) != key


def test_a_broken_tokenizer_is_said(tmp_path):
    tiny_checkpoint(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": 3}), encoding="utf-8")
    (source,) = find_models([tmp_path])
    with pytest.raises(UserError, match="its tokenizer cannot be loaded"):
        load_tokenizer(source)
