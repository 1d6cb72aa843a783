"""A capability in sentences: its numbers, the paper's anchors, where it lies, and what to try."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from lightning_pce.intervals import Interval

PERCENTILES = (5, 10, 20, 30, 50, 70, 90)
THRESHOLD = 0.2  # that of the paper's main tables


class Anchor(NamedTuple):
    """A mean p at which the paper has compared objectives."""

    name: str
    low: float
    high: float
    printed: str
    found: str
    to_try: str


# What "about" reaches is ours: a tenth around the middle one, a factor of 2.5 around the lowest, rounding
# around the two numbers of the highest.
ANCHORS = (
    Anchor(
        "the weak anchor",
        0.004,
        0.025,
        "about 0.01",
        "figfont: NLL won",
        "NLL; 1 - p reached no exact match there.",
    ),
    Anchor(
        "the middle anchor",
        0.45,
        0.55,
        "about 0.50",
        "medicine: no difference above 2 points",
        "NLL; nothing was more than 2 points better there.",
    ),
    Anchor(
        "the strong anchor",
        0.755,
        0.815,
        "0.76 to 0.81",
        "mathematics: prior-leaning objectives won (1 - p, NLL of tokens with p >= 0.2)",
        "1 - p (power with a = 1, DFT's gradient) and NLL of tokens with p >= 0.2, each beside NLL.",
    ),
)
_TRY_BETWEEN = "NLL, and beside it 1 - p and NLL of tokens with p >= 0.2, in small runs with a task metric."
_LIMITS = (
    "The paper's models were 1.5 B and up, and its mean p that of other tokenizers: mean p also measures how",
    "text is cut into tokens, and does not see whether the model could know it.",
)


class Row(NamedTuple):
    """What lies below a probability."""

    percentile: float
    p: float
    weight: float  # the share of NLL's gradient weight below p


def reading(first: Sequence[str], rows: Sequence[Row], below: Row, mean: Interval) -> str:
    """All of it, a line for each thing to know.

    Args:
        first: lines about the mean and what was left out.
        rows: by percentiles of p.
        below: the threshold of the paper's tables.
        mean: of p.
    """
    lines = [*first, "", f"{'percentile of p':>15} {'p':>10} {'gradient weight of NLL below':>30}"]
    lines += [f"{row.percentile:>13} % {short(row.p):>10} {_percent(row.weight):>30}" for row in rows]
    lines += [
        f"below p = {below.p:g}: {below.percentile:.1f} % of the tokens, {_percent(below.weight)} of NLL's "
        "gradient weight",
        "",
        "Mean p of training tokens in arXiv 2510.00526, and what was better there:",
        *(f"  {each.printed:<14} {each.name.split()[1]:<8} {each.found}" for each in ANCHORS[::-1]),
        "",
    ]
    return "\n".join([*lines, *_place(mean), *_LIMITS])


def place_of(p: float) -> str:
    """Where a mean p lies among the anchors."""
    for below, anchor in zip((None, *ANCHORS), ANCHORS, strict=False):
        if p < anchor.low:
            where = f"between {below.name} and {anchor.name}" if below else f"below {anchor.name}"
            return f"{where}: not covered by the paper"
        if p <= anchor.high:
            return f"at {anchor.name}"
    return f"above {ANCHORS[-1].name}: not covered by the paper"


def short(p: float) -> str:
    """A probability or share with three digits that matter; what rounds to 1 as the rest to it.

    Example:
        >>> short(0.11234), short(3.2e-6), short(0.99998045), short(1.0)
        ('0.112', '3.2e-06', '1 - 2e-05', '1')
    """
    return f"{p:.3g}" if p < 0.9995 or p == 1 else f"1 - {1 - p:.2g}"


def of_mean(mean: Interval, error: float, tokens: float) -> str:
    """The mean p with its standard error."""
    bar = f"no standard error ({mean.reason})"
    if not math.isnan(error):
        caution = f" ({mean.reason})" if mean.reason else ""
        bar = f"standard error {error:.2g} by document, 95 % [{short(mean.low)}, {short(mean.high)}]{caution}"
    return f"mean p {short(mean.value)} of {tokens:,.0f} tokens, {bar}"


def _place(mean: Interval) -> list[str]:
    value, ends = mean.value, (mean.low, mean.high)
    place = place_of(value)
    lines = [f"This data lies {place}."]
    tries = {f"at {each.name}": each.to_try for each in ANCHORS}
    if place not in tries:
        nearest = min(ANCHORS, key=lambda each: max(each.low - value, value - each.high))
        lines[0] += f" Nearest: {nearest.name}, {nearest.printed}."
    others = {place_of(end): end for end in ends if not math.isnan(end)}
    others.pop(place, None)
    lines += [f"Its 95 % interval ends at {short(end)}, {where}." for where, end in others.items()]
    return [*lines, f"To try: {tries.get(place, _TRY_BETWEEN)}"]


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.1f} %"
