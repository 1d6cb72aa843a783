"""How well a model knows the data before it is trained on them: which objective the paper found better there.

arXiv 2510.00526 orders data by the mean probability of their target tokens under the model that is to be
trained. :func:`capability` reads that from a digest of cross-entropies, with an error bar, and says beside
which of the paper's three anchors it lies. The anchors' numbers are as summaries of the paper give them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_pce import digest as td
from lightning_pce._errors import UserError
from lightning_pce._threads import single_threaded
from lightning_pce.digest._format import nan_weight_of, weight_above_of
from lightning_pce.intervals import Interval
from lightning_pce.intervals._errors import error_of_mean
from lightning_pce.intervals._interval import joined
from lightning_pce.intervals._reasons import few_slots, why_no_interval
from lightning_pce.intervals._records import Slots, checked_record
from lightning_pce.intervals._student import t_for
from lightning_pce.runs._capability_text import PERCENTILES, THRESHOLD, Row, of_mean, reading
from lightning_pce.runs._probabilities import FAR, Pieces, pieces_of
from lightning_pce.runs._records import Record

__all__ = ["Capability", "capability"]

# What rounding may leave below 0 in the losses of others; anything lower is no cross-entropy.
_ROUNDED = -1e-3


class Capability(NamedTuple):
    """What :func:`capability` has found; ``print`` shows it."""

    mean: Interval
    """The mean probability p of a token, and its 95 % interval by document."""
    error: float
    """Its standard error by document; NaN if there is none, ``mean.reason`` says why."""
    tokens: float
    """How many tokens were scored; NaN is left out, a CE of +inf counts as p = 0."""
    digest: Tensor
    """Of their cross-entropies in nats, ``[K + 3, 2]`` float64 on the CPU."""

    def percentile(self, percentile: float) -> float:
        """The p below which a percentage of the tokens lies: the threshold at a percentile.

        It is exp(-CE) at the opposite percentile of CE. Between two tokens it is interpolated in CE.

        Raises:
            UserError: if ``percentile`` is not in [0, 100].

        Example:
            >>> found = capability(td.from_values(-torch.tensor([0.1, 0.2, 0.9]).log()))
            >>> round(found.percentile(50), 6)
            0.2
        """
        if not 0 <= percentile <= 100:
            raise UserError(f"Expected argument `percentile` in [0, 100] but got {percentile!r}.")
        return math.exp(-max(0.0, float(td.quantile(self.digest, 1 - percentile / 100))))

    def share_below(self, p: float) -> float:
        """The share of tokens whose probability is below ``p``: what ``Threshold(NLL(), p)`` leaves out.

        Raises:
            UserError: if ``p`` is not in [0, 1].

        Example:
            >>> capability(td.from_values(-torch.tensor([0.1, 0.2, 0.6, 0.9]).log())).share_below(0.5)
            0.5
        """
        return float(self._pieces.above(_ce_of(p)).weight.sum()) / self.tokens

    def weight_below(self, p: float) -> float:
        """The share of NLL's gradient weight, 1 - p of each token, on tokens below ``p``; NaN if all p are 1.

        Raises:
            UserError: if ``p`` is not in [0, 1].

        Example:
            >>> found = capability(td.from_values(-torch.tensor([0.1, 0.2, 0.8, 0.9]).log()))
            >>> round(found.weight_below(0.5), 6)
            0.85
        """
        below, every = (
            float((part.weight * part.lost).sum())
            for part in (self._pieces.above(_ce_of(p)), self._pieces.above(-1.0))
        )
        return below / every if every > 0 else math.nan

    @property
    def _pieces(self) -> Pieces:
        return pieces_of(self.digest)

    def __str__(self) -> str:
        lines = [of_mean(self.mean, self.error, self.tokens)]
        if (infinite := float(weight_above_of(self.digest))) > 0:
            lines.append(f"{infinite:,.0f} tokens have an infinite cross-entropy: their p is 0")
        if (lost := float(nan_weight_of(self.digest))) > 0:
            lines.append(f"{lost:,.0f} tokens have no cross-entropy (NaN) and are left out")
        at = [(each, self.percentile(each)) for each in PERCENTILES]
        rows = [Row(each, p, self.weight_below(p)) for each, p in at]
        below = Row(100 * self.share_below(THRESHOLD), THRESHOLD, self.weight_below(THRESHOLD))
        return reading(lines, rows, below, self.mean)


@single_threaded()
def capability(digest: Tensor, documents: Tensor | None = None) -> Capability:
    """Read from cross-entropies on training data, before training, how probable their tokens are.

    Up to 1,024 distinct values all of it is exact but the standard error, which was
    within 5 % of that of each slot's own tokens; above, shares are within the
    digest's error in ranks (shares of gradient weight within that over the mean of 1 - p), and the mean of p
    was within 2e-6 of that of all tokens in a million of them.

    Args:
        digest: of the cross-entropies in nats of the tokens to be trained on (not of the prompt),
            ``[K + 3, 2]`` float64.
        documents: counts of the same tokens by document, ``[128, 97]`` float64, see
            :mod:`lightning_pce.intervals`; None: there is no standard error.

    Returns:
        A :class:`Capability`.

    Raises:
        ValueError: if shapes or dtypes do not fit.
        UserError: if the digest is empty, or its values are no cross-entropies.

    Example:
        >>> found = capability(td.from_values(-torch.tensor([0.01, 0.02, 0.3]).log()))
        >>> round(found.mean.value, 6), round(found.share_below(0.2), 3), round(found.percentile(50), 3)
        (0.11, 0.667, 0.02)
    """
    record = checked_record("digest", (digest, documents))
    digest = record.digest[:, :2]
    tokens = float(td.count(digest))
    if not tokens > 0:
        raise UserError("The digest holds no tokens: there is no probability to read.")
    lowest = float(td.minimum(digest))
    if lowest < _ROUNDED:
        raise UserError(
            f"The smallest value is {lowest:.6g}: a digest of cross-entropies in nats has none below 0. Give "
            "that of the losses, not of log-probabilities."
        )
    pieces = pieces_of(digest)
    every = pieces.above(-1.0)
    mean = float((every.weight * every.p).sum()) / tokens
    reason = why_no_interval(record)
    if record.slots is None or reason is not None:
        return Capability(Interval(mean, math.nan, math.nan, None, reason), math.nan, tokens, digest)
    error = _error(pieces, mean, record.slots)
    reach = t_for(0.95, record.slots.occupied - 1) * error
    ends = max(0.0, mean - reach), min(1.0, mean + reach)
    return Capability(Interval(mean, *ends, None, joined(few_slots(record.slots))), error, tokens, digest)


def reading_of(record: Record) -> str:
    """What ``print`` shows of a scored record: of its completions if it has that group, else of all tokens.

    Of other groups there is a line each.

    Raises:
        UserError: if there are no tokens.
    """

    def found(group: str) -> Capability:
        return capability(record.digest(group=group), record.documents(group=group))

    group = "completion" if "completion" in record.groups else ""
    tokens = f"tokens of {group}" if group else "all scored tokens"
    model = record.saved[0].path if record.saved else record.run
    lines = [f"{model} on {record.name}, {tokens}:"]
    notes = list(record.how.get("notes", []))
    if record.how.get("quantisation") is not None:
        notes.append(f"the weights are quantised ({record.how['quantisation']})")
    lines += [f"note: {note}" for note in notes]
    lines.append(str(found(group)))
    for each in record.groups:
        if each not in ("", "prompt", "completion") and td.count(record.digest(group=each)) > 0:
            lines.append(f"{each}: {of_mean(*found(each)[:3])}")
    return "\n".join(lines)


def _error(pieces: Pieces, mean: float, slots: Slots) -> float:
    """The standard error of the mean of p as a ratio of sums over slots.

    A slot's tokens in a bin of CE count with the mean p of all tokens there, which the digest knows: bins and
    digest have the same order. By how much their CE lies above that of their bins the slot's sum tells, and p
    falls with it as it does inside of bins: where all tokens lie in one bin there is nothing else.
    """
    pooled = slots.bins.sum(0).numpy()
    weight, ce, p, _ = pieces.between(np.append(0.0, pooled.cumsum()))
    number = np.where(pooled > 0, pooled, 1.0)[:, None]
    ce_of_bins, p_of_bins = ((weight * each).sum(-1, keepdims=True) / number for each in (ce, p))
    away = ce - ce_of_bins
    spread = float((weight * away**2).sum())
    slope = float((weight * away * (p - p_of_bins)).sum()) / spread if spread > 0 else 0.0
    sums = slots.bins.numpy() @ p_of_bins[:, 0]
    beyond = slots.sums.numpy() - slots.bins.numpy() @ ce_of_bins[:, 0]
    if (abs(beyond) < FAR).all():  # not where a value is infinite
        sums = sums + slope * beyond
    residuals = (torch.from_numpy(sums) - mean * slots.tokens) / slots.total
    return error_of_mean(residuals, slots.occupied)


def _ce_of(p: float) -> float:
    if not 0 <= p <= 1:
        raise UserError(f"Expected argument `p` to be a probability in [0, 1] but got {p!r}.")
    return -math.log(p) if p else math.inf
