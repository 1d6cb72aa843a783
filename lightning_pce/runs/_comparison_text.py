"""A comparison as text of 100 columns."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence

from lightning_pce.intervals import Interval
from lightning_pce.runs._words import columns, number

_WIDTH = 100
MOST_ROWS = 20

Intervals = Mapping[str, Mapping[str, Interval]]


def values_table(
    values: Intervals, statistics: Sequence[str], names: Sequence[str], bits: Mapping[str, Interval]
) -> str:
    """Each record's values with their intervals, and its bits per byte."""
    with_bits = [name for name in names if name in bits]
    head = ["", *statistics, *(["bits a byte"] if with_bits else [])]
    rows = [
        [
            name,
            *(_value(values[name][statistic]) for statistic in statistics),
            *([number(bits[name].value) if name in bits else ""] if with_bits else []),
        ]
        for name in names
    ]
    return columns([head, *rows])


def differences_table(
    differences: Intervals, statistics: Sequence[str], names: Sequence[str], reference: str
) -> str:
    """Each record's differences from the reference, with a star where 0 is outside of the interval."""
    shown = [name for name in names if name in differences]
    known = [each for name in shown for each in differences[name].values() if not math.isnan(each.low)]
    how = ""
    if known:
        how = f" (95 % intervals of {'the same' if known[0].paired else 'other'} documents, *: surely not 0)"
    rows = [[name, *(_change(differences[name][each]) for each in statistics)] for name in shown]
    return f"Differences from {reference}{how}\n{columns([['', *statistics], *rows])}"


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


def _value(value: Interval) -> str:
    if math.isnan(value.low):
        return number(value.value)
    return f"{number(value.value)} [{number(value.low)}, {number(value.high)}]"


def _change(change: Interval) -> str:
    if math.isnan(change.low):
        return _signed(change.value)
    star = "*" if change.low > 0 or change.high < 0 else " "
    return f"{_signed(change.value)} [{_signed(change.low)}, {_signed(change.high)}]{star}"


def _signed(value: float) -> str:
    return f"{'+' if value > 0 else ''}{number(value)}"
