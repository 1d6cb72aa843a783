"""Log-probabilities from hidden states and the weight of an output layer, and the gradient of what follows.

Forward in chunks of tokens, whose logits a kernel reads. Backward in slices of the vocabulary, so that each
row of the weight's gradient is written once: summed over chunks of tokens, a gradient of the weight's size
is read and written for each of them, which in bfloat16 takes 2.5 times as long in all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_pce._threads import in_streams
from lightning_pce.tokens._log_prob_rows import (
    RowGradient,
    RowLogProb,
    exponentials_,
    row_log_prob,
)
from lightning_pce.tokens.from_hidden_states import rows_in, scale_and_cap
from lightning_pce.tokens.kernels import choose, joined
from lightning_pce.tokens.kernels.eager import SCRATCH_BYTES, plan
from lightning_pce.tokens.kernels.scratch import scratch

# Narrower slices of the vocabulary are slow to multiply; tokens that do not fit beside them take turns.
LEAST_SLICE = 1024


class Layer(NamedTuple):
    """The logits ``x = (h @ head.T + bias) * scale``, then ``softcap * tanh(x / softcap)``."""

    head: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None

    def write_logits(self, hidden: Tensor, some: slice, out: Tensor) -> None:
        """Of hidden states ``[n, H]`` for some of the vocabulary, ``[n, s]``, rounded as a model's are."""
        # With out= autocast leaves the product alone.
        if self.bias is None:
            torch.mm(hidden, self.head[some].T, out=out)
        else:
            torch.addmm(self.bias[some], hidden, self.head[some].T, out=out)
        scale_and_cap(out, self.scale, self.softcap)


def rows_from_hidden(hidden: Tensor, layer: Layer, target: Tensor, max_logits_bytes: int) -> RowLogProb:
    """What is known of each of the hidden states ``[N, H]``; 0 where the target is negative."""
    counted = (target >= 0).nonzero()[:, 0]
    vocabulary, dtype = len(layer.head), hidden.dtype
    step = max(1, min(len(counted), rows_in(max_logits_bytes, vocabulary, hidden.shape[1], dtype.itemsize)))
    logits = scratch(step, vocabulary, dtype=dtype, device=hidden.device)
    kernel = choose("auto" if len(counted) else "eager", logits)
    parts = []
    for start in range(0, max(1, len(counted)), step):
        some = counted[start : start + step]
        chunk = logits[: len(some)]
        layer.write_logits(hidden[some], slice(None), chunk)
        parts.append(kernel(chunk, target[some], False))
    found = row_log_prob(joined(parts))
    return RowLogProb(*(value.new_zeros(len(target)).index_copy_(0, counted, value) for value in found))


def gradients_from_hidden(
    hidden: Tensor,
    layer: Layer,
    scored: RowLogProb,
    gradient: RowGradient,
    wanted: tuple[bool, bool, bool],
    max_logits_bytes: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of hidden states, head and bias, of shape [0] where not wanted.

    Beyond them are a slice of logits, which its gradient is written over, and the scratch of that,
    ``max_logits_bytes`` together; the hidden states of tokens with a gradient, unless all have one; and for
    16-bit hidden states their gradient in float32.
    """
    used = gradient.used.nonzero()[:, 0]
    states = hidden if len(used) == len(hidden) else hidden[used]
    known = _Known(scored.logsumexp[used], *(values[used] for values in gradient))
    head, wide = layer.head, _wide(hidden.dtype)
    by_states, by_head, by_bias = wanted
    of_states = states.new_zeros(states.shape if by_states else 0, dtype=wide)
    of_head = head.new_zeros(head.shape if by_head else 0)
    of_bias = head.new_zeros(len(head) if by_bias else 0, dtype=wide)
    width, step = _tile(max_logits_bytes, len(head), max(1, len(states)), hidden.dtype.itemsize)
    tiles = [slice(start, start + step) for start in range(0, len(states), step)]
    logits = scratch(step * width, dtype=hidden.dtype, device=hidden.device)
    for start in range(0, len(head) if tiles else 0, width):
        some = slice(start, min(start + width, len(head)))
        # Several tiles are summed in float32.
        rows = of_head[some].to(wide) if len(tiles) > 1 else of_head[some]
        for tile in tiles:
            part = states[tile]
            grad = logits[: len(part) * (some.stop - some.start)].view(len(part), -1)
            layer.write_logits(part, some, grad)
            _logits_to_gradient(grad, start, _Known(*(values[tile] for values in known)), layer)
            if by_states:
                _add_product(of_states[tile], grad, head[some])
            if by_head:
                _add_product(rows, grad.T, part)
            if by_bias:
                of_bias[some] += grad.sum(0, dtype=wide)
        if by_head and len(tiles) > 1:
            of_head[some] = rows
    of_states = of_states.to(hidden.dtype)
    if by_states and states is not hidden:
        of_states = hidden.new_zeros(hidden.shape).index_copy_(0, used, of_states)
    return of_states, of_head, of_bias.to(head.dtype)


class _Known(NamedTuple):
    """Of each row, in float64, what the gradient of its logits is made of."""

    logsumexp: Tensor  # [N]
    others: Tensor  # [N], what the probabilities of all but the label are multiplied by
    label: Tensor  # [N, 1]
    entry: Tensor  # [N, 1], the gradient there


def _logits_to_gradient(z: Tensor, start: int, known: _Known, layer: Layer) -> None:
    """Write the gradient of ``h @ head.T`` over logits ``[n, s]`` of the vocabulary from ``start`` on."""
    (count, width), wide = z.shape, _wide(z.dtype)
    label = known.label[:, 0] - start
    row = ((label >= 0) & (label < width)).nonzero()[:, 0]
    column = label[row]
    entry = known.entry[row, 0].to(wide) * layer.scale
    if layer.softcap is not None:
        entry *= _slope_(z[row, column].to(wide), layer.softcap)
    streams, step = plan(count, width, wide.itemsize, z.device)

    def stream(starts: Iterator[int]) -> None:
        first, second = scratch(2, step, width, dtype=wide, device=z.device).unbind()
        for begin in starts:
            piece = slice(begin, begin + step)
            x = z[piece]
            a = x if x.dtype == wide else first[: len(x)].copy_(x)
            slope = None if layer.softcap is None else _slope_(second[: len(x)].copy_(a), layer.softcap)
            exponentials_(a, known.logsumexp[piece], known.others[piece] * layer.scale)
            if slope is not None:
                a.mul_(slope)
            if a is not x:
                x.copy_(a)

    in_streams(stream, range(0, count, step), streams)
    z[row, column] = entry.to(z.dtype)


def _slope_(capped: Tensor, softcap: float) -> Tensor:
    """In place, the derivative of the softcap where it gave this."""
    return capped.div_(softcap).square_().neg_().add_(1)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """``total += a @ b``; by out=, which autocast leaves alone."""
    if total.dtype == a.dtype:
        torch.addmm(total, a, b, out=total)
    else:
        total.add_(torch.mm(a, b, out=a.new_empty(total.shape)))


def _tile(limit: int, vocabulary: int, tokens: int, size: int) -> tuple[int, int]:
    """How much of the vocabulary, and how many tokens at once."""
    logits = max(1, max(limit - SCRATCH_BYTES, limit // 2) // size)
    width = min(vocabulary, max(LEAST_SLICE, logits // tokens))
    return width, max(1, min(tokens, logits // width))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
