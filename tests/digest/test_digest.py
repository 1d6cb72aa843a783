"""The digest: exact while it can be, close in rank above, and never in doubt about what it counts."""

import functools
import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_pce import digest as dg
from lightning_pce.digest._add import add_entries
from lightning_pce.digest._batch import Entries
from lightning_pce.digest._merge import merge_stack
from tests.helpers.distributions import (
    ALL,
    ATOMS,
    HARD,
    PROMISED_Q,
    SMOOTH,
    BucketOracle,
    bound,
    ce_like,
    exact_quantile,
    exact_trimmed_mean,
    ordered,
    values_of,
    worst_rank_error,
)

INF, NAN = math.inf, math.nan
GRID = torch.linspace(0, 1, 100_001, dtype=torch.float64)
FINITE = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.floats(-1e300, 1e300),
    st.sampled_from([0.0, -0.0, 1.0, 5e-324, -1e-310, 0.1]),
)


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def streamed(values, batch, compression=1024):
    digest = dg.empty(compression)
    for part in values.split(batch):
        digest = dg.add(digest, part)
    return digest


def sharded(values, shards, batch):
    return dg.merge(torch.stack([streamed(part, batch) for part in values.chunk(shards)]))


@functools.lru_cache
def ready(name):
    """A digest of 50,000 values in batches of 4096."""
    return streamed(values_of(name, 50_000), 4096)


def worst(values, digest, q=PROMISED_Q):
    return worst_rank_error(values, dg.quantile(digest, torch.as_tensor(q)), q)


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
    return digest


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


# ------------------------------------------------------------------------------------------------------------
# Exact up to K values, and for ever with up to K different ones.


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
    q = torch.linspace(*ends, 20_001, dtype=torch.float64)
    for digest in (streamed(values, batch), sharded(values, 8, batch)):
        assert dg.quantile(digest, q).eq(0).all()
        assert dg.quantile(digest, q[0].item() - 1e-4) < 0 < dg.quantile(digest, q[-1].item() + 1e-4)


def test_two_atoms_stay_two_atoms():
    digest = streamed(values_of("two atoms", 100_000), 777)
    means, weights, _ = dg.centroids(digest)
    assert means[weights > 0].tolist() == [-1.5, 7.25]
    assert set(dg.quantile(digest, GRID[::7]).tolist()) <= {-1.5, 7.25}


# ------------------------------------------------------------------------------------------------------------
# What counts and what does not.


@pytest.mark.parametrize("n", [300, 1500, 5000, 100_000])
@pytest.mark.parametrize("garbage", [0.5, NAN, INF, -INF])
def test_masked_values_change_not_one_bit(n, garbage):
    values = values_of("normal", n)
    keep = torch.rand(n, generator=torch.Generator().manual_seed(0)) < 0.7
    before = dg.from_values(values_of("exponential", 3000))
    want = dg.add(before, values[keep])
    assert torch.equal(dg.add(before, values.where(keep, garbage), keep), want)


@pytest.mark.parametrize("n", [300, 1500, 5000, 100_000])
@pytest.mark.parametrize("garbage", [0.5, NAN, INF, -INF])
def test_values_of_weight_zero_change_not_one_bit(n, garbage):
    values = values_of("normal", n)
    weights = torch.from_numpy(np.random.default_rng(0).integers(0, 3, n))
    keep = weights > 0
    before = dg.from_values(values_of("exponential", 3000))
    want = dg.add(before, values[keep], weights[keep])
    assert torch.equal(dg.add(before, values.where(keep, garbage), weights), want)


def test_a_batch_masked_as_a_whole_leaves_few_values_as_they_are():
    before = dg.from_values(values_of("normal", 500))
    values = f64(1, NAN, INF)
    assert torch.equal(dg.add(before, values, torch.zeros(3, dtype=torch.bool)), before)
    assert torch.equal(dg.add(before, values, torch.zeros(3)), before)
    assert torch.equal(dg.add(before, values[:0]), before)


def test_a_thousand_masked_batches_do_not_wear_a_digest_out():
    values = values_of("normal", 100_000)
    digest = streamed(values, 10_000)
    for _ in range(1000):
        digest = dg.add(digest, torch.zeros(4), torch.zeros(4, dtype=torch.bool))
    assert dg.count(digest) == 100_000
    assert worst(values, digest) <= bound(100_000)


def test_negative_nan_and_infinite_weights_are_left_out_and_counted():
    digest = dg.from_values(f64(1, 2, 3, 4, 5, NAN, INF), f64(1, -1, NAN, INF, 1, -2, -INF))
    assert_exact(digest, f64(1, 5))
    assert dg.invalid(digest) == 5
    assert dg.nonfinite(digest) == 0
    digest = dg.add(digest, f64(9, 7), f64(-1, 0))
    assert dg.invalid(digest) == 6
    assert dg.invalid(dg.merge(torch.stack([digest, digest]))) == 12
    assert dg.invalid(dg.from_values(f64(1, NAN, INF))) == 0


def test_invalid_entries_can_be_reported_from_outside():
    digest = dg.from_values(f64(1, 2), f64(1, -1))
    more = dg.add_invalid(digest, torch.tensor(3))
    assert dg.invalid(more) == 4
    assert dg.invalid(digest) == 1
    assert dg.count(more) == 1


def test_nan_is_counted_and_left_out():
    values = f64(1, NAN, 2, NAN, NAN, 3)
    digest = dg.from_values(values)
    assert_exact(digest, f64(1, 2, 3))
    assert dg.nonfinite(digest) == 3
    digest = dg.add(digest, values, f64(1, 5, 0, 1, 0, 1))
    assert_exact(digest, f64(1, 2, 3, 1, 3))
    assert dg.nonfinite(digest) == 9
    mask = torch.tensor([True, True, False, False, False, True])
    assert dg.nonfinite(dg.from_values(values, mask)) == 1


def test_nothing_but_nan_is_an_empty_digest_that_counts_it():
    digest = dg.from_values(f64(NAN, NAN))
    assert dg.count(digest) == 0
    assert dg.nonfinite(digest) == 2
    assert dg.quantile(digest, 0.5).isnan()


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


def test_merging_with_empty_digests_changes_nothing_up_to_k_values():
    digest = dg.from_values(torch.cat([values_of("normal", 1000), f64(NAN, INF, -INF).float()]))
    nothing = dg.empty()
    assert torch.equal(dg.merge(torch.stack([digest, nothing])), digest)
    assert torch.equal(dg.merge(torch.stack([nothing, nothing, digest, nothing])), digest)
    assert torch.equal(dg.merge(torch.stack([nothing, nothing])), nothing)
    assert torch.equal(dg.merge(digest[None]), digest)


def test_merging_with_empty_digests_keeps_the_accuracy_above_k_values():
    values = values_of("normal", 100_000)
    digest = streamed(values, 10_000)
    for _ in range(100):
        digest = dg.merge(torch.stack([dg.empty(), digest, dg.empty()]))
    assert dg.count(digest) == 100_000
    assert worst(values, digest) <= bound(100_000)
    assert dg.mean(digest) == pytest.approx(values.double().mean().item(), abs=1e-12)


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


# ------------------------------------------------------------------------------------------------------------
# Infinities.


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


@pytest.mark.parametrize("values", [[], [1.0], [INF], [-INF, 1, INF], [NAN, NAN], [1, NAN, 2], [0, 5e-324]])
@pytest.mark.parametrize("weighted", [False, True])
def test_odd_values_raise_no_warning(values, weighted):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        digest = dg.from_values(f64(*values), torch.ones(len(values)) if weighted else None)
        digest = dg.merge(torch.stack([digest, dg.empty()]))
        dg.quantile(digest, GRID[::1000])
        dg.cdf(digest, GRID[::1000])
        dg.trimmed_mean(digest, 0.1, 0.9)


# ------------------------------------------------------------------------------------------------------------
# Accuracy above K values.


@pytest.mark.parametrize("n", [1100, 5000, 100_000])
@pytest.mark.parametrize("name", SMOOTH | ATOMS)
def test_the_promised_rank_error_holds(name, n):
    values = values_of(name, n, seed=n)
    for batch in (n, 700, 32_768):
        assert worst(values, streamed(values, batch)) <= bound(n)
    assert worst(values, sharded(values, 16, 700)) <= bound(n)


def test_no_batch_size_locks_into_a_bad_cut():
    values = values_of("61 % zeros", 300_000, seed=300_000)
    for batch in (500, 700, 1000):
        assert worst(values, streamed(values, batch)) <= bound(300_000)


@pytest.mark.parametrize("batch", [512, 32_768])
@pytest.mark.parametrize("order", ["shuffled", "ascending", "descending", "sawtooth", "drifting"])
def test_the_order_of_a_stream_hardly_matters(order, batch):
    values = ordered(order, 1_000_000)
    limit = bound(1_000_000) if order == "shuffled" else 3e-4
    assert worst(values, streamed(values, batch)) <= limit


@pytest.mark.parametrize("batch", [512, 32_768])
def test_twelve_decades_and_cauchy_keep_the_promise(batch):
    for name in ("12 decades", "cauchy"):
        values = values_of(name, 100_000)
        assert worst(values, streamed(values, batch)) <= bound(100_000)
        assert worst(values, sharded(values, 16, batch)) <= bound(100_000)


@pytest.mark.parametrize(
    ("name", "around", "limit"),
    [("step with a gap", [0.4], 8e-3), ("narrow spike", [0.45, 0.55], 8e-3), ("deep valley", [0.3], 2e-3)],
)
@pytest.mark.parametrize("batch", [512, 32_768])
def test_a_jump_of_density_costs_ranks_beside_it_and_nowhere_else(name, around, limit, batch):
    values = values_of(name, 100_000)
    near = np.concatenate([np.linspace(q - 0.02, q + 0.02, 4001) for q in around])
    far = PROMISED_Q[np.abs(PROMISED_Q[:, None] - np.array(around)).min(1) > 0.019]
    for digest in (streamed(values, batch), sharded(values, 16, batch)):
        assert worst(values, digest, near) <= limit
        assert worst(values, digest, far) <= bound(100_000)


@pytest.mark.parametrize("batch", [512, 32_768])
def test_more_than_k_light_atoms_cost_at_most_half_an_atom_more(batch):
    values = values_of("rounded", 100_000)
    distinct, counts = values.unique(return_counts=True)
    assert len(distinct) > 5000
    limit = bound(100_000) + counts.max().item() / 100_000 / 2
    assert worst(values, streamed(values, batch)) <= limit
    assert worst(values, sharded(values, 16, batch)) <= limit


def test_whole_weights_are_repetition_within_the_promise_too():
    values = values_of("normal", 100_000)
    weights = (values.abs() * 4).floor().to(torch.int64)
    assert weights.unique().numel() > 10
    digest = dg.empty()
    for v, w in zip(values.split(3000), weights.split(3000), strict=True):
        digest = dg.add(digest, v, w)
    repeated = values.repeat_interleave(weights)
    assert dg.count(digest) == repeated.numel()
    assert worst(repeated, digest) <= bound(100_000)


def test_fractional_weights_count_by_their_share():
    values = values_of("normal", 100_000)
    heavy = dg.empty()
    light = dg.empty()
    weights = 0.25 * torch.arange(100_000).remainder(5)
    for v, w in zip(values.split(3000), weights.split(3000), strict=True):
        heavy, light = dg.add(heavy, v, 4 * w), dg.add(light, v, w)
    repeated = values.repeat_interleave((4 * weights).long())
    assert dg.count(light) == 50_000
    assert worst(repeated, light) <= bound(50_000)
    assert dg.mean(light) == pytest.approx(dg.mean(heavy).item(), abs=1e-12)


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
    assert rising.sum() > 50_000 or name not in SMOOTH
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


# ------------------------------------------------------------------------------------------------------------
# Laws.


DRAWN = st.tuples(st.sampled_from(sorted(SMOOTH | ATOMS)), st.integers(0, 5000), st.integers(0, 999))


@settings(max_examples=25)
@given(st.tuples(DRAWN, DRAWN, DRAWN))
def test_merging_is_associative_and_commutative_within_the_error(drawn):
    parts = [values_of(name, n, seed).double() for name, n, seed in drawn]
    a, b, c = (dg.from_values(part) for part in parts)
    values = torch.cat(parts)

    def pair(x, y):
        return dg.merge(torch.stack([x, y]))

    for digest in (
        dg.merge(torch.stack([a, b, c])),
        dg.merge(torch.stack([c, a, b])),
        pair(pair(a, b), c),
        pair(a, pair(b, c)),
        pair(pair(c, a), b),
    ):
        assert dg.count(digest) == len(values)
        if len(values):
            assert worst(values, digest) <= bound(len(values))
            assert dg.minimum(digest) == values.min()
            assert dg.maximum(digest) == values.max()


def test_an_extreme_inside_a_blend_behind_another_value_is_still_the_extreme():
    digest = dg.from_values(torch.arange(100.0), compression=8)
    used = int((dg.centroids(digest)[1] > 0).sum())
    digest[0], digest[1] = f64(4.0, 1.0), f64(5.0, -3.0)  # of which one is 0, the footer says
    digest[used - 2], digest[used - 1] = f64(94.0, -3.0), f64(95.0, 1.0)  # of which one is 99
    assert dg.minimum(digest) == dg.quantile(digest, 0.0) == 0
    assert dg.maximum(digest) == dg.quantile(digest, 1.0) == 99
    assert (dg.quantile(digest, GRID).diff() >= 0).all()


@settings(max_examples=25)
@given(
    drawn=DRAWN,
    cuts=st.lists(st.integers(0, 5000), max_size=12),
    merged=st.lists(st.booleans(), min_size=1, max_size=3),
)
def test_any_split_of_a_stream_gives_the_same_within_the_error(drawn, cuts, merged):
    values = values_of(*drawn)
    digest = pieced(values, None, cuts, merged, 1024)
    assert dg.count(digest) == len(values)
    if len(values):
        assert worst(values, digest) <= bound(len(values))


@settings(max_examples=25)
@given(drawn=DRAWN.filter(lambda drawn: drawn[1] > 0), a=st.floats(0.001, 1000), b=st.floats(-1000, 1000))
def test_answers_scale_and_shift_with_the_values(drawn, a, b):
    values = values_of(*drawn).double()
    digest, other = dg.from_values(values), dg.from_values(a * values + b)
    assert worst(a * values + b, other) <= bound(len(values))
    want = a * dg.quantile(digest, torch.as_tensor(PROMISED_Q)) + b
    scale = max(1.0, a) * (1 + values.abs().max().item()) + abs(b)
    torch.testing.assert_close(
        dg.quantile(other, torch.as_tensor(PROMISED_Q)), want, rtol=0, atol=1e-9 * scale
    )


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("power", [-20, 20])
def test_a_power_of_two_scales_every_bit(name, power):
    values = values_of(name, 20_000).double()
    digest = streamed(values, 3000)
    scaled = streamed(values * 2.0**power, 3000)
    assert torch.equal(dg.quantile(scaled, GRID[::10]), dg.quantile(digest, GRID[::10]) * 2.0**power)


def test_merging_the_same_stack_twice_gives_the_same_bits():
    for name in ("ce like", "cauchy"):
        stack = torch.stack([streamed(part, 1000) for part in values_of(name, 50_000).chunk(8)])
        assert torch.equal(dg.merge(stack), dg.merge(stack.clone()))
        values = values_of(name, 50_000)
        assert torch.equal(streamed(values, 777), streamed(values.clone(), 777))


# ------------------------------------------------------------------------------------------------------------
# Shapes, arguments, errors.


def batched():
    groups = [values_of(name, 4000 + 100 * index) for index, name in enumerate(ALL)]
    groups += [torch.empty(0), torch.tensor([1.0, INF, -INF, NAN]), torch.arange(3.0)]
    halves = [[dg.from_values(part, compression=128) for part in group.chunk(2)] for group in groups]
    halves = [[*half, dg.empty(128)][:2] for half in halves]
    return torch.stack([torch.stack(half) for half in halves], dim=1)  # [2, G, K + 3, 2]


def test_a_merge_with_leading_dimensions_is_that_of_each_alone():
    stack = batched()
    groups = stack.shape[1]
    merged = dg.merge(stack)
    assert merged.shape == stack.shape[1:]
    alone = torch.stack([dg.merge(stack[:, group]) for group in range(groups)])
    torch.testing.assert_close(merged, alone, rtol=1e-12, atol=1e-12)
    folded = dg.merge(stack[:, : groups - groups % 2].unflatten(1, (-1, 2)))
    torch.testing.assert_close(folded.flatten(0, 1), alone[: groups - groups % 2], rtol=1e-12, atol=1e-12)


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


def test_the_shape_of_a_digest_never_changes():
    digest = dg.empty(8)
    for values in (f64(), f64(1), f64(NAN), f64(INF, -INF), torch.zeros(2, 3), torch.randn(5000)):
        digest = dg.add(digest, values)
        assert digest.shape == (11, 2)
        assert digest.dtype == torch.float64
        assert dg.merge(torch.stack([digest] * 3)).shape == (11, 2)
    assert dg.empty(8, shape=(2, 5)).shape == (2, 5, 11, 2)
    assert dg.count(dg.empty(8, shape=(2, 5))).eq(0).all()


@pytest.mark.parametrize("name", ["ce like", "normal", "rounded", "cauchy"])
def test_centroids_ascend_come_first_and_hold_the_count(name):
    digest = streamed(values_of(name, 50_000), 700)
    means, weights, blend = dg.centroids(digest)
    used = weights > 0
    assert means.shape == weights.shape == blend.shape == (1024,)
    assert weights.sum() == 50_000
    assert used.sum() > 500
    assert (means[used].diff() > 0).all()
    assert not (used[1:] & ~used[:-1]).any()
    assert not (blend & ~used).any()
    assert means[~used].eq(0).all()
    atoms = means[~blend & (weights > 1)]
    assert torch.isin(atoms, values_of(name, 50_000).double()).all()


def test_an_atom_is_a_value_and_a_blend_is_not():
    digest = dg.from_values(torch.cat([torch.zeros(5000), 1 + torch.rand(5000)]), compression=16)
    means, weights, blend = dg.centroids(digest)
    assert means[0] == 0
    assert weights[0] == 5000
    assert not blend[0]
    assert blend[1:].sum() >= 4


def test_a_curve_is_the_quantile_on_an_even_grid():
    digest = streamed(values_of("normal", 5000), 999)
    q, values = dg.curve(digest)
    assert q.shape == values.shape == (201,)
    assert q[0] == 0
    assert q[-1] == 1
    torch.testing.assert_close(q.diff(), torch.full((200,), 1 / 200, dtype=torch.float64))
    assert torch.equal(values, dg.quantile(digest, q))
    assert dg.curve(digest, 11)[1].shape == (11,)


@pytest.mark.parametrize("n", [100, 5000])
def test_arguments_are_never_modified(n):
    digest, other = streamed(values_of("normal", 5000), 999), dg.from_values(values_of("cauchy", 5000))
    values = values_of("normal", n)
    values[:3] = torch.tensor([NAN, INF, -0.0])
    numbers, mask = torch.rand(n).sub(0.1), torch.rand(n) < 0.5
    stack = torch.stack([digest, other])
    arguments = [digest, values, numbers, mask, stack]
    copies = [argument.clone() for argument in arguments]
    dg.add(digest, values)
    dg.add(digest, values, numbers)
    dg.add(digest, values, mask)
    dg.merge(stack)
    dg.quantile(digest, GRID)
    dg.cdf(stack, GRID)
    dg.trimmed_mean(stack, 0.1, 0.9)
    dg.add_invalid(digest, torch.tensor(1))
    for argument, copy in zip(arguments, copies, strict=True):
        torch.testing.assert_close(argument, copy, rtol=0, atol=0, equal_nan=True)


def test_a_merge_shares_no_memory_with_what_was_merged():
    stack = torch.stack([dg.from_values(values_of("normal", n)) for n in (10, 5000)])
    for digests in (stack, stack[:1]):
        merged, copy = dg.merge(digests), digests.clone()
        merged.fill_(7)
        assert torch.equal(digests, copy)


def test_inputs_need_not_be_contiguous_nor_flat_nor_free_of_gradients():
    values = values_of("normal", 6000).reshape(60, 100)
    weights = torch.arange(6000).reshape(60, 100).remainder(3)
    assert torch.equal(dg.from_values(values.t()[::2]), dg.from_values(values.t()[::2].contiguous()))
    assert torch.equal(
        dg.from_values(values[:, ::3], weights[:, ::3]),
        dg.from_values(values[:, ::3].reshape(-1), weights[:, ::3].reshape(-1)),
    )
    assert_exact(dg.from_values(torch.tensor(2.5).expand(7)), torch.full((7,), 2.5))
    assert_exact(dg.from_values(torch.tensor(2.5)), torch.tensor([2.5]))
    assert torch.equal(dg.from_values(values.clone().requires_grad_()), dg.from_values(values))
    assert not dg.from_values(values.clone().requires_grad_()).requires_grad
    stack = torch.stack([dg.from_values(row) for row in values])
    strided = torch.stack([stack, stack], dim=-1)[..., 0]
    assert not strided.is_contiguous()
    assert torch.equal(dg.merge(strided), dg.merge(stack))
    assert torch.equal(dg.quantile(strided, GRID[::99]), dg.quantile(stack, GRID[::99]))
    q = torch.linspace(0, 1, 20).reshape(4, 5).t()
    assert torch.equal(dg.quantile(stack[0], q), dg.quantile(stack[0], q.contiguous()))


def test_more_than_a_million_values_at_once_are_all_counted():
    values = values_of("ce like", 2_500_000)
    weights = torch.ones(2_500_000, dtype=torch.uint8)
    weights[-1] = 3
    digest = dg.from_values(values, weights)
    assert dg.count(digest) == 2_500_002
    assert worst(values, digest) <= 1e-4
    assert worst(values, dg.from_values(values)) <= 1e-4


@pytest.mark.parametrize("compression", [7, 1, 0, -5])
def test_compression_below_8_raises(compression):
    with pytest.raises(ValueError, match="at least 8"):
        dg.empty(compression)
    with pytest.raises(ValueError, match="at least 8"):
        dg.from_values(f64(1), compression=compression)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64])
def test_values_that_are_not_floating_point_raise(dtype):
    with pytest.raises(ValueError, match="floating point"):
        dg.add(dg.empty(8), torch.ones(3, dtype=dtype))


@pytest.mark.parametrize("shape", [(4,), (3, 1), (1,), ()])
def test_weights_of_another_shape_raise(shape):
    with pytest.raises(ValueError, match="shape"):
        dg.add(dg.empty(8), torch.ones(3), torch.ones(shape))


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


# ------------------------------------------------------------------------------------------------------------
# The NumPy path and the torch path are one algorithm.


def assert_same_paths(got, want):
    assert isinstance(got, np.ndarray)
    assert isinstance(want, torch.Tensor)
    scale = torch.nan_to_num(want, posinf=0, neginf=0).abs().max().item()
    # Sums in another order: fractional weights differ by 2e-12 in a mean.
    torch.testing.assert_close(torch.from_numpy(got), want, rtol=1e-11, atol=1e-12 * min(scale, 1.0))


def of_kind(kind, batch, rng):
    return {
        "unweighted": None,
        "masked": torch.from_numpy(rng.random(batch) < 0.6),
        "ones": torch.ones(batch),
        "weighted": torch.from_numpy(rng.integers(0, 4, batch)),
        "fractional": torch.from_numpy(rng.random(batch)),
        "invalid": torch.from_numpy(rng.choice([-1.0, 0.0, 1.0, 2.0, NAN, INF], batch)),
    }[kind]


def arrays(*tensors):
    return Entries(*(None if tensor is None else tensor.numpy() for tensor in tensors))


HARD_TO_CUT = ["normal", "61 % zeros", "ce like", "rounded", "two atoms", "step with a gap"]


@pytest.mark.parametrize("kind", ["ones", "weighted", "fractional", "invalid"])
@pytest.mark.parametrize("name", HARD_TO_CUT)
@pytest.mark.parametrize("batch", [700, 6000])
def test_numpy_and_torch_give_the_same_digest(name, kind, batch):
    rng = np.random.default_rng(5)
    a = b = dg.empty(128)
    a = a.numpy()
    for values in values_of(name, 5 * batch).split(batch):
        values[:4] = torch.tensor([NAN, INF, -INF, -0.0])
        entries = Entries(values, of_kind(kind, batch, rng), None, None)
        a = add_entries(a, arrays(*entries))
        b = add_entries(b, entries)
        assert_same_paths(a, b)


@pytest.mark.parametrize("kind", ["unweighted", "masked", "fractional"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numpy_and_torch_give_the_same_digests_of_groups_with_replicates(kind, dtype):
    rng = np.random.default_rng(6)
    b = dg.empty(64, shape=(4,), replicates=2)
    a = b.numpy()
    for values in values_of("ce like", 3000).to(dtype).split(1000):
        values[:4] = torch.tensor([NAN, INF, -INF, -0.0])
        groups = torch.from_numpy(rng.choice([0, 1, 3], 1000))  # group 2 stays empty
        columns = torch.from_numpy(rng.poisson(1, (1000, 2)))
        entries = Entries(values, of_kind(kind, 1000, rng), columns, groups)
        a = add_entries(a, arrays(*entries))
        b = add_entries(b, entries)
        assert_same_paths(a, b)


@pytest.mark.parametrize("kind", ["unweighted", "masked"])
@pytest.mark.parametrize("name", HARD_TO_CUT)
@pytest.mark.parametrize("batch", [30, 700, 40_000])
def test_the_short_cut_of_a_cpu_is_as_good_as_the_long_way(name, kind, batch):
    rng = np.random.default_rng(5)
    seen, short, long = [], dg.empty(128), dg.empty(128)
    for values in values_of(name, 10 * batch).split(batch):
        values[:3] = torch.tensor([NAN, INF, -INF])
        weights = of_kind(kind, batch, rng)
        short = dg.add(short, values, weights)
        long = add_entries(long, Entries(values, weights, None, None))
        seen.append(values if weights is None else values[weights])
        torch.testing.assert_close(short[-3:], long[-3:])
        assert dg.count(short) == dg.count(long)
        torch.testing.assert_close(dg.finite_mean(short), dg.finite_mean(long), rtol=1e-12, atol=1e-15)
        assert (dg.centroids(short)[0].diff()[dg.centroids(short)[1][1:] > 0] >= 0).all()
    seen = torch.cat(seen)
    seen = seen[~seen.isnan()]
    # The same data fall between other cuts: one may be luckier at a q.
    assert worst(seen, short) <= 1.5 * worst(seen, long) + 2e-3


def test_torch_takes_nan_beside_many_equal_values_as_numpy_does():
    values = torch.tensor([0.0] * 30 + [NAN] * 10)
    digest = dg.empty(8)
    entries = Entries(values, None, None, None)
    assert_same_paths(add_entries(digest.numpy(), arrays(*entries)), add_entries(digest, entries))


def test_numpy_and_torch_merge_to_the_same_digest():
    stack = batched()
    assert_same_paths(merge_stack(stack.numpy(), 128), merge_stack(stack, 128))
    for group in range(stack.shape[1]):
        part = stack[:, group]
        assert_same_paths(merge_stack(part.numpy(), 128), merge_stack(part, 128))


# ------------------------------------------------------------------------------------------------------------
# Long streams.


@pytest.fixture(scope="module")
def ten_million():
    return torch.from_numpy(ce_like(10_000_000, np.random.default_rng(7)))


@pytest.mark.slow
@pytest.mark.parametrize("batch", [512, 32_768])
def test_ten_million_losses_stay_within_5e_5(ten_million, batch):
    digest = streamed(ten_million, batch)
    assert dg.count(digest) == 10_000_000
    assert worst(ten_million, digest) <= 5e-5


@pytest.mark.slow
@pytest.mark.parametrize("batch", [512, 32_768])
def test_ten_million_losses_from_64_shards_stay_within_5e_5(ten_million, batch):
    digest = sharded(ten_million, 64, batch)
    assert dg.count(digest) == 10_000_000
    assert worst(ten_million, digest) <= 5e-5


@pytest.mark.slow
def test_a_hundred_million_losses_are_counted_exactly_and_stay_within_5e_5():
    rng = np.random.default_rng(11)
    oracle, digest, total = BucketOracle(), dg.empty(), 0.0
    for _ in range(20):
        values = ce_like(5_000_000, rng)
        oracle.add(values)
        total += values.sum(dtype=np.float64)
        for part in torch.from_numpy(values).split(32_768):
            digest = dg.add(digest, part)
    assert oracle.counts.sum() == 100_000_000
    assert dg.count(digest) == 100_000_000
    assert dg.mean(digest).item() == pytest.approx(total / 1e8, rel=1e-12)
    estimates = dg.quantile(digest, torch.as_tensor(PROMISED_Q)).numpy()
    assert oracle.rank_error(estimates, PROMISED_Q).max() <= 5e-5
