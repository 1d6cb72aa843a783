"""Records of ``evaluate --proxies`` as rows of a table; those of the same models without are baselines."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from lightning_pce._errors import UserError
from lightning_pce.runs._paths import shortest_ends
from lightning_pce.runs._records import SCORED, Record
from lightning_pce.runs._words import listed
from lightning_pce.runs.comparable import relation_of_all
from lightning_pce.runs.proxy_files import COUNTERS, Row
from lightning_pce.runs.task_values import some

_START = "proxy_"


class Rows(NamedTuple):
    """What records hold."""

    rows: list[Row]
    baselines: dict[str, dict[str, float]]
    """By name and model."""
    notes: list[str]


def rows_of(records: Sequence[Record], files: Sequence[str]) -> Rows:
    """The rows of records.

    Args:
        records: with labels that tell them apart.
        files: where each of them is.

    Raises:
        UserError: if proxies of one task were made in other ways, or on other data, or files of a model have
            been changed between two of its tasks.
    """
    with_proxies = [isinstance(record.how.get("proxies"), Mapping) for record in records]
    chosen = [record for record, there in zip(records, with_proxies, strict=True) if there]
    models = _named(chosen)
    notes = list(_checked(chosen))
    rows = [
        _row(record, models[_weights(record)], file)
        for record, file, there in zip(records, files, with_proxies, strict=True)
        if there
    ]
    others = [record for record, there in zip(records, with_proxies, strict=True) if not there]
    tasks = {row.task for row in rows}
    generic = [each for each in others if _is_generic(each, models, tasks)]
    if len(generic) < len(others):
        left_out = [each.label for each in others if each not in generic]
        notes.append(
            f"Left out, as no baseline: records of other models, or on one of the tasks: {some(left_out)}."
        )
    baselines: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(record.name for record in generic):
        called, values, note = _baseline([record for record in generic if record.name == name])
        notes += [] if note is None else [f"No baseline of {name!r}: {note}"]
        if values:
            baselines[called] = {models[weights]: value for weights, value in values.items()}
    return Rows(rows, baselines, notes)


def _path(record: Record) -> str:
    return record.saved[0].path if record.saved else record.run


def _weights(record: Record) -> str:
    """Which model it is of: ``m``, ``m/`` and ``/home/me/m`` are one; ``last`` may be two, in time."""
    content = record.how.get("model")
    return content if isinstance(content, str) else _path(record)


def _named(records: Sequence[Record]) -> dict[str, str]:
    """A short name for each model, by its weights."""
    first: dict[str, Record] = {}
    for record in records:
        first.setdefault(_weights(record), record)
    at: dict[str, Record] = {}
    for record in first.values():
        other = at.setdefault(os.path.normpath(_path(record)), record)
        if other is not record:
            raise UserError(
                f"{_path(record)!r} was scored on {other.name!r} and {record.name!r} with different weights: "
                "score it again, into another file."
            )
    ends = shortest_ends({_path(record) for record in first.values()})
    return {weights: ends[_path(record)] for weights, record in first.items()}


def _is_generic(record: Record, models: Mapping[str, str], tasks: Collection[str]) -> bool:
    """Whether it may be a baseline of all tasks: one task's own text is none of the others."""
    return _weights(record) in models and record.function in SCORED and record.name not in tasks


def _row(record: Record, model: str, file: str) -> Row:
    values = {
        key.removeprefix(_START): value for key, value in record.values.items() if key.startswith(_START)
    }
    names = [name for name in values if f"{name}_se" in values and name not in COUNTERS]
    if not names:
        raise UserError(f"{file}: the record {record.label!r} has no proxies: score it again with --proxies.")
    return Row(
        model,
        _path(record),
        record.name,
        None,
        {name: values[name] for name in names},
        {name: values[f"{name}_se"] for name in names},
        math.nan,
        {},
        file,
    )


def _checked(records: Sequence[Record]) -> Iterable[str]:
    """Notes on the records of each task; raises if they may not be compared."""
    for task in dict.fromkeys(record.name for record in records):
        found = [record for record in records if record.name == task]
        relation_of_all(found)
        cases = {repr(_settings(record)): record for record in found}
        for a, b in itertools.combinations(cases.values(), 2):
            _check_alike(a, b)
        sizes: dict[str, list[str]] = {}
        for record in found:
            sizes.setdefault(str(record.how["proxies"].get("vocabulary")), []).append(record.label)
        if len(sizes) > 1:
            words = listed([f"{size} ({some(labels)})" for size, labels in sizes.items()])
            yield (
                f"{task}: vocabularies of {words}; proxies are means over tokens, and other tokenizers cut "
                "the same text into others."
            )


def _settings(record: Record) -> dict[str, Any]:
    return {"tokenizer": record.how.get("tokenizer"), **record.how["proxies"]}


def _check_alike(a: Record, b: Record) -> None:
    ours, theirs = _settings(a), _settings(b)
    for name in sorted(ours.keys() | theirs.keys()):
        pair = ours.get(name), theirs.get(name)
        if name in ("vocabulary", "tokenizer") or pair[0] == pair[1]:
            continue
        # Of a table of counts each tokenizer has its own.
        tables = all(str(each).startswith("table ") for each in pair)
        if name == "frequency" and tables and ours["tokenizer"] != theirs["tokenizer"]:
            continue
        raise UserError(
            f"{a.label!r} and {b.label!r} cannot be compared: of their proxies {name} is {pair[0]} and "
            f"{pair[1]}; score both in one way."
        )


def _baseline(records: Sequence[Record]) -> tuple[str, dict[str, float], str | None]:
    """The name, the loss of each model by its weights, and why there is none.

    Of other tokenizers that is the bits of a byte: the mean over tokens depends on how the text was cut.
    """
    name = records[0].name
    models = [_weights(record) for record in records]
    several = {_path(record): None for record in records if models.count(_weights(record)) > 1}
    if several:
        return name, {}, f"there are several records of {some(list(several))}."
    try:
        by_bytes = relation_of_all(records).kind == "bytes"
    except UserError as error:
        return name, {}, str(error)
    key, called = ("bits_per_byte", f"{name}_bits_per_byte") if by_bytes else ("ce_mean", f"{name}_ce")
    without = [record.label for record in records if key not in record.values]
    if without:
        return called, {}, f"{some(without)} has no {key}."
    return called, {_weights(record): record.values[key] for record in records}, None
