"""What every folder checks alike: no DTensors, and a warning once and on one rank."""

from __future__ import annotations

import os
import warnings

import torch.distributed as dist
from torch import Tensor


def check_not_sharded(name: str, value: Tensor) -> None:
    """Raise a ``ValueError`` for a DTensor: each rank would take its own part for the whole."""
    placements = getattr(value, "placements", None)
    if placements is not None:
        raise ValueError(
            f"Expected argument `{name}` to be a plain tensor but got a DTensor of shape "
            f"{tuple(value.shape)} placed as {placements}. If only batch or sequence are sharded pass "
            f"{name}.to_local(); if the vocabulary is, {name}.full_tensor(), or ask the parallel plan for a "
            "replicated output."
        )


def warn_once(said: set[str], what: str, message: str) -> None:
    """Warn on rank 0 unless ``what`` was warned of before.

    Args:
        said: what was warned of, kept by the caller; ``what`` is added on every rank.
        what: which warning this is.
        message: its text.
    """
    if what in said:
        return
    said.add(what)
    if _rank() == 0:
        warnings.warn(message, stacklevel=3)


def _rank() -> int:
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank()
    return int(os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or 0)
