"""What a kernel says about each row of logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor


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


# (rows [N, V], targets [N] or negative for "any result will do", whether dot and ahead are wanted) -> sums
Kernel: TypeAlias = Callable[[Tensor, Tensor, bool], RowSums]


class RowTotals(NamedTuple):
    """What follows from the sums over N rows, in float64: these are N values, the work was in the logits."""

    proper: Tensor  # bool: the largest logit is finite and none is NaN; else the row is no distribution
    best: Tensor  # the largest logit
    lag: Tensor  # top - best: 0 unless the target leads
    behind: Tensor  # best - own: of the target, in nats; inf if it is masked
    rest: Tensor  # sum over j != y of exp(x_j - best)
    log_total: Tensor  # logsumexp - best

    @property
    def ce(self) -> Tensor:
        """The target's cross-entropy in nats, to a relative 1e-7 also where it is 1e-20."""
        return self.behind + self.log_total


def totals(sums: RowSums) -> RowTotals:
    """What the sums say of each row, in float64 (float32 on MPS, which has no float64)."""
    exact = torch.float32 if sums.top.device.type == "mps" else torch.float64
    top, own, others = (part.to(exact) for part in sums[:3])
    best = torch.maximum(top, own)
    proper = best.isfinite() & ~others.isnan()
    lag = top - best
    behind = best - own
    rest = lag.exp() * others
    # A leading target's loss is log(1 + rest) with rest as small as 1e-38.
    log_total = torch.where(behind == 0, rest.log1p(), (rest + (-behind).exp()).log())
    return RowTotals(proper, best, lag, behind, rest, log_total)
