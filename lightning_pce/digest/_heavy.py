"""Where a heavy value ends, the cuts of k1 make room for a cell of full width.

A heavy value ends anywhere between two cuts of k1. Left alone, the cell beside it would be of any width, and
of another one after each batch. A narrow one gets no half of an old blend any more, only new values: ranks
there are then wrong by up to a sixth of a cell. So what it lacks is taken evenly from the cells that follow.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from lightning_pce.digest._arrays import Array, arange, at_most, between, namespace, not_negative, running_max

# So many cells on each side of a heavy value make room. Worst rank error of 4e6 values beside one: 6.7e-5
# with 2, 5.3e-5 with 4, 4.7e-5 with 16 and no better with more.
_REACH = 16
_STEPS, _ENDS = np.arange(1, _REACH), np.arange(2)


def goals_beside_heavy(before: Array, cells: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The cuts beside heavy values, from 1 to ``cells - 1``, and the weight that should lie before each.

    ``before [S + 1]`` is the weight before each cut along k1, from 0 to all; NumPy only.
    """
    total = before[-1]
    heavy = np.flatnonzero(_are_heavy(before, total, cells))
    if not len(heavy):
        return np.empty(0, np.int64), np.empty(0)
    ends = _along_k1(before[heavy[:, None] + _ENDS], total, cells)
    below, above = between(0, ends.reshape(-1), cells).reshape(-1, 2, 1).swapaxes(0, 1)
    number = np.concatenate([np.floor(below) + _STEPS, np.ceil(above) - _STEPS], -1)  # some perhaps twice
    inner = (number > below) & (number < above)
    goal = _room_made(number, below, above, cells) * total
    return number[inner].astype(np.int64), goal[inner]


def goals_with_room(goal: Array, before: Array, all_light: Array) -> Array:
    """The weight that should lie before each inner cut, where no shape may depend on a value.

    Args:
        goal: what it is along k1, ``[..., K - 1]``.
        before: the weight before each cut along k1, from 0 to all: ``[..., K + 1]``.
        all_light: whether nothing counts as heavy, ``[..., 1]`` bool.

    Returns:
        ``[..., K - 1]``.
    """
    xp, cells, total = namespace(goal), goal.shape[-1] + 1, before[..., -1:]
    heavy = _are_heavy(before, total, cells) & ~all_light
    k = _along_k1(before, total, cells)
    begins, ends = xp.where(heavy, k[..., :-1], float(cells)), xp.where(heavy, k[..., 1:], 0.0)
    below = running_max(ends)[..., :-1]
    above = -xp.flip(running_max(xp.flip(-begins, (-1,))), (-1,))[..., 1:]
    number = arange(cells, goal)[1:]
    beside = (below <= number) & (number <= above) & ((below > 0) | (above < cells))
    return xp.where(beside, _room_made(number, below, above, cells) * total, goal)


def _are_heavy(before: Array, total: Array, cells: int) -> Array:
    """Which cells weigh more than two of the middle, the widest: only one value can, and it has both cuts."""
    return before[..., 1:] - before[..., :-1] > total * (math.pi / cells)


def _along_k1(weight: Array, total: Array, cells: int) -> Array:
    """Where along k1 a weight lies: 0 to ``cells``."""
    xp = namespace(weight)
    return xp.arcsin(xp.sqrt(at_most(weight / (total + (total == 0)), 1))) * (2 * cells / math.pi)


def _room_made(number: Array, below: Array, above: Array, cells: int) -> Array:
    """The part of all weight that should lie before cuts between heavy values.

    Args:
        number: which cut, ``[..., S]``; what follows has the same shape or fits.
        below: where along k1 the heavy value below ends, 0 if there is none.
        above: where along k1 the heavy value above begins, ``cells`` if there is none.
        cells: the number K of cells.
    """
    xp = namespace(below)
    first, last = xp.floor(below), xp.ceil(above)
    reach = at_most(last - first, _REACH)
    reach = reach + (reach == 0)
    k = number + (below - first) * not_negative(1 - (number - first) / reach)
    k = k - (last - above) * not_negative(1 - (last - number) / reach)
    return xp.square(xp.sin(k * (math.pi / 2 / cells)))
