"""One line of a history without its payload: what can be read without torch.

A line is one JSON object in ASCII, without blanks outside of strings but those around its last key,
``, "payload": ``. So what stands before it is cut off and read by itself. docs/history.md has the schema in
words.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from sys import intern
from typing import Any, NamedTuple

from lightning_pce._errors import UserError
from lightning_pce._version import __version__

SCHEMA = 1
_BEGINNING = b'{"kind":"'
BEFORE_PAYLOAD = b', "payload": '
# An item in a group in a statistic in the payload in the line: nowhere else do so many end together.
_END_OF_PAYLOAD = b"}}}}"
# What else the payload has beside digests: no statistic is called so.
LABEL_TOTALS = "label_totals"  # by the name of the metric
DOCUMENT_TOTALS = "document_totals"
TAIL = "tail"
NO_STATISTICS = (LABEL_TOTALS, DOCUMENT_TOTALS, TAIL)


class Header(NamedTuple):
    """A line without its payload."""

    values: dict[str, Any]
    has_payload: bool


def header_of(line: bytes) -> Header | None:
    """All of a line but its payload; None if it is torn, or no line of a history."""
    place = line.find(BEFORE_PAYLOAD)
    # A torn payload may have another line behind it, if two processes wrote at once.
    if place >= 0 and line.rstrip().endswith(_END_OF_PAYLOAD) and line.find(_BEGINNING, place) < 0:
        try:
            return _checked(json.loads(line[:place] + b"}"), True)
        except (ValueError, RecursionError):
            pass  # another program has written it anew, with blanks everywhere
    try:
        values = json.loads(line)
        return _checked(values, isinstance(values, dict) and values.pop("payload", None) is not None)
    except (ValueError, RecursionError):  # the latter of brackets a thousand deep
        return None


def _checked(values: Any, has_payload: bool) -> Header | None:
    ours = isinstance(values, dict) and type(values.get("schema")) is int and "kind" in values
    return Header(values, has_payload) if ours else None


def check_kinds(line: Mapping[str, Any]) -> None:
    """Raise a ``TypeError`` unless what a validation's line holds is of the kinds that it was written in."""
    how = line.get("how", {})
    for name in ("run", "function", "name"):
        _check_kind(name, line[name], str)
    for name in ("fingerprint", "checkpoint"):
        _check_kind(name, line.get(name), str | None)
    for name in ("step", "epoch", "batch"):
        _check_kind(name, line[name], float | int | None)
    for name, value in (("metadata", line["metadata"]), ("how", how)):
        _check_kind(name, value, dict)
    for name in how.keys() & {"data", "tokenizer", "token_ids", "protocol"}:
        _check_kind(name, how[name], str | None)
    _check_kind("notes", how.get("notes", []), list)


def _check_kind(name: str, value: Any, kind: Any) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{name} is {value!r:.40}")


def check_schema(header: Header, path: Path, number: int) -> None:
    """Raise a ``UserError`` if a later version of this package has written a line."""
    if header.values["schema"] > SCHEMA:
        raise UserError(
            f"{path}, line {number}, has schema {header.values['schema']}, and lightning-pce {__version__} "
            f"reads none above {SCHEMA}: upgrade lightning-pce where you read it."
        )


def begins_like_one(line: bytes) -> bool:
    """Whether a torn line is one of ours."""
    return bool(line.strip()) and line[: len(_BEGINNING)] == _BEGINNING[: len(line)]


class Payload(NamedTuple):
    """Where the payload of a record is; it is read when it is asked for, and not kept."""

    path: Path
    offset: int  # of the line
    length: int
    header: Mapping[str, Any]  # what the line is recognised by

    def read(self) -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
        """The items by statistic and group.

        Raises:
            ValueError: if the line is not there any more.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                line = json.loads(file.read(self.length))
            if all(line[name] == value for name, value in self.header.items()):
                return dict(line.get("payload") or {})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self._changed()} ({type(error).__name__}: {error})") from error
        raise UserError(self._changed())

    def _changed(self) -> str:
        return f"{self.path} is not what it was when its history was loaded: load it again."


def plain(number: float) -> float | str | None:
    """A number as JSON has it: NaN is null, and infinite ones are strings."""
    number = float(number)
    if math.isfinite(number):
        return number
    return None if math.isnan(number) else str(number)


def numbers_of(values: Mapping[str, float | str | None]) -> dict[str, float]:
    """What :func:`plain` was given, by name."""
    # The names of all records are the same, and are kept once.
    return {intern(name): math.nan if value is None else float(value) for name, value in values.items()}
