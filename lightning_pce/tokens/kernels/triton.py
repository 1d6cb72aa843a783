"""Sums over rows of logits, and their gradient, by Triton kernels: one load a logit.

For the sums a program has one row. The vocabulary is walked as [blocks before the target's][blocks after it]
[a partial last block][the target's own]. So only the last two need masks, no logit is compared with the
target's position, and the tie rule, "an equal logit counts if it comes first", is ``>=`` before and ``>``
after. The sums are over the other logits; the target is for the host to add.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_pce.tokens.kernels.row_sums import RowSums

BLOCK, WARPS = 4096, 4  # 32 logits a thread, loaded 16 bytes at a time; no register spills

LOG2E = tl.constexpr(1.4426950408889634)
# Stands in for -inf where -inf times 0 or minus itself would not be a number; 2 ** -1e4 is 0 as well.
FLOOR = tl.constexpr(-1.0e4)
MINUS_INF = tl.constexpr(float("-inf"))


def _take_block(
    x: tl.tensor,
    own: tl.tensor,
    m: tl.tensor,
    s: tl.tensor,
    t: tl.tensor,
    c: tl.tensor,
    before: tl.constexpr,
    everything: tl.constexpr,
) -> "tl.tuple":
    """Add a block of logits to the running max m, sums s and t (in log2 units) and count c."""
    new = tl.maximum(m, tl.max(x, axis=0))
    base = tl.where(new == MINUS_INF, 0.0, new)  # nothing but -inf so far: any finite number will do
    step = tl.maximum((m - base) * LOG2E, FLOOR)
    fade = tl.exp2(step)
    # Not one multiply-add of x * LOG2E: that overflows for masks as large as the largest float.
    z = (x - base) * LOG2E
    e = tl.exp2(z)
    if everything:
        t = fade * (t + step * s) + tl.sum(e * tl.maximum(z, FLOOR), axis=0)
        if before:
            c += tl.sum(tl.where(x >= own, 1.0, 0.0), axis=0)
        else:
            c += tl.sum(tl.where(x > own, 1.0, 0.0), axis=0)
    return new, fade * s + tl.sum(e, axis=0), t, c


take_block = triton.jit(_take_block)


def _sum_rows(
    logits: tl.tensor,
    targets: tl.tensor,
    out: tl.tensor,
    row_stride: tl.tensor,
    stride: tl.tensor,
    vocabulary: tl.tensor,
    rows: tl.tensor,
    size: tl.constexpr,
    everything: tl.constexpr,
) -> None:
    """Into out [5, rows] float32 of m, x_y, s, t, c; a row with a negative target is not read."""
    row = tl.program_id(0).to(tl.int64)
    y = tl.load(targets + row).to(tl.int32)
    if y < 0:
        return
    logits += row * row_stride
    wide = tl.cast(stride, tl.int64)  # offsets of a strided vocabulary may pass 2 ** 31
    own = tl.load(logits + y * wide).to(tl.float32)
    index = tl.arange(0, size)
    lanes = logits + index * stride
    whole = (vocabulary // size) * size
    home = (y // size) * size
    m = float("-inf")
    s = 0.0
    t = 0.0
    c = 0.0  # exact up to 2 ** 24, more than any vocabulary
    for start in range(0, tl.minimum(home, whole), size):
        x = tl.load(lanes + start * wide).to(tl.float32)
        m, s, t, c = take_block(x, own, m, s, t, c, True, everything)
    for start in range(home + size, whole, size):
        x = tl.load(lanes + start * wide).to(tl.float32)
        m, s, t, c = take_block(x, own, m, s, t, c, False, everything)
    if (whole < vocabulary) & (home != whole):
        inside = whole + index < vocabulary
        x = tl.load(lanes + whole * wide, mask=inside, other=MINUS_INF)
        m, s, t, c = take_block(x.to(tl.float32), own, m, s, t, c, False, everything)
    place = home + index
    inside = (place < vocabulary) & (place != y)
    x = tl.load(lanes + home * wide, mask=inside, other=MINUS_INF).to(tl.float32)
    m, s, t, c = take_block(x, own, m, s, t, c, False, everything)
    if everything:
        c += tl.sum(tl.where((x == own) & (place < y), 1.0, 0.0), axis=0)
        tl.store(out + 3 * rows + row, t)
        tl.store(out + 4 * rows + row, c)
    tl.store(out + row, m)
    tl.store(out + rows + row, own)
    tl.store(out + 2 * rows + row, s)


sum_rows = triton.jit(_sum_rows, do_not_specialize=["rows"])


def row_sums(rows: Tensor, target: Tensor, everything: bool) -> RowSums:
    """Sums of rows ``[N, V]`` of any strides, on their device; nothing waits for it."""
    count, vocabulary = rows.shape
    planes = torch.zeros(5, count, dtype=torch.float32, device=rows.device)
    size = min(BLOCK, triton.next_power_of_2(vocabulary))
    # Triton launches on the current device; -1 changes nothing.
    with torch.cuda.device(rows.device.index if rows.is_cuda else -1):
        sum_rows[(count,)](
            rows,
            target,
            planes,
            rows.stride(0),
            rows.stride(1),
            vocabulary,
            count,
            size,
            everything,
            num_warps=WARPS,
            enable_fp_fusion=True,
        )
    top, own, others, dot, ahead = planes.unbind()
    sums = RowSums(top, own, others, None, None)
    return sums._replace(dot=dot / LOG2E.value, ahead=ahead) if everything else sums


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
