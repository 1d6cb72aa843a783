"""Prompts as the cause: four choices of each run, what prompts add to the mean, and the words for it."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.studies.fact_sft_parts.training import STATISTICS
from benchmarks.studies.fact_sft_parts.units import QUICK, Size, runs_of
from benchmarks.studies.markdown import with_section
from benchmarks.studies.masking import main
from benchmarks.studies.masking_parts.numbers import CELLS, cell, numbers
from benchmarks.studies.masking_parts.page import section, sentences
from benchmarks.studies.masking_parts.picture import picture
from examples.resumable import write_json
from lightning_pce import PercentileCrossEntropy
from lightning_pce.runs.history import write_validation

ROOT = Path(__file__).parents[2]
STUDIES = ROOT / "benchmarks" / "studies"
FACTS = 40
SIZE = Size(FACTS, 4, 2, 2, 1, (1e-4,), ("NLL",))
# After each epoch: what a fact's two prompt tokens and its completion token cost, and how many are recalled.
PROMPTS, COMPLETIONS, RECALLED = (5.0, 5.1, 5.2, 6.6), (3.0, 2.5, 1.5, 1.2), (2, 8, 30, 38)


def losses_after(epoch, seed):
    """``[3, FACTS]``: prompts grow worse, completions better, all by a factor of the fact."""
    hardness = np.random.default_rng(seed).uniform(0.8, 1.2, FACTS)
    return torch.from_numpy(np.array([[PROMPTS[epoch]], [PROMPTS[epoch]], [COMPLETIONS[epoch]]]) * hardness)


def finish(unit):
    """What a unit of the fact study leaves behind; trained on all tokens all recall comes an epoch later."""
    unit.path.parent.mkdir(parents=True, exist_ok=True)
    late = unit.settings["trained_on"] == "all"
    rows = []
    for epoch in range(5):
        after = max(epoch - 1, 0)
        metric = PercentileCrossEntropy(groups=("prompt", "completion"), error_bars=True)
        group, document = torch.tensor([[0], [0], [1]]).expand(3, FACTS), torch.arange(FACTS).expand(3, FACTS)
        metric.update(losses=losses_after(after, unit.settings["seed"]), group=group, document=document)
        values = {name: float(value) for name, value in metric.compute().items()}
        write_validation(
            unit.path.with_suffix(".jsonl"),
            run="a",
            name="val",
            function="fit" if epoch else "validate",
            step=10 * epoch,
            epoch=epoch - 1 if epoch else None,
            values={f"ce_{name}": value for name, value in values.items()},
            digests={"ce": {"": metric.digest, **metric.group_digests}},
            documents={"ce": {"": metric.documents, **metric.group_documents}},
        )
        known = 0 if epoch == 0 else RECALLED[max(after - late, 0)]
        means = {
            "all": values["mean"],
            "prompt": values["prompt_mean"],
            "completion": values["completion_mean"],
        }
        row = {name: dict.fromkeys(STATISTICS, 0.0) | {"mean": mean} for name, mean in means.items()}
        row |= {"epoch": epoch, "recall": known / FACTS, "right": "1" * known + "0" * (FACTS - known)}
        rows.append(row | {"pass_at_1": 0.1, "pass_at_8": 0.2, "pass_at_64": 0.3, "log_prob": [-1.0] * FACTS})
    result = {"versions": {"torch": "2"}, "precision": "32-true", "seconds": 60.0, "cpu_seconds": 30.0}
    result |= {"strong_start": None, "epochs": rows, "training_set": {"mean_p": 0.9}}
    write_json(unit.path, {"settings": unit.settings, **result})


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    units = runs_of(("a",), tmp_path_factory.mktemp("masking"), None, SIZE).first
    for unit in units:
        finish(unit)
    return numbers(units)


def test_with_prompts_the_mean_picks_early_and_without_them_late(found):
    assert [(each["trained_on"], each["scored_on"]) for each in found["cells"]] == list(CELLS)
    for trained_on, scored_on in CELLS:
        picks = [run["picks"]["mean"] for run in cell(found, trained_on, scored_on)["runs"]]
        late = scored_on == "completion"
        assert [pick["label"] for pick in picks] == ["epoch 3" if not late else "epoch 4"] * 2
    assert cell(found, "all", "all")["missed"]["mean"] == 2
    assert cell(found, "completion", "completion")["missed"]["mean"] == 0


def test_moves_are_recall_at_one_pick_less_that_at_another(found):
    moves = {(*each["from"], *each["to"], each["statistic"]): each for each in found["moves"]}
    assert len(moves) == len(found["moves"]) == 12
    assert moves["all", "all", "all", "completion", "mean"]["by_seed"] == [22 / FACTS] * 2
    assert moves["completion", "all", "completion", "completion", "mean"]["mean"] == 8 / FACTS
    both = moves["all", "all", "completion", "completion", "mean"]
    assert both["by_seed"] == [30 / FACTS] * 2
    assert both["low"] < 30 / FACTS < both["high"]


def test_the_rise_of_the_mean_is_that_of_its_parts(found):
    for rise in found["rises"]:
        first, last = (losses_after(epoch, rise["seed"]) for epoch in (2, 3))
        assert (rise["lowest"], rise["last"]) == ("epoch 3", "epoch 4")
        assert rise["change"] == pytest.approx(float(last.mean() - first.mean()), abs=1e-4)
        change = (last - first).sum(1) / last.numel()
        assert rise["prompt"]["change"] == pytest.approx(float(change[:2].sum()), abs=1e-4)
        assert rise["completion"]["change"] == pytest.approx(float(change[2]), abs=1e-4)
        assert rise["prompt"]["share of tokens"] == pytest.approx(2 / 3, abs=1e-4)
        assert rise["prompt"]["lost"] == pytest.approx(rise["prompt"]["change"], abs=1e-3)
        assert rise["completion"]["gained"] == pytest.approx(-rise["completion"]["change"], abs=1e-3)


def test_the_words_follow_from_the_numbers(found):
    def answer(with_prompts, without):
        other = copy.deepcopy(found)
        for each in other["cells"]:
            each["missed"]["mean"] = with_prompts if each["scored_on"] == "all" else without
        return sentences(other)[0]

    assert answer(2, 0).startswith("**Yes: ")
    assert answer(2, 1).startswith("**In part: ")
    assert answer(2, 2).startswith("**No: ")
    assert answer(0, 0).startswith("**With prompts the mean does not fail")
    said = sentences(found)
    assert said[0].startswith("**Yes: ")
    assert "recalls 20 % of the facts" in said[0]
    assert "in 2 of 2 runs" in said[0]
    assert "picks epochs 4, 4 instead of 3, 3 (by seed), and recall at its pick changes by +55" in said[1]


def test_the_page_and_the_picture_are_made_of_the_numbers(found, tmp_path):
    text = section(found)
    assert "| all tokens | completions | mean | 4: 75 % [60, 86] | 4: 75 % [60, 86] | 75 % |" in text
    assert "| all tokens | all tokens | mean | **3: 20 % [10, 35]** |" in text
    assert "66.7 % | 20 % of 75 % | 95 % of 95 % |" in text
    assert "third party" in text
    picture(tmp_path / "masking.png", found)
    assert (tmp_path / "masking.png").stat().st_size > 20_000


def committed():
    return json.loads((STUDIES / "masking.json").read_text(encoding="utf-8"))


def test_the_committed_page_says_what_the_committed_numbers_say():
    page = (STUDIES / "README.md").read_text(encoding="utf-8")
    assert with_section(page, "masking", section(committed())) == page


def test_what_follows_from_it_is_in_the_numbers():
    """The words below the section, which are not written by the study."""
    result = committed()
    assert result["seeds"] == [0, 1, 2, 3, 4]
    for rise in result["rises"]:
        assert rise["completion"]["change"] <= 0 <= rise["prompt"]["change"]
    for trained_on in ("all", "completion"):
        missed = cell(result, trained_on, "completion")["missed"]
        assert missed["mean"] == missed["p50"] == missed["p75"] == 0
    for each in result["beside the mean"]:
        if each["scored_on"] == "completion" and each["pick"] == "p50":
            assert max(map(abs, each["by_seed"])) < 0.01
    assert cell(result, "all", "all")["missed"]["p50"] == 0
    missed = cell(result, "completion", "all")["missed"]
    assert (missed["p50"], missed["p75"], missed["p95"]) == (3, 5, 5)


def test_what_came_out_is_in_the_numbers():
    """The sentences at the top of the page, as far as they are about these runs."""
    result = committed()
    unmasked = cell(result, "all", "all")["missed"]
    assert (unmasked["mean"], unmasked["p50"]) == (4, 0)
    masked = [cell(result, trained_on, "completion") for trained_on in ("all", "completion")]
    assert [each["missed"][name] for each in masked for name in ("mean", "p50")] == [0, 0, 0, 0]
    assert [len(each["runs"]) for each in masked] == [5, 5]
    assert all("p50" in run["saturated"] for run in masked[1]["runs"])
    for each in result["beside the mean"]:
        if each["trained_on"] == each["scored_on"] == "completion" and each["pick"] in ("p75", "p95"):
            assert each["mean"] <= 0  # and the median's pick is the mean's, or as good


def test_what_other_pages_say_of_it_is_in_the_numbers():
    """docs/trust.md, decision.md and groups.md, and the README of the project."""
    result = committed()

    def recalled(trained_on, scored_on, name):
        runs = cell(result, trained_on, scored_on)["runs"]
        return [round(100 * run["picks"][name]["task"]) for run in runs]

    def average(trained_on, scored_on, name):
        runs = cell(result, trained_on, scored_on)["runs"]
        return round(100 * np.mean([run["picks"][name]["task"] for run in runs]))

    with_prompts, without = ("all", "all"), ("all", "completion")
    assert (average(*with_prompts, "mean"), average(*with_prompts, "p50")) == (36, 98)
    assert (average(*without, "mean"), average(*without, "p50")) == (98, 98)
    assert (min(recalled(*with_prompts, "mean")), max(recalled(*with_prompts, "mean"))) == (4, 100)
    assert set(recalled(*without, "mean")) == set(recalled(*without, "p50")) == {98, 99}
    assert max(recalled("all", "all", "p95") + recalled("completion", "all", "p95")) == 2
    missed = [cell(result, *each)["missed"] for each in (with_prompts, without)]
    assert [(each["mean"], each["p50"]) for each in missed] == [(4, 0), (0, 0)]
    masked = cell(result, "completion", "completion")
    assert all("p50" in run["saturated"] for run in masked["runs"])
    assert masked["missed"]["p50"] == 0


def test_nothing_is_trained_beside_runs_of_other_versions(tmp_path, monkeypatch):
    first, second = runs_of(("a",), tmp_path, None, QUICK).first
    finish(first)
    words = ["masking", "--quick", "--runs", str(tmp_path), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit, match=r"versions\.torch is '2' there and "):
        main()
    assert not second.path.exists()


@pytest.mark.slow
def test_a_quick_study_trains_what_is_missing_and_nothing_twice(tmp_path):
    command = [sys.executable, "-m", "benchmarks.studies.masking", "--quick", "--processes", "1"]
    command += ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    first, again = (
        subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=590) for _ in range(2)
    )
    assert (first.returncode, again.returncode) == (0, 0), first.stderr[-3000:] + again.stderr[-3000:]
    assert first.stdout.startswith("2 of 2 units to do")
    assert first.stdout.endswith(again.stdout)
    assert "### Is it the prompts?" in again.stdout
    found = json.loads((tmp_path / "out" / "masking.json").read_text(encoding="utf-8"))
    assert found["seeds"] == [0]
    assert (tmp_path / "out" / "masking.png").stat().st_size > 20_000
    assert "val_recall" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
