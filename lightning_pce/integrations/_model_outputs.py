"""What the outputs of a model say of the tokens of a batch: logits, whole or in chunks, or losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lightning_pce.tokens.labels import Logits

Shape = tuple[int, ...]


class PassedBy:
    """What a model gives for the tokens of one batch; :meth:`look` is a forward hook of the model.

    Only the logits are kept, and of several calls with logits the first.

    Args:
        shapes: those that labels may have, so that ``[*shape, V]`` are logits of the batch.
    """

    def __init__(self, *shapes: Shape) -> None:
        self.shapes = shapes
        self.logits: Logits | None = None
        self.losses: tuple[Tensor, Tensor] | None = None
        self.calls = 0  # that gave logits
        self.seen: list[str] = []

    def look(self, module: Any, inputs: Any, outputs: Any) -> None:
        """Note what a call of the model has returned."""
        logits = logits_in(outputs, self.shapes)
        if logits is not None:
            self.calls += 1
            self.logits = logits if self.logits is None else self.logits
        elif self.losses is None:
            self.losses = losses_in(outputs, self.shapes)
        self.seen.append(described(outputs))

    def take(self, outputs: Any) -> None:
        """Outputs that were returned beside the loss: they say which logits are meant."""
        logits = logits_in(outputs, self.shapes)
        if logits is not None:
            self.logits, self.calls = logits, 1
        self.seen.append(described(outputs))


def logits_in(outputs: Any, shapes: Sequence[Shape]) -> Logits | None:
    """Logits ``[*shape, V]`` of one of the shapes, or a list of their chunks along the sequence.

    Args:
        outputs: logits themselves; a dict or an object that has them as ``logits``; or a tuple or list, of
            which they are the first that fit.
        shapes: ``[...]``, those that labels may have.
    """
    if isinstance(outputs, Mapping):
        found = [outputs.get("logits")]
    elif isinstance(outputs, list):
        found = [outputs, *outputs]
    elif isinstance(outputs, tuple):
        found = list(outputs)
    else:
        found = [outputs, getattr(outputs, "logits", None)]
    return next((each for each in found if _shape_of_tokens(each) in shapes), None)


def losses_in(outputs: Any, shapes: Sequence[Shape]) -> tuple[Tensor, Tensor] | None:
    """The losses of tokens and which of them count, of a head that gives no logits.

    trl's ``add_fused_lm_head`` returns ``log_probs`` and ``label_mask``, both ``[B, T - 1]``: the model has
    shifted the labels.
    """
    if not isinstance(outputs, Mapping):
        return None
    log_probs, mask = outputs.get("log_probs"), outputs.get("label_mask")
    if not isinstance(log_probs, Tensor) or not isinstance(mask, Tensor) or log_probs.ndim != 2:
        return None
    fits = {(rows, length - shift) for rows, length in (s for s in shapes if len(s) == 2) for shift in (0, 1)}
    if mask.shape != log_probs.shape or tuple(mask.shape) not in fits:
        return None
    return -log_probs, mask.bool()


def first_rows(logits: Logits, rows: int) -> Logits:
    """Logits of the first rows of a batch, chunk by chunk if they are chunks."""
    return logits[:rows] if isinstance(logits, Tensor) else [chunk[:rows] for chunk in logits]


def length_of(logits: Logits) -> int:
    """How many positions each sequence has."""
    return logits.shape[-2] if isinstance(logits, Tensor) else sum(chunk.shape[-2] for chunk in logits)


def described(outputs: Any) -> str:
    """What a model returned, in words."""
    if isinstance(outputs, Tensor):
        return f"a tensor {tuple(outputs.shape)}"
    if isinstance(outputs, Mapping):
        logits = outputs.get("logits")
        return f"logits {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"{list(outputs)}"
    if isinstance(outputs, tuple | list):
        shapes = ", ".join(str(tuple(each.shape)) for each in outputs if isinstance(each, Tensor))
        return f"a {type(outputs).__name__} of tensors {shapes or 'none'}"
    return "None" if outputs is None else f"a {type(outputs).__name__}"


def _shape_of_tokens(logits: Any) -> Shape | None:
    """``[...]`` of logits ``[..., V]`` or of their chunks; None of what cannot be logits."""
    if isinstance(logits, Tensor):
        return tuple(logits.shape[:-1]) if logits.is_floating_point() and logits.ndim else None
    chunks = logits if isinstance(logits, tuple | list) else ()
    if not chunks or not all(isinstance(each, Tensor) and each.ndim > 1 for each in chunks):
        return None
    if len({(*each.shape[:-2], each.shape[-1]) for each in chunks}) > 1:
        return None
    return (*chunks[0].shape[:-2], sum(each.shape[-2] for each in chunks))
