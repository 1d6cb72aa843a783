"""What transformers loads by itself: folders, models of the hub and GGUF files; and what it may not say."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning_pce._errors import UserError
from lightning_pce.scoring import _hub
from lightning_pce.scoring._gguf_header import read_gguf_header
from lightning_pce.scoring._in_words import first_five, one_line
from lightning_pce.scoring._model_files import weight_files
from lightning_pce.scoring._model_sources import ModelSource

if TYPE_CHECKING:
    import torch
    from torch import nn

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


def load_pretrained(source: ModelSource, dtype: torch.dtype | None, trust: bool) -> LoadedModel:
    """Load a folder, a model of the hub or a GGUF, on the CPU.

    Raises:
        UserError: if it cannot be loaded, or not all of its weights are in its files.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from lightning_pce.scoring._quiet import quiet_loading

    if source.of_hub is not None:
        _hub.fetch_weights(source.of_hub, source.path)
        weight_files(source.path, source.name)
    auto: Any = AutoModelForCausalLM  # typed as if output_loading_info did not exist
    folder, more = folder_of(source)
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
                ignore_mismatched_sizes=True,  # to name them ourselves
                **more,
            )
    except Exception as error:  # of transformers, for what a stranger's files hold
        raise UserError(f"{source.name}: {why_not(error)}") from error
    return described(
        model, quantisation or _quantisation_in(model.config), _all_loaded(source.name, model, report)
    )


def why_not(error: Exception) -> str:
    """What an error of transformers means for who named the model."""
    if "trust_remote_code" in str(error):
        return "brings code of its own; if you trust who made it add --trust"
    behind: BaseException | None = error
    while behind is not None and not isinstance(behind, pickle.UnpicklingError):
        behind = behind.__context__  # older versions of transformers guess at what it was
    if behind is not None:
        return (
            "pytorch_model.bin holds other objects than tensors, which may run code; save it as safetensors"
        )
    if "Unrecognized configuration class" in str(error):
        return "its model_type is not one of the causal language models that this transformers knows"
    return f"cannot be loaded: {one_line(error)}"


def _all_loaded(name: str, model: Any, report: Mapping[str, Any]) -> tuple[str, ...]:
    """What is to be said of a report of transformers, which makes weights random that it does not find."""
    # Names, or with their shapes, as the version of transformers likes it.
    mismatched = sorted(each if isinstance(each, str) else each[0] for each in report["mismatched_keys"])
    if mismatched:
        raise UserError(
            f"{name}: {len(mismatched)} weights have other shapes in its files than by its config.json: "
            f"{first_five(mismatched)}"
        )
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(
            f"{name}: {len(missing)} weights of {type(model).__name__} are not in its files: "
            f"{first_five(missing)}"
        )
    unused = sorted(report["unexpected_keys"])
    return (f"{len(unused)} weights of the files not used: {first_five(unused)}",) if unused else ()


def described(model: Any, quantisation: str | None, notes: tuple[str, ...]) -> LoadedModel:
    config = model.config.get_text_config()
    positions = [getattr(config, name, None) for name in _POSITIONS]
    known = next((each for each in positions if isinstance(each, int) and each > 0), None)
    dtype = next((each.dtype for each in model.parameters() if each.is_floating_point()), None)
    return LoadedModel(
        model,
        str(dtype).removeprefix("torch."),
        quantisation,
        None if known is None else known - _before_positions(model),
        int(model.get_input_embeddings().weight.shape[0]),
        notes,
    )


def _before_positions(model: Any) -> int:
    """How many rows of position embeddings are of no position: those up to that of padding, in RoBERTa's."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(module.padding_idx) + 1
    return 0


def _quantisation_in(config: Any) -> str | None:
    """Such as ``"gptq 4 bit"``, of a model whose weights were saved so."""
    found = getattr(config, "quantization_config", None)
    if found is None:
        return None
    entries = found if isinstance(found, dict) else found.to_dict()
    bits = entries.get("bits")
    method = getattr(entries.get("quant_method"), "value", entries.get("quant_method"))
    return f"{method} {bits} bit" if bits else str(method)


def check_causal_logits(loaded: LoadedModel, name: str, device: str) -> None:
    """Score two texts that begin alike: what comes later must not change the logits of the beginning.

    Raises:
        UserError: if it does, or the model gives no logits of each token.
    """
    import torch

    begin = torch.arange(4) % loaded.vocabulary
    end = torch.arange(4, 8) % loaded.vocabulary
    ids = torch.stack([torch.cat([begin, end]), torch.cat([begin, end.flip(0)])]).to(device)
    try:
        with torch.inference_mode():
            logits = loaded.model(input_ids=ids).logits
    except Exception as error:  # of a model whose code may be a stranger's
        raise UserError(f"{name}: fails on 8 tokens: {one_line(error)}") from error
    if logits.ndim != 3 or logits.shape[:2] != ids.shape:
        raise UserError(
            f"{name}: gives logits of shape {tuple(logits.shape)} for {tuple(ids.shape)} tokens; one row for "
            "each token is needed"
        )
    # Rows of one batch go through the same kernels: 0 was seen for causal models of any dtype, 1e-3 of the
    # spread for a random BERT. Experts may round in another order.
    tolerance = min(64 * torch.finfo(logits.dtype).eps, 0.05) * logits.float().abs().max()
    if (logits[0, : len(begin)] - logits[1, : len(begin)]).float().abs().max() > tolerance:
        raise UserError(
            f"{name}: its logits depend on later tokens, so it is not a causal language model "
            "(a BERT without is_decoder?)"
        )


def folder_of(source: ModelSource) -> tuple[str, dict[str, Any]]:
    """What transformers' from_pretrained is called with."""
    if source.kind == "gguf":
        return str(source.path.parent), {"gguf_file": source.path.name}
    return str(source.path), {}
