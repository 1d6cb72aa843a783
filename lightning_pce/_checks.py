"""What every folder checks alike: no DTensors, and a warning once and on one rank."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

_P = ParamSpec("_P")
_R = TypeVar("_R")


def plain_tensors(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Let a function take replicated DTensors as the plain tensors they are, and no other special tensors.

    Of a sharded DTensor each rank would take its own part for the whole; making it whole, or a partial one,
    is a collective that a rank without this call would never enter. What torch.func transforms (vmap, grad
    ...) has no values that a state could keep. Tensors in tuples and lists are looked at too.

    Raises:
        ValueError: in the function, before it begins.
    """

    @wraps(function)
    def checked(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        # Only then, as binding takes longer than a small update.
        if _holds_special(args) or (kwargs and _holds_special(tuple(kwargs.values()))):
            arguments = inspect.signature(function).bind(*args, **kwargs)
            for name, value in arguments.arguments.items():
                arguments.arguments[name] = _plain(name, value)
            return function(*arguments.args, **arguments.kwargs)
        return function(*args, **kwargs)

    return checked


def _holds_special(values: tuple[object, ...] | list[object]) -> bool:
    for value in values:  # a loop: any() of a generator takes three times as long for one tensor
        if isinstance(value, Tensor):
            if _is_dtensor(value) or is_transformed(value):
                return True
        elif isinstance(value, (tuple, list)) and _holds_special(value):
            return True
    return False


def _is_dtensor(value: Tensor) -> bool:
    # Not by its class: that would import torch.distributed.tensor.
    return type(value) is not Tensor and hasattr(value, "placements")


# Not public, but as old as torch.func; without it there would be no sentence of ours.
is_transformed: Callable[[Tensor], bool] = getattr(
    getattr(torch._C, "_functorch", None), "is_functorch_wrapped_tensor", lambda _: False
)


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, tuple | list):
        parts = [_plain(name, each) for each in value]
        return value._make(parts) if hasattr(value, "_make") else type(value)(parts)
    if isinstance(value, dict):
        return {key: _plain(key, each) for key, each in value.items()}
    if not isinstance(value, Tensor):
        return value
    if is_transformed(value):
        raise ValueError(
            f"Expected argument `{name}` to be a plain tensor but got one that torch.func transforms (vmap, "
            "grad, jvp ...): a metric's state cannot follow it. Call this outside, with the results."
        )
    if not _is_dtensor(value):
        return value
    dtensor: Any = value
    if all(placement.is_replicate() for placement in dtensor.placements):
        return dtensor.to_local()
    raise ValueError(
        f"Expected argument `{name}` to be a plain tensor but got a DTensor of shape {tuple(value.shape)} "
        f"placed as {dtensor.placements}. If only batch or sequence are sharded pass {name}.to_local(); if "
        f"the vocabulary is, or it is a partial sum or norm, {name}.full_tensor() on all ranks, or ask the "
        "parallel plan for a replicated output."
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
