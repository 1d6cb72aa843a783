"""Sums over rows of logits by one function that torch.compile turns into two loops over each row."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from lightning_pce.tokens.kernels import eager
from lightning_pce.tokens.kernels.row_sums import RowSums

_failed: set[tuple[bool, torch.dtype, str]] = set()  # what did not compile here; trying again takes seconds


def row_sums(rows: Tensor, target: Tensor, everything: bool) -> RowSums:
    """Sums of rows ``[N, V]``, compiled once for all shapes of a dtype and a layout.

    Without a C++ compiler that works, where torch.compile is disabled, or for more dtypes and layouts than
    its limit of 8, this warns and is eager.
    """
    kind = (everything, rows.dtype, rows.device.type)
    # Sizes of 0 and 1 would each be compiled apart, and are too small to matter.
    if min(rows.shape) < 2 or kind in _failed:
        return eager.row_sums(rows, target, everything)
    # An argument, because an index made inside is rebuilt for every vector of logits: 35 ms instead of 27.
    # And of 32 bits, as the logits: with 64 it is 97 ms.
    position = torch.arange(rows.shape[-1], dtype=torch.int32, device=rows.device)
    label = target.clamp(min=0)[:, None]
    try:
        with torch.no_grad():
            # As .data, because the shape of what a view is a view of would be compiled in.
            top, own, others, *more = _compiled(everything)(rows.data, label.data, position)
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # the errors of torch.compile have no base of their own
        _failed.add(kind)
        warnings.warn(
            f"backend='compile' does not work here, eager operations take its place: {_first_line(error)}",
            stacklevel=2,
        )
        return eager.row_sums(rows, target, everything)
    dot, ahead = more if everything else (None, None)
    return RowSums(top, own, others, dot, ahead)


@cache
def _compiled(everything: bool) -> Callable[..., tuple[Tensor, ...]]:
    return torch.compile(_everything if everything else _cross_entropy, dynamic=True, fullgraph=True)


# Sums are in float64, which costs a tenth: the compiler's float32 sums are 4e-6 off over 262,144 logits.


def _cross_entropy(rows: Tensor, label: Tensor, position: Tensor) -> tuple[Tensor, ...]:
    _, z, own, top = _start(rows, label, position)
    return top[:, 0], own[:, 0], z.exp().sum(-1, dtype=torch.float64)


def _everything(rows: Tensor, label: Tensor, position: Tensor) -> tuple[Tensor, ...]:
    x, z, own, top = _start(rows, label, position)
    e = z.exp()
    dot = e * z.clamp(min=-1e4)  # -inf times 0 is not a number
    ahead = (x > own) | ((x == own) & (position < label.int()))
    sums = [part.sum(-1, dtype=torch.float64) for part in (e, dot)]
    return top[:, 0], own[:, 0], *sums, ahead.sum(-1, dtype=torch.int32)


def _start(rows: Tensor, label: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if not torch.compiler.is_compiling():  # every line would copy all logits
        raise RuntimeError("torch.compile is disabled.")
    x = rows if rows.dtype == torch.float64 else rows.float()
    own = x.gather(-1, label)
    x = torch.where(position == label.int(), -torch.inf, x)
    top = x.amax(-1, keepdim=True)
    return x, x - torch.where(top == -torch.inf, 0.0, top), own, top


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
