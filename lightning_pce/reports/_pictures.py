"""The pictures of a page, and what each shows in words."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from lightning_pce.reports._drawing import shown
from lightning_pce.reports._svg import svg_of
from lightning_pce.reports._words import visible
from lightning_pce.reports.history_charts import Drawn, decision_of, difference_of
from lightning_pce.runs._words import number, percent, percentile, two_digits
from lightning_pce.runs.concordance import reshaping

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lightning_pce.runs._reshaping import Reshaping
    from lightning_pce.runs._task import TaskLike
    from lightning_pce.runs.comparison import Comparison


class Picture(NamedTuple):
    """A picture in the page."""

    title: str
    svg: Any
    """Markup."""
    caption: str


def pictures_of(comparison: Comparison, task: TaskLike | None, prefix: str = "") -> list[Picture]:
    """The fan and the difference curve, none of records whose tokens differ.

    The ids in a picture begin with ``prefix``.
    """
    if comparison.by != "tokens" or comparison.verdict is None:
        return []
    change = _change(comparison)
    return [
        _fan(comparison, task, f"{prefix}fan"),
        *([] if change is None else [_difference(change, f"{prefix}difference")]),
    ]


def _fan(comparison: Comparison, task: TaskLike | None, prefix: str) -> Picture:
    verdict = comparison.verdict
    assert verdict is not None
    drawn = [Drawn(each.label, each.digest(), each.documents(), each) for each in comparison.records]
    words = _of_fan(comparison)
    caption = "Percentiles of each record, its median and mean, and what each statistic picks."
    return _picture("Every record", prefix, lambda: decision_of(drawn, verdict.ties, task), words, caption)


def _of_fan(comparison: Comparison) -> str:
    first, last = comparison.records[0].label, comparison.records[-1].label
    said = []
    for name, word in (("p50", "median"), ("mean", "mean"), ("p95", "95th percentile")):
        ends = [comparison.values[label][name].value for label in (first, last)]
        said.append(f"{word} {number(ends[0])} at {shown(first)} and {number(ends[1])} at {shown(last)}")
    picks = comparison.verdict.picks if comparison.verdict is not None else {}
    picked = [f"{name} picks {shown(label)}" for name, label in picks.items()]
    return f"Cross-entropy in nats of {len(comparison.records)} records: {'; '.join([*said, *picked])}."


def _change(comparison: Comparison) -> Reshaping | None:
    """From the mean's pick to the bulk's, or else from the reference, or the first, to the last record."""
    if comparison.verdict is not None and comparison.verdict.reshaping is not None:
        return comparison.verdict.reshaping
    first = next((each for each in comparison.records if each.label == comparison.reference), None)
    last = comparison.records[-1]
    first = comparison.records[0] if first is None or first is last else first
    return None if first is last else reshaping(first, last)


def _difference(change: Reshaping, prefix: str) -> Picture:
    caption = "The change of every percentile: below 0 it became better. Strong colour: surely so."
    title = f"From {shown(change.before)} to {shown(change.after)}"
    draw = lambda: cast("Figure", difference_of(change).figure)  # noqa: E731  one line
    return _picture(title, prefix, draw, _of_difference(change), caption)


def _of_difference(change: Reshaping) -> str:
    parts = "" if change.crossing is None else f", and they cross at {percentile(change.crossing)}"
    said = f"{percent(change.better_share)} of the percentiles are lower{parts}"
    gained, lost = change.gained.total, change.lost.total
    if math.isfinite(gained + lost):
        said += f"; what falls gains {two_digits(gained)} nats a token, what rises loses {two_digits(lost)}"
    return f"Change of cross-entropy from {shown(change.before)} to {shown(change.after)}: {said}."


def _picture(title: str, prefix: str, draw: Callable[[], Figure], words: str, caption: str) -> Picture:
    from markupsafe import Markup

    return Picture(title, Markup(svg_of(draw, prefix, visible(words))), caption)  # noqa: S704  matplotlib escapes
