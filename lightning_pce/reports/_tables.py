"""Tables of a page as words: cells, and numbers as they are written in them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from lightning_pce.reports._drawing import shown_names
from lightning_pce.runs._comparison_text import surely
from lightning_pce.runs._words import number

if TYPE_CHECKING:
    from lightning_pce.intervals import Interval
    from lightning_pce.runs._records import Record
    from lightning_pce.runs.comparison import Comparison

LONGEST_NAME = 40
ROWS = 60  # of records; a table of 500 is 400 KB, and nobody reads it


class Cell(NamedTuple):
    """A cell of a table: its words, smaller ones below them, and what kind of cell it is."""

    words: str
    below: str = ""
    kind: str = ""


class Grid(NamedTuple):
    """A table; the first cell of each row names it."""

    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


class Part(NamedTuple):
    """A line about a table, and the table; None: the line says why there is none."""

    says: str
    grid: Grid | None = None


def names_of(comparison: Comparison) -> dict[str, str]:
    """By label what a record is called on the page: in one line, without the middle of what is long."""
    labels = [record.label for record in comparison.records]
    return dict(zip(labels, shown_names(labels, LONGEST_NAME), strict=True))


def rows_of(comparison: Comparison) -> tuple[list[Record], str]:
    """The records that have a row, and a sentence if some have none.

    Of very many: those that are picked or referred to, the first, the last, and others at even distances.
    """
    records = list(comparison.records)
    if len(records) <= ROWS:
        return records, ""
    wanted = {records[0].label, records[-1].label, comparison.reference}
    if comparison.verdict is not None:
        wanted |= {*comparison.verdict.shortlist, *comparison.verdict.picks.values()}
    chosen = {place for place, record in enumerate(records) if record.label in wanted}
    free = ROWS - len(chosen)
    chosen |= {round(i * (len(records) - 1) / free) for i in range(free)}
    says = f" {len(chosen)} of {len(records)} records have a row; the JSON beside the page has all."
    return [records[place] for place in sorted(chosen)], says


def with_interval(value: Interval | None, kind: str = "") -> Cell:
    """A value, its interval below."""
    if value is None or math.isnan(value.value):
        return Cell("-")
    ends = "" if math.isnan(value.low) else f"{number(value.low)} to {number(value.high)}"
    return Cell(number(value.value), ends, kind)


def with_difference(value: Interval | None) -> Cell:
    """A difference with its sign, its interval below, and whether it is surely lower or higher."""
    if value is None or math.isnan(value.value):
        return Cell("-")
    ends = "" if math.isnan(value.low) else f"{signed(value.low)} to {signed(value.high)}"
    kind = "" if not surely(value) else "lower" if value.high < 0 else "higher"
    return Cell(signed(value.value), ends, kind)


def signed(value: float) -> str:
    """A number with its sign, ``"+0.0334"``."""
    return f"+{number(value)}" if value > 0 else number(value)


def plain(value: float, form: str = "") -> Cell:
    """A number by itself."""
    if math.isnan(value):
        return Cell("-")
    return Cell(form.format(value) if form else number(value))
