"""Digests of streams and shards, and what a test asks of them."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import torch
from hypothesis import strategies as st

from lightning_pce import digest as dg
from lightning_pce.digest._batch import Entries
from lightning_pce.digest._format import check_state
from tests.helpers.distributions import (
    ALL,
    ATOMS,
    PROMISED_Q,
    SMOOTH,
    bound,
    exact_quantile,
    exact_trimmed_mean,
    values_of,
    worst_rank_error,
)

INF, NAN = math.inf, math.nan
GRID = torch.linspace(0, 1, 20_001, dtype=torch.float64)
COARSE = torch.linspace(0, 1, 97, dtype=torch.float64)
Q = torch.as_tensor(PROMISED_Q)
KINDS = ["unweighted", "masked", "whole", "fractional"]
DTYPES = [torch.float32, torch.float64, torch.bfloat16]
HARD_TO_CUT = ["normal", "61 % zeros", "ce like", "rounded", "two atoms", "step with a gap"]
DRAWN = st.tuples(st.sampled_from(sorted(SMOOTH | ATOMS)), st.integers(0, 5000), st.integers(0, 999))
INFINITE = {
    "above": [0, 1, 2, 3, INF],
    "two above": [0, 1, 2, INF, INF],
    "below": [-INF, 0, 1, 2, 3],
    "two below": [-INF, -INF, 1, 2, 3],
    "both": [-INF, -INF, 0, 1, 5, 6, INF, INF, INF],
    "one finite": [-INF, 4, INF],
    "none finite": [-INF, -INF, INF],
    "only above": [INF, INF],
    "only below": [-INF],
}


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def weights_of(kind, n, rng):
    return {
        "unweighted": None,
        "masked": torch.from_numpy(rng.random(n) < 0.6),
        "whole": torch.from_numpy(rng.integers(0, 4, n)),
        "fractional": torch.from_numpy(rng.random(n)),
        "ones": torch.ones(n),
        "weighted": torch.from_numpy(rng.integers(0, 4, n)),
        "invalid": torch.from_numpy(rng.choice([-1.0, 0.0, 1.0, 2.0, NAN, INF], n)),
    }[kind]


def numbers_of(weights, n):
    return torch.ones(n).double() if weights is None else weights.double()


def part(tensor, index):
    return None if tensor is None else tensor[index]


def streamed(
    values, batch=4096, *, weights=None, compression=1024, groups=None, number=None, replicates=None
):
    """A digest of values in batches; what belongs to the values is cut like them."""
    digest = dg.empty(
        compression,
        shape=() if groups is None else (number,),
        replicates=0 if replicates is None else replicates.shape[-1],
    )
    for start in range(0, len(values), batch):
        at = slice(start, start + batch)
        digest = dg.add(
            digest, values[at], part(weights, at), groups=part(groups, at), replicates=part(replicates, at)
        )
    check_state(digest)
    return digest


def sharded(values, shards, batch):
    merged = dg.merge(torch.stack([streamed(part, batch) for part in values.chunk(shards)]))
    check_state(merged)
    return merged


def shards(values, number, compression=1024):
    return torch.stack([streamed(v, compression=compression, batch=65_536) for v in values.chunk(number)])


@functools.lru_cache
def large(name):
    """Two and a half million values and the digests of 64 parts of them."""
    values = values_of(name, 2_500_000)
    return values, shards(values, 64)


@functools.lru_cache
def ready(name):
    """A digest of 50,000 values in batches of 4096."""
    return streamed(values_of(name, 50_000), 4096)


def pieced(values, weights, cuts, merged, compression):
    """A digest of values in pieces, each either added or digested alone and merged."""
    digest = dg.empty(compression)
    edges = [0, *sorted(cut % (len(values) + 1) for cut in cuts), len(values)]
    for index, (start, stop) in enumerate(itertools.pairwise(edges)):
        some = None if weights is None else weights[start:stop]
        if merged[index % len(merged)]:
            part = dg.from_values(values[start:stop], some, compression=compression)
            digest = dg.merge(torch.stack([part, digest] if index % 2 else [digest, part]))
        else:
            digest = dg.add(digest, values[start:stop], some)
    check_state(digest)
    return digest


def batched():
    groups = [values_of(name, 4000 + 100 * index) for index, name in enumerate(ALL)]
    groups += [torch.empty(0), torch.tensor([1.0, INF, -INF, NAN]), torch.arange(3.0)]
    halves = [[dg.from_values(part, compression=128) for part in group.chunk(2)] for group in groups]
    halves = [[*half, dg.empty(128)][:2] for half in halves]
    return torch.stack([torch.stack(half) for half in halves], dim=1)  # [2, G, K + 3, 2]


def worst(values, digest, q=PROMISED_Q):
    return worst_rank_error(values, dg.quantile(digest, torch.as_tensor(q)), q)


def weighted_rank_error(values, weights, estimates):
    """How far q is from the weight below, or up to, its estimate."""
    order = values.argsort()
    values, upto = values[order].double(), torch.nn.functional.pad(weights[order].double().cumsum(0), (1, 0))
    low = upto[torch.searchsorted(values, estimates)] / upto[-1]
    high = upto[torch.searchsorted(values, estimates, right=True)] / upto[-1]
    return torch.maximum(low - Q, Q - high).clamp(min=0).max().item()


def limit(compression, n):
    """A fifth of the widest centroid, or twice what is promised."""
    return max(math.pi / 2 / compression / 5, 2 * bound(n))


def assert_exact(digest, values):
    """Every answer is that of the values themselves, to 1e-12 of the largest."""
    values = values.double()
    scale = max(values.abs().max().item(), 1e-300)
    q = torch.linspace(0, 1, 97, dtype=torch.float64)
    close = {"rtol": 0, "atol": 1e-12 * scale}
    torch.testing.assert_close(dg.quantile(digest, q), exact_quantile(values, q), **close)
    assert dg.count(digest) == values.numel()
    assert dg.minimum(digest) == values.min()
    assert dg.maximum(digest) == values.max()
    middle = math.fsum(values.tolist()) / values.numel()
    assert abs(dg.mean(digest).item() - middle) <= close["atol"]
    for low, high in [(0.0, 0.3), (0.1, 0.9), (0.5, 0.55), (0.9, 1.0)]:
        want = exact_trimmed_mean(values, low, high)
        assert abs(dg.trimmed_mean(digest, low, high).item() - want) <= 1e-10 * scale
        assert abs(dg.tail_mean(digest, low).item() - exact_trimmed_mean(values, low, 1)) <= 1e-10 * scale


def assert_same_answers(digest, other, *, rtol=1e-12):
    """All answers of two digests, or of two stacks of them, agree but for rounding."""
    close = {"rtol": rtol, "atol": 1e-12, "equal_nan": True}
    for query in (dg.count, dg.nonfinite, dg.invalid, dg.minimum, dg.maximum):
        torch.testing.assert_close(query(digest), query(other), **close)
    for query in (dg.mean, dg.finite_mean, lambda d: dg.quantile(d, COARSE)):
        torch.testing.assert_close(query(digest), query(other), **close)


def assert_footers_and_means(digest, values, weights):
    """Count, extremes, what is not finite and the mean are exact whatever the number of values."""
    w = numbers_of(weights, len(values))
    values, w = values[w > 0].double(), w[w > 0]
    finite = values.isfinite()
    torch.testing.assert_close(dg.count(digest), w[~values.isnan()].sum(), rtol=1e-13, atol=0)
    torch.testing.assert_close(dg.nonfinite(digest), w[~finite].sum(), rtol=1e-13, atol=0)
    mass, total = (values * w)[finite], math.fsum(w[finite].tolist())
    error = dg.finite_mean(digest).item() - math.fsum(mass.tolist()) / total
    assert abs(error) <= 1e-12 * mass.abs().sum().item() / total
    assert digest[-2, 0] == values[finite].min()
    assert digest[-1, 0] == values[finite].max()


def arrays(*tensors):
    return Entries(*(None if tensor is None else tensor.numpy() for tensor in tensors))


def assert_same_paths(got, want):
    assert isinstance(got, np.ndarray)
    assert isinstance(want, torch.Tensor)
    scale = torch.nan_to_num(want, posinf=0, neginf=0).abs().max().item()
    # Sums in another order: fractional weights differ by 2e-12 in a mean.
    torch.testing.assert_close(torch.from_numpy(got), want, rtol=1e-11, atol=1e-12 * min(scale, 1.0))
