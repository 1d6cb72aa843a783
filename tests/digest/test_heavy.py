"""Beside a value that is much of all, ranks are as good as elsewhere."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lightning_pce import digest as dg
from lightning_pce.digest._add import add_entries
from lightning_pce.digest._batch import Entries
from lightning_pce.digest._heavy import goals_beside_heavy, goals_with_room
from lightning_pce.digest._merge import merge_stack
from tests.helpers.digests import sharded, streamed, worst
from tests.helpers.distributions import bound

CELLS = 64
SHARES = [0.05, 0.1, 0.3, 0.5, 0.61, 0.9]


def beside(share, where, n, seed=0):
    """So much of all is 0, with a density below and above it, above it only, or below it only."""
    rng = np.random.default_rng(seed)
    others = {
        "inside": rng.normal,
        "lowest": rng.exponential,
        "highest": lambda size: -rng.exponential(size=size),
    }
    return torch.from_numpy(np.where(rng.random(n) < share, 0.0, others[where](size=n)))


def two_values(n, seed=0):
    """5 % are 0, 30 % of the others 2, the others above 0."""
    rng = np.random.default_rng(seed)
    values = np.where(rng.random(n) < 0.3, 2.0, rng.exponential(3, n))
    return torch.from_numpy(np.where(rng.random(n) < 0.05, 0.0, values))


def worst_beside(values, digest):
    """The worst rank error on a grid that is dense around the ends of 0 and 2."""
    ordered = values.sort().values
    ends = [
        torch.searchsorted(ordered, value, right=right).item()
        for value in (0.0, 2.0)
        for right in (False, True)
    ]
    steps = np.concatenate([np.linspace(-0.004, 0.004, 321), np.linspace(-0.05, 0.05, 101)])
    q = np.concatenate([end / len(values) + steps for end in ends])
    return worst(values, digest, np.unique(q[(q > 1e-4) & (q < 1 - 1e-4)]))


@pytest.mark.parametrize("batch", [20_000, 131_072])
@pytest.mark.parametrize("where", ["lowest", "inside", "highest"])
@pytest.mark.parametrize("share", SHARES)
def test_the_promise_is_kept_beside_a_value_of_a_million(share, where, batch):
    values = beside(share, where, 1_000_000)
    assert worst_beside(values, streamed(values, batch)) <= bound(1_000_000)


@pytest.mark.parametrize("shards", [16, 64])
def test_the_promise_is_kept_where_many_digests_of_a_value_are_merged(shards):
    for values in (beside(0.5, "lowest", 2_000_000), two_values(2_000_000)):
        assert worst_beside(values, sharded(values, shards, 20_000)) <= bound(2_000_000)


def test_the_long_way_keeps_the_promise_beside_a_value_too():
    values, digest = beside(0.3, "inside", 1_000_000), dg.empty()
    parts = []
    for part in values.chunk(4):
        digest = dg.empty()
        for batch in part.split(50_000):
            digest = add_entries(digest, Entries(batch, None, None, None))
        parts.append(digest)
        assert worst_beside(part, digest) <= bound(len(part))
    assert worst_beside(values, merge_stack(torch.stack(parts), 1024)) <= bound(len(values))


@pytest.mark.parametrize("zeros", [150_000, 150_200, 150_400, 150_600])
@pytest.mark.parametrize("many", [1, 1 << 30])
def test_no_cell_is_narrow_beside_a_value_that_only_one_side_knows(monkeypatch, many, zeros):
    monkeypatch.setattr("lightning_pce.digest._cpu.adding._MANY", many)
    smooth = beside(0.0, "inside", 150_000)
    both = torch.cat([torch.zeros(zeros), smooth])
    late = dg.add(dg.from_values(both), smooth)
    early = dg.add(dg.from_values(smooth), both)
    merged = dg.merge(torch.stack([dg.from_values(both), dg.from_values(smooth)]))
    for digest in (dg.from_values(both), late, early, merged):
        _, weights, _ = dg.centroids(digest)
        heavy = weights.argmax()
        assert weights[heavy] == zeros
        for side in (weights[heavy + 1 :], weights[:heavy].flip(0)):
            assert side[0] > 0.7 * side[40]


@pytest.mark.slow
@pytest.mark.parametrize("batch", [20_000, 32_768, 131_072])
@pytest.mark.parametrize("n", [100_000, 2_000_000, 4_000_000])
@pytest.mark.parametrize("where", ["lowest", "inside"])
@pytest.mark.parametrize("share", SHARES)
def test_the_promise_is_kept_beside_a_value(share, where, n, batch):
    for seed in (1, 2):
        values = beside(share, where, n, seed)
        assert worst_beside(values, streamed(values, batch)) <= bound(n)
        for shards in (16, 64):
            assert worst_beside(values, sharded(values, shards, batch)) <= bound(n)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["lowest", "inside"])
@pytest.mark.parametrize("share", SHARES)
def test_thousands_of_small_batches_cost_at_most_a_third_more(share, where):
    values = beside(share, where, 4_000_000)
    assert worst_beside(values, streamed(values, 512)) <= 1.34 * bound(4_000_000)


def weights_before(heavy, seed=0):
    """The weight before cuts along k1, moved out of values that begin and end at parts of all."""
    edges = np.sin(np.linspace(0, np.pi / 2, CELLS + 1)) ** 2
    for begin, end in heavy:
        inside = (edges > begin) & (edges < end)
        edges[inside] = np.where(edges[inside] - begin <= end - edges[inside], begin, end)
    return 1e6 * edges


def along_k1(weight):
    return 2 * CELLS / np.pi * np.arcsin(np.sqrt(np.clip(weight / 1e6, 0, 1)))


@st.composite
def layouts(draw):
    """Values that take up more than two cells each."""
    ends = sorted(draw(st.lists(st.floats(0, 1), min_size=2, max_size=8)))
    return [(a, b) for a, b in itertools.pairwise(ends) if b - a > 0.06][::2]


@settings(max_examples=200)
@example([(0.5, 1.0)])
@example([(0.0, 0.25), (0.5, 1.0)])
@given(layouts())
def test_room_is_made_evenly_between_heavy_values(heavy):
    before = weights_before(heavy)
    near, moved = goals_beside_heavy(before, CELLS)
    goal = 1e6 * np.sin(np.arange(CELLS + 1) * (np.pi / 2 / CELLS)) ** 2
    goal[near] = moved
    limits = [0, *itertools.chain(*heavy), 1]
    for begin, end in zip(limits[::2], limits[1::2], strict=True):
        # A value that ends right at a cut along k1 may lie on either side of it, by a rounding.
        inner = goal[(goal > begin * 1e6 + 1e-6) & (goal < end * 1e6 - 1e-6)]
        widths = np.diff(along_k1(np.concatenate([[begin * 1e6], inner, [end * 1e6]])))
        assert (widths >= 0).all()
        assert widths.max() <= 1 + 1e-6
        if len(widths) > 16:
            assert widths.min() >= 1 - 2 / 16
        elif len(widths) > 1:
            assert widths.max() - widths.min() < 1e-6


@settings(max_examples=50)
@given(st.lists(layouts(), min_size=1, max_size=3))
def test_of_some_goals_and_of_all_the_same_are_changed(several):
    before = np.stack([weights_before(heavy) for heavy in several])
    along = np.stack([1e6 * np.sin(np.arange(1, CELLS) * (np.pi / 2 / CELLS)) ** 2] * len(several))
    light = np.zeros((len(several), 1), dtype=np.bool_)
    every = goals_with_room(along, before, light)
    for row, goal in zip(before, every, strict=True):
        near, moved = goals_beside_heavy(row, CELLS)
        outside = np.isin(np.arange(1, CELLS), near)
        np.testing.assert_allclose(goal[near - 1], moved, rtol=1e-12)
        np.testing.assert_allclose(goal[~outside], along[0][~outside], rtol=1e-12)
    tensors = goals_with_room(*(torch.from_numpy(part) for part in (along, before, light)))
    np.testing.assert_allclose(tensors.numpy(), every, rtol=1e-12)
    assert (goals_with_room(along, before, ~light) == along).all()


def test_nothing_heavy_changes_nothing():
    near, moved = goals_beside_heavy(weights_before([]), CELLS)
    assert len(near) == len(moved) == 0
    nothing = goals_with_room(np.zeros(CELLS - 1), np.zeros(CELLS + 1), np.zeros(1, dtype=np.bool_))
    assert (nothing == 0).all()
