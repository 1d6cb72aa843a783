"""How often a verdict keeps the best checkpoint: the counts, beside chance, and the page's words."""

import itertools
import json
import re
from pathlib import Path

import pytest

from benchmarks.studies.evidence import choices_in, main, read
from benchmarks.studies.evidence_parts.counts import Choice, by_lot, counts, fact_choices
from benchmarks.studies.evidence_parts.page import in_short, section, sentences
from benchmarks.studies.evidence_parts.what_came_out import what_came_out
from benchmarks.studies.fact_sft_parts.units import RATE
from benchmarks.studies.markdown import with_section
from benchmarks.studies.topk_distillation_parts import reading

ROOT = Path(__file__).parents[2]
STUDIES = ROOT / "benchmarks" / "studies"


def picks(task, lowest, shortlist, not_worse, part=False):
    """What picks_of returns, as far as it is read: task by epoch, and the picks of four statistics."""
    labels = [f"epoch {epoch}" for epoch in range(1, len(task) + 1)]
    best = max(range(len(task)), key=task.__getitem__)
    return {
        "candidates": labels,
        "task": dict(zip(labels, task, strict=True)),
        "best": labels[best],
        "picks": {
            name: {"label": labels[epoch - 1], "missed": epoch not in not_worse}
            for name, epoch in zip(("mean", "p50", "p75", "p95"), lowest, strict=True)
        },
        "saturated": [],
        "shortlist": [labels[epoch - 1] for epoch in shortlist],
        "shortlist_size": len(shortlist),
        "shortlist_holds_best": bool(set(shortlist) & set(not_worse)),
        "not_worse": [labels[epoch - 1] for epoch in not_worse],
        "groups_part": part,
    }


GOOD = picks([0.1, 0.5, 0.9, 1.0], lowest=(2, 4, 4, 1), shortlist=[2, 4], not_worse=[3, 4])
EASY = picks([0.0, 0.0], lowest=(1, 1, 1, 1), shortlist=[1], not_worse=[1, 2])
BAD = picks([0.1, 0.9, 0.6, 0.2], lowest=(1, 1, 3, 4), shortlist=[1], not_worse=[2], part=True)


def run(part, seed, trained_on="completion", end="weak", objective="NLL", rate=RATE, **choices):
    named = {"part": part, "seed": seed, "trained_on": trained_on, "end": end, "objective": objective}
    return {**named, "rate": rate, "choices": choices}


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
    assert (found.held, found.best) == (1, 1)
    assert found.held_low < 0.5 < found.held_high
    assert found.missed == {"mean": 2, "p50": 1, "p75": 1, "p95": 2, "last": 1}
    assert (found.lowest_size, found.lowest_held) == (2.5, 1)
    assert found.missed_by_lot == pytest.approx((2 / 4 + 3 / 4) / 2)
    assert found.behind["mean"] == pytest.approx((0.5 + 0.8) / 2)
    assert found.behind["shortlist"] == pytest.approx((0.0 + 0.8) / 2)
    assert found.behind["last"] == pytest.approx((0.0 + 0.7) / 2)
    assert (found.part, found.part_unheld) == (1, 1)


def test_a_choice_in_which_nothing_can_be_missed_counts_for_nothing():
    with_easy = counts([GOOD, EASY, BAD, EASY])
    assert with_easy._replace(easy=0) == counts([GOOD, BAD])
    assert with_easy.easy == 2
    nothing = counts([EASY])
    assert (nothing.choices, nothing.easy, nothing.held) == (0, 1, 0)
    assert set(nothing.missed.values()) == {0}


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
    assert {each.group for each in choices} == {"(a) NLL", "(b) objectives, from a checkpoint"}
    assert choices[5].picks is BAD


def test_runs_of_another_learning_rate_are_a_group_and_of_no_objective():
    [choice, _] = fact_choices({"runs": [run("b", 0, rate=2e-4, all=BAD, completion=GOOD)]})
    assert (choice.group, choice.objective) == ("(b) other learning rates", None)
    [choice, _] = fact_choices({"runs": [run("b", 0, all=BAD, completion=GOOD)]})
    assert (choice.group, choice.objective) == ("(b) objectives, from the untrained model", "NLL")


def students_of(picked):
    return Choice("students", "students on x, by y", None, None, picked)


def test_the_page_says_the_counts():
    choices = [*fact_choices(FOUND), students_of(GOOD)]
    said = sentences(choices)
    assert said[0].startswith(
        "**Checkpoints, completions trained on and scored**: of 2 choices the shortlist, "
    )
    assert "2 of 4 candidates on average, holds a best one in 2 (100 %" in said[0]
    assert "groups of tokens part" not in said[0]
    assert "holds a best one in 0 (0 %" in said[2]
    assert "The lowest mean misses it in 2, the lowest median in 2" in said[2]
    assert "the last checkpoint in 2" in said[2]
    assert "part in 2 of 2: of the 2 whose shortlist holds none in 2, of the 0 others in 0." in said[2]
    assert said[3].endswith("says that groups of tokens part in 0 of 1.")
    assert "last checkpoint" not in said[4]
    assert "groups of tokens part" not in said[4]
    text = section(choices)
    assert "These are 7 choices of the studies above.\n" in text
    assert "**Not run yet: facts (c).**" in text
    assert "**Not run yet: facts (b), facts (c), distillation.**" in section(choices[:2])
    kind = "checkpoints, completions trained on, all tokens scored"
    row = f"| {kind} | (a) NLL | 1 | 0 | 4 | 1.0 | 0 of 1: 0 % [0, 79] | 25 % | 0 of 1 |"
    assert row in text
    assert f"| {kind} | **all** | 2 |" in text
    assert "| (b) objectives, from a checkpoint | 1 - p | 0 of 1 | 1 | 1 | 1 | 1 of 1 | 1 | 0 | 1 |" in text


def test_the_front_page_has_three_lines():
    lines = [
        " ".join(line.split()) for line in in_short([*fact_choices(FOUND), students_of(GOOD)]).split("* **")
    ]
    assert [line.split("**")[0] for line in lines[1:]] == [
        "Checkpoints scored on completions",
        "Checkpoints scored on prompts too",
        "Students of a teacher's top K",
    ]
    assert "holds a best one in 1 of 3 choices, with" in lines[2]
    assert "The lowest mean misses it in 3, the lowest median in 2, the lowest p95 in 3." in lines[2]
    assert "part in 2 of 3: of the 2 whose shortlist holds none in 2, of the 1 others in 0." in lines[2]
    assert "groups of tokens part" not in lines[1] + lines[3]
    assert lines[3].endswith("* Not run yet: facts (c).")


def test_the_pages_say_how_many_choices_are_left_out_and_survive_if_all_are():
    choices = [*fact_choices(FOUND), students_of(EASY)]
    kind = "checkpoints, completions trained on and scored"
    more = [*choices, Choice(kind, "(a) NLL", None, "completion", EASY)]
    assert "These are 6 choices of the studies above. 2 more, in which no candidate misses" in section(more)
    said = sentences(more)
    assert "of 2 choices (1 more, in which any would do, are left out) the shortlist" in said[0]
    assert said[4] == "**Students**: in all 1 choices any candidate would do."
    assert "choices (1 more, in which any would do, are left out), with" in " ".join(in_short(more).split())
    assert "| students | students on x, by y | 0 | 1 | - |" in section(more)
    assert "in all 1 choices any candidate would do" in in_short(more)
    only = [students_of(EASY)]
    assert "These are 0 choices" in " ".join(section(only).split())
    assert what_came_out(None, None, only) == "Not run yet: facts (b), facts (c).\n"


def test_what_follows_is_said_as_it_is():
    def said(*picked, kind="checkpoints, completions trained on, all tokens scored", scored="all"):
        return " ".join(sentences([Choice(kind, "(a) NLL", None, scored, each) for each in picked]))

    late = picks([0.1, 0.2, 0.9], lowest=(3, 3, 3, 3), shortlist=[3], not_worse=[3])
    early = picks([0.1, 0.9, 0.2], lowest=(2, 2, 2, 2), shortlist=[1], not_worse=[2, 3])
    wrong = picks([0.1, 0.9, 0.2], lowest=(1, 1, 1, 1), shortlist=[1], not_worse=[2])
    assert "In none of the 2 runs does the last checkpoint miss" in said(late, early, scored="completion")
    assert "The last checkpoint misses the best in 1 of 2 runs" in said(late, wrong, scored="completion")
    assert "last checkpoint miss" not in said(late, wrong)  # each run is scored twice
    assert "holds one, better: checkpoints, completions" in said(*[late] * 5)
    assert "not told apart from it: checkpoints, completions" in said(late, early)
    assert "holds one, worse: checkpoints, completions" in said(*[early] * 5)
    assert "cannot know that nobody trained on them" in said(*[early] * 5)
    assert "cannot know" not in said(*[early] * 5, kind="checkpoints, all tokens trained on and scored")
    assert "cannot know" not in said(late, early)


FILES = (STUDIES / "fact_sft.json", STUDIES / "topk_distillation.json")


def committed():
    return choices_in(*FILES)


def test_the_committed_pages_say_what_the_committed_numbers_say():
    choices = committed()
    for path, text in ((STUDIES / "README.md", section(choices)), (ROOT / "README.md", in_short(choices))):
        page = path.read_text(encoding="utf-8")
        assert with_section(page, "evidence", text) == page


def test_what_came_out_is_written_from_the_committed_numbers():
    said = what_came_out(*map(read, FILES), committed())
    page = (STUDIES / "README.md").read_text(encoding="utf-8")
    assert with_section(page, "what came out", said) == page
    assert len(re.findall(r"^\* ", said, flags=re.MULTILINE)) <= 8
    begins = re.findall(r"^\s*([%>+-]) ", said, flags=re.MULTILINE)
    assert begins == []  # which would not be text


def test_the_cost_is_as_the_page_says():
    """Of the table of studies; on two cores half of what they take one after the other."""
    page = (STUDIES / "README.md").read_text(encoding="utf-8")
    for words in ("| about 35 minutes |", "| about 100 minutes |", "| about 35 minutes a text |"):
        assert page.count(words) == 1
    facts, students = map(read, FILES)
    minutes = {part: cost["cpu_seconds"] / 60 / 2 for part, cost in facts["cost"].items()}
    assert 25 < minutes["a"] < 40
    assert 85 < minutes["b"] + minutes["c"] < 115
    for text in students["texts"].values():
        assert 20 < sum(text["cpu_seconds"].values()) / 60 / 2 < 40


LESS, MORE = ({"low": low, "mean": low + 0.1, "high": low + 0.2} for low in (-0.5, 0.1))


def facts(mean=(), median=(), saturated=(), last=LESS, pick=LESS, rises=(False, False)):
    """Runs of part a in which a statistic misses with the tokens named, and one of part b.

    ``pick``: p75's and p95's less the median's in points, and where it is more the median's misses.
    """

    def choice(scored):
        of = {name: {"missed": scored in missed} for name, missed in (("mean", mean), ("p50", median))}
        of |= {name: {"missed": pick is LESS} for name in ("p75", "p95")}
        of["p50"]["missed"] |= pick is MORE
        return {"picks": of, "saturated": ["p50"] if scored in saturated else []}

    def moved(rise):
        return {"since_lowest": {"p95": [0.0, -1.0, 1.0], "p99": [0.0, 0.5 if rise else None, 1.0]}}

    runs = [
        {
            "part": "a",
            "end": "weak",
            "rate": RATE,
            "trained_on": tokens,
            "choices": {scored: choice(scored) for scored in ("all", "completion")},
        }
        for tokens in ("all", "completion")
    ]
    objective = {"part": "b", "end": "weak", "rate": RATE, "objective": "1 - p", "trained_on": "completion"}
    objective["choices"] = {scored: choice(None) for scored in ("all", "completion")}
    objective["moved"] = dict(zip(("all", "completion"), map(moved, rises), strict=True))
    picked = {"trained_on": "completion", "scored_on": "completion", "less": "p50", **pick}
    return {
        "runs": [*runs, objective],
        "choices compared": [picked | {"pick": name} for name in ("p75", "p95")],
        "objectives compared": [{"part": "b", "end": "weak", "objective": "1 - p", "last": last}],
    }


def came_out(found):
    return " ".join(what_came_out(found, None, []).split())


def test_what_came_out_of_facts_is_said_either_way():
    assert "the median chooses better than the mean**, as the paper says" in came_out(facts(mean=["all"]))
    assert "the median chooses no better than the mean**. Trained" in came_out(facts())
    assert "the median chooses worse than the mean**. Trained" in came_out(facts(median=["all"]))
    assert "**With NLL and without prompts it has nothing to win.** Scored" in came_out(facts())
    assert "the failure of the mean is one of prompts" not in came_out(facts())
    assert "the failure of the mean is one of prompts" in came_out(facts(mean=["all"]))
    both = came_out(facts(mean=["all", "completion"]))
    assert "**With NLL and without prompts it chooses better than the mean.** Scored" in both
    assert "lowest mean is worse than the best in 2 of 2 runs, the lowest median in 0." in both
    assert "the failure of the mean is one of prompts" not in both
    assert "**With NLL and without prompts it chooses worse than the mean.**" in came_out(
        facts(median=["completion"])
    )
    assert "saturated" not in came_out(facts())
    assert "**p75 and p95 win nothing where the median is" in came_out(facts(saturated=["completion"]))
    assert "**Where the median is saturated p75 and p95 choose better.**" in came_out(
        facts(saturated=["completion"], pick=MORE)
    )


def test_what_came_out_of_objectives_is_said_either_way():
    assert "**With right facts no objective surely learns more than NLL.**" in came_out(facts(last=LESS))
    assert "from the untrained model, 1 - p: -40 [-50, -30]." in came_out(facts(last=LESS))
    better = "**With right facts 1 - p from the untrained model surely learns more than NLL.**"
    assert better in came_out(facts(last=MORE))
    for rises, words in (
        (
            (True, True),
            "rises in some run, of all tokens under every objective, of completions under every objective.**",
        ),
        (
            (True, False),
            "rises in some run, of all tokens under every objective, of completions under no objective.**",
        ),
        (
            (False, True),
            "rises in some run, of all tokens under no objective, of completions under every objective.**",
        ),
    ):
        assert words in came_out(facts(rises=rises))


def student(seed, label, mean, median):
    ce = dict.fromkeys(("mean", "p5", "p25", "p75", "p95"), mean) | {"p50": median}
    k = int(label.removeprefix("K = ")) if label.startswith("K") else None
    return {"text": "stories", "seed": seed, "label": label, "k": k, "ce": ce}


@pytest.mark.parametrize(
    ("means", "medians", "words"),
    [
        (
            (1, 2, 3),
            (3, 2, 1),
            "**The mean is the worse the smaller K is, and the median the better, as the paper",
        ),
        (
            (1, 2, 3),
            (3, 1, 2),
            "**The mean is the worse the smaller K is, and the median not always the better.**",
        ),
        (
            (2, 1, 3),
            (3, 2, 1),
            "**The mean is not always the worse the smaller K is, and the median the better,",
        ),
    ],
)
def test_what_came_out_of_students_is_said_either_way(means, medians, words):
    labels = ("full", "K = 2", "K = 1")
    models = [student(0, "teacher", 0.5, 0.5), *map(student, [0] * 3, labels, means, medians)]
    models = [models[0], models[3], models[2], models[1]]  # by K, as the study writes them
    rho = {
        name: {"spearman": -1.0 if name == "p25" else 0.5}
        for name in ("mean", "p5", "p25", "p50", "p75", "p95")
    }
    task = [{"text": "stories", "task": each, "picks": {"correlation": rho}} for each in reading.TASKS]
    said = " ".join(
        what_came_out(None, {"texts": {"stories": {}}, "models": models, "choices": task}, []).split()
    )
    assert words in said
    assert f"it is lowest at Stories {labels[medians.index(1)]}." in said
    assert "p25 orders them best by every task." in said
    task[0]["picks"] = {"correlation": rho | {"p5": {"spearman": -1.0}, "p25": {"spearman": 0.0}}}
    said = what_came_out(None, {"texts": {"stories": {}}, "models": models, "choices": task}, [])
    assert "No statistic orders them best by every task." in " ".join(said.split())


def test_without_results_it_says_what_to_run(tmp_path, monkeypatch):
    path = tmp_path / "fact_sft.json"
    monkeypatch.setattr(
        "sys.argv", ["evidence", "--fact-sft", str(path), "--distillation", str(tmp_path / "no.json")]
    )
    with pytest.raises(SystemExit, match="run the studies first"):
        main()
    path.write_text(json.dumps(FOUND), encoding="utf-8")
    assert len(choices_in(path, tmp_path / "no.json")) == 6
