"""Softmaxes over rows of logits with a few tokens left out: what they sum to, and their weighted sum.

Tokens that are left out have entries of their own. So a probability of all others together comes from their
logits, never as 1 minus the rest, and the gradient at an entry from arithmetic on N x K numbers in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_pce._threads import in_streams
from lightning_pce.tokens.kernels.eager import plan
from lightning_pce.tokens.kernels.scratch import scratch


class Softmax(NamedTuple):
    """A softmax over each row of logits ``[N, V]`` / temperature but for some labels.

    Rows that nobody asked for (see :func:`read_softmax`) hold anything.
    """

    logits: Tensor
    """``[..., V]``"""
    temperature: float
    label: Tensor | None
    """``[N, K]`` int64 in ``[0, V)``, which are left out; a row may hold one twice."""
    own: Tensor | None
    """``[N, K]`` float64 (float32 on MPS), the labels' logits / temperature."""
    logsumexp: Tensor
    """``[N]``, of the others; -inf if these are all -inf, NaN if they hold NaN or +inf."""
    peak: Tensor
    """``[N]``, the largest probability of the softmax."""


class Term(NamedTuple):
    """A part of a gradient: the probabilities of a softmax times a factor, and entries at its labels."""

    softmax: Softmax
    factor: Tensor
    """``[N]``, with the 1 / temperature of the derivative."""
    entry: Tensor | None
    """``[N, K]``; where a row has a label twice the entries must be equal."""


def exact_dtype(device: torch.device) -> torch.dtype:
    """Of what is made of N numbers: float64, which MPS has not."""
    return torch.float32 if device.type == "mps" else torch.float64


def read_softmax(logits: Tensor, wanted: Tensor, label: Tensor | None, temperature: float) -> Softmax:
    """Read logits ``[..., V]`` once, in chunks.

    Args:
        logits: of any strides and floating dtype.
        wanted: ``[N]`` bool; other rows are not read where that saves time, on a CPU.
        label: ``[N, K]`` int64 in ``[0, V)``, or None.
        temperature: what the logits are divided by.
    """
    device, exact = logits.device, exact_dtype(logits.device)
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    count, vocabulary = len(wanted), logits.shape[-1]
    top, others = torch.zeros(2, count, dtype=dtype, device=device).unbind()
    own = None if label is None else torch.zeros(label.shape, dtype=dtype, device=device)

    def work(start: int, matrix: Tensor) -> None:
        streams, step = plan(len(matrix), vocabulary, dtype.itemsize, device)

        def stream(starts: Iterator[int]) -> None:
            first, second = scratch(2, step, vocabulary, dtype=dtype, device=device).unbind()
            for begin in starts:
                chosen, at = _chosen(wanted, start, begin, min(begin + step, len(matrix)))
                if isinstance(chosen, Tensor) and not len(chosen):
                    continue
                z = _tempered(matrix[chosen], temperature, first)
                if label is not None and own is not None:
                    own[at] = z.gather(-1, label[at])
                    z.scatter_(-1, label[at], -torch.inf)
                top[at] = z.amax(-1)
                p = torch.softmax(z, -1, out=second[: len(z)])
                # Its own factor is the largest; its sum is too coarse: 6e-6 off over 32,000 logits.
                others[at] = p.sum(-1).div_(p.amax(-1))

        in_streams(stream, range(0, len(matrix), step), streams)

    for start, (matrix,) in matrices_of(logits.detach()):
        work(start, matrix)
    others.masked_fill_(top == -torch.inf, 0.0)  # softmax of nothing but -inf is NaN
    top, others = top.to(exact), others.to(exact)
    proper = (top < torch.inf) & ~others.isnan()
    logsumexp = torch.where(proper, torch.where(others > 0, top + others.log(), -torch.inf), torch.nan)
    return Softmax(logits, temperature, label, None if own is None else own.to(exact), logsumexp, 1 / others)


def read_divergence(
    teacher: Tensor, logits: Tensor, wanted: Tensor, logsumexp: Tensor, temperature: float
) -> tuple[Softmax, Tensor]:
    """The softmax of teacher ``[..., V]``, and its KL divergence ``[N]`` from that of logits ``[..., V]``.

    Args:
        teacher: its logits.
        logits: the student's, of any dtype.
        wanted: ``[N]`` bool, as in :func:`read_softmax`.
        logsumexp: ``[N]``, of logits / temperature.
        temperature: what both are divided by.
    """
    device, exact = logits.device, exact_dtype(logits.device)
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    count, vocabulary = len(wanted), logits.shape[-1]
    top, others, difference = torch.zeros(3, count, dtype=dtype, device=device).unbind()
    base = logsumexp.to(dtype)

    def work(start: int, theirs: Tensor, ours: Tensor) -> None:
        streams, step = plan(len(ours), vocabulary * 3 // 2, dtype.itemsize, device)

        def stream(starts: Iterator[int]) -> None:
            pieces = scratch(3, step, vocabulary, dtype=dtype, device=device).unbind()
            for begin in starts:
                chosen, at = _chosen(wanted, start, begin, min(begin + step, len(ours)))
                if isinstance(chosen, Tensor) and not len(chosen):
                    continue
                t = _tempered(theirs[chosen], temperature, pieces[0])
                z = _tempered(ours[chosen], temperature, pieces[1])
                top[at] = t.amax(-1)
                q = torch.softmax(t, -1, out=pieces[2][: len(t)])
                most = q.amax(-1)
                others[at] = q.sum(-1).div_(most)
                # Small numbers, both: differences of logits near 1e4 would be rounded to 1e-3.
                t.sub_(top[at][:, None]).sub_(z.sub_(base[at][:, None])).mul_(q)
                # Where the teacher has 0 there is nothing, whatever the student has: 0 times inf.
                t.nan_to_num_(nan=0.0, posinf=torch.inf, neginf=-torch.inf)
                difference[at] = t.sum(-1).div_(most) / others[at]

        in_streams(stream, range(0, len(ours), step), streams)

    for start, (theirs, ours) in matrices_of(teacher.detach(), logits.detach()):
        work(start, theirs, ours)
    top, others, difference = top.to(exact), others.to(exact), difference.to(exact)
    proper = top.isfinite() & others.isfinite() & logsumexp.isfinite()
    divergence = difference - others.log() + (logsumexp - base.to(exact))
    divergence = torch.where(proper, divergence.clamp(min=0.0), torch.nan)
    return Softmax(teacher, temperature, None, None, top + others.log(), 1 / others), divergence


def gradient_of(like: Tensor, used: Tensor, terms: Sequence[Term]) -> Tensor:
    """The sum of terms in the shape ``[..., V]`` and dtype of ``like``: all of that size that is made.

    Rows that are not ``used`` ``[N]`` are exactly 0, whatever the logits hold there.
    """
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    result = torch.empty(like.shape, dtype=like.dtype, device=like.device)
    flat = result.view(-1, like.shape[-1])
    everything = [term.softmax.logits.detach() for term in terms]
    for start, matrices in matrices_of(*everything):
        _write(flat, start, matrices, used, terms, dtype)
    return result


def _write(
    flat: Tensor,
    start: int,
    matrices: Sequence[Tensor],
    used: Tensor,
    terms: Sequence[Term],
    dtype: torch.dtype,
) -> None:
    count, vocabulary = matrices[0].shape
    pieces = 2 if len(terms) == 1 else 3
    # All pieces together are as large as the two that are planned for.
    streams, step = plan(count, vocabulary * pieces // 2, dtype.itemsize, flat.device)

    def stream(starts: Iterator[int]) -> None:
        first, *into = scratch(pieces, step, vocabulary, dtype=dtype, device=flat.device).unbind()
        for begin in starts:
            end = min(begin + step, count)
            chosen, at = _chosen(used, start, begin, end)
            target = flat[start + begin : start + end]
            if isinstance(chosen, Tensor):
                target.zero_()
                if not len(chosen):
                    continue
            total = _term(terms[0], matrices[0][chosen], at, first, into[0])
            for term, matrix in zip(terms[1:], matrices[1:], strict=True):
                total.add_(_term(term, matrix[chosen], at, first, into[1]))
            if isinstance(chosen, Tensor):
                target.index_copy_(0, chosen - begin, total.to(target.dtype))
                continue
            if target.device.type != "cpu":
                total.masked_fill_(~used[at][:, None], 0.0)
            target.copy_(total)

    in_streams(stream, range(0, count, step), streams)


def _term(term: Term, rows: Tensor, at: slice | Tensor, first: Tensor, second: Tensor) -> Tensor:
    """A term of some rows ``[n, V]``, in the second piece of scratch."""
    dtype = second.dtype
    softmax, label = term.softmax, None if term.softmax.label is None else term.softmax.label[at]
    z = rows
    if label is not None or rows.dtype != dtype or softmax.temperature != 1.0:
        z = _tempered(rows, softmax.temperature, first)
    if label is not None:
        z.scatter_(-1, label, -torch.inf)
    p = torch.softmax(z, -1, out=second[: len(rows)])
    factor = term.factor[at][:, None]
    if dtype.itemsize == rows.dtype.itemsize:  # else nobody would see that its sum is 6e-6 off
        factor = factor * softmax.peak[at][:, None] / p.amax(-1, keepdim=True)
    p.mul_(factor.to(dtype))
    if label is not None and term.entry is not None:
        nobody = (softmax.logsumexp[at] == -torch.inf)[:, None]  # all others are -inf
        if rows.device.type != "cpu" or bool(nobody.any()):
            p.masked_fill_(nobody, 0.0)
        p.scatter_(-1, label, term.entry[at].to(dtype))
    return p


def _tempered(rows: Tensor, temperature: float, out: Tensor) -> Tensor:
    z = out[: len(rows)].copy_(rows)
    return z if temperature == 1.0 else z.div_(temperature)


def _chosen(wanted: Tensor, start: int, begin: int, end: int) -> tuple[slice | Tensor, slice | Tensor]:
    """Which rows of a matrix, and where they are among all N; fewer than all only where looking is free."""
    here = wanted[start + begin : start + end]
    if here.device.type != "cpu" or bool(here.all()):
        return slice(begin, end), slice(start + begin, start + end)
    chosen = here.nonzero()[:, 0] + begin
    return chosen, chosen + start


def matrices_of(*tensors: Tensor) -> Iterator[tuple[int, list[Tensor]]]:
    """Views ``[n, V]`` of tensors of one shape that hold all rows in order, and which is the first row.

    As few as strides allow; ``reshape`` would copy.
    """
    start = 0
    for views in _views(tensors):
        yield start, views
        start += len(views[0])


def _views(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    try:
        yield [tensor.view(-1, tensor.shape[-1]) for tensor in tensors]
    except RuntimeError:
        for parts in zip(*tensors, strict=True):
            yield from _views(parts)
