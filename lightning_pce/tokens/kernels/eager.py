"""Sums over rows of logits by eager operations, in chunks that stay in the cache; on any device."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_pce._threads import in_streams
from lightning_pce.tokens.kernels.row_sums import RowSums
from lightning_pce.tokens.kernels.scratch import scratch

# Each stream has two pieces of scratch of this size. With half of it the kernel is a fifth slower, because an
# operation takes some time whatever its size and Python prepares one at a time; with four times as much it
# is no faster.
PIECE_BYTES = 1 << 20
# Of all streams together, so that no more than 16 MiB are used in all.
SCRATCH_BYTES = 12 << 20
# For fewer logits another thread takes longer to start than it saves.
LOGITS_FOR_A_THREAD = 1 << 20


def row_sums(rows: Tensor, target: Tensor, everything: bool) -> RowSums:
    """Sums of rows ``[N, V]`` of any strides and floating dtype; float64 is summed in float64.

    On a CPU streams of chunks run beside each other, each in a thread of its own: where other processes keep
    the cores busy, operations that are split over all threads wait for the slowest of them, and take up to
    ten times as long. The sums of a row do not depend on the chunks, nor on the number of threads up to 6.
    """
    (count, vocabulary), device = rows.shape, rows.device
    dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
    streams, step = plan(count, vocabulary, dtype.itemsize, device)
    top, own, others, dot, ahead = torch.empty(5, count, 1, dtype=dtype, device=device).unbind()
    position = torch.arange(vocabulary, dtype=dtype, device=device)

    def stream(starts: Iterator[int]) -> None:
        first, second = scratch(2, step, vocabulary, dtype=dtype, device=device).unbind()
        for start in starts:
            piece = slice(start, start + step)
            label = target[piece].clamp(min=0)[:, None]
            a, b = first[: len(label)], second[: len(label)]
            torch.gather(a.copy_(rows[piece]), -1, label, out=own[piece])
            torch.amax(a.scatter_(-1, label, -torch.inf), -1, keepdim=True, out=top[piece])
            if everything:
                base = top[piece].masked_fill(top[piece] == -torch.inf, 0.0)
                # -inf times probability 0 is not a number; exp(-1e4) is 0 as well.
                a.sub_(base).clamp_(min=-1e4)
            # As a row of exponentials softmax takes two thirds of the time of exp. Its factor is the largest
            # of them, which would be exp(0); its own sum is too coarse for us.
            factor = torch.softmax(a, -1, out=b).amax(-1, keepdim=True)
            others[piece] = b.sum(-1, keepdim=True).div_(factor)
            if everything:
                dot[piece] = b.mul_(a).sum(-1, keepdim=True).div_(factor)
                ahead[piece] = _ahead(rows[piece], own[piece], label, position, a, b)

    in_streams(stream, range(0, count, step), streams)
    others.masked_fill_(top == -torch.inf, 0.0)  # softmax of nothing but -inf is NaN
    sums = RowSums(top[:, 0], own[:, 0], others[:, 0], None, None)
    return sums._replace(dot=dot[:, 0], ahead=ahead[:, 0]) if everything else sums


def plan(count: int, vocabulary: int, itemsize: int, device: torch.device) -> tuple[int, int]:
    """How many streams of chunks, and how many rows of scratch each has."""
    rows_in_scratch = SCRATCH_BYTES // (2 * vocabulary * itemsize)
    if device.type != "cpu":
        return 1, max(1, min(count, rows_in_scratch))
    rows_in_piece = max(1, PIECE_BYTES // (vocabulary * itemsize))
    streams = min(
        torch.get_num_threads(),
        rows_in_scratch // rows_in_piece,
        count * vocabulary // LOGITS_FOR_A_THREAD,
    )
    streams = max(1, streams)
    return streams, max(1, min(rows_in_piece, -(-count // streams)))


def _ahead(rows: Tensor, own: Tensor, label: Tensor, position: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """How many logits come before the target in a stable descending sort; counts are exact up to 2 ** 24.

    Comparisons go to floating scratch: the sum of a bool tensor takes 8 bytes an element and four times as
    long.
    """
    x = rows if rows.dtype == b.dtype else b.copy_(rows)
    larger = torch.gt(x, own, out=a).sum(-1, keepdim=True)
    equal = torch.eq(x, own, out=b)
    if rows.device.type == "cpu" and not bool((equal.sum(-1) > 1).any()):
        return larger  # no ties, as nearly always in float32
    return larger.add_(torch.lt(position, label, out=a).mul_(equal).sum(-1, keepdim=True))
