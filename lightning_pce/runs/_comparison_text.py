"""A comparison as text of 100 columns."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence

from lightning_pce.intervals import Interval
from lightning_pce.runs._words import columns, number

_WIDTH = 100
MOST_ROWS = 20
_DECIMALS, _MOST_DECIMALS = 3, 9

_ROUNDED = 1e-12  # of numbers below 100

Intervals = Mapping[str, Mapping[str, Interval]]


def values_table(
    values: Intervals, statistics: Sequence[str], names: Sequence[str], bits: Mapping[str, Interval]
) -> str:
    """Each record's values with their intervals, and its bits per byte."""
    found = {statistic: _column([values[name][statistic] for name in names]) for statistic in statistics}
    if any(name in bits for name in names):
        found["bits a byte"] = [number(bits[name].value) if name in bits else "" for name in names]
    return _table(names, found)


def differences_table(
    differences: Intervals, statistics: Sequence[str], names: Sequence[str], reference: str
) -> str:
    """Each record's differences from the reference, with a star where 0 is outside of the interval."""
    shown = [name for name in names if name in differences]
    known = [each for name in shown for each in differences[name].values() if not math.isnan(each.low)]
    how = ""
    if known:
        how = f" (95 % intervals of {'the same' if known[0].paired else 'other'} documents, *: surely not 0)"
    found = {
        statistic: _column([differences[name][statistic] for name in shown], "+") for statistic in statistics
    }
    return f"Differences from {reference}{how}\n{_table(shown, found)}"


def surely(difference: Interval) -> bool:
    """Whether 0 lies outside of the interval of a difference, by more than numbers are rounded."""
    return difference.low > _ROUNDED or difference.high < -_ROUNDED


def wrapped(sentences: Sequence[str]) -> str:
    """Each on lines of its own."""
    return "\n".join(
        "\n".join(textwrap.wrap(each, _WIDTH, subsequent_indent="  ", break_on_hyphens=False))
        for each in sentences
    )


def advice(reason: str) -> str:
    """Why there are no error bars and what to do."""
    return (
        f"No error bars: {reason}. They come from documents: give the text as 20 or more, better 50 (blank "
        "lines between them in a text file, or JSON lines), and score it again."
    )


def _table(names: Sequence[str], found: Mapping[str, Sequence[str]]) -> str:
    rows = [[name, *(cells[place] for cells in found.values())] for place, name in enumerate(names)]
    return columns([["", *found], *rows])


def _column(every: Sequence[Interval], sign: str = "") -> list[str]:
    """Values with as many decimals as the narrowest interval needs; with a sign also with stars."""
    if all(math.isnan(each.low) for each in every):
        return [f"{'+' if sign and each.value > 0 else ''}{number(each.value)}" for each in every]
    widths = [each.high - each.low for each in every if each.high > each.low] or [1.0]
    decimals = min(max(_DECIMALS, math.ceil(-math.log10(min(widths)))), _MOST_DECIMALS)
    cells = []
    for each in every:
        value, low, high = (f"{end:{sign}.{decimals}f}" for end in each[:3])
        star = ("*" if surely(each) else " ") if sign else ""
        cells.append(f"{value}{star}" if math.isnan(each.low) else f"{value} [{low}, {high}]{star}")
    return cells
