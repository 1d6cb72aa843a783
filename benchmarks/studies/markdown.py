"""Tables, numbers and sections of a page that is written from results."""

from __future__ import annotations

from collections.abc import Sequence

LONG = 12  # rows


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells that begin with a digit or a sign stand on the right, if all of a column do.

    A long table is folded: one opens it where one wants all seeds, and pages stay such that they can be read.
    """
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"{len(header)} columns, but a row of {len(row)}: {row}")
    rules = ["---:" if rows and all(map(_numeric, column)) else "---" for column in zip(*rows, strict=True)]
    lines = [header, rules or ["---"] * len(header), *rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
    if len(rows) <= LONG:
        return text
    return f"<details>\n<summary>A table of {len(rows)} rows</summary>\n\n{text}\n</details>\n"


def with_section(page: str, name: str, text: str) -> str:
    """The page with this text between the comments ``<!-- NAME begin -->`` and ``<!-- NAME end -->``."""
    begin, end = f"<!-- {name} begin -->", f"<!-- {name} end -->"
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(end) < page.index(begin):
        raise ValueError(f"The page needs one {begin} and after it one {end}.")
    before, _, rest = page.partition(begin)
    return f"{before}{begin}\n\n{text.strip()}\n\n{end}{rest.partition(end)[2]}"


def number(value: float | None, digits: int = 2) -> str:
    """Never -0.00; a dash for what is not there."""
    if value is None:
        return "-"
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def interval(value: float | None, low: float | None, high: float | None, digits: int = 2) -> str:
    """``4.27 [4.01, 4.52]``; without ends the value alone."""
    if low is None or high is None:
        return number(value, digits)
    return f"{number(value, digits)} [{number(low, digits)}, {number(high, digits)}]"


def percent(share: float | None, digits: int = 0) -> str:
    """``98 %`` of 0.98."""
    return "-" if share is None else f"{number(100 * share, digits)} %"


def percent_interval(share: float | None, low: float | None, high: float | None, digits: int = 0) -> str:
    """``98 % [93, 100]`` of shares."""
    if share is None or low is None or high is None:
        return percent(share, digits)
    return f"{percent(share, digits)} [{number(100 * low, digits)}, {number(100 * high, digits)}]"


def spread(values: Sequence[float | None], digits: int = 2) -> str:
    """Mean of the seeds, and the lowest and the highest if they differ: ``0.94 (0.91 to 0.97)``."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean = number(sum(known) / len(known), digits)
    low, high = number(min(known), digits), number(max(known), digits)
    return mean if low == high else f"{mean} ({low} to {high})"


def percent_spread(shares: Sequence[float | None], digits: int = 0) -> str:
    """The same of shares: ``94 % (91 to 97)``."""
    known = [100 * share for share in shares if share is not None]
    mean, parenthesis, rest = spread(known, digits).partition(" (")
    return f"{mean} %{parenthesis}{rest}" if known else "-"


def out_of(count: int, of: int) -> str:
    """``3 of 20``."""
    return f"{count} of {of}"


def _numeric(cell: str) -> bool:
    return cell in ("", "-") or cell[0] in "0123456789" or (cell[0] in "-+" and len(cell) > 1)
