"""What a comparison has found, as text and as plain values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning_pce.intervals import Interval
from lightning_pce.runs._comparison_text import (
    MOST_ROWS,
    advice,
    differences_table,
    values_table,
    wrapped,
)
from lightning_pce.runs._records import Record
from lightning_pce.runs._table import Row, Table
from lightning_pce.runs._task import Task
from lightning_pce.runs._ties import Ties
from lightning_pce.runs._verdict import Verdict
from lightning_pce.runs._words import in_order
from lightning_pce.runs.what_moved import Moved

_UNITS = {"tokens": "by their tokens", "bytes": "by their bytes", "documents": "by their documents"}


@dataclass(frozen=True, eq=False)
class Comparison:
    """What :func:`lightning_pce.runs.comparison.compare` returns; ``str`` makes text of it.

    Args:
        records: in order, each with its label, by which all else is named.
        by: ``"tokens"``; ``"bytes"`` of records of several tokenizers: the mean is bits per byte, percentiles
            are those of documents; ``"documents"`` of records that hold sums of documents: the mean alone.
        of: the statistic: ``"ce"`` and others.
        group: the group of tokens, ``""``: all.
        unit: of all values: ``"nats a token"``, ``"bits a byte"``, ``"nats a document"``, or none.
        reference: the label of the record that differences are from.
        values: by record and statistic; records with more NaN than others are left out, as the table notes.
        differences: the same less the reference, paired by document.
        bits_per_byte: by record, of all its tokens where bytes are known; by bytes over those in common.
        table: what each statistic picks; None if only the mean is known.
        verdict: the shortlist and the sentences; None if only the mean is known.
        mean: the records within error of the lowest mean.
        task: the task metric at each record of ``values``, if there is one.
        moved: the labels that moved the mean between ``moved_pair``: the picks of mean and bulk, or if these
            are one the reference and the last other record. None if labels are not known.
        moved_pair: the labels of these two records.
        label_texts: the text of token ids, as far as they are known.
        no_intervals: why there are no error bars; None if there are.
        notes: what to know beside all this.
    """

    records: tuple[Record, ...]
    by: str
    of: str
    group: str
    unit: str
    reference: str
    values: Mapping[str, Mapping[str, Interval]]
    differences: Mapping[str, Mapping[str, Interval]]
    bits_per_byte: Mapping[str, Interval]
    table: Table | None
    verdict: Verdict | None
    mean: Ties
    task: Task | None
    moved: Moved | None
    moved_pair: tuple[str, str] | None
    label_texts: Mapping[int, str]
    no_intervals: str | None
    notes: tuple[str, ...]

    @property
    def agree(self) -> bool:
        """False if mean and bulk have error bars, and share no record within them."""
        if self.verdict is None or self.verdict.bulk is None or self.no_intervals is not None:
            return True
        return not set(self.mean.names).isdisjoint(self.verdict.ties[self.verdict.bulk].names)

    def text_of(self, label: int) -> str:
        """The text of a token id, and the id too if it is a part of a character: others look the same."""
        text = self.label_texts.get(label)
        if text is None:
            return f"token {label}"
        return f"{text} (token {label})" if "\ufffd" in text else text

    def __str__(self) -> str:
        names = tuple(self.values)
        parts = [self._headline()]
        if len(names) > 1 or self.table is None:
            shown, statistics = self._shown(), self._main_statistics()
            of_all_tokens = (self.by, self.of, self.group) == ("tokens", "ce", "")
            bits = self.bits_per_byte if of_all_tokens else {}
            parts.append(values_table(self.values, statistics, shown, bits))
            if self.differences:
                parts.append(differences_table(self.differences, statistics, shown, self.reference))
        if self.table is not None:
            parts.append(str(self.table._replace(notes=())))  # the verdict says them too
        parts.append(wrapped(self._sentences()))
        if self.moved is not None and self.moved_pair is not None:
            before, after = self.moved_pair
            parts.append(f"From {before} to {after}: {self.moved.words(self.text_of)}")
        notes = [*self.notes, *([] if self.no_intervals is None else [advice(self.no_intervals)])]
        return "\n\n".join([*parts, *([wrapped(notes)] if notes else [])])

    def to_plain(self) -> dict[str, Any]:
        """All of it as JSON holds it, NaN and infinities as None; docs/compare.md has the keys in words."""
        verdict = self.verdict
        return {
            "name": self.records[0].name,
            "by": self.by,
            "of": self.of,
            "group": self.group,
            "unit": self.unit,
            "reference": self.reference,
            "agree": self.agree,
            "records": [self._record(record) for record in self.records],
            "picks": [] if self.table is None else [self._pick(row) for row in self.table.rows],
            "shortlist": [] if verdict is None else list(verdict.shortlist),
            "bulk": None if verdict is None else verdict.bulk,
            "saturated": [] if verdict is None else list(verdict.saturated),
            "task": None if self.task is None else {"name": self.task.name, "best": self.task.best},
            "sentences": self._sentences(),
            "moved": self._moved(),
            "no_intervals": self.no_intervals,
            "notes": list(self.notes),
        }

    def _headline(self) -> str:
        of = f"{self.of}{f' of {self.group}' if self.group else ''}{f' in {self.unit}' if self.unit else ''}"
        number = "1 record" if len(self.records) == 1 else f"{len(self.records)} records"
        what = of if self.by == "tokens" else self.unit
        return f"{self.records[0].name}: {number} {_UNITS[self.by]}, {what}"

    def _main_statistics(self) -> list[str]:
        if self.verdict is None:
            return ["mean"]
        return list(dict.fromkeys(["mean", self.verdict.bulk or "p50", "p95"]))

    def _shown(self) -> list[str]:
        """The records in the tables: of very many those that somebody picks, the reference and the last."""
        names = list(self.values)
        if len(names) <= MOST_ROWS:
            return names
        picks = {row.pick for row in self.table.rows} if self.table is not None else {self.mean.best}
        return [name for name in names if name in {*picks, self.reference, names[-1]}]

    def _sentences(self) -> list[str]:
        if self.verdict is not None:
            return list(self.verdict.sentences)
        ties = in_order(self.mean.names, tuple(self.values), "and")
        return [f"The mean is lowest at {self.mean.best}; within error of it: {ties}."]

    def _record(self, record: Record) -> dict[str, Any]:
        label = record.label
        bits, task = self.bits_per_byte.get(label), None
        if self.task is not None and label in self.values:
            task = _number(float(self.task.values[list(self.values).index(label)]))
        return {
            "label": label,
            "run": record.run,
            "function": record.function,
            "name": record.name,
            "step": record.step,
            "epoch": record.epoch,
            "paths": [each.path for each in record.saved],
            "how": dict(record.how),
            "values": {name: _interval(each) for name, each in self.values.get(label, {}).items()},
            "differences": {name: _interval(each) for name, each in self.differences.get(label, {}).items()},
            "bits_per_byte": None if bits is None else _interval(bits),
            "task": task,
        }

    def _pick(self, row: Row) -> dict[str, Any]:
        return {
            "statistic": row.statistic,
            "pick": row.pick,
            **_interval(row.value),
            "within_error": list(row.ties),
            "costs": {name: _number(cost) for name, cost in row.costs.items()},
            "signal_to_noise": _number(row.signal_to_noise),
            "task": _number(row.task),
            "pearson": _number(row.pearson),
            "spearman": _number(row.spearman),
            "wrong_sign": row.misleading,
        }

    def _moved(self) -> dict[str, Any] | None:
        if self.moved is None or self.moved_pair is None:
            return None
        labels = [
            {
                name: _number(value) if isinstance(value, float) else value
                for name, value in each._asdict().items()
            }
            | {"text": self.label_texts.get(each.label)}
            for each in self.moved.labels
        ]
        return {
            "from": self.moved_pair[0],
            "to": self.moved_pair[1],
            "before": _number(self.moved.before),
            "after": _number(self.moved.after),
            "labels": labels,
            "others": _number(self.moved.others),
        }


def _interval(value: Interval) -> dict[str, Any]:
    found = {"value": _number(value.value), "low": _number(value.low), "high": _number(value.high)}
    return {**found, "paired": value.paired, "reason": value.reason}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
