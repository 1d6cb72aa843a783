"""Infinities lie below or above everything else, and count."""

import math

import pytest
import torch

from lightning_pce import digest as dg
from tests.helpers.digests import (
    INF,
    INFINITE,
    NAN,
    f64,
    sharded,
    streamed,
    worst,
)
from tests.helpers.distributions import (
    PROMISED_Q,
    bound,
    values_of,
)


def quantile_with_infinities(values, q):
    """Linear interpolation between order statistics; beside an infinity there is only that infinity."""
    values = sorted(values)
    place = q * (len(values) - 1)
    low = math.floor(place)
    if place == low:
        return values[low]
    a, b = values[low], values[low + 1]
    if math.isinf(a):
        return -INF if a < 0 else INF
    return INF if b == INF else (-INF if b == -INF else a + (b - a) * (place - low))


@pytest.mark.parametrize("compression", [8, 64])
@pytest.mark.parametrize("extra", [0, 4])
@pytest.mark.parametrize("name", INFINITE)
def test_quantiles_beside_infinities_are_infinite_and_the_others_interpolate(name, extra, compression):
    values = [*INFINITE[name], *([2.5] * extra)]
    steps = 4 * (len(values) - 1) or 1
    q = [step / steps for step in range(steps + 1)]
    got = dg.quantile(dg.from_values(f64(*values), compression=compression), f64(*q)).tolist()
    want = [quantile_with_infinities(values, step) for step in q]
    assert got == pytest.approx(want, abs=1e-12)


def test_quantiles_beside_infinities_do_not_depend_on_the_room_left():
    values = f64(*range(8), INF)
    q = torch.linspace(0, 1, 65)
    roomy = dg.quantile(dg.from_values(values, compression=9), q)
    assert torch.equal(dg.quantile(dg.from_values(values, compression=8), q), roomy)


@pytest.mark.parametrize("name", INFINITE)
def test_cdf_is_the_largest_q_whose_quantile_is_not_above_also_with_infinities(name):
    digest = dg.from_values(f64(*INFINITE[name]), compression=16)
    q = torch.linspace(0, 1, 9601, dtype=torch.float64)
    quantiles = dg.quantile(digest, q)
    for x in (-INF, -7.0, 0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 7.0, INF):
        reached = q[quantiles <= x]
        want = reached[-1].item() if len(reached) else 0.0
        assert dg.cdf(digest, x).item() == pytest.approx(want, abs=1.1 / 9600)


@pytest.mark.parametrize("name", INFINITE)
def test_cdf_of_a_quantile_is_not_below_also_with_infinities(name):
    digest = dg.from_values(f64(*INFINITE[name]), compression=16)
    q = torch.linspace(0, 1, 961, dtype=torch.float64)
    assert (dg.cdf(digest, dg.quantile(digest, q)) >= q - 1e-12).all()


@pytest.mark.parametrize(
    ("values", "mean", "finite_mean"),
    [
        ([1, 3, INF], INF, 2),
        ([1, 3, -INF], -INF, 2),
        ([1, 3, INF, -INF], NAN, 2),
        ([INF], INF, NAN),
        ([-INF, INF], NAN, NAN),
        ([NAN], NAN, NAN),
        ([NAN, 5], 5, 5),
    ],
)
def test_means_with_infinities(values, mean, finite_mean):
    digest = dg.from_values(f64(*values))
    assert dg.mean(digest).item() == pytest.approx(mean, nan_ok=True)
    assert dg.finite_mean(digest).item() == pytest.approx(finite_mean, nan_ok=True)
    assert dg.trimmed_mean(digest, 0, 1).item() == pytest.approx(mean, nan_ok=True)


def test_trimmed_means_are_infinite_where_an_infinity_is_left_even_in_part():
    digest = dg.from_values(f64(-INF, 1, 2, 3, INF, INF, 4, 5))
    assert dg.trimmed_mean(digest, 0.125, 0.75) == 3
    assert dg.trimmed_mean(digest, 0.25, 0.625) == 3
    assert dg.trimmed_mean(digest, 0.1, 0.75) == -INF
    assert dg.trimmed_mean(digest, 0.125, 0.8) == INF
    assert dg.trimmed_mean(digest, 0.1, 0.8).isnan()
    assert dg.tail_mean(digest, 0.9) == INF
    assert dg.tail_mean(digest, 1.0) == INF


def test_infinities_count_and_leave_the_finite_extremes_in_the_footer():
    digest = dg.from_values(f64(INF, 1, -INF, 2, INF, NAN), f64(1, 1, 3, 2, 4, 7))
    assert dg.count(digest) == 11
    assert dg.nonfinite(digest) == 15
    assert dg.minimum(digest) == -INF
    assert dg.maximum(digest) == INF
    assert digest[-2:, 0].tolist() == [1, 2]
    assert digest[-3:, 1].tolist() == [7, 3, 5]


def test_infinities_in_a_long_stream_shift_the_ranks_of_the_others():
    values = values_of("normal", 100_000)
    values[::10], values[1::50] = INF, -INF
    for digest in (streamed(values, 1000), sharded(values, 8, 4096)):
        q = PROMISED_Q[(PROMISED_Q > 0.021) & (PROMISED_Q < 0.899)]
        assert worst(values, digest, q) <= bound(100_000)
        assert dg.quantile(digest, 0.019) == -INF
        assert dg.quantile(digest, 0.901) == INF
