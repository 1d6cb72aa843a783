"""What a kernel says about each row of logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

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
