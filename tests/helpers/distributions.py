"""Data that sketches find hard, and errors measured in ranks."""

import numpy as np
import torch

# The quantiles the accuracy promise is about.
PROMISED_Q = np.append(np.arange(1, 100) / 100, 0.999)


def bound(n):
    """The promised rank error of n values, for smooth streams and heavy atoms; up to K they are exact."""
    return max(5e-5, 0.1 / np.sqrt(n)) if n > 1024 else 1 / max(n, 1)


def rank_error(sorted_values, estimates, q):
    """How far each q is from [F(x-), F(x)] of its estimate x, F being exact."""
    sorted_values, estimates, q = (np.asarray(part) for part in (sorted_values, estimates, q))
    low = np.searchsorted(sorted_values, estimates, side="left") / len(sorted_values)
    high = np.searchsorted(sorted_values, estimates, side="right") / len(sorted_values)
    error = np.maximum(np.maximum(low - q, q - high), 0.0)
    return np.where(np.isnan(estimates), np.inf, error)


def worst_rank_error(values, estimates, q=PROMISED_Q):
    return float(rank_error(np.sort(np.asarray(values, dtype=np.float64).reshape(-1)), estimates, q).max())


def exact_quantile(values, q):
    q = torch.as_tensor(q, dtype=torch.float64)
    return torch.quantile(torch.as_tensor(values).double(), q, interpolation="linear")


def exact_trimmed_mean(values, low, high, weights=None):
    """The interpolated trimmed mean: what straddles a limit enters by the part of its weight inside."""
    values = np.asarray(values, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=np.float64)
    values, weights = values[order], weights[order]
    stop = np.cumsum(weights)
    total = stop[-1]
    inside = np.minimum(stop, high * total) - np.maximum(stop - weights, low * total)
    inside = np.clip(inside, 0, None)
    return float((values * inside).sum() / inside.sum())


def ce_like(n, rng):
    """Per-token cross-entropy of a language model: exact zeros, a huge range below 1, a hump and a tail."""
    kind = rng.random(n, dtype=np.float32)
    out = np.empty(n, dtype=np.float32)
    edges = [0.0, 0.02, 0.55, 0.90, 1.01]
    draws = [
        lambda m: np.zeros(m, dtype=np.float32),
        lambda m: np.exp(rng.standard_normal(m, dtype=np.float32) * 1.8 - 5),
        lambda m: np.exp(rng.standard_normal(m, dtype=np.float32) * 0.45 + 0.4),
        lambda m: 1 + 1.6 * rng.standard_gamma(4, m, dtype=np.float32),
    ]
    for low, high, draw in zip(edges[:-1], edges[1:], draws, strict=True):
        here = (kind >= low) & (kind < high)
        out[here] = draw(np.count_nonzero(here))
    return out


def zeros_61(n, rng):
    """61 % zeros below an exponential."""
    return np.where(rng.random(n) < 0.61, 0.0, rng.exponential(size=n)).astype(np.float32)


def atoms_in_a_normal(n, rng):
    """Three heavy atoms inside a normal."""
    kind = rng.random(n)
    atoms = np.select([kind < 0.2, kind < 0.35, kind < 0.4], [-0.5, 0.25, 2.0], rng.standard_normal(n))
    return atoms.astype(np.float32)


def step_with_gap(n, rng):
    return (rng.random(n) + np.where(rng.random(n) < 0.4, 0, 1000)).astype(np.float32)


def narrow_spike(n, rng):
    """A tenth of the values within 1e-6 of the range of the others."""
    spike = 500 + 1e-3 * (rng.random(n) - 0.5)
    return np.where(rng.random(n) < 0.1, spike, 1000 * rng.random(n))


SMOOTH = {
    "normal": lambda n, rng: rng.standard_normal(n).astype(np.float32),
    "uniform": lambda n, rng: rng.random(n),
    "exponential": lambda n, rng: rng.exponential(size=n).astype(np.float32),
    "lognormal": lambda n, rng: rng.lognormal(size=n).astype(np.float32),
    "two humps": lambda n, rng: rng.standard_normal(n) + np.where(rng.random(n) < 0.3, 2, -2),
    "ce like": ce_like,
}
ATOMS = {
    "61 % zeros": zeros_61,
    "atoms in a normal": atoms_in_a_normal,
    "two atoms": lambda n, rng: np.where(rng.random(n) < 0.3, -1.5, 7.25),
    "poisson": lambda n, rng: rng.poisson(40, n).astype(np.float32),
    "constant": lambda n, rng: np.full(n, 0.1),
}
HARD = {
    "deep valley": lambda n, rng: rng.standard_normal(n) + np.where(rng.random(n) < 0.3, 4, -4),
    "rounded": lambda n, rng: np.round(rng.standard_normal(n), 3),
    "step with a gap": step_with_gap,
    "narrow spike": narrow_spike,
    "12 decades": lambda n, rng: np.exp(rng.standard_normal(n) * (12 * np.log(10) / 8)),
    "cauchy": lambda n, rng: rng.standard_cauchy(n),
}
ALL = SMOOTH | ATOMS | HARD


def values_of(name, n, seed=0):
    """``n`` values of a distribution as a tensor."""
    return torch.from_numpy(ALL[name](n, np.random.default_rng(seed)))


def ordered(order, n, seed=0):
    """``n`` float32 values whose distribution is smooth and whose order is not random."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(n).astype(np.float32)
    if order == "ascending":
        values.sort()
    elif order == "descending":
        values = np.sort(values)[::-1].copy()
    elif order == "sawtooth":
        values = np.sort(values.reshape(20, -1), axis=1).reshape(-1)
    elif order == "drifting":
        values += np.linspace(0, 10, n, dtype=np.float32)
    else:
        assert order == "shuffled"
    return torch.from_numpy(values)


class BucketOracle:
    """Exact counts of non-negative float32 values in buckets of 1/65,536 octave, by their bits.

    A bucket that holds a share p makes an error look smaller by at most p.
    """

    _SHIFT = 7

    def __init__(self):
        self.counts = np.zeros(1 << (31 - self._SHIFT), dtype=np.int64)

    def add(self, values):
        self.counts += np.bincount(values.view(np.int32) >> self._SHIFT, minlength=len(self.counts))

    def rank_error(self, estimates, q):
        bucket = np.asarray(estimates, dtype=np.float32).view(np.int32) >> self._SHIFT
        upto = np.cumsum(self.counts)
        low = (upto[bucket] - self.counts[bucket]) / upto[-1]
        return np.maximum(np.maximum(low - q, q - upto[bucket] / upto[-1]), 0.0)
