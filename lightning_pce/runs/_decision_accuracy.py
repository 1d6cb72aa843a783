"""How often a small run decides between two corpora as the large run does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lightning_pce._errors import UserError
from lightning_pce.runs._resampling import Floats, random_halves, resampled
from lightning_pce.runs._seeds import checked_seed
from lightning_pce.runs.task_values import some

Values: TypeAlias = Mapping[str, float] | Sequence[float] | NDArray[np.float64]
_FEWEST = 6  # corpora, in whose halves there are three pairs


class DecisionAccuracy(NamedTuple):
    """The share of pairs of corpora that are ordered as the target orders them."""

    value: float
    low: float
    """Of the 90 % interval over corpora; NaN of fewer than 6."""
    high: float
    pairs: int
    """Of corpora that the target tells apart."""
    corpora: int

    def __str__(self) -> str:
        interval = "no interval" if math.isnan(self.low) else f"90 % [{self.low:.2f}, {self.high:.2f}]"
        return f"{self.value:.2f}, {interval} over {self.corpora} corpora ({self.pairs} pairs)"


def decision_accuracy(
    small: Values, target: Values, *, higher_is_better: bool = True, seed: int = 0
) -> DecisionAccuracy:
    """The share of pairs of corpora that small runs order as the target does.

    Pairs that the small runs do not tell apart count a half, so that 0.5 is a coin. Pairs that the target
    does not tell apart are none.

    Args:
        small: what small runs say of each corpus, ``{corpus: value}`` or ``[C]``.
        target: how good the large run on each corpus is; higher is better.
        higher_is_better: of ``small``; False of a loss.
        seed: of the draws of corpora for the interval.

    Raises:
        UserError: if they are not of the same corpora, or a value is NaN, or the target is the same of all.

    Example:
        >>> loss, accuracy = {"web": 3.1, "code": 2.9, "books": 2.9}, {"web": 0.2, "code": 0.4, "books": 0.3}
        >>> print(decision_accuracy(loss, accuracy, higher_is_better=False))
        0.83, no interval over 3 corpora (3 pairs)
    """
    random = np.random.default_rng(checked_seed(seed))
    names, (first, second) = _paired(small, target)
    sign = 1 if higher_is_better else -1
    ordered = _agreement(sign * first, second)
    pairs = _agreement(second, second) == 1
    if not pairs.any():
        raise UserError("The target is the same of all corpora, or there is one: there is nothing to decide.")
    value = float(ordered[pairs].mean())
    if len(names) < _FEWEST:
        return DecisionAccuracy(value, math.nan, math.nan, int(pairs.sum()) // 2, len(names))
    halves = random_halves(len(names), random)
    agreeing, counted = (((halves @ each) * halves).sum(1) for each in (np.where(pairs, ordered, 0.0), pairs))
    share = np.divide(agreeing, counted, out=np.full(len(halves), np.nan), where=counted > 0)
    return DecisionAccuracy(*resampled(value, share, 0.0, 1.0), int(pairs.sum()) // 2, len(names))


def _agreement(first: Floats, second: Floats) -> Floats:
    """``[C, C]``: 1 where two orders agree, 0 where not, a half where one of them has none."""
    orders = [(each[:, None] > each).astype(np.float64) - (each[:, None] < each) for each in (first, second)]
    return np.asarray((1 + orders[0] * orders[1]) / 2)


def _paired(small: Values, target: Values) -> tuple[list[str], tuple[Floats, Floats]]:
    if isinstance(small, Mapping) != isinstance(target, Mapping):
        raise UserError("Expected `small` and `target` both by corpus, or both as arrays.")
    if isinstance(small, Mapping) and isinstance(target, Mapping):
        names = [str(name) for name in small]
        alone = sorted(str(name) for name in set(small) ^ set(target))
        if alone:
            raise UserError(
                f"Expected `small` and `target` of the same corpora but {some(alone)} "
                f"{'is' if len(alone) == 1 else 'are'} in one only."
            )
        target = [target[name] for name in small]
        small = list(small.values())
    else:
        names = []
    try:
        arrays = np.asarray(small, dtype=np.float64), np.asarray(target, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"Expected `small` and `target` to hold numbers ({error}).") from error
    if arrays[0].ndim != 1 or arrays[0].shape != arrays[1].shape:
        raise UserError(
            f"Expected `small` and `target` of one value a corpus but got shapes {arrays[0].shape} and "
            f"{arrays[1].shape}."
        )
    names = names or [str(place) for place in range(len(arrays[0]))]
    for name, values in zip(("small", "target"), arrays, strict=True):
        if np.isnan(values).any():
            raise UserError(f"`{name}` of {names[int(np.isnan(values).argmax())]!r} is NaN: leave it out.")
    return names, arrays
