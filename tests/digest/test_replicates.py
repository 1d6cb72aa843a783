"""Replicates share the centroids of a digest and have weights of their own."""

import math

import numpy as np
import pytest
import torch

from lightning_pce import digest as dg
from tests.helpers.digests import (
    COARSE,
    INF,
    KINDS,
    NAN,
    Q,
    assert_footers_and_means,
    numbers_of,
    streamed,
    weighted_rank_error,
    weights_of,
)
from tests.helpers.distributions import (
    bound,
    ce_like,
    exact_quantile,
    values_of,
    worst_rank_error,
)


@pytest.mark.parametrize("n", [50, 900, 30_000])
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.float64, torch.bool, torch.bfloat16])
def test_a_replicate_of_ones_is_the_digest_itself(n, dtype):
    values = values_of("ce like", n)
    values[:3] = torch.tensor([NAN, INF, -INF])
    digest = streamed(values, replicates=torch.ones(n, 2, dtype=dtype))
    main = digest[..., :2].contiguous()
    for replicate in dg.replicate_digests(digest):
        torch.testing.assert_close(replicate, main, rtol=1e-12, atol=0)


def test_replicates_do_not_change_what_the_digest_itself_says():
    rng = np.random.default_rng(13)
    values = values_of("ce like", 20_000)
    digest = streamed(values, replicates=torch.from_numpy(rng.poisson(1, (20_000, 3))))
    assert_footers_and_means(digest[..., :2], values, None)
    assert worst_rank_error(values, dg.quantile(digest[..., :2], Q)) <= bound(20_000)


def test_an_integer_replicate_of_few_values_is_exactly_repetition():
    rng = np.random.default_rng(14)
    values = values_of("normal", 800)
    columns = torch.from_numpy(rng.poisson(1, (800, 5)))
    columns[:, 3] = 0
    columns[17, 3] = 6
    for batch in (800, 90):
        replicates = dg.replicate_digests(streamed(values, batch=batch, replicates=columns))
        for column, replicate in zip(columns.T, replicates, strict=True):
            resampled = values.repeat_interleave(column)
            assert dg.count(replicate) == len(resampled)
            torch.testing.assert_close(
                dg.quantile(replicate, COARSE), exact_quantile(resampled, COARSE), rtol=0, atol=1e-12
            )
            assert dg.mean(replicate).item() == pytest.approx(resampled.double().mean().item(), rel=1e-12)
            assert dg.minimum(replicate) == resampled.min()
            assert dg.maximum(replicate) == resampled.max()


@pytest.mark.parametrize("kind", KINDS)
def test_means_of_replicates_of_few_values_are_weighted_means(kind):
    rng = np.random.default_rng(15)
    values, weights = values_of("lognormal", 1000), weights_of(kind, 1000, rng)
    columns = numbers_of(weights, 1000)[:, None] * torch.from_numpy(rng.poisson(1, (1000, 6)))
    digest = streamed(values, weights=weights, batch=333, replicates=columns)
    want = (values.double() @ columns) / columns.sum(0)
    torch.testing.assert_close(dg.mean(dg.replicate_digests(digest)), want, rtol=1e-10, atol=0)


@pytest.mark.parametrize("stack", [1, 3, 66, 130])
def test_counts_of_replicates_are_column_sums_through_adds_and_merges(stack):
    rng = np.random.default_rng(16)
    n = 600 * stack
    values, columns = torch.from_numpy(ce_like(n, rng)), torch.from_numpy(rng.poisson(1, (n, 4)))
    values[:4] = torch.tensor([NAN, INF, -INF, INF])
    parts = [
        streamed(v, compression=64, batch=200, replicates=c)
        for v, c in zip(values.split(600), columns.split(600), strict=True)
    ]
    merged = dg.merge(torch.stack(parts))
    assert merged.shape == (67, 6)
    for _ in range(3):
        merged = dg.add(merged, values, replicates=columns)
    replicates = dg.replicate_digests(merged)
    torch.testing.assert_close(
        dg.count(replicates), 4 * columns[1:].sum(0).double(), rtol=1e-12, atol=0
    )  # the first is NaN
    odd = columns[:4].sum(0).double() * 4
    torch.testing.assert_close(dg.nonfinite(replicates), odd, rtol=1e-12, atol=0)
    assert dg.count(merged[..., :2]) == 4 * (n - 1)


def test_columns_with_groups_are_those_of_each_group_alone():
    rng = np.random.default_rng(17)
    n = 1500
    values, groups = values_of("normal", n), torch.from_numpy(rng.choice([0, 2, 2], n))
    columns = torch.from_numpy(rng.poisson(1, (n, 3)))
    digest = streamed(values, batch=400, groups=groups, number=3, replicates=columns)
    replicates = dg.replicate_digests(digest)
    assert replicates.shape == (3, 3, 1027, 2)
    for group in range(3):
        own = groups == group
        for column in range(3):
            resampled = values[own].repeat_interleave(columns[own, column])
            replicate = replicates[column, group]
            assert dg.count(replicate) == len(resampled)
            if len(resampled):
                want = exact_quantile(resampled, COARSE)
                torch.testing.assert_close(dg.quantile(replicate, COARSE), want, rtol=0, atol=1e-12)
    assert torch.equal(dg.count(replicates[:, 1]), torch.zeros(3).double())


def test_a_piece_with_replicates_and_groups_is_counted_to_the_last_value():
    rng = np.random.default_rng(7)
    n = 300_000  # 9 columns: several pieces of 190,650
    values, groups = torch.from_numpy(ce_like(n, rng)), torch.from_numpy(rng.integers(0, 2, n))
    columns = torch.from_numpy(rng.poisson(1, (n, 9)))
    digest = dg.add(dg.empty(64, shape=(2,), replicates=9), values, groups=groups, replicates=columns)
    for group in range(2):
        assert_footers_and_means(digest[group, :, :2], values[groups == group], None)
        want = columns[groups == group].sum(0).double()
        torch.testing.assert_close(dg.count(dg.replicate_digests(digest))[:, group], want, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["normal", "ce like", "61 % zeros"])
def test_quantiles_of_replicates_of_many_values_are_within_a_centroid(name):
    rng = np.random.default_rng(18)
    n = 100_000
    values = values_of(name, n)
    columns = torch.from_numpy(rng.poisson(1, (n, 5)))
    replicates = dg.replicate_digests(streamed(values, batch=8192, replicates=columns))
    for column, replicate in zip(columns.T, replicates, strict=True):
        whole = streamed(values, 8192, weights=column)
        assert dg.count(replicate) == pytest.approx(dg.count(whole).item(), rel=1e-12)
        estimates = dg.quantile(replicate, Q)
        assert weighted_rank_error(values, column, estimates) <= math.pi / 2 / 1024
        assert weighted_rank_error(values, column, dg.quantile(whole, Q)) <= bound(n)


def test_a_replicate_that_holds_one_end_only_has_its_own_extremes():
    values = torch.arange(100.0)
    columns = torch.stack([torch.arange(100) < 30, torch.arange(100) >= 70, torch.zeros(100)], -1)
    low, high, none = dg.replicate_digests(
        dg.add(dg.empty(128, replicates=3), values, replicates=columns.long())
    )
    assert [dg.minimum(low), dg.maximum(low), dg.mean(low)] == [0, 29, 14.5]
    assert [dg.minimum(high), dg.maximum(high), dg.mean(high)] == [70, 99, 84.5]
    assert dg.count(none) == 0
    assert dg.quantile(none, 0.5).isnan()


def test_the_spread_of_the_median_over_poisson_replicates_is_that_of_theory():
    rng = np.random.default_rng(19)
    n, replicates = 20_000, 100
    values = torch.from_numpy(rng.standard_normal(n))
    columns = torch.from_numpy(rng.poisson(1, (n, replicates)).astype(np.uint8))
    medians = dg.quantile(dg.replicate_digests(streamed(values, batch=5000, replicates=columns)), 0.5)
    density = 1 / math.sqrt(2 * math.pi)
    assert medians.std().item() == pytest.approx(1 / (2 * density * math.sqrt(n)), rel=0.25)


@pytest.mark.parametrize(
    ("made", "replicates"),
    [
        (2, None),
        (0, torch.ones(3, 1)),
        (2, torch.ones(3, 3)),
        (2, torch.ones(2, 2)),
        (2, torch.ones(2, 3)),
        (2, torch.ones(6)),
    ],
    ids=["none", "not wanted", "too many", "too few values", "turned", "flat"],
)
def test_replicates_of_another_shape_are_refused_by_name(made, replicates):
    with pytest.raises(ValueError, match="`replicates`"):
        dg.add(dg.empty(8, replicates=made), torch.ones(3), replicates=replicates)


def test_every_query_takes_a_digest_with_replicates():
    values = values_of("normal", 500)
    plain = dg.from_values(values, compression=64)
    weights = torch.from_numpy(np.random.default_rng(0).poisson(1, (500, 3)))
    digest = dg.add(dg.empty(64, replicates=3), values, replicates=weights)
    q = torch.tensor([0.0, 0.3, 1.0])
    for query in (
        lambda d: dg.quantile(d, q),
        lambda d: dg.cdf(d, torch.tensor([-1.0, 0.2])),
        lambda d: dg.curve(d, 5)[1],
        dg.minimum,
        dg.maximum,
        dg.mean,
        dg.finite_mean,
        dg.count,
        dg.nonfinite,
        dg.invalid,
        lambda d: dg.trimmed_mean(d, 0.1, 0.9),
        lambda d: dg.tail_mean(d, 0.9),
    ):
        torch.testing.assert_close(query(digest), query(plain), rtol=1e-3, atol=1e-3)
    assert dg.quantile(dg.replicate_digests(digest), q).shape == (3, 3)


def test_what_is_no_weight_counts_for_nothing_in_a_replicate():
    weights = torch.tensor([[-1.0, NAN, INF], [1.0, 1.0, 2.0]])
    digest = dg.add(dg.empty(8, replicates=3), torch.tensor([1.0, 2.0]), replicates=weights)
    assert dg.count(dg.replicate_digests(digest)).tolist() == [1, 1, 2]


def test_no_values_with_replicates_change_nothing():
    digest = dg.empty(8, replicates=2)
    assert torch.equal(dg.add(digest, torch.empty(0), replicates=torch.empty(0, 2)), digest)
