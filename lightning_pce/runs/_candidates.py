"""The records among which a checkpoint is chosen, and what each statistic gives of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from lightning_pce import digest as td
from lightning_pce import intervals
from lightning_pce._names import percentile_key
from lightning_pce.runs.history import History, Record

# Differences below it are never real, and values below it are those of labels with p > 0.99.
TOLERANCE = 0.01
_IN_NATS = ("ce", "entropy")
_LOWER_IS_BETTER = (*_IN_NATS, "log_rank", "margin")


class Item(NamedTuple):
    """One validation: what is compared with others of the same data."""

    name: str
    digest: Tensor
    """float64 ``[K + 3, 2]``."""
    documents: Tensor | None = None
    """Counts by document, float64 ``[128, 97]``, see :mod:`lightning_pce.intervals`."""
    fingerprint: str | None = None
    """Of data and protocol; None: unknown."""


Entry: TypeAlias = (
    "Record | tuple[str, Tensor, Tensor | None] | tuple[str, Tensor, Tensor | None, str | None]"
)
Runs: TypeAlias = "History | Sequence[Entry]"


class Candidates:
    """Records of the same data by name, each statistic of them computed once."""

    def __init__(self, items: Sequence[Item], of: str = "ce") -> None:
        check_names([item.name for item in items])
        self.items, self.left_out = _without_nan(items)
        check_same_data(self.items)
        self.names = tuple(item.name for item in self.items)
        self.in_nats = of in _IN_NATS
        self.unit = "nats" if self.in_nats else f"of {of}"
        self.tolerance = TOLERANCE if self.in_nats else 0.0
        self.reason = _why_no_error(self.items)
        """Why nothing is known of the error of a difference; None if it is known."""
        self._values: dict[str, Tensor] = {}
        self._replicates: dict[str, Tensor] = {}

    def values(self, statistic: str) -> Tensor:
        """``[C]`` float64, one of each record."""
        if statistic not in self._values:
            self._values[statistic] = torch.stack([value_of(item.digest, statistic) for item in self.items])
        return self._values[statistic]

    def replicates(self, *statistics: str) -> list[Tensor] | None:
        """``[C, R]`` for each statistic: its values in the same resamples of the documents for every record.

        None if :attr:`reason` says why there are none.
        """
        if self.reason is not None:
            return None
        new = [each for each in dict.fromkeys(statistics) if each not in self._replicates]
        if new:
            drawn = [intervals.replicates(item.digest, item.documents, new) for item in self.items]
            self._replicates.update(zip(new, torch.stack(drawn).permute(2, 0, 1), strict=True))
        return [self._replicates[each] for each in statistics]


def candidates(runs: Runs) -> Candidates:
    """What is to be compared in a history or in a list of (name, digest, documents or None).

    Raises:
        ValueError: if it holds several runs or loaders, records of other data, or nothing.
    """
    if isinstance(runs, str) or not isinstance(runs, Sequence):
        raise ValueError(
            "Expected a History or a list of (name, digest, documents or None) but got "
            f"{type(runs).__name__}."
        )
    if len(runs) and all(isinstance(each, Record) for each in runs):
        history = runs if isinstance(runs, History) else History(runs)  # type: ignore[arg-type]
        _check_one(history)
        if history.of not in _LOWER_IS_BETTER:
            raise ValueError(
                f"Expected a statistic that is better when lower, one of {', '.join(_LOWER_IS_BETTER)}, but "
                f"got {history.of!r}: choose one by history.select(of=)."
            )
        items = [_item_of_record(each, history.of, history.group) for each in history]
        return Candidates(items, history.of)
    return Candidates([item_of(each) for each in runs])


def item_of(entry: Entry) -> Item:
    """A record's CE over all tokens, or (name, digest, documents or None), as an item."""
    if isinstance(entry, Record):
        return _item_of_record(entry, "ce", "")
    if not isinstance(entry, tuple) or len(entry) not in (3, 4) or not isinstance(entry[0], str):
        raise ValueError(
            f"Expected a record or a tuple (name, digest, documents or None) but got {_shape_of(entry)}."
        )
    item = Item(*entry)
    digest = item.digest
    if not isinstance(digest, Tensor) or digest.ndim != 2 or digest.shape[0] < 4 or digest.shape[1] < 2:
        raise ValueError(
            f"Expected the digest of {item.name!r} to be a tensor [K + 3, 2] but got {_shape_of(digest)}."
        )
    return item._replace(digest=digest.detach().cpu())


def value_of(digest: Tensor, statistic: str) -> Tensor:
    """The mean or a percentile of a digest, 0-d float64."""
    return td.mean(digest) if statistic == "mean" else td.quantile(digest, share_of(statistic))


def share_of(statistic: str) -> float:
    """``"p99_9" -> 0.999``.

    Raises:
        ValueError: if that is not the name of a percentile.
    """
    try:
        percentile = float(statistic.removeprefix("p").replace("_", "."))
        if percentile_key(percentile) == statistic and 0 <= percentile <= 100:
            return percentile / 100
    except (AttributeError, ValueError):
        pass
    raise ValueError(f"Expected 'mean', 'bulk' or a percentile as 'p50' or 'p99_9' but got {statistic!r}.")


def check_names(names: Sequence[str]) -> None:
    if not names:
        raise ValueError("Expected at least one record but got none.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"Expected a name of its own for each record but got {twice[0]!r} twice.")


def check_same_data(items: Sequence[Item]) -> None:
    """Raise a ``ValueError`` that names two records of other data, and what differs."""
    first = items[0]
    for item in items[1:]:
        what = _other_data(first, item)
        if what is not None:
            raise ValueError(
                f"{first.name!r} and {item.name!r} are not of the same data: {what}. Only equal data are "
                "compared; history.select(run=, name=) chooses."
            )


def nan_tokens(digest: Tensor) -> float:
    """The weight of the tokens whose value was NaN."""
    infinite = td.count(digest) - td.centroids(digest)[1].sum()
    return float(td.nonfinite(digest) - infinite)


def _item_of_record(record: Record, of: str, group: str) -> Item:
    return Item(record.label, record.digest(of, group), record.documents(of, group), record.fingerprint)


def _check_one(history: History) -> None:
    for argument, found in (("run", history.runs), ("name", history.names)):
        if len(found) > 1:
            raise ValueError(
                f"Expected records of one {argument} but got {', '.join(map(repr, found))}: choose by "
                f"history.select({argument}={found[0]!r}); select(run=, name=, of=) takes all three."
            )


def _other_data(a: Item, b: Item) -> str | None:
    if a.fingerprint is not None and b.fingerprint is not None and a.fingerprint != b.fingerprint:
        return f"their fingerprints are {a.fingerprint} and {b.fingerprint}"
    tokens = [float(td.count(item.digest)) + nan_tokens(item.digest) for item in (a, b)]
    if not math.isclose(*tokens, rel_tol=1e-9):
        return f"they have {tokens[0]:,.10g} and {tokens[1]:,.10g} tokens"
    if a.documents is None or b.documents is None:
        return None
    return intervals.why_unpaired((a.digest, a.documents), (b.digest, b.documents))


def _without_nan(items: Sequence[Item]) -> tuple[tuple[Item, ...], tuple[str, ...]]:
    """The items in which the fewest tokens are NaN, and why others were left out."""
    empty = [float(td.count(item.digest)) == 0 for item in items]
    nan = [nan_tokens(item.digest) for item in items]
    fewest = min((number for number, nothing in zip(nan, empty, strict=True) if not nothing), default=None)
    if fewest is None:
        raise ValueError(f"Expected records of tokens but none of {len(items)} has a token with a value.")
    kept = [not nothing and number == fewest for number, nothing in zip(nan, empty, strict=True)]
    left_out = tuple(
        f"{item.name} is left out: " + (f"{number:,.10g} tokens are NaN" if number else "it has no tokens")
        for item, number, keep in zip(items, nan, kept, strict=True)
        if not keep
    )
    return tuple(itertools.compress(items, kept)), left_out


def _why_no_error(items: Sequence[Item]) -> str | None:
    for item in items:
        why = intervals.why_none(item.documents) if item.documents is not None else "no document counts"
        if why is not None:
            every = all(other.documents is None for other in items)
            return why if every or len(items) == 1 else f"{item.name}: {why}"
    return None


def _shape_of(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, tuple) else type(value).__name__
