"""The records among which a checkpoint is chosen, and what each statistic gives of them."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from lightning_pce import digest as td
from lightning_pce import intervals
from lightning_pce._errors import UserError
from lightning_pce.digest._format import nan_weight_of
from lightning_pce.intervals._reasons import few_slots, why_no_interval
from lightning_pce.intervals._records import checked_record, percentile_of
from lightning_pce.runs._records import Record
from lightning_pce.runs.history import History

TOLERANCE = 0.01
"""In nats: differences below it are never real, and values below it are those of labels with p > 0.99."""
# Those that are looked at for saturation.
PERCENTILES = ("p5", "p25", "p50", "p75", "p90", "p95", "p99")
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
    record: Record | None = None
    """What it was made of, if that was a record."""
    group: str = ""
    """Of the record's tokens; all of them if empty."""


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
        self.of, self.in_nats = of, of in _IN_NATS
        self.tolerance = TOLERANCE if self.in_nats else 0.0
        self.reason, self.caution = _errors(self.items)
        """Why errors of differences are not known, or else a word of caution; None where all is well."""
        self._values: dict[str, Tensor] = {}
        self._replicates: dict[str, Tensor] = {}

    def only(self, places: Sequence[int]) -> Candidates:
        """Some of them, in this order."""
        return Candidates([self.items[place] for place in places], self.of)

    def error_bars(self, name: str, statistics: Sequence[str]) -> dict[str, intervals.Interval]:
        """The values of one record with their error bars."""
        item = self.items[self.names.index(name)]
        return intervals.intervals(item.digest, item.documents, statistics)

    def differences(
        self, before: str, after: str, statistics: Sequence[str]
    ) -> dict[str, intervals.Interval]:
        """The values of one record less those of another, by the same documents."""
        a, b = (self.items[self.names.index(name)] for name in (before, after))
        return intervals.differences((a.digest, a.documents), (b.digest, b.documents), statistics)

    def values(self, statistic: str) -> Tensor:
        """``[C]`` float64, one of each record."""
        if statistic == "mean" and statistic not in self._values:
            self._values[statistic] = torch.stack([td.mean(item.digest) for item in self.items])
        elif statistic not in self._values:
            # Many quantiles of a digest take no longer than one.
            every = list(dict.fromkeys([statistic, *PERCENTILES]))
            q = torch.tensor([percentile_of(each) for each in every], dtype=torch.float64)
            found = torch.stack([td.quantile(item.digest, q) for item in self.items], dim=1)
            self._values.update(zip(every, found, strict=True))
        return self._values[statistic]

    def value(self, statistic: str, name: str) -> float:
        """That of one record."""
        return float(self.values(statistic)[self.names.index(name)])

    def replicates(self, *statistics: str) -> list[Tensor] | None:
        """``[C, R]`` for each statistic: its values in the same resamples of the documents for every record.

        None if :attr:`reason` says why there are none.
        """
        if self.reason is not None:
            return None
        new = [each for each in dict.fromkeys(statistics) if each not in self._replicates]
        if new:
            drawn = [
                intervals.replicates(item.digest, item.documents, new)
                for item in self.items
                if item.documents is not None  # or there would be a reason
            ]
            self._replicates.update(zip(new, torch.stack(drawn).permute(2, 0, 1), strict=True))
        return [self._replicates[each] for each in statistics]


def candidates(runs: Runs) -> Candidates:
    """What is to be compared in a history or in a list of (name, digest, documents or None).

    Raises:
        ValueError: if it holds several runs or loaders, records of other data, or nothing.
    """
    if not isinstance(runs, History | list | tuple):
        raise ValueError(
            "Expected a History or a list of (name, digest, documents or None) but got "
            f"{type(runs).__name__}."
        )
    if len(runs) and all(isinstance(each, Record) for each in runs):
        history = runs if isinstance(runs, History) else History(runs)
        _check_one(history)
        of = history.statistic
        if of not in _LOWER_IS_BETTER:
            raise ValueError(
                f"Expected a statistic that is better when lower, one of {', '.join(_LOWER_IS_BETTER)}, but "
                f"got {of!r}: choose one by history.select(of=)."
            )
        return Candidates([item_of_record(each, of, history.group) for each in history], of)
    return Candidates([item_of(each) for each in runs])


def item_of(entry: Entry) -> Item:
    """A record's CE over all tokens, or (name, digest, documents or None), as an item."""
    if isinstance(entry, Record):
        return item_of_record(entry, "ce", "")
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


def check_names(names: Sequence[str]) -> None:
    if not names:
        raise ValueError("Expected at least one record but got none.")
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise ValueError(f"Expected a name of its own for each record but got {twice[0]!r} twice.")


def check_same_data(items: Sequence[Item]) -> None:
    """Raise a ``ValueError`` that names two records of other data, and what differs."""
    first = items[0]
    for item in items[1:]:
        what = _other_data(first, item)
        if what is not None:
            raise UserError(
                f"{first.name!r} and {item.name!r} are not of the same data: {what}. Only equal data are "
                "compared: choose by history.select(run=, name=), or score all on the same file."
            )


def item_of_record(record: Record, of: str, group: str) -> Item:
    """A record's statistic over a group of tokens as an item."""
    digest, documents = record.digest(of, group), record.documents(of, group)
    return Item(record.label, digest, documents, record.fingerprint, record, group)


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
    tokens = [float(td.count(item.digest)) + float(nan_weight_of(item.digest)) for item in (a, b)]
    if not math.isclose(*tokens, rel_tol=1e-9):
        return f"they have {tokens[0]:,.10g} and {tokens[1]:,.10g} tokens"
    if a.documents is None or b.documents is None:
        return None
    return intervals.why_unpaired((a.digest, a.documents), (b.digest, b.documents))


def _without_nan(items: Sequence[Item]) -> tuple[tuple[Item, ...], dict[str, str]]:
    """The items in which the fewest tokens are NaN, and by name why others were left out."""
    empty = [float(td.count(item.digest)) == 0 for item in items]
    nan = [float(nan_weight_of(item.digest)) for item in items]
    fewest = min((number for number, nothing in zip(nan, empty, strict=True) if not nothing), default=None)
    if fewest is None:
        raise UserError(f"Expected records of tokens but none of {len(items)} has a token with a value.")
    kept = [not nothing and number == fewest for number, nothing in zip(nan, empty, strict=True)]
    left_out = {
        item.name: f"NaN in {number:,.10g} of its tokens" if number else "no tokens"
        for item, number, keep in zip(items, nan, kept, strict=True)
        if not keep
    }
    return tuple(itertools.compress(items, kept)), left_out


def _errors(items: Sequence[Item]) -> tuple[str | None, str | None]:
    """Why the errors of differences are not known, or else a word of caution."""
    whys, cautions = [], []
    for item in items:
        record = checked_record("record", (item.digest, item.documents))
        whys.append(why_no_interval(record))
        cautions.append(None if record.slots is None else few_slots(record.slots))
    for item, why in zip(items, whys, strict=True):
        if why is not None:
            return (why if all(why == other for other in whys) else f"{item.name}: {why}"), None
    return None, next(filter(None, cautions), None)


def _shape_of(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, tuple) else type(value).__name__
