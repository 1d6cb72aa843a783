"""Above K values every quantile is close in rank, however the values come."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_pce import digest as dg
from tests.helpers.digests import (
    DRAWN,
    GRID,
    pieced,
    sharded,
    streamed,
    worst,
)
from tests.helpers.distributions import (
    ALL,
    ATOMS,
    PROMISED_Q,
    SMOOTH,
    BucketOracle,
    bound,
    ce_like,
    ordered,
    values_of,
)


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


def test_more_than_a_million_values_at_once_are_all_counted():
    values = values_of("ce like", 2_500_000)
    weights = torch.ones(2_500_000, dtype=torch.uint8)
    weights[-1] = 3
    digest = dg.from_values(values, weights)
    assert dg.count(digest) == 2_500_002
    assert worst(values, digest) <= 1e-4
    assert worst(values, dg.from_values(values)) <= 1e-4


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
