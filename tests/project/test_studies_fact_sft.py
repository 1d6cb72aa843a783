"""The study of invented facts: its numbers are those of its runs, its page says what they say."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.studies import fact_sft
from benchmarks.studies.fact_sft_parts.comparisons import best_of, choices_compared, paired, picked
from benchmarks.studies.fact_sft_parts.numbers import after_epochs, numbers, right_facts
from benchmarks.studies.fact_sft_parts.page import MISSING, section
from benchmarks.studies.fact_sft_parts.passing import passed
from benchmarks.studies.fact_sft_parts.pictures import picture
from benchmarks.studies.fact_sft_parts.training import STATISTICS
from benchmarks.studies.fact_sft_parts.units import FULL, PARTS, QUICK, ready, runs_of, without_weights
from benchmarks.studies.fact_sft_parts.verdicts import verdicts
from benchmarks.studies.markdown import with_section
from benchmarks.studies.numbers_file import write_numbers
from benchmarks.studies.picks import picks_of
from examples.resumable import write_json
from lightning_pce import ExpectedPassAtN, digest, intervals
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


def test_the_page_names_the_parts_that_are_missing(committed):
    there = {run["part"] for run in committed["runs"]}
    text = section(committed, verdicts(committed))
    missing = [f"({part})" for part in PARTS if part not in there]
    assert (MISSING in text) == bool(missing)
    assert not missing or f"{MISSING} {' and '.join(missing)}." in text
    assert [f"({part})" for part in "bc" if f"### ({part})" not in text] == missing


def test_starts_alone_are_not_part_a(found):
    """What `--parts b c` leaves behind: of part a there are the runs that others start from."""
    only = [run for run in found["runs"] if run["trained_on"] == "completion"]
    assert {run["part"] for run in only} == {"a", "b", "c"}
    some = found | {"runs": only, "choices compared": choices_compared(only)}
    said = verdicts(some)
    assert "In short" not in said
    assert "(c) A fifth of the objects wrong" in said
    text = section(some, said)
    assert f"{MISSING} (a)." in text
    assert "2605.24667: late" not in text


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
        rows.append(
            row
            | {
                "right": "1" * known + "0" * (FACTS - known),
                "log_prob": [-0.1] * known + [-9.0] * (FACTS - known),
            }
        )
    start = {"epoch": 1, "mean_p": 0.8, "right_objects": 0.5, "wrong_objects": None}
    result = {"versions": {"torch": "2"}, "precision": "32-true", "seconds": 60.0, "cpu_seconds": 30.0}
    result |= {"strong_start": start if settings["saves"] else None, "epochs": rows}
    result |= {"training_set": {"mean_p": 0.9, "right_objects": 0.7, "wrong_objects": 0.25}}
    write_json(unit.path, {"settings": settings, **result})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """All units of the quick study, made up: from the untrained model 1 - p knows 10 facts less than NLL."""
    runs = runs_of(("a", "b", "c"), tmp_path_factory.mktemp("facts"), None, QUICK)
    for unit in (*runs.first, *runs.then):
        settings = unit.settings
        less = 10 if settings["objective"] == "1 - p" and settings["start"] is None else 0
        finish(unit, lambda epoch, less=less: max(0, 15 * epoch - less))
    for unit in runs.starts:
        known = {"mean_p": 0.6, "right_objects": 0.5, "wrong_objects": 0.125}
        made = {"versions": {"torch": "2"}, "precision": "32-true", "training_set": known}
        write_json(unit.path, {"settings": unit.settings, **made})
    return runs


@pytest.fixture(scope="module")
def units(runs):
    return [*runs.first, *runs.then]


@pytest.fixture(scope="module")
def found(units, runs):
    return numbers(units, runs.starts)


def test_candidates_are_the_epochs_from_one_on(units):
    path = units[0].path.with_suffix(".jsonl")
    for scoring, group in (("all", ""), ("completion", "completion")):
        history = after_epochs(path, scoring)
        assert [record.label for record in history] == ["epoch 1", "epoch 2"]
        written = History.load(path).select(function="fit")
        assert history[0].digest("ce", history.group).equal(written[0].digest("ce", group))


def test_a_checkpoint_that_is_trained_on_is_a_candidate_itself(tmp_path):
    runs = runs_of(("b",), tmp_path, None, QUICK)
    for unit in (*runs.first, *runs.then):
        worse = unit.settings["start"] is not None
        finish(unit, (lambda epoch: 20 - 5 * epoch) if worse else (lambda epoch: 10 * epoch))
    done = numbers([*runs.first, *runs.then])["runs"]
    for run in done:
        first = 0 if run["end"] == "strong" else 1
        labels = [f"epoch {epoch}" for epoch in range(first, len(run["recall"]))]
        for scoring in ("all", "completion"):
            choice = run["choices"][scoring]
            assert choice["candidates"] == list(choice["task"]) == labels
            assert choice["best"] == ("epoch 0" if first == 0 else f"epoch {len(run['recall']) - 1}")
        assert best_of(run) == int(choice["best"].removeprefix("epoch "))
    strong = next(run for run in done if run["end"] == "strong")
    unit = next(unit for unit in runs.then if unit.settings["name"] == strong["name"])
    history = after_epochs(unit.path.with_suffix(".jsonl"), "completion", start=True)
    before = History.load(unit.path.with_suffix(".jsonl")).select(function="validate")[0]
    assert history[0].digest("ce", "completion").equal(before.digest("ce", "completion"))
    lowest = min(history, key=lambda record: digest.mean(record.digest("ce", "completion")))
    assert strong["choices"]["completion"]["picks"]["mean"]["label"] == lowest.label
    strong["choices"]["completion"]["picks"]["mean"]["label"] = "epoch 0"
    assert picked(strong, "completion", "mean").sum() == 20


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


def test_the_best_epoch_is_the_earliest_and_of_a_checkpoint_perhaps_itself():
    assert best_of({"end": "weak", "recall": [0.9, 0.1, 0.5, 0.5]}) == 2
    assert best_of({"end": "strong", "recall": [0.9, 0.1, 0.9, 0.5]}) == 0


def test_runs_of_other_versions_are_not_mixed(units, tmp_path):
    other = units[0]._replace(path=tmp_path / "other.json")
    result = json.loads(units[0].path.read_text(encoding="utf-8"))
    write_json(other.path, result | {"versions": {"torch": "1"}})
    with pytest.raises(SystemExit, match="several versions"):
        numbers([other, units[1]])
    with pytest.raises(SystemExit, match="several versions"):
        numbers(units[1:2], [other])


def test_expected_pass_at_n_is_that_of_our_metric_with_intervals_by_fact(found):
    log_prob = [-0.1, -2.0, -30.0, -0.0]
    metric = ExpectedPassAtN((1, 8))
    metric.update(torch.tensor(log_prob, dtype=torch.float64))
    for n in (1, 8):
        assert passed(log_prob, n).mean() == pytest.approx(float(metric.compute()[f"pass_at_{n}"]))
    run = found["runs"][0]
    at = int(run["choices"]["completion"]["picks"]["mean"]["label"].removeprefix("epoch "))
    share = 15 * at / FACTS
    mean, low, high = run["passed"]["mean"]["pass_at_1"]
    assert mean == pytest.approx(share * np.exp(-0.1) + (1 - share) * np.exp(-9), abs=1e-5)
    assert (high - low) / 2 == pytest.approx(
        1.96 * (share * (1 - share) / FACTS) ** 0.5 * np.exp(-0.1), rel=0.15
    )
    passed_by = {(each["part"], each["end"], each["objective"]): each for each in found["objectives passed"]}
    assert len(passed_by) == 8
    assert passed_by["b", "weak", "NLL"]["pass_at_1"][0] == pytest.approx(
        15 / FACTS * np.exp(-0.1) + 25 / FACTS * np.exp(-9), abs=1e-5
    )


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
    text = section(found, "")
    assert "| completions | 0 | 2: 75 % |" in text
    assert "(b) Right sentences, from a checkpoint of NLL" in text
    assert "| (b) weak | 1 - p | -25 | -25 [" in text
    only = [run for run in found["runs"] if run["part"] == "a"]
    text = section(found | {"runs": only, "objectives compared": [], "objectives passed": []}, "")
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
    folders = []
    for words in ([], ["--quick"], ["--quick", "--out", "elsewhere"]):
        monkeypatch.setattr(sys, "argv", ["fact_sft", *words])
        folders.append(fact_sft.arguments().out)
    assert folders == [Path("studies_out/fact_sft"), Path("studies_out/fact_sft_quick"), Path("elsewhere")]


@pytest.fixture
def beside(runs, monkeypatch, tmp_path):
    """The sources' folder as `--parts b c --write` finds it, with all units done."""
    (tmp_path / "README.md").write_text("<!-- fact_sft begin -->old<!-- fact_sft end -->", encoding="utf-8")
    (tmp_path / "fact_sft.json").write_text("old", encoding="utf-8")
    monkeypatch.setattr(fact_sft, "ROOT", tmp_path)
    monkeypatch.setattr(fact_sft, "FULL", QUICK)
    monkeypatch.setattr(fact_sft, "SHOWN", "nothing")  # losses made up have no report
    out = runs.first[0].path.parents[1]
    monkeypatch.setattr(sys, "argv", ["fact_sft", "--parts", "b", "c", "--write", "--out", str(out)])
    return tmp_path


def test_parts_b_and_c_are_written_without_part_a(beside):
    fact_sft.main()
    page = (beside / "README.md").read_text(encoding="utf-8")
    assert f"{MISSING} (a)." in page
    page = " ".join(page.split())
    assert "(c) A fifth of the objects wrong, from a checkpoint of NLL: prior-leaning" in page
    written = json.loads((beside / "fact_sft.json").read_text(encoding="utf-8"))
    assert written["starts on wrong objects"]["0"]["wrong_objects"] == 0.125
    assert (beside / "fact_sft.png").exists()


def test_nothing_is_written_if_the_words_fail(beside, monkeypatch):
    monkeypatch.setattr(fact_sft, "verdicts", lambda found: found["what is not there"])
    before = {path.name: path.read_text(encoding="utf-8") for path in beside.iterdir()}
    with pytest.raises(KeyError):
        fact_sft.main()
    assert {path.name: path.read_text(encoding="utf-8") for path in beside.iterdir()} == before


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
