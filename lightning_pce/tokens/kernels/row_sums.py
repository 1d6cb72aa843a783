"""What a kernel says about each row of logits, and how statistics follow from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from lightning_pce._threads import single_threaded


class RowSums(NamedTuple):
    """Sums over rows of logits x ``[N, V]`` with targets y ``[N]``, each of shape ``[N]``.

    The target is left out: next to a target of probability 1 - 1e-20 the rest would be lost in the rounding
    of 1, and logits measured from a target 46 nats above them would be off by 2e-6.
    """

    top: Tensor  # max over j != y of x_j
    own: Tensor  # x_y
    others: Tensor  # sum over j != y of exp(x_j - top)
    dot: Tensor | None  # sum over j != y of exp(x_j - top) * (x_j - top), for the entropy
    ahead: Tensor | None  # the number of j with x_j > x_y, or with x_j == x_y and j < y, for the rank


class RowStatistics(NamedTuple):
    """Statistics of rows ``[N]``; NaN and rank V + 1 where a row is no distribution."""

    ce: Tensor
    entropy: Tensor | None
    target_prob: Tensor
    max_prob: Tensor
    rank: Tensor | None


# (rows [N, V], targets [N] or negative for "any result will do", whether dot and ahead are wanted) -> sums
Kernel: TypeAlias = Callable[[Tensor, Tensor, bool], RowSums]


def joined(parts: Sequence[RowSums]) -> RowSums:
    """The sums of several runs of rows as one."""
    if len(parts) == 1:
        return parts[0]

    def cat(tensors: Sequence[Tensor | None]) -> Tensor | None:
        some = [tensor for tensor in tensors if tensor is not None]
        return torch.cat(some) if some else None

    top, own, others = (torch.cat(tensors) for tensors in list(zip(*parts, strict=True))[:3])
    return RowSums(top, own, others, cat([part.dot for part in parts]), cat([part.ahead for part in parts]))


def scattered(sums: RowSums, index: Tensor, count: int) -> RowSums:
    """The sums as those of rows ``index`` among ``count`` rows, with 0 for the others."""

    def spread(part: Tensor) -> Tensor:
        return part.new_zeros(count).index_copy_(0, index, part)

    top, own, others, dot, ahead = sums
    some_dot, some_ahead = (None if part is None else spread(part) for part in (dot, ahead))
    return RowSums(spread(top), spread(own), spread(others), some_dot, some_ahead)


@single_threaded()  # these are many small operations
def finish(sums: RowSums, vocabulary: int) -> RowStatistics:
    """From sums to statistics, in float64: these are N values, the work was in the N x V logits."""
    exact = torch.float32 if sums.top.device.type == "mps" else torch.float64  # MPS has no float64
    top, own, others = (part.to(exact) for part in sums[:3])
    best = torch.maximum(top, own)
    # A row is a distribution if its largest logit is finite and no logit is NaN.
    proper = best.isfinite() & ~others.isnan()
    lag = top - best  # 0 unless the target leads
    scale = lag.exp()
    behind = best - own  # of the target, in nats; inf if it is masked
    share = (-behind).exp()
    rest = scale * others
    total = rest + share
    # A leading target's loss is log(1 + rest) with rest as small as 1e-38.
    log_total = torch.where(behind == 0, rest.log1p(), total.log())

    def where_proper(value: Tensor) -> Tensor:
        return torch.where(proper, value, torch.nan).float()

    entropy = rank = None
    if sums.dot is not None:
        spread = scale * sums.dot.to(exact) + torch.where(scale > 0, lag, 0.0) * rest
        spread = spread - torch.where(share > 0, behind, 0.0) * share
        entropy = where_proper((log_total - spread / total).clamp(min=0.0))
    if sums.ahead is not None:
        rank = torch.where(proper, sums.ahead.long() + 1, vocabulary + 1)
    return RowStatistics(
        where_proper(behind + log_total), entropy, where_proper(share / total), where_proper(1 / total), rank
    )
