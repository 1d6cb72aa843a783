"""JSON files: one object, a list of objects, or one in each line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lightning_pce._errors import UserError


class Item(NamedTuple):
    """An object of a file."""

    where: str
    """For messages: ``"answers.jsonl, line 3"``."""
    values: dict[str, Any]


def objects(path: Path) -> Iterator[Item]:
    """The objects of a file, one after the other: of JSON lines no more than one is in memory.

    Raises:
        UserError: if the file is empty, no JSON in UTF-8, torn, or holds something else than objects.
    """
    found = False
    for value, where in _values(path):
        for item in _items(value, where):
            found = True
            yield item
    if not found:
        raise UserError(f"{path} is empty: there is nothing to import.")


def _values(path: Path) -> Iterator[tuple[Any, str]]:
    """What each line holds, or the whole file where its lines are parts of one value; and where that is."""
    first = True
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            if first and not _is_json(line):
                yield _parsed(path.read_bytes(), str(path)), str(path)
                return
            first, where = False, f"{path}, line {number}"
            yield _parsed(line, where), where


def answers(path: Path) -> Iterator[tuple[Item, str | None]]:
    """What a server has answered, taken out of what a batch of requests wraps it in, and the user's id of it.

    An answer's own ``id`` is made up by the server: answers of two models to one request would not be one
    document by it, so that only the ids count that the user has given.

    Raises:
        UserError: as :func:`objects`, or if an answer is an error.
    """
    for where, values in objects(path):
        name, body = values.get("custom_id"), values
        if isinstance(values.get("response"), dict):
            name = values.get("id") if name is None else name
            body = values["response"]
            if isinstance(body.get("body"), dict):
                body = body["body"]
        if values.get("error") or body.get("error") or body.get("object") == "error":
            about = values.get("error") or body.get("error") or body.get("message")
            raise UserError(
                f"{where} is an error and no answer ({str(about)[:80]}): ask again, or take it out."
            )
        yield Item(where, body), None if name is None else str(name)


def _items(value: Any, where: str) -> Iterator[Item]:
    """The objects of a line or a file, perhaps in a list."""
    several = isinstance(value, list)
    for number, each in enumerate(value if several else [value], 1):
        at = f"{where}, answer {number}" if several else where
        if not isinstance(each, dict):
            raise UserError(f"{at}: expected an object in braces but got {str(each)[:40]!r}.")
        yield Item(at, each)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _parsed(text: bytes, where: str) -> Any:
    try:
        return json.loads(text.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 (byte {error.start}): is it a JSON file?") from error
    except ValueError as error:
        raise UserError(
            f"{where} is torn or no JSON ({error}): write the file again, or take that line out."
        ) from error
    except RecursionError as error:
        raise UserError(f"{where} is nested too deeply to be an answer of a server.") from error
