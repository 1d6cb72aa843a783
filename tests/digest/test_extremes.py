"""One extreme value costs the others nothing, and values near the largest float64 overflow nothing."""

import math

import numpy as np
import pytest
import torch

from lightning_pce import digest as dg
from lightning_pce.digest._add import add_entries
from lightning_pce.digest._batch import Entries
from lightning_pce.digest._merge import merge_stack
from tests.helpers.digests import INF, Q, arrays, assert_same_paths, streamed, worst
from tests.helpers.distributions import bound, exact_trimmed_mean, values_of

LIMITS = [(0.05, 0.95), (0.5, 1.0), (0.0, 0.4), (0.3, 0.31)]
LOW, HIGH = [-3e38], [3e38]


def with_extremes(n, extremes, seed=0):
    """Values around 3, and the extremes anywhere among them."""
    values = values_of("normal", n, seed).double() + 3
    values[torch.randperm(n, generator=torch.Generator().manual_seed(seed))[: len(extremes)]] = torch.tensor(
        extremes, dtype=torch.float64
    )
    return values


@pytest.mark.parametrize("n", [900, 5000, 300_000])
@pytest.mark.parametrize(
    "extremes", [LOW, [-1e15], HIGH, [-3e38, 2e38], [1e300], [-1e9] * 3], ids=lambda values: str(values[0])
)
def test_trimmed_means_beside_an_extreme_are_those_of_the_others(n, extremes):
    values = with_extremes(n, extremes)
    for digest in (
        streamed(values, n),
        streamed(values, 2000),
        streamed(values, 2000, weights=torch.ones(n)),
    ):
        for low, high in LIMITS:
            if (low == 0 and min(extremes) < -1) or (high == 1 and max(extremes) > 1):
                continue  # the extreme is in it
            want = exact_trimmed_mean(values.clamp(-50, 50), low, high)
            assert dg.trimmed_mean(digest, low, high).item() == pytest.approx(want, rel=2e-4)
        if max(extremes) < 1:
            assert dg.tail_mean(digest, 0.95).item() == pytest.approx(
                exact_trimmed_mean(values.clamp(min=-50), 0.95, 1), rel=5e-4
            )


@pytest.mark.parametrize("number", [3, 40])
@pytest.mark.parametrize("extremes", [(-3e38, -1e38), (1e38, 3e38)])
def test_an_extreme_on_each_rank_costs_the_merged_digest_nothing(number, extremes):
    parts = [with_extremes(10_000, [np.random.default_rng(i).uniform(*extremes)], i) for i in range(number)]
    values = torch.cat(parts)
    merged = dg.merge(torch.stack([dg.from_values(part.float()) for part in parts]))
    assert worst(values, merged) <= bound(len(values))
    want = exact_trimmed_mean(values.clamp(-50, 50), 0.05, 0.95)
    assert dg.trimmed_mean(merged, 0.05, 0.95).item() == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("heavy", [1e17, 2.0**60])
def test_a_heavy_weight_costs_the_light_ones_nothing(heavy):
    values = torch.cat([torch.tensor([-9.0]), values_of("exponential", 5000)])
    weights = torch.full((5001,), 0.25, dtype=torch.float64)
    weights[0] = heavy
    digest = dg.from_values(values, weights, compression=256)
    digest = dg.add(dg.merge(torch.stack([digest, dg.empty(256)])), torch.ones(1000))
    means, kept, _ = dg.centroids(digest)
    assert kept[means > -9].sum().item() == pytest.approx(0.25 * 5000 + 1000, rel=1e-12)
    assert kept[means == -9].item() == heavy


HUGE = {
    "up to the largest": lambda rng, n: 1.7e308 * rng.random(n),
    "of both signs": lambda rng, n: rng.uniform(-1.0, 1.0, n) * 1.79e308,
    "all but the largest": lambda rng, n: np.full(n, np.finfo(np.float64).max) * (1 - 1e-3 * rng.random(n)),
    "few among small ones": lambda rng, n: np.where(rng.random(n) < 0.01, 1.7e308, rng.random(n)),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", HUGE)
@pytest.mark.parametrize("n", [2000, 40_000])
@pytest.mark.parametrize("weighted", [False, True])
def test_values_near_the_largest_float64_have_finite_means_and_the_right_ranks(name, n, weighted):
    values = torch.from_numpy(HUGE[name](np.random.default_rng(1), n))
    weights = torch.full((n,), 3) if weighted else None
    whole = streamed(values, 999, weights=weights)
    merged = dg.merge(torch.stack([streamed(part, weights=None) for part in values.chunk(40)]))
    mean = math.fsum((values / n).tolist())
    scale = values.abs().max().item()
    for digest in (dg.from_values(values, weights), whole, merged):
        assert worst(values, digest) <= bound(n)
        assert dg.mean(digest).item() == pytest.approx(mean, abs=1e-12 * scale)
        inner = exact_trimmed_mean(values / 2**40, 0.1, 0.9)
        assert dg.trimmed_mean(digest, 0.1, 0.9).item() / 2**40 == pytest.approx(
            inner, rel=2e-3, abs=1e-5 * scale / 2**40
        )
        assert dg.quantile(digest, Q).isfinite().all()
        assert (dg.minimum(digest), dg.maximum(digest)) == (values.min(), values.max())


@pytest.mark.parametrize("name", HUGE)
def test_tensors_near_the_largest_float64_become_the_same_digests(name):
    values = torch.from_numpy(HUGE[name](np.random.default_rng(2), 3000))
    values[:2] = torch.tensor([INF, -INF])
    weights = torch.ones(3000, dtype=torch.float64)
    entries = Entries(values, weights, None, None)
    a, b = add_entries(dg.empty(64).numpy(), arrays(*entries)), add_entries(dg.empty(64), entries)
    torch.testing.assert_close(torch.from_numpy(a), b, rtol=1e-11, atol=0)
    grouped = add_entries(dg.empty(64, shape=(2,)), entries._replace(groups=torch.arange(3000) % 2))
    assert dg.mean(grouped).tolist() == [INF, -INF]
    assert dg.finite_mean(grouped).isfinite().all()
    stack = torch.stack([b, b])
    assert_same_paths(merge_stack(stack.numpy(), 64), merge_stack(stack, 64))
