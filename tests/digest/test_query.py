"""Quantiles and their inverse, means and trimmed means, one digest or many at once."""

import itertools
import math

import numpy as np
import pytest
import torch

from lightning_pce import digest as dg
from tests.helpers.digests import (
    GRID,
    INF,
    NAN,
    batched,
    f64,
    ready,
    sharded,
    streamed,
)
from tests.helpers.distributions import (
    ALL,
    HARD,
    SMOOTH,
    bound,
    exact_quantile,
    exact_trimmed_mean,
    values_of,
)


def test_the_empty_digest_answers_nan_and_counts_zero():
    digest = dg.empty(16)
    assert dg.count(digest) == dg.nonfinite(digest) == dg.invalid(digest) == 0
    for answer in (
        dg.quantile(digest, f64(0, 0.5, 1)),
        dg.cdf(digest, f64(-INF, 0, INF)),
        dg.mean(digest),
        dg.finite_mean(digest),
        dg.minimum(digest),
        dg.maximum(digest),
        dg.trimmed_mean(digest, 0.1, 0.9),
        dg.tail_mean(digest, 0.5),
        dg.tail_mean(digest, 1.0),
        dg.curve(digest, 5)[1],
    ):
        assert answer.dtype == torch.float64
        assert answer.isnan().all()
    assert dg.centroids(digest)[1].sum() == 0


@pytest.mark.parametrize("name", ALL)
def test_quantiles_never_fall_and_stay_between_the_extremes(name):
    values = values_of(name, 50_000)
    answers = dg.quantile(ready(name), GRID)
    assert (answers.diff() >= 0).all()
    assert answers[0] == values.min()
    assert answers[-1] == values.max()


@pytest.mark.parametrize("name", ALL)
def test_cdf_undoes_quantile(name):
    digest = ready(name)
    answers = dg.quantile(digest, GRID)
    back = dg.cdf(digest, answers)
    # Inside a spike one step of float64 is more than 1e-12 of rank.
    just_above = answers.nextafter(f64(INF)) if name == "narrow spike" else answers
    assert (dg.cdf(digest, just_above) >= GRID - 1e-12).all()
    rising = (answers[1:-1] > answers[:-2]) & (answers[2:] > answers[1:-1])
    assert rising.sum() > 10_000 or name not in SMOOTH
    means, _, blend = dg.centroids(digest)
    away = rising & ~torch.isin(answers[1:-1], means[~blend])
    torch.testing.assert_close(back[1:-1][away], GRID[1:-1][away], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_cdf_never_falls_and_is_close_to_the_share_of_values_below(name):
    values = values_of(name, 50_000)
    digest = ready(name)
    x = exact_quantile(values, torch.linspace(0, 1, 3001))
    x = torch.cat([x[:1] - 1, x, x.nextafter(f64(INF)), x[-1:] + 1]).sort().values
    back = dg.cdf(digest, x)
    assert (back.diff() >= 0).all()
    assert back[0] == 0
    assert back[-1] == 1
    ranked = values.double().sort().values
    below = torch.searchsorted(ranked, x).double() / 50_000
    upto = torch.searchsorted(ranked, x, right=True).double() / 50_000
    limit = 8e-3 if name in HARD else bound(50_000)
    assert torch.maximum(below - back, back - upto).max() <= limit + 2e-5


def test_quantile_and_cdf_of_nan_are_nan_and_a_tensor_outside_is_held_to_the_ends():
    digest = dg.from_values(f64(1, 2, 3))
    torch.testing.assert_close(dg.quantile(digest, f64(-1, NAN, 2)), f64(1, NAN, 3), equal_nan=True)
    torch.testing.assert_close(dg.cdf(digest, f64(-INF, NAN, INF)), f64(0, NAN, 1), equal_nan=True)


@pytest.mark.parametrize("name", ["ce like", "exponential", "lognormal", "61 % zeros", "poisson"])
def test_trimmed_and_tail_means_are_close_above_k_values(name):
    values = values_of(name, 200_000).sort().values
    shuffled = values[torch.randperm(len(values), generator=torch.Generator().manual_seed(0))]
    for digest in (streamed(shuffled, 1000), streamed(shuffled, 32_768), sharded(shuffled, 16, 1000)):
        for low, high in [(0.0, 0.99), (0.1, 0.9), (0.25, 0.75), (0.7, 0.8), (0.99, 0.999)]:
            want = exact_trimmed_mean(values, low, high)
            assert dg.trimmed_mean(digest, low, high).item() == pytest.approx(want, rel=1e-4)
        for q in (0.0, 0.5, 0.9, 0.99, 0.999):
            want = exact_trimmed_mean(values, q, 1)
            # The last thousandth is 200 values, and a part of one of them is more than 1e-4.
            assert dg.tail_mean(digest, q).item() == pytest.approx(want, rel=1e-4 if q < 0.999 else 3e-4)


def test_trimmed_means_of_weighted_values_are_exact_up_to_k():
    rng = np.random.default_rng(0)
    values, weights = rng.standard_normal(60), rng.random(60) * 3
    digest = dg.from_values(torch.from_numpy(values), torch.from_numpy(weights), compression=64)
    for low, high in [(0, 1), (0, 0.01), (0.123, 0.456), (0.5, 0.5001), (0.99, 1)]:
        want = exact_trimmed_mean(values, low, high, weights)
        assert dg.trimmed_mean(digest, low, high).item() == pytest.approx(want, abs=1e-9)


def test_a_value_that_straddles_a_limit_enters_by_its_part_inside():
    digest = dg.from_values(f64(0, 10, 20, 30))
    assert dg.trimmed_mean(digest, 0.125, 0.5).item() == pytest.approx((0 * 0.5 + 10) / 1.5)
    assert dg.tail_mean(digest, 0.625).item() == pytest.approx((20 * 0.5 + 30) / 1.5)
    assert dg.tail_mean(digest, 1.0) == 30
    assert dg.trimmed_mean(digest, 0.0, 1.0) == dg.mean(digest) == 15


def test_the_parts_of_a_trimmed_mean_add_up_to_the_mean():
    digest = streamed(values_of("ce like", 100_000), 4096)
    edges = np.linspace(0, 1, 301)
    parts = [
        dg.trimmed_mean(digest, low, high).item() * (high - low) for low, high in itertools.pairwise(edges)
    ]
    assert math.fsum(parts) == pytest.approx(dg.mean(digest).item(), rel=1e-12)


@pytest.mark.parametrize("stream", ["ce like", "61 % zeros", "infinite"])
def test_many_trimmed_means_at_once_are_those_of_each(stream):
    if stream == "infinite":
        digests = dg.from_values(f64(-INF, 0, 1, 2, INF))[None]
    else:
        digests = torch.stack([dg.from_values(values_of(stream, n, n)) for n in (5, 3000)])
    edges = torch.linspace(0, 1, 21, dtype=torch.float64)
    low, high = edges[:-1].reshape(4, 5), edges[1:].reshape(4, 5)
    answers = dg.trimmed_mean(digests, low, high)
    assert answers.shape == (len(digests), 4, 5)
    for row, column in itertools.product(range(4), range(5)):
        each = dg.trimmed_mean(digests, float(low[row, column]), float(high[row, column]))
        torch.testing.assert_close(answers[:, row, column], each, rtol=1e-14, atol=1e-14, equal_nan=True)
    torch.testing.assert_close(answers.mean((1, 2)), dg.mean(digests), rtol=1e-13, atol=1e-15, equal_nan=True)
    top = dg.trimmed_mean(digests, low, 1.0)
    torch.testing.assert_close(top[:, 3, 4], dg.tail_mean(digests, float(low[3, 4])), equal_nan=True)


def test_an_extreme_inside_a_blend_behind_another_value_is_still_the_extreme():
    digest = dg.from_values(torch.arange(100.0), compression=8)
    used = int((dg.centroids(digest)[1] > 0).sum())
    digest[0], digest[1] = f64(4.0, 1.0), f64(5.0, -3.0)  # of which one is 0, the footer says
    digest[used - 2], digest[used - 1] = f64(94.0, -3.0), f64(95.0, 1.0)  # of which one is 99
    assert dg.minimum(digest) == dg.quantile(digest, 0.0) == 0
    assert dg.maximum(digest) == dg.quantile(digest, 1.0) == 99
    assert (dg.quantile(digest, GRID).diff() >= 0).all()


@pytest.mark.parametrize(
    "query",
    [
        lambda d: dg.quantile(d, 0.3),
        lambda d: dg.quantile(d, torch.linspace(0, 1, 12).reshape(3, 4)),
        lambda d: dg.cdf(d, 1.25),
        lambda d: dg.cdf(d, torch.linspace(-3, 40, 12).reshape(3, 4)),
        dg.mean,
        dg.finite_mean,
        dg.minimum,
        dg.maximum,
        dg.count,
        dg.nonfinite,
        dg.invalid,
        lambda d: dg.trimmed_mean(d, 0.1, 0.8),
        lambda d: dg.tail_mean(d, 0.9),
        lambda d: dg.tail_mean(d, 1),
        lambda d: dg.curve(d, 7)[1],
        lambda d: dg.centroids(d)[0],
        lambda d: dg.centroids(d)[1],
        lambda d: dg.centroids(d)[2],
        lambda d: dg.add_invalid(d, torch.tensor(2)),
    ],
)
def test_a_query_with_leading_dimensions_is_that_of_each_alone(query):
    digests = batched()[0]
    answers = query(digests)
    alone = torch.stack([query(digest) for digest in digests])
    assert answers.dtype == alone.dtype
    torch.testing.assert_close(answers, alone, rtol=1e-13, atol=0, equal_nan=True)
    torch.testing.assert_close(query(digests[:, None]), alone[:, None], rtol=1e-13, atol=0, equal_nan=True)


def test_a_curve_is_the_quantile_on_an_even_grid():
    digest = streamed(values_of("normal", 5000), 999)
    q, values = dg.curve(digest)
    assert q.shape == values.shape == (201,)
    assert q[0] == 0
    assert q[-1] == 1
    torch.testing.assert_close(q.diff(), torch.full((200,), 1 / 200, dtype=torch.float64))
    assert torch.equal(values, dg.quantile(digest, q))
    assert dg.curve(digest, 11)[1].shape == (11,)


@pytest.mark.parametrize("q", [-0.001, 1.001, NAN, 50])
def test_a_quantile_outside_0_to_1_raises(q):
    with pytest.raises(ValueError, match="in \\[0, 1\\]"):
        dg.quantile(dg.from_values(f64(1, 2)), q)


@pytest.mark.parametrize(
    ("low", "high"), [(-0.1, 0.5), (0.5, 1.1), (0.5, 0.5), (0.9, 0.1), (NAN, 1), (0, NAN)]
)
def test_limits_of_a_trimmed_mean_out_of_order_raise(low, high):
    with pytest.raises(ValueError, match="low < high"):
        dg.trimmed_mean(dg.from_values(f64(1, 2)), low, high)
