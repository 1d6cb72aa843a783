"""Exact up to K values, and for ever with up to K different ones."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_pce import digest as dg
from tests.helpers.digests import (
    GRID,
    INF,
    NAN,
    assert_exact,
    f64,
    pieced,
    sharded,
    streamed,
    worst,
)
from tests.helpers.distributions import (
    ALL,
    bound,
    exact_quantile,
    values_of,
)

FINITE = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.floats(-1e300, 1e300),
    st.sampled_from([0.0, -0.0, 1.0, 5e-324, -1e-310, 0.1]),
)


@settings(max_examples=60)
@given(
    values=st.lists(FINITE, min_size=1, max_size=48),
    cuts=st.lists(st.integers(0, 48), max_size=5),
    merged=st.lists(st.booleans(), min_size=1, max_size=3),
)
def test_up_to_k_values_in_any_pieces_give_exact_answers(values, cuts, merged):
    values = f64(*values)
    assert_exact(pieced(values, None, cuts, merged, 48), values)


@settings(max_examples=60)
@given(
    pairs=st.lists(
        st.tuples(st.floats(-100, 100, width=32), st.integers(0, 6)), min_size=1, max_size=48
    ).filter(lambda pairs: any(weight for _, weight in pairs)),
    cuts=st.lists(st.integers(0, 48), max_size=5),
    merged=st.lists(st.booleans(), min_size=1, max_size=3),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.int64, torch.uint8, torch.float16]),
)
def test_a_whole_weight_is_repetition(pairs, cuts, merged, dtype):
    values, weights = torch.tensor([v for v, _ in pairs]), torch.tensor([w for _, w in pairs])
    digest = pieced(values, weights.to(dtype), cuts, merged, 48)
    assert_exact(digest, values.repeat_interleave(weights))


@pytest.mark.parametrize("name", ALL)
def test_exactly_k_values_of_any_distribution_are_exact(name):
    values = values_of(name, 1024)
    assert_exact(dg.from_values(values), values)
    assert_exact(streamed(values, 100), values)
    assert_exact(sharded(values, 7, 50), values)


def test_the_default_keeps_1024_values_exactly_and_not_many_more():
    values = values_of("normal", 5000)
    assert not torch.equal(dg.quantile(streamed(values, 500), GRID), exact_quantile(values, GRID))
    assert dg.empty().shape == (1027, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_values_of_every_floating_dtype_are_kept_as_they_are(dtype):
    values = torch.randn(200, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert_exact(dg.from_values(values), values)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32])
def test_weights_of_every_number_dtype_are_accepted(dtype):
    digest = dg.from_values(f64(1, 2, 3), torch.tensor([1, 0, 3]).to(dtype))
    assert_exact(digest, f64(1, 3, 3, 3))


def test_float64_values_that_are_equal_in_float32_stay_apart():
    values = 1 + f64(*range(20)) * 1e-15
    assert dg.count(dg.from_values(values)) == 20
    assert torch.equal(dg.centroids(dg.from_values(values))[0][:20], values)


@pytest.mark.parametrize("values", [(-1.7e308, 0.0, 1.7e308), (1.6e308, 1.7e308)])
def test_values_near_the_largest_float64_are_exact(values):
    q = torch.linspace(0, 1, 9, dtype=torch.float64)
    got = dg.quantile(dg.from_values(f64(*values)), q)
    torch.testing.assert_close(got, exact_quantile(f64(*values), q), rtol=1e-12, atol=0)


def test_subnormal_values_are_kept():
    values = f64(5e-324, 1e-323, -5e-324, 1e-310, 0.0)
    assert torch.equal(dg.centroids(dg.from_values(values))[0][:5], values.sort().values)
    tiny = torch.tensor([1e-45, 3e-45, 1e-40])
    assert torch.equal(dg.centroids(dg.from_values(tiny))[0][:3], tiny.double())


def test_negative_zero_and_zero_are_one_atom_without_a_sign():
    values = torch.tensor([-0.0, 0.0, -0.0, 1.0])
    for digest in (dg.from_values(values), dg.from_values(values, torch.ones(4)), streamed(values, 1)):
        means, weights, blend = dg.centroids(digest)
        assert means[:2].tolist() == [0, 1]
        assert weights[:2].tolist() == [3, 1]
        assert not blend.any()
        assert math.copysign(1, dg.quantile(digest, 0.2)) == 1
        assert math.copysign(1, dg.minimum(digest)) == 1
    assert math.copysign(1, dg.maximum(dg.from_values(torch.tensor([-0.0])))) == 1


@pytest.mark.parametrize("n", [1, 3, 5000, 2_500_000])
def test_a_constant_stays_exactly_that(n):
    digest = dg.from_values(torch.full((n,), 0.1, dtype=torch.float64))
    assert set(dg.quantile(digest, GRID[::100]).tolist()) == {0.1}
    assert dg.mean(digest) == pytest.approx(0.1, rel=1e-12)
    assert dg.trimmed_mean(digest, 0.3, 0.4) == pytest.approx(0.1, rel=1e-12)
    assert dg.cdf(digest, f64(0.0999, 0.1, 0.1001)).tolist() == [0, 1, 1]


@pytest.mark.parametrize("batch", [512, 4096, 32_768, 100_000])
@pytest.mark.parametrize("skew", [0.0, 1.5])
def test_up_to_k_different_values_stay_exact_however_many_come_and_however_rare_some_are(batch, skew):
    rng = np.random.default_rng(0)
    share = rng.permutation(1 / np.arange(1, 901) ** skew)
    values = torch.from_numpy(rng.choice(900, size=100_000, p=share / share.sum()) * 0.1)
    digest = streamed(values, batch)
    distinct, counts = values.unique(return_counts=True)
    means, weights, blend = dg.centroids(digest)
    assert not blend.any()
    assert torch.equal(means[: len(distinct)], distinct)
    assert torch.equal(weights[: len(distinct)], counts.double())
    assert_exact(digest, values)


def test_few_different_values_stay_exact_in_a_merge_and_with_weights():
    rng = np.random.default_rng(1)
    values = torch.from_numpy(np.minimum(rng.geometric(0.02, 100_000), 200) * 0.25)
    weights = torch.from_numpy(rng.integers(0, 3, 100_000))
    repeated = values.repeat_interleave(weights)
    assert_exact(sharded(values, 16, 999), values)
    parts = zip(values.split(25_000), weights.split(25_000), strict=True)
    assert_exact(dg.merge(torch.stack([dg.from_values(v, w) for v, w in parts])), repeated)


@pytest.mark.parametrize("batch", [512, 8192, 200_000])
def test_every_quantile_among_61_percent_zeros_is_exactly_zero(batch):
    values = torch.cat([values_of("61 % zeros", 200_000), -values_of("exponential", 40_000)])
    values = values[torch.randperm(len(values), generator=torch.Generator().manual_seed(0))]
    first, last = (values < 0).sum().item(), (values <= 0).sum().item() - 1
    assert last - first > 0.5 * len(values)
    ends = first / (len(values) - 1) + 1e-9, last / (len(values) - 1) - 1e-9
    q = torch.linspace(*ends, 100_001, dtype=torch.float64)
    for digest in (streamed(values, batch), sharded(values, 8, batch)):
        assert dg.quantile(digest, q).eq(0).all()
        assert dg.quantile(digest, q[0].item() - 1e-4) < 0 < dg.quantile(digest, q[-1].item() + 1e-4)


def test_two_atoms_stay_two_atoms():
    digest = streamed(values_of("two atoms", 100_000), 777)
    means, weights, _ = dg.centroids(digest)
    assert means[weights > 0].tolist() == [-1.5, 7.25]
    assert set(dg.quantile(digest, GRID[::7]).tolist()) <= {-1.5, 7.25}


def test_counts_are_exact_past_two_to_the_24():
    assert dg.count(dg.from_values(f64(1, 2), torch.tensor([2**24, 1]))) == 2**24 + 1
    weights = torch.tensor([2.0**24, 1.0])
    digest = dg.from_values(f64(1, 2).float(), weights)
    assert dg.count(digest) == 2**24 + 1
    assert dg.count(dg.add(digest, torch.tensor([1.0]))) == 2**24 + 2
    assert dg.cdf(digest, 1.5) < 1
    nans = dg.from_values(f64(NAN, INF, -INF, 0), torch.tensor([2**24 + 1, 2**25 + 1, 2**26 + 1, 1]))
    assert dg.nonfinite(nans) == 2**24 + 2**25 + 2**26 + 3
    assert dg.count(nans) == 2**25 + 2**26 + 3


@pytest.mark.parametrize("name", ["normal", "61 % zeros", "ce like"])
def test_counts_and_means_are_exact_through_many_merges(name):
    values = values_of(name, 100_003)
    digest = streamed(values, 5000)
    mean = values.double().abs().mean().item()
    for doubled in range(1, 31):
        digest = dg.merge(torch.stack([digest, digest]))
        assert dg.count(digest) == 100_003 * 2**doubled
        assert dg.centroids(digest)[1].frac().eq(0).all()
    assert abs(dg.mean(digest) - values.double().mean()) <= 1e-12 * mean
    assert worst(values, digest) <= bound(100_003)


@pytest.mark.parametrize("name", sorted(set(ALL) - {"cauchy"}))
def test_the_mean_is_that_of_the_values_to_1e_12(name):
    values = values_of(name, 50_000)
    want = math.fsum(values.double().tolist()) / 50_000
    scale = values.double().abs().mean().item()
    for digest in (streamed(values, 1000), streamed(values, 50_000), sharded(values, 16, 4096)):
        assert abs(dg.mean(digest).item() - want) <= 1e-12 * scale


@pytest.mark.parametrize("name", ALL)
def test_extremes_are_exact(name):
    values = values_of(name, 50_000)
    for digest in (streamed(values, 1000), sharded(values, 16, 4096)):
        assert dg.minimum(digest) == dg.quantile(digest, 0.0) == values.min()
        assert dg.maximum(digest) == dg.quantile(digest, 1.0) == values.max()
