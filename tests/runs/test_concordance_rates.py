"""How often a verdict is right, over simulated runs. ``benchmarks/concordance.py`` has the full figures."""

import pytest

from lightning_pce.runs import concordance
from tests.helpers import checkpoint_runs as generators
from tests.helpers.checkpoint_runs import run_of


def verdicts(curve, runs, epochs=12, documents=240, *, first=0):
    return [
        concordance.verdict(run_of(curve, epochs, documents, seed)) for seed in range(first, first + runs)
    ]


def count(verdicts, said):
    return sum(bool(said(each)) for each in verdicts)


def disagrees(verdict):
    return not verdict.agree


def picks_differ(verdict):
    return verdict.picks["mean"] != verdict.picks[verdict.bulk]


@pytest.mark.parametrize("curve", [generators.agreeing, generators.overtrained])
def test_one_curve_is_no_disagreement_though_the_lowest_differ(curve):
    found = verdicts(curve, 5)
    assert count(found, disagrees) == 0
    assert count(found, picks_differ) >= 2


def test_a_weak_split_is_found_if_there_are_documents_enough():
    assert count(verdicts(generators.split, 5, 6, 100), disagrees) < 5
    assert count(verdicts(generators.split, 2, 6, 1600), disagrees) == 2


def test_saturation_and_a_growing_tail_are_named():
    saturating = verdicts(generators.saturating, 3, first=60)
    assert count(saturating, lambda each: each.bulk == "p75" and "epoch 4" in each.shortlist) == 3
    tail = verdicts(generators.tail_regression, 3, first=60)
    assert count(tail, lambda each: each.alarm) == 3


@pytest.mark.slow
@pytest.mark.parametrize("curve", [generators.agreeing, generators.overtrained])
def test_of_sixty_runs_of_one_curve_three_at_most_disagree(curve):
    found = verdicts(curve, 60, first=100)
    assert count(found, disagrees) <= 3
    assert count(found, lambda each: each.alarm) <= 3
    assert count(found, picks_differ) >= 30


@pytest.mark.slow
def test_of_twenty_runs_with_a_weak_split_few_some_and_all_are_found():
    few, most, every = (
        count(verdicts(generators.split, 20, 6, documents, first=100), disagrees)
        for documents in (100, 400, 1600)
    )
    assert few <= 14
    assert most >= 16
    assert every == 20


@pytest.mark.slow
def test_of_twenty_runs_all_that_saturate_and_nearly_all_with_a_growing_tail_are_named():
    saturating = verdicts(generators.saturating, 20, first=100)
    assert count(saturating, lambda each: each.bulk == "p75" and "epoch 4" in each.shortlist) >= 19
    assert count(verdicts(generators.tail_regression, 20, first=100), lambda each: each.alarm) >= 18
