"""The fewest records that hold a tie of each statistic."""

import itertools

import numpy as np
import pytest
import torch

from lightning_pce import digest
from lightning_pce.runs import concordance
from lightning_pce.runs._ties import Ties, covering
from tests.helpers import checkpoint_runs as generators
from tests.helpers.checkpoint_runs import run_of


def drawn_ties(rng, records, statistics):
    """Random costs, of which those up to 1 are within error."""
    names = [f"r{k}" for k in range(records)]
    every = []
    for number in range(statistics):
        costs = rng.exponential(3.0, records).round(2)
        costs -= costs.min()
        by_name = dict(zip(names, costs.tolist(), strict=True))
        within = tuple(name for name, cost in by_name.items() if cost <= 1)
        every.append(
            Ties(f"s{number}", names[int(costs.argmin())], within, by_name, dict.fromkeys(names, 1.0), None)
        )
    return names, every


def cost_of(chosen, every):
    """The sum over statistics of the cheapest member that is a tie; None if one has none."""
    costs = [min((t.costs[name] for name in chosen if name in t.names), default=None) for t in every]
    return None if None in costs else sum(costs)


@pytest.mark.parametrize("seed", range(40))
def test_no_smaller_set_and_no_cheaper_one_holds_a_tie_of_each(seed):
    rng = np.random.default_rng(seed)
    names, every = drawn_ties(rng, int(rng.integers(1, 8)), int(rng.integers(1, 6)))
    found = covering(every)
    sets = [chosen for size in range(1, 6) for chosen in itertools.combinations(names, size)]
    holding = {chosen: cost for chosen in sets if (cost := cost_of(chosen, every)) is not None}
    size = min(map(len, holding))
    assert len(found) == size
    least = min(cost for chosen, cost in holding.items() if len(chosen) == size)
    assert holding[found] == pytest.approx(least)


def test_equally_good_sets_are_the_earliest_one():
    names = ("a", "b", "c")
    same = [Ties(s, "a", names, dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.01), None) for s in "xy"]
    assert covering(same) == ("a",)


def test_one_curve_gives_one_record_and_a_split_two():
    assert len(concordance.shortlist(run_of(generators.agreeing))) == 1
    split = run_of(generators.split, 6, 1600)
    found = concordance.shortlist(split)
    assert len(found) == 2
    for statistic in ("mean", "bulk", "p95"):
        assert set(found) & set(concordance.ties(split, statistic).names)


def test_a_saturated_bulk_is_left_out():
    losses = torch.linspace(0, 1, 1001, dtype=torch.float64)
    records = [(f"{k}", digest.from_values(losses ** (60 + k)), None) for k in range(3)]
    assert concordance.shortlist(records) == ("2",)
    with pytest.raises(ValueError, match=r"1 to 10 statistics .* but got \['bulk'\]"):
        concordance.shortlist(records, ["bulk"])


def test_bulk_beside_the_percentile_that_stands_for_it_counts_once():
    run = run_of(generators.split, 6, 400)
    assert concordance.shortlist(run, ("bulk", "p50")) == concordance.shortlist(run, ("p50",))


def test_too_many_statistics_raise():
    run = run_of(generators.agreeing, 2)
    with pytest.raises(ValueError, match="1 to 10 statistics"):
        concordance.shortlist(run, [f"p{p}" for p in range(20, 31)])
    assert concordance.shortlist(run, [f"p{p}" for p in range(20, 30)])
