"""Ways to read the logits once: eager operations, one compiled function, a Triton kernel; and the choice."""

from __future__ import annotations

import warnings
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from lightning_pce.tokens.kernels import compile as compiled
from lightning_pce.tokens.kernels import eager
from lightning_pce.tokens.kernels.row_sums import Kernel, RowStatistics, finish, joined

BACKENDS = ("auto", "eager", "compile", "triton")


def read_rows(logits: Tensor, target: Tensor, everything: bool, backend: str = "auto") -> RowStatistics:
    """Statistics of all rows of logits ``[..., V]``, which are read once and never copied whole.

    Args:
        logits: of any strides.
        target: ``[N]`` int64 for the N rows, negative where any result will do.
        everything: whether entropy and rank are wanted too.
        backend: one of :data:`BACKENDS`.
    """
    # An empty batch is for eager operations, which have no grid.
    kernel = choose(backend if len(target) else "eager", logits)
    parts, start = [], 0
    for rows in _matrices(logits.detach()):
        parts.append(kernel(rows, target[start : start + len(rows)], everything))
        start += len(rows)
    return finish(joined(parts), logits.shape[-1])


def _matrices(logits: Tensor) -> list[Tensor]:
    """Views ``[n, V]`` that hold all rows in order, as few as strides allow; ``reshape`` would copy."""
    try:
        return [logits.view(-1, logits.shape[-1])]
    except RuntimeError:
        return [matrix for part in logits for matrix in _matrices(part)]


def choose(backend: str, logits: Tensor) -> Kernel:
    """The kernel for these logits.

    On a CPU "auto" is eager: compiled code is twice as fast, but compiling takes seconds, or half a minute
    the first time, and a compiler; whoever scores thousands of batches may ask for it.

    Raises:
        ValueError: if there is no such backend or it cannot read these logits.
    """
    if backend not in BACKENDS:
        raise ValueError(
            f"Expected argument `backend` to be one of {', '.join(BACKENDS)} but got {backend!r}."
        )
    if backend == "auto":
        fits = logits.is_cuda and logits.dtype in (torch.float32, torch.bfloat16, torch.float16)
        backend = "triton" if fits and triton_works(logits.device) else "eager"
    if backend == "triton":
        from lightning_pce.tokens.kernels import triton as in_triton

        in_triton.check(logits)
        return in_triton.row_sums
    if backend == "compile":
        return compiled.row_sums
    return eager.row_sums


@cache
def triton_works(device: torch.device) -> bool:
    """Whether a trial of the Triton kernel succeeds: it also needs a C compiler and a GPU it knows."""
    if find_spec("triton") is None:
        return False
    try:
        from lightning_pce.tokens.kernels import triton as in_triton

        rows = torch.zeros(2, 2, device=device)
        in_triton.row_sums(rows, torch.zeros(2, dtype=torch.int64, device=device), False)
    except Exception as error:
        warnings.warn(
            f"Triton does not work on {device}, eager operations take its place: {error!r:.200}",
            stacklevel=2,
        )
        return False
    return True
