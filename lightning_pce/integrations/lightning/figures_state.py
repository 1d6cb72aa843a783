"""What figures show, as the state of a callback in a checkpoint, and back."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from lightning_pce._names import percentile_key
from lightning_pce.runs._records import Record


def state_of(records: Iterable[Record]) -> dict[str, Any]:
    """The mean and the percentiles of records, in plain containers.

    ``history`` has them by name and step. Where several validations share a step, because gradients are
    accumulated, ``records`` has all of that name, each with its batch.
    """
    history: dict[str, dict[int, Any]] = {}
    every: dict[str, list[Any]] = {}
    for record in records:
        assert record.step is not None
        summary = record.values["ce_mean"], percentiles_of(record)
        history.setdefault(record.name, {})[record.step] = summary
        every.setdefault(record.name, []).append((record.step, record.batch, *summary))
    shared = {name: found for name, found in every.items() if len(found) > len(history[name])}
    return {"history": history, "records": shared} if shared else {"history": history}


def records_of(state: Any) -> list[Record] | None:
    """The records in a state, None if anything in it is not as :func:`state_of` gives it."""
    try:
        every = {
            _checked(name, str): [(step, None, *summary) for step, summary in summaries.items()]
            for name, summaries in state.get("history", {}).items()
        }
        every |= {_checked(name, str): list(found) for name, found in state.get("records", {}).items()}
        return [_record(name, *found) for name, those in every.items() for found in those]
    except (AttributeError, TypeError, ValueError, OverflowError):
        return None


def percentiles_of(record: Record) -> dict[float, float]:
    """Its percentiles of CE: ``99.9`` is ``"ce_p99_9"``."""
    found = {}
    for key, value in record.values.items():
        if key.startswith("ce_p"):
            with suppress(ValueError):  # of a group, or the end of an interval
                found[float(key.removeprefix("ce_p").replace("_", "."))] = value
    return found


def _record(name: str, step: Any, batch: Any, mean: Any, percentiles: Any) -> Record:
    values = {"ce_mean": float(_checked(mean, int, float))}
    for percentile, value in percentiles.items():
        key = percentile_key(float(_checked(percentile, int, float)))
        values[f"ce_{key}"] = float(_checked(value, int, float))
    _checked(step, int)
    return Record("", "", name, step=step, batch=_checked(batch, int, type(None)), values=values)


def _checked(value: Any, *types: type) -> Any:
    if not isinstance(value, types) or isinstance(value, bool):
        raise TypeError
    return value
