"""The study of invented facts: its numbers are those of its runs, its page says what they say."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.studies.fact_sft_parts.comparisons import best_of, paired, picked
from benchmarks.studies.fact_sft_parts.numbers import after_epochs, numbers, right_facts
from benchmarks.studies.fact_sft_parts.page import MISSING, section
from benchmarks.studies.fact_sft_parts.pictures import picture
from benchmarks.studies.fact_sft_parts.training import STATISTICS
from benchmarks.studies.fact_sft_parts.units import FULL, PARTS, QUICK, ready, runs_of, without_weights
from benchmarks.studies.fact_sft_parts.verdicts import (
    LEANING,
    at_epoch,
    at_pick,
    last_recall,
    missed,
    of_a,
    of_objective,
    pearson,
    rise_of_mean,
    saturated,
    verdicts,
)
from benchmarks.studies.markdown import with_section
from benchmarks.studies.numbers_file import write_numbers
from benchmarks.studies.picks import picks_of
from examples.resumable import write_json
from lightning_pce import digest, intervals
from lightning_pce.runs.history import History, write_validation
from tests.helpers.checkpoint_runs import losses_of, saturating, split

ROOT = Path(__file__).parents[2]
STUDIES = ROOT / "benchmarks" / "studies"
FACTS = 40


@pytest.fixture(scope="module")
def committed():
    return json.loads((STUDIES / "fact_sft.json").read_text(encoding="utf-8"))


def test_the_page_says_what_the_results_say(committed):
    page = (STUDIES / "README.md").read_text(encoding="utf-8")
    assert with_section(page, "fact_sft", section(committed, verdicts(committed))) == page


def test_what_the_page_says_in_words_of_picks_is_in_the_results(committed):
    alone, masked = of_a(committed, "all"), of_a(committed, "completion")
    assert len(alone) == len(masked) == 5
    differ = {
        each["trained_on"]: each
        for each in committed["choices compared"]
        if each["trained_on"] == each["scored_on"] and (each["pick"], each["less"]) == ("p50", "mean")
    }
    assert differ["completion"]["low"] <= 0 <= differ["completion"]["high"] < 0.01
    assert missed(masked, "mean") == missed(masked, "p50") == missed(alone, "p50") == 0
    assert missed(alone, "mean") >= 3
    for run in alone:
        if run["choices"]["all"]["picks"]["mean"]["missed"]:
            assert at_pick("p50")(run) - at_pick("mean")(run) > 0.4
        else:
            assert rise_of_mean(run) < 0.01
    assert min(map(at_pick("mean", "completion"), alone)) > 0.95
    assert max(map(at_pick("mean", "all"), masked)) < 0.5
    assert min(map(at_pick("p50", "all"), masked)) < 0.5
    assert saturated(masked) == len(masked)
    assert saturated(alone) == 0
    for run in masked:
        assert max(at_pick("p75")(run), at_pick("p95")(run)) <= at_pick("p50")(run)
    assert max(map(at_pick("p95"), alone)) < 0.05
    assert min(map(pearson("p95"), alone)) > 0.8


def test_the_page_names_the_parts_that_are_missing(committed):
    there = {run["part"] for run in committed["runs"]}
    text = section(committed, verdicts(committed))
    missing = [f"({part})" for part in PARTS if part not in there]
    assert (MISSING in text) == bool(missing)
    assert not missing or f"{MISSING} {' and '.join(missing)}." in text
    assert [f"({part})" for part in "bc" if f"### ({part})" not in text] == missing


def test_what_the_page_says_in_words_of_the_weak_end_is_in_the_results(committed):
    if "b" not in {run["part"] for run in committed["runs"]}:
        assert "From the untrained model only" not in verdicts(committed)
        return
    nll, dco = (of_objective(committed, "b", "weak", name) for name in ("NLL", "DCO, N = 8"))
    leaning = [run for name in LEANING for run in of_objective(committed, "b", "weak", name)]
    plain = of_objective(committed, "b", "weak", "1 - p")
    assert min(map(last_recall, [*nll, *dco])) > 0.8
    assert max(map(last_recall, leaning)) < 0.01
    for statistic in ("p95", "p99"):
        assert all(run["moved"]["completion"]["since_start"][statistic][1] > 0 for run in leaning)
        assert all(run["moved"]["completion"]["since_start"][statistic][2] < 0 for run in [*nll, *dco])
    for run in plain:
        assert at_epoch("p50", -1)(run) < 0.05 * at_epoch("p50", 0)(run)
        assert abs(at_epoch("mean", -1)(run) - at_epoch("mean", 0)(run)) < 1
        assert run["training_set"]["right_objects"] < 0.02


def finish(unit, knows):
    """What a unit leaves behind, by losses made up: ``knows`` gives how many facts are known at an epoch."""
    settings = unit.settings
    epochs = settings["epochs"] + 1
    path, rows = unit.path.with_suffix(".jsonl"), []
    path.parent.mkdir(parents=True, exist_ok=True)
    documents, prompt = losses_of(split, epochs, FACTS, settings["seed"])
    _, completion = losses_of(saturating, epochs, FACTS, settings["seed"] + 100)
    slots = intervals.slots_of(documents)
    for epoch in range(epochs):
        losses = {"": prompt[epoch], "completion": completion[epoch]}
        write_validation(
            path,
            run="a",
            name="val",
            step=10 * epoch,
            function="fit" if epoch else "validate",
            epoch=epoch - 1 if epoch else None,
            digests={"ce": {group: digest.from_values(each) for group, each in losses.items()}},
            documents={
                "ce": {
                    group: intervals.add(intervals.empty(), each, None, slots)
                    for group, each in losses.items()
                }
            },
        )
        known = knows(epoch)
        scored = dict.fromkeys(STATISTICS, 1.0 + epoch)
        row = {"epoch": epoch, "all": scored, "prompt": scored, "completion": scored}
        row |= {"recall": known / FACTS, "pass_at_1": 0.1, "pass_at_8": 0.2, "pass_at_64": 0.3}
        rows.append(row | {"right": "1" * known + "0" * (FACTS - known), "log_prob": []})
    start = {"epoch": 1, "mean_p": 0.8, "right_objects": 0.5, "wrong_objects": None}
    result = {"versions": {"torch": "2"}, "precision": "32-true", "seconds": 60.0, "cpu_seconds": 30.0}
    result |= {"strong_start": start if settings["saves"] else None, "epochs": rows}
    result |= {"training_set": {"mean_p": 0.9, "right_objects": 0.7, "wrong_objects": 0.25}}
    write_json(unit.path, {"settings": settings, **result})


@pytest.fixture(scope="module")
def units(tmp_path_factory):
    """All units of the quick study, made up: from the untrained model 1 - p knows 10 facts less than NLL."""
    runs = runs_of(("a", "b", "c"), tmp_path_factory.mktemp("facts"), None, QUICK)
    for unit in (*runs.first, *runs.then):
        settings = unit.settings
        less = 10 if settings["objective"] == "1 - p" and settings["start"] is None else 0
        finish(unit, lambda epoch, less=less: max(0, 15 * epoch - less))
    return [*runs.first, *runs.then]


@pytest.fixture(scope="module")
def found(units):
    return numbers(units)


def test_what_the_page_says_in_words_of_the_strong_end_is_in_the_results(committed):
    if "b" not in {run["part"] for run in committed["runs"]}:
        assert "the strong end" not in verdicts(committed)
        return
    nll, dco = (of_objective(committed, "b", "strong", name) for name in ("NLL", "DCO, N = 8"))
    leaning = [run for name in LEANING for run in of_objective(committed, "b", "strong", name)]
    compared = [
        each for each in committed["objectives compared"] if (each["part"], each["end"]) == ("b", "strong")
    ]
    for each in compared:
        if each["objective"] in LEANING:
            assert max(each["first"]["mean"], each["last"]["high"]) < 0
    for run in nll:
        assert run["start"]["mean_p"] > 0.75 > run["start"]["right_objects"]
    for statistic in ("p95", "p99"):
        assert all(run["moved"]["completion"]["since_start"][statistic][1] > 0 for run in leaning)
    assert all(run["moved"]["completion"]["since_start"]["p95"][2] < 0 for run in [*nll, *dco])


def test_candidates_are_the_epochs_from_one_on(units):
    path = units[0].path.with_suffix(".jsonl")
    for scoring, group in (("all", ""), ("completion", "completion")):
        history = after_epochs(path, scoring)
        assert [record.label for record in history] == ["epoch 1", "epoch 2"]
        written = History.load(path).select(function="fit")
        assert history[0].digest("ce", history.group).equal(written[0].digest("ce", group))


def test_numbers_are_those_of_the_runs(units, found):
    assert [run["name"] for run in found["runs"]] == [unit.settings["name"] for unit in units]
    assert found["cost"]["a"] == {"runs": 2, "seconds": 120, "cpu_seconds": 60}
    run = found["runs"][0]
    assert run["recall"] == [0, 15 / FACTS, 30 / FACTS]
    assert run["completion"]["p50"] == [1, 2, 3]
    history = after_epochs(units[0].path.with_suffix(".jsonl"), "completion")
    assert run["choices"]["completion"] == picks_of(history, right_facts(run["right"]))
    assert run["choices"]["all"]["picks"] != run["choices"]["completion"]["picks"]
    before = History.load(units[0].path.with_suffix(".jsonl"))[0]
    change = digest.quantile(history[-1].digest("ce", "completion"), 0.95)
    change = change - digest.quantile(before.digest("ce", "completion"), 0.95)
    moved = run["moved"]["completion"]
    value, low, high = moved["since_start"]["p95"]
    assert value == pytest.approx(float(change), abs=1e-4)
    assert low < value < high
    assert moved["since_lowest"]["p95"][0] >= max(0, value)
    strong = [run for run in found["runs"] if run["end"] == "strong"]
    assert {run["start"]["mean_p"] for run in strong} == {0.8}


def test_objectives_are_compared_with_nll_of_the_same_part_and_end(found):
    compared = {(each["part"], each["end"]): each for each in found["objectives compared"]}
    assert list(compared) == [("b", "weak"), ("b", "strong"), ("c", "weak"), ("c", "strong")]
    for (_, end), each in compared.items():
        assert each["last"]["mean"] == (-10 / FACTS if end == "weak" else 0)
        assert (each["last"]["high"] < 0) == (end == "weak")


def test_choices_are_compared_by_what_is_recalled_at_the_picks(found):
    run = next(run for run in found["runs"] if run["trained_on"] == "all")
    for each in found["choices compared"]:
        if each["trained_on"] == "all":
            picks = run["choices"][each["scored_on"]]["picks"]
            assert each["mean"] == pytest.approx(picks[each["pick"]]["task"] - picks[each["less"]]["task"])
    assert picked(run, "all", "p95").sum() == run["choices"]["all"]["picks"]["p95"]["task"] * FACTS


def test_paired_differences_have_intervals_by_fact_and_by_seed():
    rng = np.random.default_rng(0)
    each = [rng.choice([-1.0, 0.0, 1.0], 100, p=[0.1, 0.6, 0.3]) for _ in range(3)]
    found = paired(each)
    means = [values.mean() for values in each]
    assert found["by_seed"] == pytest.approx(means)
    assert found["mean"] == pytest.approx(np.mean(means), abs=1e-5)
    by_fact = 1.96 * np.concatenate(each).std() / 300**0.5
    assert (found["high"] - found["low"]) / 2 == pytest.approx(by_fact, rel=0.1)
    by_seed = 4.303 * np.std(means, ddof=1) / 3**0.5
    assert (found["t_high"] - found["t_low"]) / 2 == pytest.approx(by_seed, rel=1e-3)
    assert paired(each[:1])["t_low"] is None


def test_the_best_epoch_is_the_earliest_and_not_before_training():
    assert best_of({"recall": [0.9, 0.1, 0.5, 0.5]}) == 2


def test_runs_of_other_versions_are_not_mixed(units, tmp_path):
    other = units[0]._replace(path=tmp_path / "other.json")
    result = json.loads(units[0].path.read_text(encoding="utf-8"))
    write_json(other.path, result | {"versions": {"torch": "1"}})
    with pytest.raises(SystemExit, match="several versions"):
        numbers([other, units[1]])


def test_a_start_whose_weights_are_lost_is_trained_again_if_somebody_needs_them(tmp_path):
    runs = runs_of(("a", "b"), tmp_path, None, QUICK)
    start = runs.first[0]
    assert without_weights(runs) == []  # not done, and so to be done in any case
    for unit in runs.first:
        finish(unit, lambda epoch: epoch)
    assert without_weights(runs) == [start]
    start.path.with_suffix(".pt").touch()
    assert without_weights(runs) == []
    start.path.with_suffix(".pt").unlink()
    for unit in runs.then:
        finish(unit, lambda epoch: epoch)
    assert without_weights(runs) == []


def test_what_can_begin_comes_seed_by_seed(tmp_path):
    runs = runs_of(("a", "b", "c"), tmp_path, None, FULL)
    assert sorted(map(str, ready(runs))) == sorted(map(str, runs.first))
    start = tmp_path / "units" / "a_completion_seed_1.pt"
    start.parent.mkdir()
    start.touch()
    found = [unit.settings for unit in ready(runs)]
    assert {each["seed"] for each in found if each["start"]} == {1}
    seeds = [each["seed"] for each in found if not each["name"].startswith("a_")]
    assert seeds == sorted(seeds)
    assert [each["name"][0] for each in found[:10]] == ["a"] * 10
    assert len(found) == len(runs.first) + 10


def test_the_page_has_what_there_is(found):
    text = section(found)
    assert "| completions | 0 | 2: 75 % |" in text
    assert "(b) Right sentences, from a checkpoint of NLL" in text
    assert "| (b) weak | 1 - p | -25 | -25 [" in text
    only = [run for run in found["runs"] if run["part"] == "a"]
    text = section(found | {"runs": only, "objectives compared": []})
    assert "### (a)" in text
    assert "### (b)" not in text
    assert "| (b)" not in text


def test_the_picture_is_drawn_of_what_there_is(found, tmp_path):
    picture(found, tmp_path / "all.png")
    assert (tmp_path / "all.png").stat().st_size > 30_000


def test_written_numbers_are_read_back_and_lists_stand_on_a_line(found, tmp_path):
    write_numbers(tmp_path / "numbers.json", found)
    text = (tmp_path / "numbers.json").read_text(encoding="utf-8")
    assert json.loads(text) == found
    assert '"mean": [1.0, 2.0, 3.0],' in text


def test_a_quick_study_lies_apart(monkeypatch):
    from benchmarks.studies.fact_sft import arguments

    folders = []
    for words in ([], ["--quick"], ["--quick", "--out", "elsewhere"]):
        monkeypatch.setattr(sys, "argv", ["fact_sft", *words])
        folders.append(arguments().out)
    assert folders == [Path("studies_out/fact_sft"), Path("studies_out/fact_sft_quick"), Path("elsewhere")]


@pytest.mark.slow
def test_a_small_study_goes_on_where_it_was_killed(tmp_path):
    command = [sys.executable, "-m", "benchmarks.studies.fact_sft", "--quick", "--out", str(tmp_path)]
    units = tmp_path / "units"
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as killed:
        until = time.monotonic() + 400
        while len(list(units.glob("*.json"))) < 2 and killed.poll() is None and time.monotonic() < until:
            time.sleep(0.2)
        killed.kill()
    kept = {path: path.stat().st_mtime_ns for path in units.glob("*.json")}
    assert 2 <= len(kept) < 10
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert all(path.stat().st_mtime_ns == kept[path] for path in kept)
    result = json.loads((tmp_path / "fact_sft.json").read_text(encoding="utf-8"))
    assert len(result["runs"]) == 10
    assert {(run["part"], run["end"]) for run in result["runs"]} >= {("b", "strong"), ("c", "strong")}
    assert "(c) A fifth of the objects wrong, from a checkpoint of NLL" in done.stdout
    assert (tmp_path / "fact_sft.png").stat().st_size > 30_000
    assert "recall" in (tmp_path / "report.html").read_text(encoding="utf-8")
