"""Cross-validation of rankers: against a loop by hand, where proxies know the truth and where not."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr

from lightning_pce._errors import UserError
from lightning_pce.runs._resampling import random_halves, resampled
from lightning_pce.runs.ranking import TooFewError, cross_validate, fit_ranker
from tests.helpers.proxy_populations import changed, population


@pytest.fixture(scope="module")
def table():
    return population()


@pytest.fixture(scope="module")
def report(table):
    return cross_validate(table, "single")


def by_hand(table, method, kernel="linear"):
    """The correlation on each pair of tasks that is held out, by tables of their own."""
    found = {}
    for pair in itertools.combinations(dict.fromkeys(table.tasks), 2):
        known = table.select(tasks=set(table.tasks) - set(pair))
        ranker = fit_ranker(known, method, kernel)
        tests = [table.select(tasks=[task]) for task in pair]
        found[pair] = np.mean([spearmanr(ranker.score(test), test.truth)[0] for test in tests])
    return found


@pytest.mark.parametrize(
    ("method", "kernel"),
    [("single", "linear"), ("sparse", "linear"), ("rank_svm", "linear"), ("rank_svm", "rbf")],
)
def test_it_is_a_loop_over_pairs_of_tasks(table, method, kernel):
    found = cross_validate(table, method, kernel=kernel)
    expected = by_hand(table, method, kernel)
    assert {each.tasks: each.rho for each in found.splits} == pytest.approx(expected)
    assert found.rho.value == pytest.approx(np.mean(list(expected.values())))
    assert found.spread == pytest.approx(np.std(list(expected.values()), ddof=1))
    assert found.rho.low < found.rho.value < found.rho.high


def test_baselines_need_no_proxies_or_one(table, report):
    tasks = list(dict.fromkeys(table.tasks))
    part = {task: table.select(tasks=[task]) for task in tasks}
    every = [(task, pair) for pair in itertools.combinations(tasks, 2) for task in pair]
    known = [
        spearmanr(np.mean([part[other].truth for other in tasks if other not in pair], 0), part[task].truth)[
            0
        ]
        for task, pair in every
    ]
    expected = {
        "text_ce": np.mean(
            [spearmanr(-part[task].baselines["text_ce"], part[task].truth)[0] for task in tasks]
        ),
        "expert_ce": np.mean(
            [spearmanr(-part[task].column("ce_uniform"), part[task].truth)[0] for task in tasks]
        ),
        "known_tasks": np.mean(known),
    }
    assert {name: each.rho.value for name, each in report.baselines.items()} == pytest.approx(expected)
    for each in report.baselines.values():
        assert each.difference.value == pytest.approx(report.rho.value - each.rho.value)
        assert each.difference.low < each.difference.value < each.difference.high


@pytest.mark.parametrize("method", ["rank_svm", "sparse"])
def test_where_proxies_carry_the_truth_new_models_are_ordered_too(method):
    found = cross_validate(population(16, 4), method, "models_and_tasks")
    assert found.rho.low > 0.7
    assert abs(found.null) < 0.25
    assert found.refused is None
    assert list(found.baselines) == ["text_ce", "expert_ce"]
    assert found.baselines["expert_ce"].difference.low > 0
    assert "text_ce" not in found.not_beaten


@pytest.mark.parametrize("hold_out", ["tasks", "models_and_tasks"])
def test_where_they_carry_nothing_it_is_refused(hold_out):
    nothing = population(16, 4, carry=0.0, seed=3)
    found = cross_validate(nothing, "rank_svm", hold_out)
    assert abs(found.rho.value) < 0.3
    assert "is not surely above" in found.refused
    assert f"Refused: {found.refused}." in str(found)


def test_what_an_exchange_does_as_well_is_refused(report):
    assert report.null < report.null_highest < report.rho.value
    assert report.refused is None
    lucky = replace(report, null_highest=report.rho.value)
    assert "is not surely above the highest where models exchanged their truth (" in lucky.refused
    assert f"to {report.null_highest:+.2f}\n" in str(report)


def test_a_ranker_knows_models_that_it_has_seen_by_their_proxies():
    # Proxies that tell models apart and know nothing of the truth, which each model has on all tasks.
    seen = population(20, 4, carry=0.0)
    random = np.random.default_rng(5)
    own = np.repeat(random.normal(size=(20, 8)), 4, axis=0) + 0.1 * random.normal(size=(80, 8))
    recognised = changed(seen, values=own)
    assert cross_validate(recognised, kernel="rbf").null > 0.3
    assert abs(cross_validate(recognised, kernel="rbf", hold_out="models_and_tasks").null) < 0.15


def test_equal_arguments_give_equal_results_and_units_do_not_matter(table, report):
    again = cross_validate(table, "single")
    assert again == report
    other = cross_validate(changed(table, values=1e-6 * table.values - 7), "single")
    assert other.rho.value == pytest.approx(report.rho.value)
    assert cross_validate(table, "single", seed=1).rho.low != report.rho.low


def test_models_may_lack_tasks(table):
    missing = np.array(
        [
            model == "m3" and task in ("t0", "t2")
            for model, task in zip(table.models, table.tasks, strict=True)
        ]
    )
    unknown = changed(table, truth=np.where(missing, np.nan, table.truth))
    fewer = table.rows(~missing)
    found = cross_validate(fewer, "single")
    assert found.rho.value == pytest.approx(np.mean(list(by_hand(fewer, "single").values())))
    assert len(found.models) == 16
    # z-scores of what is ranked are over rows with truth alone.
    assert cross_validate(unknown, "single") == found


def test_three_tasks_are_held_out_one_at_a_time(table):
    found = cross_validate(table.select(tasks=["t0", "t1", "t2"]), "single")
    assert [each.tasks for each in found.splits] == [("t0",), ("t1",), ("t2",)]
    assert "one task held out at a time" in str(found)


def test_tasks_without_an_order_are_left_out_and_named(table):
    truth = table.truth.copy()
    task = np.array(table.tasks)
    truth[task == "t1"] = 0.0
    truth[(task == "t4") & (np.arange(len(table)) > 20)] = np.nan
    found = cross_validate(changed(table, truth=truth), "single")
    assert found.tasks == ("t0", "t2", "t3")
    assert found.notes == (
        "Left out of the cross-validation: 't1' (truth 0 of all models) and 't4' (truth of 4 models).",
    )
    assert found.notes[0] in str(found)


def test_infinite_proxies_are_left_out_of_fits_but_can_be_a_baseline(table):
    values = table.values.copy()
    values[10, 0], values[4, 3] = np.inf, np.nan
    found = cross_validate(changed(table, values=values), "single")
    assert found.proxies == ("p1", "p2", "p4", "p5", "p6", "p7")
    assert "expert_ce" in found.baselines  # an infinite loss is the worst of all
    assert "'m2' on 't0'" in " ".join(found.notes) or "'m0' on 't4'" in " ".join(found.notes)
    values[10, 0] = np.nan
    found = cross_validate(changed(table, values=values), "single")
    assert "expert_ce" not in found.baselines
    assert "No baseline expert_ce: it is not known of 'm2' on 't0'." in found.notes


def test_a_score_that_says_nothing_has_no_correlation(table):
    found = cross_validate(changed(table, values=np.ones_like(table.values)), "single")
    assert found.rho.value == 0
    assert found.baselines["expert_ce"].rho.value == 0
    assert found.refused is not None


def test_too_few_say_nothing(table):
    cases = {
        "there are 2": table.select(tasks=["t0", "t1"]),
        "there is 1": table.select(tasks=["t0"]),
        "needs 3 tasks on which the truth of 5 models is known and differs, but there are 0": changed(
            table, truth=None
        ),
        "truth of 4 models": table.select(models=["m0", "m1", "m2", "m3"]),
    }
    for words, few in cases.items():
        with pytest.raises(TooFewError, match=words):
            cross_validate(few, "single")
    nine = table.select(models=[f"m{model}" for model in range(9)])
    assert cross_validate(nine, "single").rho.value > 0
    with pytest.raises(TooFewError, match=r"9 models are too few .* 10 are needed"):
        cross_validate(nine, "single", "models_and_tasks")


def test_what_is_asked_for_must_exist(table):
    with pytest.raises(UserError, match="`hold_out` to be 'tasks' or 'models_and_tasks' but got 'models'"):
        cross_validate(table, hold_out="models")
    with pytest.raises(UserError, match="`method` to be one of"):
        cross_validate(table, "ranksvm")
    with pytest.raises(UserError, match="`seed` to be a whole number from 0 on but got -1"):
        cross_validate(table, seed=-1)
    styles = changed(table, styles=["long"] + ["short"] * (len(table) - 1))
    with pytest.raises(UserError, match=r"'t0' has solutions of several styles .*'m0': long, 'm1': short"):
        cross_validate(styles)
    assert cross_validate(changed(styles, best_of=2), "single").rho.value > 0


def test_the_text_has_all_baselines_and_calls_the_spread_no_error_bar(report):
    lines = str(report).splitlines()
    assert lines[0] == "single: 16 models, 5 tasks, 8 proxies; two tasks held out at a time."
    assert [line.split()[0] for line in lines[3:7]] == ["single", "text_ce", "expert_ce", "known_tasks"]
    assert f"{report.rho.value:+.2f}  [{report.rho.low:+.2f}, {report.rho.high:+.2f}]" in lines[3]
    assert any("Spread over the 10 splits" in line and "no error bar" in line for line in lines)
    assert "null" not in str(report)


def test_json_has_all_of_it(report):
    plain = json.loads(json.dumps(report.to_plain(), allow_nan=False))
    assert plain["rho"]["low"] == report.rho.low
    assert (
        plain["baselines"]["known_tasks"]["difference"]["value"]
        == report.baselines["known_tasks"].difference.value
    )
    assert len(plain["splits"]) == 10
    assert plain["refused"] is None


def test_halves_move_a_mean_as_much_as_other_models_would():
    random = np.random.default_rng(0)
    values = random.normal(size=40)
    halves = random_halves(40, random)
    assert set(halves.sum(1)) == {20}
    found = resampled(values.mean(), halves @ values / 20, -math.inf, math.inf)
    error = values.std(ddof=1) / math.sqrt(40)
    assert (found.high - found.low) / 2 == pytest.approx(1.645 * error, rel=0.06)


def test_an_interval_lies_around_its_number_and_within_what_it_can_be():
    found = resampled(0.9, np.array([0.2, 0.5, np.nan, 0.8]), -1, 1)
    assert found.value == 0.9
    assert (found.low, found.high) == (pytest.approx(0.9 - 0.27), 1)
    assert math.isnan(resampled(0.5, np.array([np.nan]), -1, 1).low)
