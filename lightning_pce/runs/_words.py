"""Numbers and names as words, for tables and sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence


def number(value: float) -> str:
    """Four digits of a large number, three of a small one: ``"4.276"``, ``"0.00643"``, ``"0"``.

    Example:
        >>> number(4.2762), number(0.80712), number(0.006434), number(0.0)
        ('4.276', '0.807', '0.00643', '0')
    """
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    if abs(value) < 0.1:
        return f"{value:.3g}"
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:,.0f}"


def signed(value: float) -> str:
    """The same with its sign: ``"+0.103"``."""
    return number(value) if value < 0 or value == 0 or math.isnan(value) else f"+{number(value)}"


def listed(words: Sequence[str], last: str = "and") -> str:
    """``"a, b and c"``."""
    words = list(words)
    return f" {last} ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def in_order(names: Sequence[str], every: Sequence[str]) -> str:
    """Names as a list in which neighbours are put together.

    Example:
        >>> in_order(["a", "c", "d", "e"], ["a", "b", "c", "d", "e"])
        'a, c to e'
    """
    places = [place for place, name in enumerate(every) if name in set(names)]
    runs: list[list[int]] = []
    for place in places:
        if runs and runs[-1][-1] == place - 1:
            runs[-1].append(place)
        else:
            runs.append([place])
    words: list[str] = []
    for run in runs:
        ends = [every[run[0]], every[run[-1]]]
        words += [f"{ends[0]} to {ends[1]}"] if len(run) > 2 else [every[place] for place in run]
    return ", ".join(words)


def percent(share: float) -> str:
    """``0.772 -> "77 %"``; a share is called all or nothing only if it is."""
    rounded = round(100 * share)
    if share not in (0, 1):
        rounded = min(max(rounded, 1), 99)
    return f"{rounded} %"


def percentile(u: float) -> str:
    """``0.725 -> "p72.5"``."""
    return f"p{round(100 * u, 1):g}"


def columns(rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Rows of words in columns that are as wide as they need; the first ``left`` are aligned to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            word.ljust(width) if place < left else word.rjust(width)
            for place, (word, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
