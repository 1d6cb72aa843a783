"""What a step returned, as the arguments of an update."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from lightning_pce.integrations.settings import Settings

NAMES = ("logits", "labels", "losses", "mask", "weights", "group", "document")
_IN_BATCH = ("labels", "group", "document")  # looked for there without being named
Read = Mapping[str, str] | Callable[[Any, Any], Any]


def update_arguments(
    outputs: Any, batch: Any, read: Read | None, settings: Settings, *, training: bool = False
) -> list[dict[str, Any] | None]:
    """The arguments of one update or, from a list, of several; None for what holds nothing to measure.

    Args:
        outputs: what the step returned.
        batch: what it was given.
        read: names by argument, or a function of both that returns arguments, a list of them or None.
        settings: what is measured.
        training: per-token losses only: some kernels have overwritten the logits with gradients by then.

    Raises:
        ValueError: if something that ``read`` names is not there, or its function returns something else.
    """
    if callable(read):
        given = read(outputs, batch)
        every = given if isinstance(given, list) else [given]
        found = [None if each is None else _checked(each) for each in every]
    else:
        # A namedtuple is one output, a tuple as of models that return no dict is several unreadable ones.
        several = isinstance(outputs, (list, tuple)) and not hasattr(outputs, "_fields")
        parts = list(outputs) if several else [outputs]
        alike = several and isinstance(batch, (list, tuple)) and len(batch) == len(parts)
        batches = list(batch) if alike else [batch] * len(parts)
        found = [_named(*pair, read or {}, training) for pair in zip(parts, batches, strict=True)]
    return [None if each is None else _chosen(each, settings, training) for each in found]


def described(outputs: Any) -> str:
    """What a step returned, in words."""
    if isinstance(outputs, Mapping):
        return f"a {type(outputs).__name__} with {', '.join(map(repr, outputs)) or 'nothing'}"
    if isinstance(outputs, Tensor):
        return f"a tensor of shape {tuple(outputs.shape)}"
    return "None" if outputs is None else f"a {type(outputs).__name__}"


def checked_read(read: Any) -> Read | None:
    """The argument ``read`` of the callback, or a ``ValueError``."""
    if read is None or callable(read):
        return cast("Read | None", read)
    if not isinstance(read, Mapping) or not all(isinstance(name, str) for name in read.values()):
        raise ValueError(
            "Expected argument `read` to be a dict of names or a function (outputs, batch) -> dict but got "
            f"{read!r:.80}."
        )
    unknown = [name for name in read if name not in NAMES]
    if unknown:
        raise ValueError(
            f"Expected argument `read` to say where {', '.join(NAMES)} are but got {unknown[0]!r}."
        )
    return dict(read)


def _checked(given: Any) -> dict[str, Any]:
    known = (*NAMES, "dataloader_idx")
    if not isinstance(given, Mapping) or any(name not in known for name in given):
        raise ValueError(
            f"Expected the function `read` to return a dict with some of {', '.join(known)}, or a list of "
            f"them, but it returned {described(given)}."
        )
    return dict(given)


def _named(outputs: Any, batch: Any, read: Mapping[str, str], training: bool) -> dict[str, Any]:
    """What stands under the names, in the output or, if named or usual there, in the batch."""
    found = {name: _member(outputs, read.get(name, name)) for name in NAMES}
    for name in (*_IN_BATCH, *read):
        if found[name] is None:
            found[name] = _member(batch, read.get(name, name))
    lost = [name for name in ("mask", "weights", "group", "document") if name in read and found[name] is None]
    if lost and (not training or found["losses"] is not None):
        raise ValueError(
            f"Expected `{lost[0]}` under {read[lost[0]]!r}, as argument `read` says, but neither the output, "
            f"{described(outputs)}, nor the batch has it."
        )
    return found


def _chosen(found: dict[str, Any], settings: Settings, training: bool) -> dict[str, Any] | None:
    """Losses, if they are enough for the statistics, and else logits and labels."""
    logits, labels, losses, mask, weights, group, document = (found.get(name) for name in NAMES)
    shared = {"weights": weights, "group": None if settings.groups is None else group}
    if settings.error_bars and not training:  # a window of training has none
        shared["document"] = document
    if "dataloader_idx" in found and not training:
        shared["dataloader_idx"] = found["dataloader_idx"]
    scored = not training and logits is not None and labels is not None
    if losses is not None and not (scored and len(settings.statistics) > 1):
        # Beside a mask they only say which row is which document.
        labels = labels if _are_ids(labels) and (mask is None or settings.error_bars) else None
        return {**shared, "losses": losses, "mask": mask, "labels": labels}
    if not scored:
        return None
    # A mask beside losses is theirs; alone, an update refuses it.
    return {**shared, "logits": logits, "labels": labels, "mask": mask if losses is None else None}


def _are_ids(labels: Any) -> bool:
    """Whether labels can say which losses count; a batch may have others of that name."""
    return isinstance(labels, Tensor) and not (labels.is_floating_point() or labels.dtype == torch.bool)


def _member(container: Any, name: str) -> Any:
    """An entry of a dict or an attribute of an object."""
    return container.get(name) if isinstance(container, Mapping) else getattr(container, name, None)
