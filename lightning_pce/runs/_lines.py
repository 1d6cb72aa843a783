"""One line of a history as bytes: what it holds, and in which order.

A line is one JSON object in ASCII, without blanks outside of strings but those around its last key,
``, "payload": ``. So what stands before it is cut off and read by itself. docs/history.md has the schema in
words.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from sys import intern
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_pce._version import __version__
from lightning_pce.digest._format import FOOTER_ROWS, compression_of, footer_of, signed_weights_of

SCHEMA = 1
_BEGINNING = b'{"kind":"'
_BEFORE_PAYLOAD = b', "payload": '
# An item in a group in a statistic in the payload in the line: nowhere else do so many end together.
_END_OF_PAYLOAD = b"}}}}"

# By statistic and group, "" of all tokens.
Tensors = Mapping[str, Mapping[str, Tensor]]


# Where the payload has label totals, by the name of the metric: no statistic is called so.
LABEL_TOTALS = "label_totals"


def encoded(
    kind: str,
    header: Mapping[str, Any],
    digests: Tensors,
    documents: Tensors,
    label_totals: Mapping[str, Tensor] | None = None,
) -> bytes:
    """A line, with its end; keys stay in their order.

    Raises:
        ValueError: if there is something in the header that JSON has no word for.
    """
    small = json.dumps({"kind": kind, "schema": SCHEMA, **header}, separators=(",", ":"), allow_nan=False)
    if not digests:
        return small.encode() + b"\n"
    payload: dict[str, Any] = {
        statistic: {
            group: _item(digest, documents.get(statistic, {}).get(group)) for group, digest in groups.items()
        }
        for statistic, groups in digests.items()
    }
    if label_totals:
        payload[LABEL_TOTALS] = {name: _sparse(totals) for name, totals in label_totals.items()}
    large = json.dumps(payload, separators=(",", ":")).encode()
    return small[:-1].encode() + _BEFORE_PAYLOAD + large + b"}\n"


class Header(NamedTuple):
    """A line without its payload."""

    values: dict[str, Any]
    has_payload: bool


def header_of(line: bytes) -> Header | None:
    """All of a line but its payload; None if it is torn, or no line of a history."""
    place = line.find(_BEFORE_PAYLOAD)
    # A torn payload may have another line behind it, if two processes wrote at once.
    if place >= 0 and line.rstrip().endswith(_END_OF_PAYLOAD) and line.find(_BEGINNING, place) < 0:
        try:
            return _checked(json.loads(line[:place] + b"}"), True)
        except ValueError:
            pass  # another program has written it anew, with blanks everywhere
    try:
        values = json.loads(line)
        return _checked(values, isinstance(values, dict) and values.pop("payload", None) is not None)
    except ValueError:
        return None


def _checked(values: Any, has_payload: bool) -> Header | None:
    ours = isinstance(values, dict) and type(values.get("schema")) is int and "kind" in values
    return Header(values, has_payload) if ours else None


def check_schema(header: Header, path: Path, number: int) -> None:
    """Raise a ``ValueError`` if a later version of this package has written a line."""
    if header.values["schema"] > SCHEMA:
        raise ValueError(
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
            raise ValueError(f"{self._changed()} ({type(error).__name__}: {error})") from error
        raise ValueError(self._changed())

    def _changed(self) -> str:
        return f"{self.path} is not what it was when its history was loaded: load it again."


def _item(digest: Tensor, documents: Tensor | None) -> dict[str, Any]:
    array = digest.detach().cpu().numpy()
    used = int(np.count_nonzero(signed_weights_of(array)))
    rows = np.concatenate([array[:used], footer_of(array)])
    item: dict[str, Any] = {"compression": compression_of(array), "digest": _text(rows)}
    if documents is not None:
        item |= {"slots": len(documents), "documents": _text(documents.detach().cpu().numpy())}
    return item


def _sparse(totals: Tensor) -> dict[str, Any]:
    """Totals ``[V, 2]``, of the labels that have tokens."""
    array = totals.detach().cpu().double().numpy()
    labels = np.flatnonzero(array[:, 0])
    return {"vocabulary": len(array), "totals": _text(np.column_stack([labels, array[labels]]))}


def label_totals_in(item: Mapping[str, Any]) -> Tensor:
    """The totals ``[V, 2]`` of an item.

    Raises:
        ValueError: if they are damaged.
    """
    rows = _numbers(item["totals"]).reshape(-1, 3)
    labels, vocabulary = rows[:, 0].astype(np.int64), item["vocabulary"]
    if not isinstance(vocabulary, int) or bool(((labels < 0) | (labels >= vocabulary)).any()):
        raise ValueError(f"Expected labels in [0, {vocabulary}): the record is damaged.")
    totals = np.zeros((vocabulary, 2))
    totals[labels] = rows[:, 1:]
    return torch.from_numpy(totals)


def digest_in(item: Mapping[str, Any]) -> Tensor:
    """The digest ``[K + 3, 2]`` of an item.

    Raises:
        ValueError: if it is damaged.
    """
    rows = _numbers(item["digest"]).reshape(-1, 2)
    compression, used = item["compression"], len(rows) - FOOTER_ROWS
    if not isinstance(compression, int) or not 0 <= used <= compression:
        raise ValueError(f"Expected at most {compression} centroids but got {used}: the record is damaged.")
    digest = np.zeros((compression + FOOTER_ROWS, 2))
    digest[:used], digest[compression:] = rows[:used], rows[used:]
    return torch.from_numpy(digest)


def documents_in(item: Mapping[str, Any]) -> Tensor | None:
    """The counts by document ``[slots, bins + 1]`` of an item, None if none were kept.

    Raises:
        ValueError: if they are damaged.
    """
    if "documents" not in item:
        return None
    return torch.from_numpy(_numbers(item["documents"]).reshape(item["slots"], -1))


def _text(array: np.ndarray[Any, Any]) -> str:
    data = np.ascontiguousarray(array, dtype="<f8").tobytes()
    return base64.b64encode(zlib.compress(data)).decode()


def _numbers(text: str) -> np.ndarray[Any, Any]:
    try:
        data = zlib.decompress(base64.b64decode(text, validate=True))
        return np.frombuffer(data, dtype="<f8").astype(np.float64)
    except (ValueError, zlib.error) as error:
        raise ValueError(f"The payload of a record is damaged ({error}).") from error


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
