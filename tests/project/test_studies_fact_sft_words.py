"""What the page of invented facts says in words follows the results, and turns where they are turned."""

import copy
import json
from pathlib import Path

import pytest

from benchmarks.studies.fact_sft_parts.objectives_verdicts import does_leaning_win, of_objectives_in_words
from benchmarks.studies.fact_sft_parts.papers import beside_the_papers
from benchmarks.studies.fact_sft_parts.reading import LEANING, missed, of_ends
from benchmarks.studies.fact_sft_parts.tails import tail_sentence, tails
from benchmarks.studies.fact_sft_parts.verdicts import verdicts

STUDIES = Path(__file__).parents[2] / "benchmarks" / "studies"
NAMES = ("mean", "p50", "p75", "p95")
SURE, LOST, EVEN = ((mean, mean - 0.1, mean + 0.1) for mean in (0.3, -0.3, 0.0))
UP, DOWN, LEVEL = [3.0, 2.0, 4.0], [-3.0, -4.0, -2.0], [0.1, -1.0, 1.0]


def paired(mean, low, high):
    return {"mean": mean, "low": low, "high": high, "by_seed": [mean], "t_low": None, "t_high": None}


def choice(recall, missed=(), saturated=(), best="epoch 2"):
    picks = {name: {"task": recall.get(name, 0.9), "missed": name in missed} for name in NAMES}
    correlation = {name: {"pearson": None, "spearman": None} for name in NAMES}
    return {"picks": picks, "saturated": list(saturated), "correlation": correlation, "best": best}


def run_of(name, part, end, objective, recall, **more):
    moved = {
        tokens: {since: {"p95": DOWN, "p99": DOWN} for since in ("since_start", "since_lowest")}
        for tokens in ("all", "completion")
    }
    run = {"name": name, "part": part, "end": end, "objective": objective, "seed": 0, "rate": 1e-4}
    run |= {"trained_on": "completion", "recall": recall, "moved": moved, "mean_p_before": [0.02, 0.01, 0.03]}
    run |= {"choices": {tokens: choice({}) for tokens in ("all", "completion")}}
    run |= {"training_set": {"mean_p": 0.9, "right_objects": 0.8, "wrong_objects": 0.4}}
    run |= {"start": {"epoch": 3, "mean_p": 0.8, "right_objects": 0.5} if end == "strong" else None}
    run |= {tokens: {"p50": [7.0, 5.0, 4.0], "mean": [7.0, 5.0, 4.0]} for tokens in ("all", "completion")}
    return run | more


@pytest.fixture
def found():
    """Prompts alone make the mean fail; 1 - p loses to NLL from both ends and with both kinds of facts."""
    runs = []
    for trained_on in ("all", "completion"):
        choices = {"completion": choice({}, saturated=["p50"]), "all": choice({"mean": 0.1}, ["mean"])}
        runs.append(run_of("a", "a", "weak", "NLL", [0.0, 0.5, 0.9], trained_on=trained_on, choices=choices))
    for part in "bc":
        for end in ("weak", "strong"):
            start = 0.0 if end == "weak" else 0.4
            runs.append(run_of("nll", part, end, "NLL", [start, 0.8, 0.9]))
            runs.append(run_of("1", part, end, "1 - p", [start, 0.3, 0.2]))
    runs.append(run_of("rate", "b", "weak", "NLL", [0.0, 0.5, 0.6], rate=2e-4))
    runs.append(run_of("rate", "b", "weak", "1 - p", [0.0, 0.1, 0.1], rate=2e-4))
    compared = [
        {"trained_on": tokens, "scored_on": tokens, "pick": "p50", "less": "mean", **paired(*difference)}
        for tokens, difference in (("all", SURE), ("completion", EVEN))
    ]
    objectives = [
        {"part": part, "end": end, "objective": "1 - p", "last": paired(*LOST)}
        for part in "bc"
        for end in ("weak", "strong")
    ]
    found = {"runs": runs, "choices compared": compared, "objectives compared": objectives}
    return found | {"starts on wrong objects": {"0": {"right_objects": 0.5, "wrong_objects": 0.125}}}


def said(found):
    return " ".join(verdicts(found).split())


def the(found, part, end, objective):
    names = ("part", "end", "objective")
    return next(run for run in found["runs"] if tuple(run[name] for name in names) == (part, end, objective))


@pytest.mark.parametrize(
    ("difference", "words", "claim"),
    [(SURE, "better than", "did"), (EVEN, "no better than", "did not"), (LOST, "worse than", "did not")],
)
@pytest.mark.parametrize(
    ("place", "where", "of"),
    [(0, "On all tokens", "on all tokens"), (1, "Where prompts are masked", "where prompts are masked")],
)
def test_whether_the_median_is_better_is_what_the_paired_difference_says(
    found, difference, words, claim, place, where, of
):
    found["choices compared"][place] |= paired(*difference)
    text = said(found)
    assert f"**{where} the median's pick is {words} the mean's.**" in text
    assert f" {claim} reproduce {of}" in text


def test_whether_scoring_matters_is_what_the_picks_say(found):
    assert "What matters is which tokens are scored" in said(found)
    for run in found["runs"][:2]:
        run["choices"]["completion"] = choice({"mean": 0.1}, ["mean"])
    assert "What matters" not in said(found)
    assert "does not decide alone" in said(found)


def test_what_is_said_of_saturation_is_in_the_picks(found):
    assert "**Where the median saturates, with NLL, p75 and p95 choose no better.**" in said(found)
    found["runs"][1]["choices"]["completion"] = choice({"p75": 0.95}, saturated=["p50"])
    assert "p75 recalls more in 1 and p95 in 0 of 1 runs" in said(found)
    found["runs"][1]["choices"]["completion"] = choice({})
    assert "cannot be said" in said(found)


def test_whether_prior_leaning_wins_is_what_the_paired_differences_say():
    three = {"1 - p": LOST, "p^10": LOST, "NLL at p >= 0.2": LOST, "DCO, N = 8": SURE}
    differences = {name: paired(*each) for name, each in three.items()}
    assert does_leaning_win(differences) == (
        "prior-leaning does not win: 1 - p, p^10 and NLL at p >= 0.2 recall less than NLL"
    )
    differences["p^10"] = paired(*SURE)
    assert does_leaning_win(differences) == (
        "prior-leaning wins in part: p^10 recalls more than NLL, 1 - p and NLL at p >= 0.2 recall less than "
        "NLL"
    )
    even = dict.fromkeys(three, paired(*EVEN))
    assert does_leaning_win(even).startswith("prior-leaning does not win: what differs from NLL is within")
    sure = dict.fromkeys(three, paired(*SURE))
    assert does_leaning_win(sure).startswith("prior-leaning wins: 1 - p, p^10 and")
    assert does_leaning_win({"DCO, N = 8": paired(*SURE)}) == "no prior-leaning objective was run"


def test_each_part_and_end_has_a_verdict_of_its_own(found):
    found["objectives compared"][3]["last"] = paired(*SURE)
    text = said(found)
    for part, facts in (("b", "Right sentences"), ("c", "A fifth of the objects wrong")):
        for end in ("from the untrained model", "from a checkpoint of NLL"):
            wins = (
                "wins: 1 - p recalls more"
                if (part, end[5:8]) == ("c", "a c")
                else "does not win: 1 - p recalls less"
            )
            assert f"({part}) {facts}, {end}: prior-leaning {wins} than NLL." in text
    assert "(at the start 40 %): NLL 90 %; 1 - p 20 %; most under NLL" in text
    the(found, "c", "strong", "1 - p")["recall"][-1] = 1.0
    assert "most under 1 - p" in said(found)


def test_what_is_learned_of_wrong_objects_stands_beside_what_was_known(found):
    the(found, "c", "strong", "1 - p")["training_set"]["wrong_objects"] = 0.15
    text = said(found)
    assert "Of the wrong objects in training are known: NLL 40 %; 1 - p 15 %." in text
    assert "before training they know 50 % of the right objects and 12 % of the wrong ones" in text
    found["starts on wrong objects"] = {}
    assert "was not measured" in said(found)


def test_a_checkpoint_that_no_epoch_betters_is_named(found):
    assert "In 0 of 4 runs from a checkpoint of NLL no epoch recalls more" in said(found)
    worst = the(found, "b", "strong", "1 - p")
    worst["choices"]["completion"] = choice({"p50": 0.1}, ["p50"], best="epoch 0")
    text = said(found)
    assert (
        "**In 1 of 4 runs from a checkpoint of NLL no epoch recalls more than the checkpoint** (1 - p 1)."
        in text
    )
    assert (
        "In these the pick of the mean is worse than the best by more than chance in 0, the median's in 1"
        in text
    )


def test_the_tail_is_said_of_both_kinds_of_tokens_and_both_percentiles(found):
    assert "rises in some seed, of all tokens under no objective, of completions under no objective" in said(
        found
    )
    nll, plain = (the(found, "b", "weak", name)["moved"] for name in ("NLL", "1 - p"))
    for since in ("since_start", "since_lowest"):
        nll["all"][since] = {"p95": LEVEL, "p99": UP}  # p99 alone is enough
        plain["all"][since] = {"p95": UP, "p99": UP}
    plain["completion"]["since_lowest"] = {"p95": UP, "p99": LEVEL}  # fell before
    text = tail_sentence(found, "b", "weak")
    assert "of all tokens under every objective, of completions under all but NLL." in text
    assert "Of all tokens one of them is higher than at the start under NLL and 1 - p." in text
    assert "Of completions one of them is higher only than where it was lowest under 1 - p." in text
    rows = {tuple(row.split(" | ")[:2]): row for row in tails(found).splitlines()}
    row = rows["| (b) weak", "NLL"]
    assert row.count("**3.0**") == 2
    assert row.split(" | ")[2:4] == ["0.1", "0.1"]


def test_one_seed_in_which_the_tail_rises_is_enough(found):
    other = copy.deepcopy(the(found, "b", "strong", "NLL")) | {"seed": 1}
    other["moved"]["completion"]["since_lowest"]["p99"] = UP
    found["runs"].append(other)
    assert "of completions under all but 1 - p." in tail_sentence(found, "b", "strong")


def test_a_median_that_falls_while_nothing_is_learned_is_named(found):
    assert "The median may fall" not in said(found)
    run = the(found, "b", "weak", "1 - p")
    run["completion"]["p50"], run["recall"] = [7.5, 1.0, 0.02], [0.0, 0.0, 0.01]
    assert "in 1 of 4 runs from the untrained model (1 - p 1): that of completions was 7.50 nats" in said(
        found
    )


def test_learning_rates_are_compared_with_the_worst_of_nll(found):
    assert "At no rate does 1 - p recall as much as NLL at its worst one." in said(found)
    assert "NLL 90 % at 0.0001, 60 % at 0.0002; 1 - p 20 % at 0.0001, 10 % at 0.0002." in said(found)
    the(found, "b", "weak", "1 - p")["recall"][-1] = 0.7
    assert "At its best rate 1 - p recalls as much as NLL at its worst one, or more." in said(found)


def test_parts_that_are_not_there_are_not_spoken_of(found):
    only_a = found | {"runs": found["runs"][:2], "objectives compared": []}
    assert of_objectives_in_words(only_a) == []
    assert "2510.00526: a model" not in beside_the_papers(only_a)
    assert "In short" in verdicts(only_a)
    without = found | {"runs": found["runs"][1:]}
    assert "In short" not in verdicts(without)
    assert "NLL 17.00, -p 32.75" in beside_the_papers(without)
    assert verdicts(found | {"runs": []}) == beside_the_papers(found | {"runs": []}) == ""


def test_correlations_that_are_not_there_are_a_dash(found):
    assert "Pearson, all tokens: mean -, median -" in beside_the_papers(found)


def test_what_other_pages_say_of_objectives_is_in_the_results():
    """docs/objectives.md, docs/trust.md and docs/capability.md."""
    found = json.loads((STUDIES / "fact_sft.json").read_text(encoding="utf-8"))

    def recalls(part, end, names):
        runs = [run for name in names for run in of_ends(found, part, end)[name]]
        assert len(runs) == 3 * len(names)
        shares = [round(100 * run["recall"][-1]) for run in runs]
        return min(shares), max(shares)

    ends = [recalls("b", end, ["NLL"]) for end in ("weak", "strong")]
    assert (min(low for low, _ in ends), max(high for _, high in ends)) == (98, 100)
    ends = [recalls("b", end, ["DCO, N = 8"]) for end in ("weak", "strong")]
    assert (min(low for low, _ in ends), max(high for _, high in ends)) == (88, 96)
    assert recalls("b", "weak", LEANING) == (0, 2)
    assert recalls("b", "strong", LEANING) == (3, 79)
    for end in ("weak", "strong"):
        assert recalls("c", end, LEANING)[1] < recalls("c", end, ["NLL"])[0]
        runs = of_ends(found, "c", end)
        assert max(run["training_set"]["wrong_objects"] for name in LEANING for run in runs[name]) < 0.2
    forgot = [run for part in "bc" for name in LEANING[1:] for run in of_ends(found, part, "strong")[name]]
    assert len(forgot) == 12
    assert {round(100 * run["recall"][0]) for run in forgot} == {24, 33, 46}
    assert all(run["recall"][-1] < run["recall"][0] for run in forgot)
    assert max(run["completion"]["p50"][0] for run in forgot) < 0.065
    assert max(run["completion"]["p50"][-1] for run in forgot) < 0.002
    assert missed(forgot, "p50") == 10
    assert missed(forgot, "mean") == 0
    starts = [run["start"] for run in of_ends(found, "b", "strong")["NLL"]]
    known = sorted((round(each["mean_p"], 2), round(100 * each["right_objects"])) for each in starts)
    assert (known[0][0], known[-1][0]) == (0.75, 0.81)
    assert {share for _, share in known} == {37, 40, 56}
