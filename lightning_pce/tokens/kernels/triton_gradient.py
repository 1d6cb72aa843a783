"""The gradient of rows of logits by a Triton kernel: one block of a row a program, one load, one store."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_pce.tokens.kernels.triton import BLOCK, LOG2E, WARPS


def _write_rows(
    logits: tl.tensor,
    base: tl.tensor,
    factor: tl.tensor,
    used: tl.tensor,
    out: tl.tensor,
    row_stride: tl.tensor,
    stride: tl.tensor,
    vocabulary: tl.tensor,
    size: tl.constexpr,
) -> None:
    """``factor * exp(x - base)`` of a row; 0, without a look at the logits, where the row is not used."""
    row = tl.program_id(0).to(tl.int64)
    index = tl.program_id(1) * size + tl.arange(0, size)
    inside = index < vocabulary
    target = out + row * vocabulary + index
    if tl.load(used + row) == 0:
        tl.store(target, tl.zeros([size], tl.float32).to(out.dtype.element_ty), mask=inside)
        return
    x = tl.load(logits + row * row_stride + index * tl.cast(stride, tl.int64), mask=inside, other=0.0)
    # Not one multiply-add of x * LOG2E: that overflows for masks as large as the largest float.
    e = tl.exp2((x.to(tl.float32) - tl.load(base + row)) * LOG2E)
    tl.store(target, (e * tl.load(factor + row)).to(out.dtype.element_ty), mask=inside)


write_rows = triton.jit(_write_rows)


def write_gradient(rows: Tensor, logsumexp: Tensor, others: Tensor, used: Tensor, out: Tensor) -> None:
    """Into contiguous ``out [N, V]``: ``others * p_j`` of rows of any strides; nothing waits for it."""
    count, vocabulary = rows.shape
    base = logsumexp.float()
    # What float32 rounds off of the logsumexp, 5e-4 next to 1e4, goes into the factor.
    factor = (others * (base.to(logsumexp.dtype) - logsumexp).exp()).float()
    size = min(BLOCK, triton.next_power_of_2(vocabulary))
    # Triton launches on the current device; -1 changes nothing.
    with torch.cuda.device(rows.device.index if rows.is_cuda else -1):
        write_rows[(count, triton.cdiv(vocabulary, size))](
            rows,
            base,
            factor,
            used.to(torch.int8),
            out,
            rows.stride(0),
            rows.stride(1),
            vocabulary,
            size,
            num_warps=WARPS,
        )
