"""How often a verdict keeps the best checkpoint: the counts, beside chance, and the page's words."""

import itertools
import json
from pathlib import Path

import pytest

from benchmarks.studies.evidence import choices_in, main
from benchmarks.studies.evidence_parts.counts import Choice, by_lot, counted, counts, fact_choices
from benchmarks.studies.evidence_parts.page import in_short, section, sentences
from benchmarks.studies.markdown import with_section

ROOT = Path(__file__).parents[2]
STUDIES = ROOT / "benchmarks" / "studies"


def picks(task, lowest, shortlist, not_worse):
    """What picks_of returns, as far as it is read: task by epoch, and the picks of four statistics."""
    labels = [f"epoch {epoch}" for epoch in range(1, len(task) + 1)]
    best = max(range(len(task)), key=task.__getitem__)
    return {
        "candidates": labels,
        "task": dict(zip(labels, task, strict=True)),
        "best": labels[best],
        "picks": {
            name: {"label": labels[epoch - 1]}
            for name, epoch in zip(("mean", "p50", "p75", "p95"), lowest, strict=True)
        },
        "shortlist": [labels[epoch - 1] for epoch in shortlist],
        "shortlist_size": len(shortlist),
        "shortlist_holds_best": bool(set(shortlist) & set(not_worse)),
        "not_worse": [labels[epoch - 1] for epoch in not_worse],
    }


GOOD = picks([0.1, 0.5, 0.9, 1.0], lowest=(2, 4, 4, 1), shortlist=[2, 4], not_worse=[3, 4])
EASY = picks([0.0, 0.0], lowest=(1, 1, 1, 1), shortlist=[1], not_worse=[1, 2])
BAD = picks([0.1, 0.9, 0.6, 0.2], lowest=(1, 1, 3, 4), shortlist=[1], not_worse=[2])


def run(part, seed, trained_on="completion", end="weak", objective="NLL", **choices):
    named = {"part": part, "seed": seed, "trained_on": trained_on, "end": end, "objective": objective}
    return {**named, "choices": choices}


FOUND = {
    "runs": [
        run("a", 0, all=BAD, completion=GOOD),
        run("a", 0, trained_on="all", all=GOOD, completion=GOOD),
        run("b", 0, end="strong", objective="1 - p", all=BAD, completion=GOOD),
    ]
}


def test_counts_of_two_choices():
    found = counts([GOOD, BAD])
    assert (found.choices, found.easy, found.candidates, found.size) == (2, 0, 4, 1.5)
    assert counts([GOOD, EASY]).easy == 1
    assert (found.held, found.best) == (1, 1)
    assert found.held_low < 0.5 < found.held_high
    assert found.missed == {"mean": 2, "p50": 1, "p75": 1, "p95": 2, "last": 1}
    assert (found.lowest_size, found.lowest_held) == (2.5, 1)
    assert found.missed_by_lot == pytest.approx((2 / 4 + 3 / 4) / 2)
    assert found.behind["mean"] == pytest.approx((0.5 + 0.8) / 2)
    assert found.behind["shortlist"] == pytest.approx((0.0 + 0.8) / 2)
    assert found.behind["last"] == pytest.approx((0.0 + 0.7) / 2)


def test_by_lot_is_the_share_of_all_lists_that_hold_a_good_one():
    for size in (1, 2, 3):
        lists = list(itertools.combinations(GOOD["candidates"], size))
        holds = [bool(set(each) & set(GOOD["not_worse"])) for each in lists]
        assert by_lot(GOOD, size) == pytest.approx(sum(holds) / len(lists))


def test_each_run_is_two_choices_and_groups_are_told_apart():
    choices = fact_choices(FOUND)
    assert len(choices) == 6
    assert [each.study for each in choices[1:5]] == [
        "checkpoints, all tokens trained on, completions scored",
        "checkpoints, completions trained on and scored",
        "checkpoints, completions trained on, all tokens scored",
        "checkpoints, all tokens trained on and scored",
    ]
    assert [each.objective for each in choices] == [None, None, "1 - p"] * 2
    assert {each.group for each in choices} == {
        "(a) NLL, five seeds",
        "(b) five objectives, from a checkpoint",
    }
    assert choices[5].picks is BAD


def test_the_page_says_the_counts():
    def students_of(picked):
        return Choice("students", "students on x, by y", None, None, picked)

    choices = [*fact_choices(FOUND), students_of(GOOD)]
    said = sentences(choices)
    assert said[0].startswith(
        "**Checkpoints, completions trained on and scored**: of 2 choices the shortlist, "
    )
    assert "2 of 4 candidates on average, holds a best one in 2 (100 %" in said[0]
    assert "holds a best one in 0 (0 %" in said[2]
    assert "The lowest mean misses it in 2, the lowest median in 2" in said[2]
    assert "the last checkpoint in 2" in said[2]
    assert "last checkpoint" not in said[4]
    lines = in_short(choices).split("* **")[1:]
    assert [line.split("**")[0] for line in lines] == [
        "Checkpoints scored on completions",
        "Checkpoints scored on prompts too",
        "Students of a teacher's top K",
    ]
    assert "holds a best one in 1 of 3 choices" in " ".join(lines[1].split())
    assert "The lowest mean misses it in 3, the lowest median in 2, the lowest p95 in 3." in " ".join(
        lines[1].split()
    )
    text = section(choices)
    assert "**Not run yet: facts (c).**" in text
    assert "**Not run yet: facts (b), facts (c), distillation.**" in section(choices[:2])
    kind = "checkpoints, completions trained on, all tokens scored"
    row = f"| {kind} | (a) NLL, five seeds | 1 | 0 | 4 | 1.0 | 0 of 1: 0 % [0, 79] | 25 % | 0 of 1 |"
    assert row in text
    assert f"| {kind} | **all** | 2 |" in text
    assert (
        "choices (in 1 any candidate would do) the shortlist"
        in sentences([*choices[:2], students_of(EASY)])[2]
    )
    assert (
        "| (b) five objectives, from a checkpoint | 1 - p | 0 of 1 | 1 | 1 | 1 | 1 of 1 | 1 | 0 | 1 |" in text
    )


def committed():
    return choices_in(STUDIES / "fact_sft.json", STUDIES / "topk_distillation.json")


def test_the_committed_pages_say_what_the_committed_numbers_say():
    choices = committed()
    for path, text in ((STUDIES / "README.md", section(choices)), (ROOT / "README.md", in_short(choices))):
        page = path.read_text(encoding="utf-8")
        assert with_section(page, "evidence", text) == page


def test_the_front_page_says_of_what_runs_its_counts_are():
    front = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    few = [each.group for each in committed()] == ["(a) NLL, five seeds"] * 20
    assert few == ("so far in the ten runs of plain fine-tuning, each scored twice" in front)


def test_the_cost_is_as_the_page_says():
    cost = json.loads((STUDIES / "fact_sft.json").read_text(encoding="utf-8"))["cost"]["a"]
    assert 25 < cost["cpu_seconds"] / 60 / 2 < 40  # minutes on two cores: about 35


def test_what_the_page_says_below_its_counts_is_in_them():
    """The paragraph that is not written by the study."""
    by_study = counted(committed(), lambda each: each.study)
    checkpoints = {name: found for name, found in by_study.items() if name.startswith("checkpoints")}
    assert len(checkpoints) == 4
    assert all(found.missed["last"] == 0 for found in checkpoints.values())
    worse = [name for name, found in checkpoints.items() if found.held / found.choices < found.held_by_lot]
    assert worse == ["checkpoints, completions trained on, all tokens scored"]
    assert all(found.held == found.choices for name, found in checkpoints.items() if name not in worse)


def test_without_results_it_says_what_to_run(tmp_path, monkeypatch):
    path = tmp_path / "fact_sft.json"
    monkeypatch.setattr(
        "sys.argv", ["evidence", "--fact-sft", str(path), "--distillation", str(tmp_path / "no.json")]
    )
    with pytest.raises(SystemExit, match="run the studies first"):
        main()
    path.write_text(json.dumps(FOUND), encoding="utf-8")
    assert len(choices_in(path, tmp_path / "no.json")) == 6
