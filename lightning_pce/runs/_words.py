"""Numbers and names as words, for tables and sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

_MOST_RUNS = 8  # of neighbours; more nobody reads


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
    if abs(value) < 1000:
        return f"{value:.3f}"
    return f"{value:,.0f}" if abs(value) < 1e15 else f"{value:.4g}"


def correlation(value: float) -> str:
    """Two decimals with the sign: ``"+0.93"``."""
    return f"{value:+.2f}" if math.isfinite(value) else "nan"


def two_digits(value: float) -> str:
    """Two digits, of a large number all before the point unless nobody reads them: ``"0.079"``, ``"213"``.

    Example:
        >>> two_digits(0.0786), two_digits(213.4), two_digits(0.0), two_digits(1e12)
        ('0.079', '213', '0', '1e+12')
    """
    return f"{value:,.0f}" if 99.5 <= abs(value) < 1e9 else f"{value:.2g}"


def listed(words: Sequence[str], last: str = "and") -> str:
    """``"a, b and c"``."""
    words = list(words)
    return f" {last} ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def in_order(names: Sequence[str], every: Sequence[str], last: str | None = None) -> str:
    """Names as a list in which neighbours are put together, of very many how many there are.

    Example:
        >>> in_order(["a", "c", "d", "e"], ["a", "b", "c", "d", "e"])
        'a, c to e'
        >>> in_order(["a", "c"], ["a", "b", "c"], last="and")
        'a and c'
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
    if len(words) > _MOST_RUNS:
        return f"{len(places)} of {len(every)} from {every[places[0]]} to {every[places[-1]]}"
    return ", ".join(words) if last is None else listed(words, last)


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
