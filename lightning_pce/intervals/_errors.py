"""Errors over slots: of the share of tokens below a percentile, and of the mean."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_pce.intervals._records import Slots
from lightning_pce.intervals._resamples import drawn, place_in_bins
from lightning_pce.intervals._student import t_for

# Of a resample in which all slots have one mean rounding leaves less than this part of the spread.
_ROUNDED = 1e-10


def rank_errors(slots: Slots, p: Tensor) -> Tensor:
    """The standard error of the share of tokens below the p-quantile: p ``[P]`` -> ``[P]`` (Woodruff 1952).

    Of the bin in which all tokens together reach p the same part of each slot's tokens lies below.
    """
    upto = slots.bins.cumsum(-1)
    at, part = place_in_bins(slots.bins.sum(0), upto.sum(0), p * slots.total)
    inside = slots.bins[:, at]
    residuals = upto[:, at] - inside + part * inside - p * slots.tokens[:, None]
    return _spread(residuals, slots.occupied) / slots.total


def residuals_of_mean(slots: Slots) -> Tensor:
    """What each slot adds to the mean beyond its share, ``[128]``: they add up to 0."""
    mean = slots.sums.sum() / slots.total
    return (slots.sums - mean * slots.tokens) / slots.total


def error_of_mean(residuals: Tensor, occupied: int) -> float:
    """The standard error of a mean, or of a difference of means, from its residuals ``[128]``."""
    return float(_spread(residuals, occupied))


def bootstrap_t(slots: Slots, level: float) -> tuple[float, float] | None:
    """How far the mean's interval reaches down and up: by its distance in resamples, in their own errors.

    None if too many resamples have no spread, as where a single slot differs from the others.
    """
    times, tokens = drawn(), slots.tokens
    residuals = residuals_of_mean(slots)
    number = times @ tokens
    distance = times @ residuals / number
    crude = times @ residuals.square()
    spread = crude - 2 * distance * (times @ (residuals * tokens)) + distance**2 * (times @ tokens.square())
    errors = torch.where(spread > _ROUNDED * crude, spread, 0.0).sqrt() / number
    t = torch.where(distance == 0, 0.0, distance / errors)
    low, high = t.quantile(torch.tensor([1 - level, 1 + level], dtype=torch.float64) / 2).tolist()
    # G / (G - 1) cancels between the data and the resamples.
    error = float(residuals.square().sum().sqrt())
    below, above = high * error, -low * error
    return (below, above) if math.isfinite(below) and math.isfinite(above) else None


def linear(slots: Slots, level: float) -> float:
    """How far an interval of the mean reaches either way by Student's t."""
    return t_for(level, slots.occupied - 1) * error_of_mean(residuals_of_mean(slots), slots.occupied)


def _spread(residuals: Tensor, occupied: int) -> Tensor:
    return (residuals.square().sum(0) * (occupied / (occupied - 1))).sqrt()
