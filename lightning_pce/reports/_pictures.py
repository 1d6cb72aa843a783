"""The pictures of a page, and what each shows in words."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from lightning_pce.reports._drawing import shown
from lightning_pce.reports._svg import svg_of
from lightning_pce.reports._words import visible
from lightning_pce.reports.history_charts import Drawn, decision_of, difference_of, what_of
from lightning_pce.runs._words import number, percent, percentile, two_digits
from lightning_pce.runs.concordance import reshaping

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from lightning_pce.runs._records import Record
    from lightning_pce.runs._reshaping import Reshaping
    from lightning_pce.runs.comparison import Comparison


class Picture(NamedTuple):
    """A picture in the page."""

    title: str
    svg: Any
    """Markup."""
    caption: str


def pictures_of(comparison: Comparison, prefix: str = "") -> list[Picture]:
    """The fan and the difference curve, none of records whose tokens differ.

    The ids in a picture begin with ``prefix``.
    """
    if comparison.by != "tokens" or comparison.verdict is None:
        return []
    change = _change(comparison)
    return [
        _fan(comparison, f"{prefix}fan"),
        *([] if change is None else [_difference(change, f"{prefix}difference")]),
    ]


def _fan(comparison: Comparison, prefix: str) -> Picture:
    verdict = comparison.verdict
    assert verdict is not None
    drawn = [Drawn(*_entry(comparison, each), each) for each in comparison.records]
    what, task = what_of(comparison.of, comparison.group), _task(comparison)
    words = _of_fan(comparison)
    caption = "Percentiles of each record, its median and mean, and what each statistic picks."
    return picture(
        "Every record", prefix, lambda: decision_of(drawn, verdict.ties, task, what), words, caption
    )


def _task(comparison: Comparison) -> tuple[str, dict[str, float]] | None:
    if comparison.task is None or comparison.table is None:
        return None
    return comparison.task.name, dict(
        zip(comparison.table.names, comparison.task.values.tolist(), strict=True)
    )


def _of_fan(comparison: Comparison) -> str:
    names = list(comparison.values)  # without those that were left out
    first, last = names[0], names[-1]
    said = []
    for name, word in (("p50", "median"), ("mean", "mean"), ("p95", "95th percentile")):
        ends = [comparison.values[label][name].value for label in (first, last)]
        said.append(f"{word} {number(ends[0])} at {shown(first)} and {number(ends[1])} at {shown(last)}")
    picks = comparison.verdict.picks if comparison.verdict is not None else {}
    picked = [f"{name} picks {shown(label)}" for name, label in picks.items()]
    return (
        f"{what_of(comparison.of, comparison.group)} of {len(names)} records: {'; '.join([*said, *picked])}."
    )


def _change(comparison: Comparison) -> Reshaping | None:
    """From the mean's pick to the bulk's, or else from the reference, or the first, to the last record."""
    if comparison.verdict is not None and comparison.verdict.reshaping is not None:
        return comparison.verdict.reshaping
    compared = [each for each in comparison.records if each.label in comparison.values]
    last = compared[-1]
    first = next(each for each in compared if each.label == comparison.reference)
    if first is last:
        first = compared[0]
    return None if first is last else reshaping(_entry(comparison, first), _entry(comparison, last))


def _entry(comparison: Comparison, record: Record) -> tuple[str, Tensor, Tensor | None]:
    key = comparison.of, comparison.group
    return record.label, record.digest(*key), record.documents(*key)


def _difference(change: Reshaping, prefix: str) -> Picture:
    caption = "The change of every percentile: below 0 it became better."
    if not bool(change.low.isnan().all()):
        caption += " Grey: 95 % of the cases; strong colour: surely so."
    title = f"From {shown(change.before)} to {shown(change.after)}"

    def draw() -> Figure:
        return cast("Figure", difference_of(change).figure)

    return picture(title, prefix, draw, _of_difference(change), caption)


def _of_difference(change: Reshaping) -> str:
    parts = "" if change.crossing is None else f", and they cross at {percentile(change.crossing)}"
    said = f"{percent(change.better_share)} of the percentiles are lower{parts}"
    gained, lost = change.gained.total, change.lost.total
    if math.isfinite(gained + lost):
        said += f"; what falls gains {two_digits(gained)} nats a token, what rises loses {two_digits(lost)}"
    return f"Change from {shown(change.before)} to {shown(change.after)}: {said}."


def picture(title: str, prefix: str, draw: Callable[[], Figure], words: str, caption: str) -> Picture:
    """A drawing as a part of a page; its ids begin with ``prefix``, ``words`` say what it shows."""
    from markupsafe import Markup

    svg = Markup(svg_of(draw, prefix, visible(words)))  # noqa: S704 - ElementTree escapes what it writes
    return Picture(title, svg, caption)
