"""What becomes better and worse over the whole distribution: shares, ranges, crossing, areas."""

import itertools
import math

import numpy as np
import pytest
import torch

from lightning_pce import digest
from lightning_pce.runs import concordance
from tests.helpers import checkpoint_runs as generators
from tests.helpers.checkpoint_runs import losses_of, records_of, run_of
from tests.helpers.distributions import ALL, exact_quantile, exact_trimmed_mean, values_of

INF, NAN = math.inf, math.nan
U = torch.arange(1, 200, dtype=torch.float64) / 200


def reshaped(before, after):
    pair = [(name, digest.from_values(each), None) for name, each in (("a", before), ("b", after))]
    return concordance.reshaping(*pair)


@pytest.mark.parametrize("number", [7, 800, 50_000])  # fewer and more than the digest has centroids
@pytest.mark.parametrize("name", ["ce like", "61 % zeros", "lognormal", "12 decades", "two atoms"])
def test_lost_less_gained_is_the_change_of_the_mean(name, number):
    before, after = (values_of(name, number, seed).double() for seed in (1, 2))
    after = torch.where(after < after.median(), after * 0.7, after * 1.2)
    change = reshaped(before, after)
    scale = max(1.0, float(before.abs().max()))
    want = math.fsum(after.tolist()) / number - math.fsum(before.tolist()) / number
    assert change.lost.total - change.gained.total == pytest.approx(want, abs=1e-9 * scale)
    for areas in (change.gained, change.lost):
        assert min(areas) >= 0
        assert areas.total == sum(areas)


@pytest.mark.parametrize("name", [name for name in ALL if name != "cauchy"])
def test_areas_are_those_between_the_exact_curves(name):
    before, after = (values_of(name, 1000, seed).double() for seed in (1, 2))
    change = reshaped(before, after)
    edges = np.arange(201) / 200
    cells = np.array(
        [
            (exact_trimmed_mean(after, *ends) - exact_trimmed_mean(before, *ends)) / 200
            for ends in itertools.pairwise(edges)
        ]
    )
    for areas, sign in ((change.lost, 1), (change.gained, -1)):
        parts = np.clip(sign * cells, 0, None)
        want = [parts[:100].sum(), parts[100:190].sum(), parts[190:].sum()]
        scale = float(before.abs().max())
        np.testing.assert_allclose(areas, want, atol=1e-10 * scale)


def test_areas_reach_to_the_largest_token():
    before = torch.ones(4000, dtype=torch.float64)
    after = before.clone()
    after[-1] = 401.0  # above the last of 199 points
    change = reshaped(before, after)
    assert change.lost.upper == pytest.approx(0.1, abs=1e-12)
    assert change.lost.lower == change.lost.middle == change.gained.total == 0
    assert change.difference.abs().max() == 0


def test_the_difference_is_that_of_exact_quantiles():
    before, after = (values_of("lognormal", 900, seed).double() for seed in (1, 2))
    change = reshaped(before, after)
    assert (change.before, change.after) == ("a", "b")
    assert torch.equal(change.u, U)
    want = exact_quantile(after, U) - exact_quantile(before, U)
    torch.testing.assert_close(change.difference, want, rtol=0, atol=1e-12)
    assert change.better_share == float((want < 0).double().mean())


def test_two_sides_are_parted_where_the_sign_changes():
    losses = torch.linspace(0, 4, 401, dtype=torch.float64)
    down_then_up = torch.where(losses < 3, losses - 0.1, losses + 0.5)
    change = reshaped(losses, down_then_up)
    assert change.crossing == pytest.approx(0.75, abs=0.006)
    assert change.better_below
    change = reshaped(down_then_up, losses)
    assert change.crossing == pytest.approx(0.75, abs=0.006)
    assert not change.better_below


@pytest.mark.parametrize(
    ("part", "by", "crossing"), [(slice(None, 5), -0.5, 0.005), (slice(-5, None), 0.5, 0.995)]
)
@pytest.mark.parametrize("better_below", [True, False])
def test_sides_are_told_apart_by_area_also_beyond_the_first_and_the_last_point(
    part, by, crossing, better_below
):
    losses = torch.linspace(1, 3, 1000, dtype=torch.float64)
    other = losses - math.copysign(1e-4, by)
    other[part] += by
    change = reshaped(losses, other) if better_below else reshaped(other, losses)
    assert change.crossing == crossing
    assert change.better_below == better_below


def test_a_small_area_elsewhere_does_not_move_the_crossing():
    losses = torch.linspace(0, 4, 401, dtype=torch.float64)
    after = torch.where(losses < 3, losses - 0.1, losses + 0.5)
    after[:8] = losses[:8] + 0.001
    assert reshaped(losses, after).crossing == pytest.approx(0.75, abs=0.006)


@pytest.mark.parametrize("by", [-0.2, 0.0, 0.2])
def test_one_side_has_no_crossing(by):
    losses = torch.linspace(1, 4, 401, dtype=torch.float64)
    change = reshaped(losses, losses + by)
    assert change.crossing is None
    assert change.better_share == (1.0 if by < 0 else 0.0)


def test_without_documents_there_is_no_band():
    run = run_of(generators.saturating)
    change = concordance.reshaping(*((name, state, None) for name, state, _ in (run[3], run[11])))
    assert change.low.isnan().all()
    assert change.high.isnan().all()
    assert change.better == change.worse == ()
    assert change.reason == "no documents were given"
    known = concordance.reshaping(run[3], run[11])
    assert torch.equal(known.difference, change.difference)
    assert known.reason is None


def test_ranges_are_where_the_whole_band_is_on_one_side():
    run = run_of(generators.saturating)
    change = concordance.reshaping(run[3], run[11])
    for ranges, sure in ((change.better, change.high < 0), (change.worse, change.low > 0)):
        inside = torch.zeros(199, dtype=torch.bool)
        for low, high in ranges:
            assert low <= high
            inside |= (low <= U) & (high >= U)
        assert torch.equal(inside, sure)
    assert change.better
    assert change.worse
    assert max(high for _, high in change.better) < change.crossing < min(low for low, _ in change.worse)
    assert (change.low <= change.difference).all()
    assert (change.high >= change.difference).all()


def test_the_band_holds_no_difference_where_there_is_none():
    sure = 0
    for seed in range(8):
        run = run_of(lambda _: generators.agreeing(9), 2, 60, seed)
        change = concordance.reshaping(*run)
        sure += bool(change.better or change.worse)
    assert sure <= 1


def test_nothing_but_the_order_changes_if_records_are_swapped():
    run = run_of(generators.saturating)
    there, back = concordance.reshaping(run[3], run[11]), concordance.reshaping(run[11], run[3])
    torch.testing.assert_close(there.difference, -back.difference)
    torch.testing.assert_close(there.low, -back.high)
    assert there.better == back.worse
    assert there.gained == pytest.approx(back.lost)


def test_an_infinite_value_leaves_areas_and_crossing_undefined_and_the_rest_as_it_is():
    ids, losses = losses_of(generators.saturating, 12)
    losses[11, 5] = INF
    run = records_of(ids, losses)
    change = concordance.reshaping(run[3], run[11])
    assert change.lost.upper == INF
    assert change.better
    losses[3, 5] = INF
    run = records_of(ids, losses)
    change = concordance.reshaping(run[3], run[11])
    assert math.isnan(change.lost.upper)
    assert change.better


def test_records_with_other_tokens_are_refused():
    run = run_of(generators.agreeing, 2)
    nan = digest.add(run[1][1], torch.tensor([NAN]))
    with pytest.raises(ValueError, match="got 'epoch 2' with NaN in 1 of its tokens"):
        concordance.reshaping(run[0], ("epoch 2", nan, None))
    with pytest.raises(ValueError, match="not of the same data"):
        concordance.reshaping(run[0], ("b", digest.from_values(torch.ones(9)), None))
