"""Ways to read the logits once: eager operations, one compiled function, a Triton kernel; and the choice."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from lightning_pce.tokens.kernels import compile as compiled
from lightning_pce.tokens.kernels import eager
from lightning_pce.tokens.kernels.row_sums import Kernel, RowSums

BACKENDS = ("auto", "eager", "compile", "triton")
TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def read_rows(logits: Tensor, target: Tensor, everything: bool, backend: str = "auto") -> RowSums:
    """Sums over all rows of logits ``[..., V]``, which are read once and never copied whole.

    Args:
        logits: of any strides.
        target: ``[N]`` int64 for the N rows, negative where any result will do.
        everything: whether entropy and rank are wanted too.
        backend: one of :data:`BACKENDS`.
    """
    parts_of_logits = matrices(logits.detach())
    # An empty batch is for eager operations, which have no grid.
    kernel = choose(backend if len(target) else "eager", logits)
    parts, start = [], 0
    for rows in parts_of_logits:
        parts.append(kernel(rows, target[start : start + len(rows)], everything))
        start += len(rows)
    return joined(parts)


def joined(parts: Sequence[RowSums]) -> RowSums:
    """The sums of several runs of rows as one."""
    if len(parts) == 1:
        return parts[0]

    def cat(tensors: Sequence[Tensor | None]) -> Tensor | None:
        some = [tensor for tensor in tensors if tensor is not None]
        return torch.cat(some) if some else None

    top, own, others = (torch.cat(tensors) for tensors in list(zip(*parts, strict=True))[:3])
    return RowSums(top, own, others, cat([part.dot for part in parts]), cat([part.ahead for part in parts]))


def matrices(logits: Tensor) -> list[Tensor]:
    """Views ``[n, V]`` that hold all rows in order, as few as strides allow; ``reshape`` would copy."""
    try:
        return [logits.view(-1, logits.shape[-1])]
    except RuntimeError:
        return [matrix for part in logits for matrix in matrices(part)]


def choose(backend: str, logits: Tensor) -> Kernel:
    """The kernel for these logits.

    On a CPU "auto" is eager: compiled code is twice as fast, but compiling takes seconds, or half a minute
    the first time, and a compiler; it is worth asking for when thousands of batches are scored.

    Raises:
        ValueError: if there is no such backend or it cannot read these logits.
    """
    if backend not in BACKENDS:
        raise ValueError(
            f"Expected argument `backend` to be one of {', '.join(BACKENDS)} but got {backend!r}."
        )
    if backend == "auto":
        backend = "triton" if uses_triton(logits) else "eager"
    if backend == "triton":
        _check_for_triton(logits)
        from lightning_pce.tokens.kernels import triton as in_triton

        return in_triton.row_sums
    if backend == "compile":
        return compiled.row_sums
    return eager.row_sums


def uses_triton(logits: Tensor) -> bool:
    """Whether these logits are for the Triton kernels where nobody asks for another backend."""
    if not logits.is_cuda or logits.dtype not in TRITON_DTYPES:
        return False
    with torch.cuda.device(logits.device):
        return triton_works(torch.cuda.current_device())


def _check_for_triton(logits: Tensor) -> None:
    if logits.dtype not in TRITON_DTYPES:
        raise ValueError(
            f"Expected argument `logits` to be float32, bfloat16 or float16 for backend='triton' but got "
            f"{logits.dtype}. backend='eager' takes it."
        )
    if not logits.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            "Expected argument `logits` to be on a CUDA device for backend='triton' but got "
            f"{logits.device}. backend='auto' chooses by device."
        )


@cache
def triton_works(index: int) -> bool:
    """Whether a trial of the Triton kernel on a CUDA device succeeds: it also needs a C compiler."""
    if find_spec("triton") is None:
        return False
    try:
        from lightning_pce.tokens.kernels import triton as in_triton

        device = torch.device("cuda", index)
        rows = torch.zeros(2, 2, device=device)
        in_triton.row_sums(rows, torch.zeros(2, dtype=torch.int64, device=device), False)
    except Exception as error:
        warnings.warn(
            f"Triton does not work on cuda:{index}, eager operations take its place: {error!r:.200}",
            stacklevel=2,
        )
        return False
    return True
