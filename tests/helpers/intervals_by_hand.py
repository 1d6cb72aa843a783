"""Error bars by document, written plainly: loops over slots, bins and resamples in NumPy."""

import functools
import math

import numpy as np
import torch

from lightning_pce import digest as dg
from lightning_pce import intervals as iv

MASK = (1 << 64) - 1


def splitmix64_of_one(number):
    """The generator's output function in whole numbers that do not wrap around."""
    z = (number + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def record_of(losses, documents, weights=None):
    """A digest and document counts of losses ``[n]``, as a metric would keep them."""
    counts = iv.add(iv.empty(), losses, weights, iv.slots_of(documents))
    return dg.from_values(losses, weights), counts


def clustered(seed=0, documents=100, correlation=0.5, after=False):
    """Losses ``[n]`` float32 of documents of unequal length, 60 % near 0, and the document of each.

    With ``after`` those of a second checkpoint for the same tokens. The true median is exp(-5), the second's
    exp(-5.3).
    """
    rng = np.random.default_rng([documents, seed])
    lengths = np.maximum(4, (40 * np.exp(0.8 * rng.standard_normal(documents) - 0.32)).astype(int))
    document = np.repeat(rng.integers(-(1 << 63), 1 << 63, documents), lengths)
    shared = np.repeat(rng.standard_normal(documents), lengths)
    z = math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * rng.standard_normal(len(shared))
    if after:
        z = 0.95 * z + math.sqrt(1 - 0.95**2) * rng.standard_normal(len(z)) - 0.1
    losses = np.exp(3 * z - 5)
    return torch.from_numpy(losses.astype(np.float32)), torch.from_numpy(document)


def t_by_integration(level, degrees):
    """Student's t from its density, to about 1e-6."""
    x = np.linspace(0, 60, 600_001)
    log_density = -(degrees + 1) / 2 * np.log1p(x * x / degrees)
    scale = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2) - math.log(degrees * math.pi) / 2
    density = np.exp(log_density + scale)
    mass = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) * (x[1] - x[0]))])
    return float(np.interp(level, mass, x))


@functools.cache
def times_drawn(first=0):
    """How often resamples first ... first + 999 draw each slot, ``[1000, 128]``."""
    times = np.zeros((1000, 128))
    for r in range(1000):
        for i in range(128):
            times[r, splitmix64_of_one((first + r) * 128 + i) % 128] += 1
    return times


def place_of(counts, goal):
    """The bin in which counts ``[96]`` reach a goal, and which part of it is needed."""
    below = 0.0
    for bin_, count in enumerate(counts):
        if below + count >= goal:
            return bin_, (goal - below) / count if count else 0.0
        below += count
    return len(counts) - 1, 1.0


def woodruff(record, p, level=0.95):
    """The interval of the p-quantile."""
    digest, documents = record
    bins = documents[:, :-1].numpy()
    total = bins.sum()
    bin_, part = place_of(bins.sum(0), p * total)
    squares, occupied = 0.0, 0
    for slot in range(128):
        tokens = bins[slot].sum()
        if tokens:
            occupied += 1
            below = bins[slot, :bin_].sum() + part * bins[slot, bin_]
            squares += (below - p * tokens) ** 2
    error = math.sqrt(occupied / (occupied - 1) * squares) / total
    reach = t_by_integration(level, occupied - 1) * error
    return [float(dg.quantile(digest, min(max(p + sign * reach, 0.0), 1.0))) for sign in (-1, 1)]


def mean_by_bootstrap_t(record, level=0.95):
    """The interval of the mean, resamples in their own standard errors."""
    tokens, sums = record[1][:, :-1].sum(-1).numpy(), record[1][:, -1].numpy()

    def mean_and_error(times):
        number = (times * tokens).sum()
        mean = (times * sums).sum() / number
        spread = (times * (sums - mean * tokens) ** 2).sum()
        return mean, math.sqrt(128 / 127 * spread) / number

    mean, error = mean_and_error(np.ones(128))
    t = []
    for times in times_drawn():
        resampled, its_error = mean_and_error(times)
        t.append((resampled - mean) / its_error)
    low, high = np.quantile(t, [(1 - level) / 2, (1 + level) / 2])
    return [mean - high * error, mean - low * error]


def rank_in_resample(documents, times, p):
    """The share of all tokens below the p-quantile of a resample."""
    bins = documents[:, :-1].numpy()
    counts = times @ bins
    bin_, part = place_of(counts, p * counts.sum())
    pooled = bins.sum(0)
    return (pooled[:bin_].sum() + part * pooled[bin_]) / pooled.sum()


def resampled_percentile(record, p, first=0):
    """The p-quantile in each resample, ``[1000]``."""
    ranks = [rank_in_resample(record[1], times, p) for times in times_drawn(first)]
    return dg.quantile(record[0], torch.tensor(ranks, dtype=torch.float64)).numpy()


def difference_of_percentiles(a, b, p, level=0.95, paired=True):
    """The interval of the difference of p-quantiles by resamples."""
    changes = resampled_percentile(b, p, 0 if paired else 1000) - resampled_percentile(a, p)
    occupied = min(int((each[1][:, :-1].sum(-1) > 0).sum()) for each in (a, b))
    z = math.sqrt(128 / 127) * t_by_integration(level, occupied - 1)
    tail = (1 - math.erf(z / math.sqrt(2))) / 2
    return np.quantile(changes, [tail, 1 - tail]).tolist()


def difference_of_means(a, b, level=0.95, paired=True):
    """The interval of the difference of means, linearised over slots."""
    residuals, means, occupied = [], [], []
    for _, documents in (a, b):
        tokens, sums = documents[:, :-1].sum(-1).numpy(), documents[:, -1].numpy()
        means.append(sums.sum() / tokens.sum())
        residuals.append([(s - means[-1] * n) / tokens.sum() for s, n in zip(sums, tokens, strict=True)])
        occupied.append(int((tokens > 0).sum()))
    if paired:
        squares = sum((y - x) ** 2 for x, y in zip(*residuals, strict=True))
        error = math.sqrt(occupied[0] / (occupied[0] - 1) * squares)
    else:
        error = math.sqrt(
            sum(k / (k - 1) * sum(x * x for x in each) for k, each in zip(occupied, residuals, strict=True))
        )
    reach = t_by_integration(level, min(occupied) - 1) * error
    return [means[1] - means[0] - reach, means[1] - means[0] + reach]
