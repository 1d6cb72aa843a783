"""Causal language models to score: found by name, told apart by content, loaded with their tokenizer.

:func:`find_models` and :func:`content_key` import no torch. Everything that :func:`load_model` returns was
looked at: all weights came from the files, and no logit depends on a later token.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from lightning_pce._errors import UserError
from lightning_pce.scoring import _hub
from lightning_pce.scoring._content import content_key as content_key
from lightning_pce.scoring._in_words import one_line
from lightning_pce.scoring._model_files import read_json, tokenizer_files
from lightning_pce.scoring._model_sources import ModelSource as ModelSource
from lightning_pce.scoring._model_sources import find_models as find_models
from lightning_pce.scoring._pretrained import LoadedModel as LoadedModel
from lightning_pce.scoring._pretrained import (
    check_causal_logits,
    described,
    folder_of,
    load_pretrained,
    why_not,
)

if TYPE_CHECKING:
    import torch

DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")


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

    folder, more = folder_of(source)
    try:
        with quiet_loading():
            return AutoTokenizer.from_pretrained(
                folder, trust_remote_code=trust, local_files_only=True, **more
            )
    except Exception as error:  # of transformers, for what a stranger's files hold
        raise UserError(f"{source.name}: its tokenizer {why_not(error)}") from error


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
        raise UserError(f"{source.name}: cannot be put on device {chosen}: {one_line(error)}") from error
    check_causal_logits(loaded, source.name, chosen)
    return loaded


def _load(source: ModelSource, dtype: torch.dtype | None, trust: bool) -> LoadedModel:
    if source.kind == "ckpt":
        from lightning_pce.scoring._lightning_checkpoint import dtype_of, put_into, read_lightning_checkpoint

        assert source.base is not None
        state = read_lightning_checkpoint(source.path, trust=trust)
        base = _load(source.base, dtype or dtype_of(state.tensors), trust)
        notes = put_into(base.model, state, source.path, source.base.name)
        return described(base.model, None, notes)
    if source.kind == "adapter":
        from lightning_pce.scoring._adapters import with_adapter

        assert source.base is not None
        if source.of_hub is not None:
            _hub.fetch_weights(source.of_hub, source.path)
        base = _load(source.base, dtype, trust)
        adapted = with_adapter(base.model, source.path, source.name)
        trained_from = read_json(source.path / "adapter_config.json").get("base_model_name_or_path")
        other = f" (trained from {trained_from})" if trained_from not in (None, source.base.name) else ""
        notes = (*base.notes, f"adapter over {source.base.name}{other}")
        return LoadedModel(adapted, base.dtype, base.quantisation, base.context, base.vocabulary, notes)
    return load_pretrained(source, dtype, trust)
