"""Log-probabilities of rows of logits, and the gradient of whatever follows from them.

Shared by :mod:`lightning_pce.tokens.log_prob` and what else is differentiable here. All but the logits and
their gradient are N numbers, or N x K for K labels a row, and in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_pce._threads import in_streams
from lightning_pce.tokens.kernels import matrices, uses_triton
from lightning_pce.tokens.kernels.eager import plan
from lightning_pce.tokens.kernels.row_sums import RowSums, totals
from lightning_pce.tokens.kernels.scratch import scratch


class RowLogProb(NamedTuple):
    """Of each row ``[N]``, float64 (float32 on MPS); NaN where a row is no distribution."""

    log_prob: Tensor
    """Of the target, in nats: minus the cross-entropy, so that 1 - p = 1e-20 is not rounded to 0."""
    logsumexp: Tensor
    peak: Tensor
    """The largest probability."""


class RowGradient(NamedTuple):
    """dL/dz of rows of logits z: ``others * p_j`` for every token j but the labels, which have entries.

    A row whose numbers are all 0 has a gradient of exactly 0, and its logits, NaN perhaps, are not looked at.
    """

    others: Tensor
    """``[N]``, what the probabilities of all other tokens are multiplied by."""
    label: Tensor
    """``[N, K]`` int64 in ``[0, V)``; where a row has one twice the entries must be equal."""
    entry: Tensor
    """``[N, K]``, the gradient at the labels."""

    @property
    def used(self) -> Tensor:
        """``[N]`` bool, which rows have a gradient; true for NaN."""
        return (self.others != 0) | (self.entry != 0).any(-1)


def row_log_prob(sums: RowSums) -> RowLogProb:
    """Log-probability of the target, logsumexp and largest probability from the sums over rows."""
    known = totals(sums)
    values = (0.0 - known.ce, known.best + known.log_total, (-known.log_total).exp())
    return RowLogProb(*(torch.where(known.proper, value, torch.nan) for value in values))


def gradient_of_one_label(
    log_prob: Tensor, target: Tensor, by_log_prob: Tensor | None, by_logsumexp: Tensor | None
) -> RowGradient:
    """The gradient of rows from upstream gradients, all ``[N]``; 0 where the target is negative.

    d log p / dz_j = [j = y] - p_j and d logsumexp / dz_j = p_j.
    """
    counts = target >= 0
    u, v = (
        torch.zeros_like(log_prob) if by is None else torch.where(counts, by.to(log_prob.dtype), 0.0)
        for by in (by_log_prob, by_logsumexp)
    )
    # 1 - p as -expm1(log p): from a rounded p it would be 0 for every p above 1 - 6e-8.
    entry = v * log_prob.exp() - u * log_prob.expm1()
    entry = torch.where((u == 0) & (v == 0), 0.0, entry)  # 0 times NaN
    return RowGradient(v - u, target.clamp(min=0)[:, None], entry[:, None])


def logits_gradient(logits: Tensor, scored: RowLogProb, gradient: RowGradient) -> Tensor:
    """The gradient of all logits ``[..., V]``, in their dtype: the only tensor of their size that is made.

    Logits are read once more, in chunks; beside the gradient at most 13 MiB are used. (Most of the time goes
    into the system's clearing of its pages. Pages of 2 MiB are 7 times as quick, but 3 times as slow where
    memory is in pieces, as after F.cross_entropy.)
    """
    result = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    flat, start = result.view(-1, logits.shape[-1]), 0
    triton = uses_triton(logits)
    for rows in matrices(logits.detach()):
        some = slice(start, start + len(rows))
        part = RowGradient(*(values[some] for values in gradient))
        if triton and len(rows):
            from lightning_pce.tokens.kernels.triton import write_gradient

            write_gradient(rows, scored.logsumexp[some], part.others, part.used, flat[some])
            flat[some].scatter_(-1, part.label, part.entry.to(flat.dtype))
        else:
            _write_in_chunks(rows, scored.peak[some], part, flat[some])
        start += len(rows)
    return result


def exponentials_(z: Tensor, logsumexp: Tensor, others: Tensor) -> Tensor:
    """In place ``others * p_j`` of logits ``[n, w]`` for a part of the vocabulary, float32 or float64.

    The logsumexp ``[n]`` in float64 is split in two: next to 1e4 a float32 is off by 5e-4, and so would all
    probabilities be.
    """
    base = logsumexp.to(z.dtype)
    rest = (base.to(logsumexp.dtype) - logsumexp).exp()
    return z.sub_(base[:, None]).exp_().mul_((others * rest).to(z.dtype)[:, None])


def _write_in_chunks(rows: Tensor, peak: Tensor, gradient: RowGradient, out: Tensor) -> None:
    """By eager operations, on a CPU in streams of single-threaded chunks as the forward pass has them."""
    (count, vocabulary), device = rows.shape, rows.device
    dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
    streams, step = plan(count, vocabulary, dtype.itemsize, device)
    # softmax's own sum is 6e-6 off over 32,000 float32; the largest probability is known better. Of bfloat16
    # and float16 nobody would see it.
    coarse = dtype.itemsize > rows.dtype.itemsize
    used, factor = gradient.used, (gradient.others if coarse else gradient.others * peak)[:, None]
    entry = gradient.entry.to(dtype)

    def stream(starts: Iterator[int]) -> None:
        first, second = scratch(2, step, vocabulary, dtype=dtype, device=device).unbind()
        for start in starts:
            piece = slice(start, start + step)
            here: slice | Tensor = piece
            some, target = rows[piece], out[piece]
            if device.type == "cpu" and not bool(used[piece].all()):  # where looking is free
                target.zero_()
                chosen = used[piece].nonzero()[:, 0]
                if not len(chosen):
                    continue
                here = start + chosen
                out_of_place = first[: len(chosen)] if some.dtype == dtype else None
                some = torch.index_select(some, 0, chosen, out=out_of_place)
            z = some if some.dtype == dtype else first[: len(some)].copy_(some)
            p = torch.softmax(z, -1, out=second[: len(some)])
            scale = factor[here] if coarse else factor[here] / p.amax(-1, keepdim=True)
            p.mul_(scale.to(dtype))
            p.scatter_(-1, gradient.label[here], entry[here])
            if device.type != "cpu":
                p.masked_fill_(~used[here, None], 0.0)
            if here is piece:
                target.copy_(p)
            else:
                target.index_copy_(0, chosen, p.to(target.dtype))

    in_streams(stream, range(0, count, step), streams)
