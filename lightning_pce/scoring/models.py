"""Causal language models to score: found by name, told apart by content, loaded with their tokenizer.

:func:`find_models` and :func:`content_key` import no torch. Everything that :func:`load_model` returns was
looked at: all weights came from the files, and no logit depends on a later token.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning_pce._errors import UserError
from lightning_pce.scoring import _hub
from lightning_pce.scoring._content import content_key as content_key
from lightning_pce.scoring._gguf_header import read_gguf_header
from lightning_pce.scoring._model_files import tokenizer_files, weight_files
from lightning_pce.scoring._model_sources import ModelSource as ModelSource
from lightning_pce.scoring._model_sources import find_models as find_models

if TYPE_CHECKING:
    import torch
    from torch import nn

DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")
# As configurations call the number of positions; -1 is no limit (XLNet).
_POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length", "max_seq_len")


@dataclass(frozen=True)
class LoadedModel:
    """A model that can be scored.

    Attributes:
        model: in evaluation, on its device, without gradients; called with ``input_ids [B, T]`` (int64) it
            returns ``logits [B, T, vocabulary]``.
        dtype: of its weights, for instance ``"float32"``.
        quantisation: how the file holds most of its numbers, such as ``"Q8_0"`` of a GGUF; None: as they are.
        context: how many positions it has; None: not known, or no limit.
        vocabulary: how many tokens it has embeddings of.
        notes: what is to be said of how it was loaded.
    """

    model: nn.Module
    dtype: str
    quantisation: str | None
    context: int | None
    vocabulary: int
    notes: tuple[str, ...] = ()


def step_of(source: ModelSource, *, trust: bool = False) -> int | None:
    """The step of the run after which a model was saved.

    Args:
        source: of a ``.ckpt`` its ``global_step`` is read, of all others their name.
        trust: let a ``.ckpt`` run code, as a pickle may.

    Raises:
        UserError: if a ``.ckpt`` cannot be read.
    """
    if source.kind == "ckpt":
        from lightning_pce.scoring._lightning_checkpoint import read_lightning_checkpoint

        step = read_lightning_checkpoint(source.path, trust=trust).step
        return source.step if step is None else step
    return source.step


def choose_device() -> str:
    """``"cuda"``, ``"mps"`` or ``"cpu"``, the first that is there."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def load_tokenizer(source: ModelSource, *, trust: bool = False) -> Any:
    """Load a model's tokenizer, without its weights.

    Args:
        source: of a ``.ckpt``, and of an adapter or a folder that has none, it is the base's.
        trust: let it run code that comes with the model.

    Raises:
        UserError: if it cannot be loaded.
    """
    if source.base is not None and (source.kind == "ckpt" or not tokenizer_files(source.path)):
        return load_tokenizer(source.base, trust=trust)
    from transformers import AutoTokenizer

    from lightning_pce.scoring._quiet import quiet_loading

    folder, more = _folder_of(source)
    try:
        with quiet_loading():
            return AutoTokenizer.from_pretrained(
                folder, trust_remote_code=trust, local_files_only=True, **more
            )
    except Exception as error:  # of transformers, for what a stranger's files hold
        raise UserError(f"{source.name}: its tokenizer cannot be loaded: {_said(error)}") from error


def tokenizer_key(tokenizer: Any) -> str:
    """16 hexadecimal digits of what makes a tokenizer's tokens: vocabulary, merges, normaliser, added tokens.

    Templates of BOS and chats are left out, and so are padding and truncation.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        parts: Any = sorted((number, token) for token, number in tokenizer.get_vocab().items())
    else:
        whole = json.loads(backend.to_str())
        parts = {name: whole.get(name) for name in ("model", "normalizer", "pre_tokenizer", "added_tokens")}
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]


def check_vocabulary(tokenizer: Any, model: LoadedModel, name: str) -> None:
    """Look whether the model has embeddings of all tokens of the tokenizer.

    Tokens that were added to a tokenizer afterwards, such as a padding token, may lie beyond: many models
    are published so. Whoever has ids of such looks at ``model.vocabulary`` itself.

    Raises:
        UserError: if it has not.
    """
    added = set(tokenizer.get_added_vocab().values())
    largest = max((number for number in tokenizer.get_vocab().values() if number not in added), default=-1)
    if largest >= model.vocabulary:
        raise UserError(
            f"{name}: its tokenizer has ids up to {largest} but the model embeddings of {model.vocabulary} "
            "tokens; they do not belong together"
        )


def load_model(
    source: ModelSource, *, dtype: str = "auto", device: str | None = None, trust: bool = False
) -> LoadedModel:
    """Load a model, and look whether it is the one that was saved and predicts the next token.

    Args:
        source: as :func:`find_models` gives it.
        dtype: of the weights, a name as in :data:`DTYPES`; ``"auto"``: that of the checkpoint, and float32 of
            a GGUF.
        device: as torch names it; None: :func:`choose_device`.
        trust: let it run code that comes with the model, or from a ``.ckpt``.

    Raises:
        UserError: if it cannot be loaded, some weights are not in its files, or it looks ahead.
    """
    import torch

    if dtype not in DTYPES:
        raise UserError(f"--dtype {dtype}: expected one of {', '.join(DTYPES)}")
    chosen = device or choose_device()
    loaded = _load(source, None if dtype == "auto" else getattr(torch, dtype), trust)
    try:
        loaded.model.eval().requires_grad_(False).to(chosen)
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(
            f"{source.name}: its weights do not fit on {chosen}; --dtype bfloat16 takes half of float32"
        ) from error
    except (
        RuntimeError,
        AssertionError,
    ) as error:  # a device that is not there; AssertionError: no CUDA build
        raise UserError(f"{source.name}: cannot be put on device {chosen}: {_said(error)}") from error
    _check_causal(loaded, source.name, chosen)
    return loaded


def _load(source: ModelSource, dtype: torch.dtype | None, trust: bool) -> LoadedModel:
    if source.kind == "ckpt":
        from lightning_pce.scoring._lightning_checkpoint import dtype_of, put_into, read_lightning_checkpoint

        assert source.base is not None
        state = read_lightning_checkpoint(source.path, trust=trust)
        base = _load(source.base, dtype or dtype_of(state.tensors), trust)
        notes = put_into(base.model, state, source.path, source.base.name)
        return _described(base.model, None, notes)
    if source.kind == "adapter":
        from lightning_pce.scoring._adapters import with_adapter

        assert source.base is not None
        if source.of_hub is not None:
            _hub.fetch_weights(source.of_hub, source.path)
        base = _load(source.base, dtype, trust)
        adapted = with_adapter(base.model, source.path, source.name)
        notes = (*base.notes, f"adapter over {source.base.name}")
        return LoadedModel(adapted, base.dtype, base.quantisation, base.context, base.vocabulary, notes)
    return _pretrained(source, dtype, trust)


def _pretrained(source: ModelSource, dtype: torch.dtype | None, trust: bool) -> LoadedModel:
    import torch
    from transformers import AutoModelForCausalLM

    from lightning_pce.scoring._quiet import quiet_loading

    if source.of_hub is not None:
        _hub.fetch_weights(source.of_hub, source.path)
        weight_files(source.path, source.name)
    auto: Any = AutoModelForCausalLM  # typed as if output_loading_info did not exist
    folder, more = _folder_of(source)
    quantisation = None
    wanted: Any = dtype or "auto"
    if source.kind == "gguf":
        quantisation, wanted = read_gguf_header(source.path).quantisation, dtype or torch.float32
    try:
        with quiet_loading():
            model, report = auto.from_pretrained(
                folder,
                dtype=wanted,
                trust_remote_code=trust,
                local_files_only=True,
                output_loading_info=True,
                **more,
            )
    except Exception as error:  # of transformers, for what a stranger's files hold
        if "trust_remote_code" in str(error):
            raise UserError(
                f"{source.name}: brings code of its own; if you trust who made it add --trust"
            ) from error
        raise UserError(f"{source.name}: cannot be loaded: {_said(error)}") from error
    missing = sorted(report["missing_keys"])
    if missing:  # they would be random
        raise UserError(
            f"{source.name}: {len(missing)} weights of {type(model).__name__} are not in its files: "
            f"{_five(missing)}"
        )
    unused = sorted(report["unexpected_keys"])
    notes = (f"{len(unused)} weights of the files not used: {_five(unused)}",) if unused else ()
    return _described(model, quantisation or _quantisation_in(model.config), notes)


def _described(model: Any, quantisation: str | None, notes: tuple[str, ...]) -> LoadedModel:
    config = model.config.get_text_config()
    positions = [getattr(config, name, None) for name in _POSITIONS]
    dtype = next((each.dtype for each in model.parameters() if each.is_floating_point()), None)
    return LoadedModel(
        model,
        str(dtype).removeprefix("torch."),
        quantisation,
        next((each for each in positions if isinstance(each, int) and each > 0), None),
        int(model.get_input_embeddings().weight.shape[0]),
        notes,
    )


def _quantisation_in(config: Any) -> str | None:
    """Such as ``"gptq 4 bit"``, of a model whose weights were saved so."""
    found = getattr(config, "quantization_config", None)
    if found is None:
        return None
    entries = found if isinstance(found, dict) else found.to_dict()
    bits = entries.get("bits")
    method = getattr(entries.get("quant_method"), "value", entries.get("quant_method"))
    return f"{method} {bits} bit" if bits else str(method)


def _check_causal(loaded: LoadedModel, name: str, device: str) -> None:
    """Score two texts that begin alike: what comes later must not change the logits of the beginning."""
    import torch

    begin = torch.arange(4) % loaded.vocabulary
    end = torch.arange(4, 8) % loaded.vocabulary
    ids = torch.stack([torch.cat([begin, end]), torch.cat([begin, end.flip(0)])]).to(device)
    try:
        with torch.inference_mode():
            logits = loaded.model(input_ids=ids).logits
    except Exception as error:  # of a model whose code may be a stranger's
        raise UserError(f"{name}: fails on 8 tokens: {_said(error)}") from error
    if logits.ndim != 3 or logits.shape[:2] != ids.shape:
        raise UserError(
            f"{name}: gives logits of shape {tuple(logits.shape)} for {tuple(ids.shape)} tokens; one row for "
            "each token is needed"
        )
    logits = logits[:, : len(begin)].float()
    # Rows of one batch go through the same kernels; a twentieth of their spread is far from rounding.
    if (logits[0] - logits[1]).abs().max() > 0.05 * logits.std():
        raise UserError(
            f"{name}: its logits depend on later tokens, so it is not a causal language model "
            "(a BERT without is_decoder?)"
        )


def _folder_of(source: ModelSource) -> tuple[str, dict[str, Any]]:
    """What transformers' from_pretrained is called with."""
    if source.kind == "gguf":
        return str(source.path.parent), {"gguf_file": source.path.name}
    return str(source.path), {}


def _five(names: list[str]) -> str:
    return f"{', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"


def _said(error: Exception) -> str:
    """An error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
