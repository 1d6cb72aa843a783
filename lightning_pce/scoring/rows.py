"""Rows of JSON lines and parquet as documents: ``text``, ``prompt`` and ``completion``, or ``messages``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lightning_pce._errors import UserError
from lightning_pce.scoring._text_files import text_of
from lightning_pce.scoring.documents import ROLES, Document, Part, plain_name

_MOST_GROUPS = 32  # each is a digest of its own, and a curve in a figure
_COLUMNS = ("text", *ROLES, "messages", "tools", "id", "document")
_FORMS = (("text",), ROLES, ("messages",))


class Row(NamedTuple):
    """One row: where it stands, for people, and its columns without those that are null."""

    where: str
    columns: Mapping[str, Any]


def rows_of(path: Path, group: str | None = None) -> Iterator[Row]:
    """The rows of one file, by its suffix.

    Args:
        path: ``.jsonl``, ``.ndjson``, ``.json`` or ``.parquet``.
        group: a column that is wanted beside those that make a document.

    Raises:
        UserError: if a row cannot be read; it names the line.
    """
    if path.suffix.lower() == ".parquet":
        return _of_parquet(path, group)
    text = text_of(path)
    if path.suffix.lower() == ".json" and text.lstrip()[:1] == "[":
        return _of_list(path, text)
    return _of_lines(path, text)


def _of_lines(path: Path, text: str) -> Iterator[Row]:
    # Not splitlines: JSON may hold U+2028 as it is.
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            last = number == len(lines)  # a whole file ends with a newline
            yield _row(f"{path} line {number}", _parsed(line, f"{path} line {number}", torn=last))


def _of_list(path: Path, text: str) -> Iterator[Row]:
    for number, row in enumerate(_parsed(text, str(path), torn=False), start=1):
        yield _row(f"{path} item {number}", row)


def _parsed(text: str, where: str, torn: bool) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise UserError(f"{where} is nested too deeply to be read.") from None
    except ValueError as error:
        what = "is torn (its end is missing)" if torn else f"is not JSON ({error})"
        raise UserError(f"{where} {what}: mend or remove it.") from None


def _row(where: str, row: object) -> Row:
    if not isinstance(row, dict):
        raise UserError(
            f"{where} is {_kind(row)}, not an object with `text`, `messages`, or `prompt` and `completion`."
        )
    return Row(where, {name: value for name, value in row.items() if value is not None})


def _of_parquet(path: Path, group: str | None) -> Iterator[Row]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UserError(f"{path} needs pyarrow: pip install 'lightning-pce[parquet]'.") from None
    try:
        with path.open("rb") as file:
            table = pq.ParquetFile(file)
            names = table.schema_arrow.names
            if group is not None and group not in names:
                raise UserError(f"{path} has no column {group!r}; it has {', '.join(names)}.")
            wanted = [name for name in names if name in (*_COLUMNS, group)] or names
            number = 0
            for batch in table.iter_batches(batch_size=1024, columns=wanted):
                for row in batch.to_pylist():
                    number += 1
                    yield _row(f"{path} row {number}", row)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read as parquet: {str(error).splitlines()[0]}") from error


def documents_of(
    rows: Iterable[Row], path: Path, group: str | None
) -> tuple[tuple[Document, ...], tuple[str, ...]]:
    """The documents of rows and the names of their groups.

    Args:
        rows: of one form; all have an ``id`` or none, and so with ``document``.
        path: of the data, for people.
        group: the column that says of which group a row is; None: prompt and completion.

    Raises:
        UserError: if a row lacks a column, or holds something else than it is to hold.
    """
    seen: dict[str, str] = {}
    documents: list[Document] = []
    first: Row | None = None
    values: dict[str, str] = {}
    for row in rows:
        first = first or row
        form = _form(row)
        if form != _form(first):
            raise UserError(
                f"{row.where} has `{form[0]}` but {first.where} has `{_form(first)[0]}`: all rows are to be "
                "alike."
            )
        for column in ("id", "document"):
            _check_alike(row, first, column)
        number = _name(row, "id") if "id" in row.columns else str(len(documents))
        if number in seen:
            raise UserError(f"{row.where} has the id {number!r} of {seen[number]}: ids are unique.")
        seen[number] = row.where
        unit = _name(row, "document") if "document" in row.columns else number
        documents.append(_document(row, form, number, unit, _group(row, group, values)))
    if first is None:
        raise UserError(f"{path} holds no rows.")
    if group is not None:
        return tuple(documents), tuple(sorted(values))
    return tuple(documents), () if _form(first) == ("text",) else ROLES


def _form(row: Row) -> tuple[str, ...]:
    """By which columns a row is a document."""
    found = [form for form in _FORMS if all(column in row.columns for column in form)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(
            f"{row.where} has both `{found[0][0]}` and `{found[1][0]}`: remove what is not to be scored."
        )
    missing = [(a, b) for a, b in (ROLES, ROLES[::-1]) if a in row.columns]
    if missing:
        raise UserError(f"{row.where} has `{missing[0][0]}` but no `{missing[0][1]}`.")
    has = ", ".join(f"`{name}`" for name in row.columns) or "nothing"
    raise UserError(
        f"{row.where} has neither `text`, `prompt` and `completion`, nor `messages`; it has {has}."
    )


def _check_alike(row: Row, first: Row, column: str) -> None:
    if (column in row.columns) != (column in first.columns):
        has, lacks = (row, first) if column in row.columns else (first, row)
        raise UserError(f"{lacks.where} has no `{column}` but {has.where} has: all rows are to be alike.")


def _name(row: Row, column: str) -> str:
    value = row.columns[column]
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise UserError(f"{row.where}: `{column}` is to be text or a whole number but is {_kind(value)}.")
    return _encodable(str(value), row, column)


def _group(row: Row, column: str | None, values: dict[str, str]) -> str | None:
    """The name of a row's group; ``values`` keeps from which value each name was made."""
    if column is None:
        return None
    if column not in row.columns:
        has = ", ".join(f"`{name}`" for name in row.columns)
        raise UserError(f"{row.where} has no `{column}` to be its group; it has {has}.")
    value = row.columns[column]
    if not isinstance(value, str | int):
        raise UserError(f"{row.where}: `{column}` is to be text or a whole number but is {_kind(value)}.")
    text = str(value)
    name = plain_name(text)
    if not any(c.isascii() and c.isalnum() for c in text):
        raise UserError(f"{row.where}: {text!r} in `{column}` has no letter A-Z or digit to make a name of.")
    if values.setdefault(name, text) != text:
        raise UserError(
            f"{row.where}: {text!r} and {values[name]!r} in `{column}` are both the group {name}: rename one."
        )
    if len(values) > _MOST_GROUPS:
        raise UserError(
            f"{row.where}: `{column}` has more than {_MOST_GROUPS} values: take a coarser column."
        )
    return name


def _document(row: Row, form: tuple[str, ...], number: str, unit: str, group: str | None) -> Document:
    if form == ("messages",):
        return Document(number, unit, messages=_messages(row, "messages"), group=group)
    values = [row.columns[column] for column in form]
    if form == ROLES and all(isinstance(value, list) for value in values):
        prompt, completion = (_messages(row, column) for column in form)
        return Document(number, unit, messages=prompt + completion, completion_from=len(prompt), group=group)
    for column, value in zip(form, values, strict=True):
        if not isinstance(value, str):
            also = " or, as its partner, a list of messages" if form == ROLES else ""
            raise UserError(f"{row.where}: `{column}` is to be text{also} but is {_kind(value)}.")
        _encodable(value, row, column)
    if group is not None or form == ("text",):
        return Document(number, unit, (Part("".join(values), group),))
    return Document(number, unit, tuple(Part(text, role) for text, role in zip(values, ROLES, strict=True)))


def _messages(row: Row, column: str) -> tuple[dict[str, Any], ...]:
    found = row.columns[column]
    if not isinstance(found, list) or not found:
        raise UserError(f"{row.where}: `{column}` is to be a list of messages but is {_kind(found)}.")
    if row.columns.get("tools"):
        raise UserError(f"{row.where} has `tools`, which are not given to the template: remove such rows.")
    return tuple(_message(row, f"message {i} of `{column}`", each) for i, each in enumerate(found, start=1))


def _message(row: Row, which: str, message: object) -> dict[str, Any]:
    """One message without what is null: a parquet file has every key in every message."""
    if not isinstance(message, dict):
        raise UserError(f"{row.where}: {which} is {_kind(message)}, not an object with `role` and `content`.")
    kept = {key: value for key, value in message.items() if value is not None}
    for key in ("role", "content"):
        if not isinstance(kept.get(key), str):
            what = f"but {_kind(kept[key])}" if key in kept else "(tool calls are not scored)"
            raise UserError(f"{row.where}: {which} has no text as `{key}` {what}.")
    for key, value in kept.items():
        if isinstance(value, dict | list) and value:
            raise UserError(f"{row.where}: {which} has `{key}`, which is not plain text: remove such rows.")
        if isinstance(value, str):
            _encodable(value, row, key)
    return {key: value for key, value in kept.items() if isinstance(value, str | int | float)}


def _encodable(text: str, row: Row, column: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{row.where}: `{column}` holds half of a surrogate pair at character {error.start}: mend it."
        ) from None
    return text


def _kind(value: object) -> str:
    if value is None:
        return "null"
    names = {
        str: "text",
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
    }
    size = " that is empty" if isinstance(value, str | list | dict) and not value else ""
    return names.get(type(value), type(value).__name__) + size
