"""A column of JSON lines or of a parquet file: a list for each document, or a number for each token."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from lightning_pce._errors import UserError
from lightning_pce.scoring.imports._documents import ScoredDocument, losses
from lightning_pce.scoring.imports._json_files import objects
from lightning_pce.scoring.imports._options import Options, Source

# What can be part of the name of a value, as the names of groups elsewhere.
_GROUP = re.compile(r"[A-Za-z0-9_]+")
_ROWS = 1 << 14  # of a parquet file at once, where each is a number
_LISTS = 64  # where each is a list
# Of a file that evaluate --save-tokens has written: it may hold several models or data.
_OF_ONE = ("run", "data")


class _Row(NamedTuple):
    where: str
    value: Any
    document: str | None
    group: str | None


def documents(path: Path, options: Options, source: Source) -> Iterator[ScoredDocument]:
    """The documents of a file, those of single numbers in parts.

    Raises:
        UserError: if there is no such column, or it holds something else than numbers or lists of numbers.
    """
    rows = _rows_of_parquet(path, options) if _is_parquet(path) else _rows_of_json(path, options)
    tokens: dict[str, int] = {}  # how many of a document there were, where each row is a token
    for together, part in groupby(rows, lambda row: (isinstance(row.value, list), row.document, row.group)):
        is_list, name, group = together
        if is_list:
            yield from (_of_list(row, options) for row in part)
        else:
            yield from _of_numbers(list(part), name, group, tokens, options, source)


def _of_list(row: _Row, options: Options) -> ScoredDocument:
    numbers = row.value
    # NumPy and pandas have no null: NaN in the first place is one.
    first = 1 if len(numbers) and (numbers[0] is None or numbers[0] != numbers[0]) else 0
    ce = losses(numbers[first:], row.where, kind=options.kind)
    return ScoredDocument(row.document, ce, row.where, first=first, group=row.group, again="row")


def _of_numbers(
    rows: Sequence[_Row],
    name: str | None,
    group: str | None,
    tokens: dict[str, int],
    options: Options,
    source: Source,
) -> Iterator[ScoredDocument]:
    """The next tokens of a document."""
    if name is None:
        source.note("there is no --document, so all tokens count as one document and have no error bars")
        name = "0"
    before = tokens.get(name, 0)
    first = 1 if before == 0 and (rows[0].value is None or rows[0].value != rows[0].value) else 0
    tokens[name] = before + len(rows)
    numbers = [row.value for row in rows[first:]]
    where = rows[0].where if len(rows) == 1 else f"{rows[0].where} to {rows[-1].where.rsplit(' ', 1)[-1]}"
    ce = losses(numbers, where, kind=options.kind)
    yield ScoredDocument(name, ce, where, first=before + first, group=group, again="part")


def _rows_of_json(path: Path, options: Options) -> Iterator[_Row]:
    for where, values in objects(path):
        missing = next((name for name in _columns(options) if name not in values), None)
        if missing is not None:
            raise UserError(f"{where} has no {missing!r}: it has {_listed(list(values))}.")
        yield _row(where, values, options)


def _rows_of_parquet(path: Path, options: Options) -> Iterator[_Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError('Reading parquet needs pyarrow: pip install "lightning-pce[parquet]".') from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            missing = next((name for name in _columns(options) if name not in schema.names), None)
            if missing is not None:
                raise UserError(f"{path} has no column {missing!r}: it has {_listed(schema.names)}.")
            nested = pyarrow.types.is_nested(schema.field(options.column).type)
            of_one = [name for name in _OF_ONE if set(_OF_ONE) <= set(schema.names)]
            seen: set[tuple[str, Any]] = set()
            number = 0
            for batch in file.iter_batches(
                _LISTS if nested else _ROWS, columns=[*_columns(options), *of_one]
            ):
                seen |= {
                    (name, value) for name in of_one for value in batch.column(name).unique().to_pylist()
                }
                if len(seen) > len(of_one):
                    raise UserError(
                        f"{path} holds the tokens of several models or data (columns run and data), and a "
                        "record is of one: import a file of each."
                    )
                columns = {name: batch.column(name).to_pylist() for name in _columns(options)}
                for row in zip(*columns.values(), strict=True):
                    number += 1
                    yield _row(f"{path}, row {number}", dict(zip(columns, row, strict=True)), options)
    except pyarrow.ArrowException as error:
        raise UserError(f"{path} is no parquet file, or torn ({str(error)[:80]}): write it again.") from error


def _row(where: str, values: dict[str, Any], options: Options) -> _Row:
    name = values[options.document] if options.document else None
    if options.document and (name is None or isinstance(name, (float, list, dict))):
        raise UserError(f"{where}: expected the id of a document in {options.document!r} but got {name!r}.")
    group = values[options.group] if options.group else None
    if group is not None and not _GROUP.fullmatch(str(group)):
        raise UserError(f"{where}: expected a group's name of A-Z, a-z, 0-9, _ but got {str(group)[:40]!r}.")
    return _Row(
        where,
        values[options.column or ""],
        None if name is None else str(name),
        None if group is None else str(group),
    )


def _columns(options: Options) -> list[str]:
    given = (options.column, options.document, options.group)
    return list(dict.fromkeys(name for name in given if name is not None))


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:10])) + (" ..." if len(names) > 10 else "")
