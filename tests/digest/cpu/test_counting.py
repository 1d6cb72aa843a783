"""A large batch counted on a scale of levels says what the sorted batch says."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_pce import StreamingQuantiles
from lightning_pce import digest as dg
from lightning_pce.digest._cpu.counting import DIGITS, counted, edges_of, levels_of, scale_of
from tests.helpers.distributions import (
    PROMISED_Q,
    SMOOTH,
    bound,
    ce_like,
    values_of,
    worst_rank_error,
)

N = 1 << 17
K = 1024


def uneven(seed, n=N):
    """Values of any origin, spread and shape, and some of them often."""
    rng = np.random.default_rng(seed)
    shape = [rng.standard_normal, rng.standard_cauchy, rng.standard_exponential, rng.random][seed % 4](n)
    values = (shape * 10.0 ** rng.integers(-6, 7) + rng.choice([0, 1, -1e3, 1e5])).astype(np.float32)
    if seed % 3 == 0:
        values[rng.random(n) < 0.01] = values[0]
    return values


def slices(levels, values):
    """What each item of ``counted`` stands for, of the sorted values."""
    return np.split(np.sort(values).astype(np.float64), levels.upto[1:-1])


def assert_levels_fit(levels, values):
    parts = slices(levels, values)
    assert levels.upto[0] == 0
    assert levels.upto[-1] == len(values)
    assert (np.diff(levels.upto) > 0).all()
    assert (np.diff(levels.values) >= 0).all()
    start = float(values.min())
    means, least, most = np.array([(start + (part - start).mean(), part[0], part[-1]) for part in parts]).T
    ulp = np.spacing(np.abs(values.astype(np.float64)).max())
    np.testing.assert_allclose(levels.values, means, rtol=0, atol=4 * ulp)
    assert (levels.values >= least - ulp).all()
    assert (levels.values <= most + ulp).all()
    assert not ((least < most) & ~levels.blend).any()
    assert (levels.values[0], levels.values[-1]) == (values.min(), values.max())
    assert not levels.blend[[0, -1]].any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_each_level_holds_neighbours_and_their_mean(dtype):
    batches = [uneven(seed).astype(dtype) for seed in range(16)]
    counts = [(values, counted(values, K)) for values in batches]
    assert sum(levels is not None for _, levels in counts) >= 10  # others, such as a Cauchy's, are sorted
    for values, levels in counts:
        if levels is not None:
            assert_levels_fit(levels, values)


@pytest.mark.parametrize("spread", [1e-8, 1e-11, 1e-12, 1e-13, 1e-15])
@pytest.mark.parametrize("origin", [3e8, -1e36])
@pytest.mark.parametrize("shape", ["random", "standard_exponential"])
def test_float64_values_that_lie_close_together_are_levels_in_order_or_sorted(shape, origin, spread):
    rng = np.random.default_rng(14)
    values = origin + abs(origin) * spread * getattr(rng, shape)(N)
    levels = counted(values, K)
    if levels is not None:
        assert_levels_fit(levels, values)
    digest = dg.from_values(torch.from_numpy(values))
    assert dg.count(digest) == N
    q = PROMISED_Q[:-1]
    # Above a value that is repeated there is no rank between.
    share = np.unique(values, return_counts=True)[1].max() / N
    assert worst_rank_error(values, dg.quantile(digest, torch.from_numpy(q)), q) <= bound(N) + share


def test_zeros_of_both_signs_below_values_close_together_are_zeros():
    values = np.random.default_rng(15).uniform(1, 1.003, N).astype(np.float32)
    values[::3], values[3] = 0.0, -0.0
    digest = dg.from_values(torch.from_numpy(values))
    assert dg.count(digest) == N
    assert dg.centroids(digest)[1][0] == np.count_nonzero(values == 0)
    assert math.copysign(1, dg.minimum(digest)) == 1


def test_a_lump_at_the_lower_end_is_no_atom_because_its_sum_is_rounded():
    rng = np.random.default_rng(16)
    values = 1e8 + np.exp(rng.standard_normal(N))
    at = rng.permutation(N)
    at = at[at % (N // 512) != 0][:190]  # which the sample does not see
    values[at] = 1e8 + 1e-7 * rng.random(190)
    levels = counted(values, K)
    assert_levels_fit(levels, values)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "values",
    {
        "near the largest float32": lambda r: (
            (-2.6e38 + 1.2e37 * r).clip(-3.1e38, -2.2e38).astype(np.float32)
        ),
        "denormal": lambda r: (1e-40 * np.abs(r)).astype(np.float32),
        "1e300": lambda r: 1e300 * r,
    }.values(),
)
def test_numbers_of_any_size_raise_no_warning(values):
    values = values(np.random.default_rng(17).standard_normal(N))
    values[256 * 100] = np.nextafter(values.min(), values.dtype.type(0))
    digest = dg.from_values(torch.from_numpy(values))
    assert dg.count(digest) == N
    assert (dg.minimum(digest).item(), dg.maximum(digest).item()) == (values.min(), values.max())


@pytest.mark.parametrize("name", SMOOTH)
def test_no_level_of_different_values_takes_up_much_of_a_cell(name):
    values = values_of(name, N).numpy()
    levels = counted(values, K)
    differ = np.array([part[0] < part[-1] for part in slices(levels, values)])
    angle = np.arcsin(np.sqrt(levels.upto / N)) * 2 / math.pi * K
    few = np.diff(levels.upto) <= N / 2**14
    assert (np.diff(angle)[differ & ~few] < 0.6).all()


def test_zeros_are_one_atom_and_the_rest_is_counted():
    values = ce_like(N, np.random.default_rng(5))
    values[np.random.default_rng(6).random(N) < 0.61] = 0.0
    values[0] = -0.0
    levels = counted(values, K)
    assert (levels.values[0], levels.blend[0]) == (0, False)
    assert levels.upto[1] == np.count_nonzero(values == 0)


def test_a_value_seen_often_is_an_atom_among_levels():
    rng = np.random.default_rng(7)
    values = ce_like(N, rng)
    values[rng.random(N) < 0.01] = 0.25
    levels = counted(values, K)
    (at,) = np.flatnonzero(levels.values == 0.25)
    assert not levels.blend[at]
    assert levels.upto[at + 1] - levels.upto[at] == np.count_nonzero(values == 0.25)
    assert len(levels.values) > 4 * K  # the others were not sorted


@pytest.mark.parametrize(
    "odd",
    [
        [math.nan],
        [math.inf],
        [-math.inf],
        [3e38, -3e38],
    ],
)
def test_what_float32_can_not_span_is_sorted(odd):
    values = ce_like(N, np.random.default_rng(8))
    assert counted(values.astype(np.float64) * 1e-60, K) is None
    values[: len(odd)] = odd
    assert counted(values, K) is None


@pytest.mark.parametrize(
    "values",
    [
        np.full(N, 3.0, np.float32),
        np.zeros(N, np.float32),
        np.arange(N, dtype=np.float32) % K,  # exact in a digest
        np.where(np.arange(N) % 2, 1.0, np.arange(N) % 7).astype(np.float32),
        np.log1p(np.arange(N) % 3000).astype(np.float32),  # few values, all of them heavy
    ],
)
def test_few_different_values_are_sorted(values):
    assert counted(values, K) is None


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_levels_are_in_the_order_of_the_values(seed, double):
    values = np.sort(uneven(seed, 4096).astype(np.float64 if double else np.float32))
    scale = scale_of(values, DIGITS)
    if scale is None:
        return
    level = levels_of(torch.from_numpy(values), scale)
    assert (level.diff() >= 0).all()
    assert 0 <= int(level[0]) <= int(level[-1]) < 1 << DIGITS
    # And begin where they say, but for the rounding of value - origin to float32.
    inner = level.numpy() > 0
    slack = 1e-6 * (np.abs(values[inner]) + abs(scale.origin))
    assert (edges_of(level.numpy()[inner], scale) <= values[inner] + slack).all()
    assert (edges_of(level.numpy()[inner] + 1, scale) >= values[inner] - slack).all()


@pytest.mark.parametrize("double", [False, True])
def test_a_metric_counts_what_waits(double):
    values = torch.from_numpy(ce_like(1 << 20, np.random.default_rng(11)))
    values = values.double() if double else values
    metric = StreamingQuantiles()
    for part in values.split(30_011):
        metric.update(part)
    assert metric.compute()["count"] == len(values)
    assert worst_rank_error(values, dg.quantile(metric.digest, torch.from_numpy(PROMISED_Q))) <= 5e-5
