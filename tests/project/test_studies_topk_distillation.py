"""The distillation study: its units, a small one that goes all the way, and what its page says."""

import copy
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.studies.numbers_file import write_numbers
from benchmarks.studies.topk_distillation import train
from benchmarks.studies.topk_distillation_parts import kept, measuring, training
from benchmarks.studies.topk_distillation_parts import numbers as numbers_module
from benchmarks.studies.topk_distillation_parts.comparing import averaged, paired
from benchmarks.studies.topk_distillation_parts.numbers import finished, numbers
from benchmarks.studies.topk_distillation_parts.page import section, write_section
from benchmarks.studies.topk_distillation_parts.pictures import picture
from benchmarks.studies.topk_distillation_parts.reading import (
    covered,
    cpu_minutes,
    lowest_of,
    minutes_on_two_cores,
    models_of_label,
    rising,
    tasks_together,
)
from benchmarks.studies.topk_distillation_parts.units import Models, Size, label_of, name_of
from benchmarks.studies.topk_distillation_parts.verdicts import beside_the_paper, in_short, verdicts
from examples.resumable import Unit, read, write_json
from lightning_pce import PercentileCrossEntropy

ROOT = Path(__file__).parents[2]
README = ROOT / "benchmarks" / "studies" / "README.md"
RESULTS = ROOT / "benchmarks" / "studies" / "topk_distillation.json"
GUIDE = ROOT / "docs" / "distillation.md"


def finish(folder, text, seed, label, k, spread, right):
    """A unit as if it had been trained, with losses spread out; it is right about a share of the lines."""
    name = name_of(text, seed, label)
    settings = {"name": name, "label": label, "text": text, "seed": seed, "k": k, "recipe": 1, "data": "abc"}
    settings |= {"teacher": name_of(text, seed, "teacher"), **Size()._asdict()}
    settings |= {"kind": "teacher" if label == "teacher" else "student"}
    unit = Unit(folder / f"{name}.json", settings)
    rows = torch.Generator().manual_seed(seed)
    losses = torch.rand(40, 100, generator=rows) * 4 + 0.3
    losses = torch.where(losses < 2.3, losses / spread, losses * spread)
    metric = PercentileCrossEntropy(measuring.PERCENTILES, error_bars=True)
    metric.update(losses=losses, document=torch.arange(40), mask=torch.ones(40, 100, dtype=torch.bool))
    ce = {each: float(value) for each, value in metric.compute().items()}
    lines = torch.rand(200, generator=rows)
    result = {
        "ce": ce,
        "tasks": {
            "cloze": (lines < right).float().tolist(),
            "top_1": (lines[:40] / 2).tolist(),
            "teacher_log_prob": (lines - 3 * spread).tolist(),
        },
        "own_log_prob": (lines - 2).tolist(),
        "sample": "So it goes",
    }
    training.write_history(unit, measuring.Measured(result, metric))
    within = {"1": 0.2, "2": 0.3, "5": 0.4, "10": 0.5, "20": 0.6, "50": 0.7}
    result |= {
        "versions": {"torch": "2"},
        "parameters": 1000,
        "training_tokens": 5000,
        "held_out_tokens": 4000,
    }
    result |= {
        "seconds": 60.0,
        "cpu_seconds": {"training": 50.0, "measuring": 10.0},
        "training_loss": [2.0, 1.0],
    }
    write_json(unit.path, {"settings": settings, **result, "within_top": within})
    return unit


@pytest.fixture(scope="module")
def units(tmp_path_factory):
    """Two seeds of one text, one of another; with a smaller K losses are wider, and fewer lines are right."""
    folder = tmp_path_factory.mktemp("students")
    made = []
    for text, seed in (("shakespeare", 0), ("shakespeare", 1), ("stories", 0)):
        made.append(finish(folder, text, seed, "teacher", None, 1.0, 0.6))
        for place, k in enumerate((1, 2, 5, 10, 20, 50, None)):
            made.append(finish(folder, text, seed, label_of(k), k, 1.7 - 0.1 * place, 0.2 + 0.05 * place))
    return made


@pytest.fixture(scope="module")
def found(units):
    """Each seed asks about 200 lines, of which 150 are the next one's too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numbers_module, "cloze_lines", lambda unit: np.arange(200) + 50 * unit.settings["seed"])
        return numbers(units, [])


def test_a_text_and_seed_count_when_all_their_models_are_done(units):
    assert len(finished(units)) == 3
    other = units[3]._replace(path=units[3].path.with_name("not_there.json"))
    assert len(finished([*units[:3], other, *units[4:]])) == 2
    with pytest.raises(SystemExit, match="No teacher"):
        numbers([other, *units[4:8]], [])


def test_models_of_other_versions_are_not_mixed(units, tmp_path):
    result = json.loads(units[1].path.read_text(encoding="utf-8"))
    other = units[1]._replace(path=tmp_path / "other.json")
    write_json(other.path, result | {"versions": {"torch": "1"}})
    with pytest.raises(SystemExit, match=r"torch is '2' in shakespeare_seed_0_teacher and '1' in .*_k_1"):
        numbers([units[0], other, *units[2:8]], [])


def family_of(folder, monkeypatch):
    """The teacher and students of a seed as if they had been trained here."""
    monkeypatch.setattr(kept, "versions", lambda: {"torch": "2"})
    units = [finish(folder, "farm", 0, "teacher", None, 1.0, 0.6)]
    units += [finish(folder, "farm", 0, label_of(k), k, 1.2, 0.5) for k in (1, 5, None)]
    for path in (training.weights_path(units[0]), training.topk_path(units[0])):
        path.touch()
    return units


def trained(monkeypatch, units):
    """The names of what a study would train."""
    begun = []
    monkeypatch.setattr(
        "benchmarks.studies.topk_distillation.results",
        lambda units, *more: begun.extend(unit.settings["label"] for unit in units if read(unit) is None),
    )
    train([Models(units[:1], units[1:])], 1)
    return begun


def test_what_is_done_is_not_trained_again(tmp_path, monkeypatch, capsys):
    units = family_of(tmp_path, monkeypatch)
    training.weights_path(units[0]).unlink()  # no student needs it any more
    monkeypatch.setattr(kept, "versions", lambda: {"torch": "3"})  # nor the versions here
    assert trained(monkeypatch, units) == []
    assert capsys.readouterr().out == ""


def test_other_versions_are_refused_before_anything_is_trained(tmp_path, monkeypatch):
    units = family_of(tmp_path, monkeypatch)
    units[2].path.unlink()
    units[1].path.with_suffix(".jsonl").unlink()
    monkeypatch.setattr(kept, "versions", lambda: {"torch": "3"})
    with pytest.raises(
        SystemExit, match="torch is '2' in farm_seed_0_teacher and '3' in what is still to do"
    ):
        trained(monkeypatch, units)
    assert units[1].path.exists()


def test_a_unit_whose_history_is_lost_is_done_again(tmp_path, monkeypatch, capsys):
    units = family_of(tmp_path, monkeypatch)
    units[2].path.with_suffix(".jsonl").unlink()
    assert trained(monkeypatch, units) == ["K = 5"]
    assert "farm_seed_0_k_5 is done again: its farm_seed_0_k_5.jsonl is not there." in capsys.readouterr().out


@pytest.mark.parametrize("lost", [training.weights_path, training.topk_path])
@pytest.mark.parametrize("ending", [".json", ".jsonl"])
def test_a_teacher_whose_file_a_student_needs_is_done_again(tmp_path, monkeypatch, capsys, lost, ending):
    units = family_of(tmp_path, monkeypatch)
    lost(units[0]).unlink()
    units[1].path.with_suffix(ending).unlink()
    assert trained(monkeypatch, units) == ["teacher", "K = 1"]
    assert f"teacher is done again: its {lost(units[0]).name} is not there." in capsys.readouterr().out


def test_a_line_of_several_seeds_is_one_line():
    rng = np.random.default_rng(0)
    one = rng.normal(size=400)
    lines = np.arange(400)
    alone, thrice = paired([one], [lines]), paired([one] * 3, [lines] * 3)
    assert [thrice[end] for end in ("low", "high")] == [alone[end] for end in ("low", "high")]
    assert alone["t_low"] is None
    others = paired(list(rng.normal(size=(3, 400))), [lines, lines + 400, lines + 800])
    assert others["high"] - others["low"] < 0.7 * (alone["high"] - alone["low"])  # three times as many lines
    assert others["t_low"] < others["mean"] < others["t_high"]


def test_the_mean_of_lines_that_few_seeds_share_is_that_of_the_seeds():
    differences, lines = [np.array([1.0, 2.0]), np.array([4.0, 9.0])], [np.array([7, 3]), np.array([3, 5])]
    assert averaged(differences, lines).tolist() == [4.5, 6.75, 0.75]  # lines 3, 5 and 7: 4/3 seeds a line
    assert averaged(differences, lines).mean() == paired(differences, lines)["mean"] == 4.0


def test_numbers_are_those_of_the_models(units, found):
    assert [model["name"] for model in found["models"]] == [unit.settings["name"] for unit in units]
    assert found["texts"]["stories"]["cpu_seconds"] == {"training": 400, "measuring": 80}
    teacher, student = (json.loads(unit.path.read_text(encoding="utf-8")) for unit in (units[0], units[3]))
    model = found["models"][3]
    assert model["label"] == "K = 5"
    for name in ("mean", "p25", "p95"):
        value, low, high = model["less_teacher"][name]
        assert value == pytest.approx(student["ce"][name] - teacher["ce"][name], abs=1e-3)
        assert low < value < high
    assert model["less_teacher"]["p25"][0] < 0 < model["less_teacher"]["p95"][0]
    shape = model["reshaped"]
    assert shape["better_below"]
    assert 0.3 < shape["crossing"] < 0.6
    assert shape["lost"] - shape["gained"] == pytest.approx(model["less_teacher"]["mean"][0], abs=1e-3)
    assert shape["surely_better"] + shape["surely_worse"] > 0.8
    cloze = student["tasks"]["cloze"]
    assert model["tasks"]["cloze"][0] == pytest.approx(np.mean(cloze), abs=1e-4)
    samples = student["tasks"]["teacher_log_prob"]
    assert model["teacher_log_prob_error"] == pytest.approx(
        np.std(samples, ddof=1) / len(samples) ** 0.5, abs=1e-4
    )
    full = json.loads(units[7].path.read_text(encoding="utf-8"))
    compared = found["less full"]
    [each] = [e for e in compared if (e["text"], e["label"], e["task"]) == ("shakespeare", "K = 5", "cloze")]
    assert each["by_seed"][0] == pytest.approx(np.mean(cloze) - np.mean(full["tasks"]["cloze"]), abs=1e-4)
    assert each["t_low"] < each["low"] < each["mean"] < each["high"] < each["t_high"]
    own = [
        [json.loads(u.path.read_text(encoding="utf-8"))["tasks"]["cloze"] for u in units[i : i + 8]]
        for i in (0, 8)
    ]
    differences = [np.array(family[3]) - np.array(family[7]) for family in own]
    assert each == {**each, **paired(differences, [np.arange(200), np.arange(50, 250)])}


def test_students_are_the_candidates_and_the_task_orders_them(found):
    assert len(found["choices"]) == 3 * 3
    for choice in found["choices"]:
        picks = choice["picks"]
        assert picks["candidates"] == ["K = 1", "K = 2", "K = 5", "K = 10", "K = 20", "K = 50", "full"]
        if choice["task"] != "top_1":
            assert picks["best"] == "full"
            assert choice["kendall"]["mean"] == picks["correlation"]["mean"]["spearman"] == -1
            assert choice["kendall"]["p25"] == picks["correlation"]["p25"]["spearman"] == 1
            assert picks["picks"]["p25"]["label"] == "K = 1"
            assert picks["picks"]["p25"]["missed"]


def test_the_page_has_what_there_is(found):
    text = section(found)
    assert "| Shakespeare | K = 5 | 40 % |" in text
    assert "| Stories | cloze accuracy | -1.00 / -1.00 | **1.00 / 1.00** |" in text
    assert re.search(r"\| Shakespeare \| K = 5 \| .*\| -4\.01 ± 0\.02\d -3\.99 ± 0\.02\d \|", text)
    assert "The stories are the first" not in text
    stories = {
        "kept": 200_000,
        "temperature": 0.7,
        "tokens": 200,
        "seeds": [0, 1],
        "precision": "torch.bfloat16",
    }
    written = section(found | {"stories": stories | {"cpu_seconds": 600.0}})
    assert "wrote at temperature\n  0.7" in written
    assert "10 CPU minutes more" in written


def test_the_page_says_what_it_took(found):
    """Each model a minute: eight of a seed; alone a teacher and, two at a time, seven students."""
    assert cpu_minutes(found, "shakespeare") == [8, 8]
    assert minutes_on_two_cores(found, "shakespeare") == 2 * (1 + 4)
    text = section(found)
    assert "8 CPU minutes for the 8 models of a seed, 10 minutes for all 2 seeds on two cores." in text
    assert "8 CPU minutes for the 8 models of a seed, 5 minutes for all 1 seeds on two cores." in text
    assert "    python -m benchmarks.studies.topk_distillation --seeds 2\n" in text
    assert "topk_distillation --seeds 2 --layers 8\n" in section(
        found | {"size": found["size"] | {"layers": 8}}
    )


def test_sentences_are_made_of_the_numbers(found):
    said = verdicts(found)
    assert "**Shakespeare**" in said
    assert "It rises with each smaller K in 2 of 2 seeds" in said
    assert "and was 1.00 in the last tenth of its training." in said
    assert "It falls with each smaller K in 2 of 2 seeds." in said
    assert "holds less than half, in every seed, at: K = 5, K = 2, K = 1." in said
    assert "p5 at K = 1; p25 at K = 1; p75 at full" in said
    assert "Lower below it, in every seed: full at 0." in said
    assert "The best student, by seed: cloze accuracy full" in said
    assert "the teacher's log p (1 if they agree): 1.00." in said
    assert "cloze accuracy: mean, p75, p95 -1.00, median" in said
    assert "with a standard error of 0.02" in said
    missed = [choice["picks"]["picks"]["p25"]["missed"] for choice in found["choices"]]
    assert f"p25 in {sum(missed)}" in said
    assert sum(missed) >= 6
    theirs = beside_the_paper(found)
    assert "Shakespeare: the mean is monotone in 2 of 2 seeds" in theirs
    assert "of the 7 means the 5th lowest" in theirs


def test_what_is_in_short_is_so_of_other_results_too(found):
    """Of the units here, whose median falls all the way, and of others, where it turns in one seed."""
    said = " ".join(in_short(found).split())
    assert "the mean is in 3 of 3 pairs of text and seed, the median in 3 of 3: it is" in said
    assert (
        "None of mean, p5, p25, median, p75 and p95 has the right sign" in said
    )  # one task is the same everywhere
    other = copy.deepcopy(found)
    for model in other["models"]:
        k = model["k"] or 100
        falls = (model["text"], model["seed"]) != ("shakespeare", 1)
        model["ce"]["p50"] = k / 100 if falls else abs(k - 10)
        model["ce"]["mean"] = k
        if model["label"] == "K = 5":
            model["less_teacher"]["p50"] = [-0.2, -0.3, -0.1] if falls else [-0.2, -0.3, 0.1]
    for choice in other["choices"]:
        for each in choice["picks"]["correlation"].values():
            each["spearman"] = 0.5
        choice["picks"]["correlation"]["mean"]["spearman"] = -0.5
    said = " ".join(in_short(other).split())
    assert "the mean is in 0 of 3 pairs of text and seed, the median in 2 of 3" in said
    assert "lowest on Shakespeare at K = 1, K = 10 (by seed), on Stories at K = 1 in every seed." in said
    assert "below its teacher's on Shakespeare in 1 of 2 seeds, on Stories in 1 of 1 seeds" in said
    assert "Of the statistics mean has the right sign of correlation with every task in every seed." in said
    assert "falls with each smaller K in 1 of 2 seeds" in verdicts(other)


def test_a_page_of_another_text_of_one_seed_and_few_k(found):
    """Nothing on it is about the texts and the K of the committed results."""
    other = {
        **copy.deepcopy(found),
        "texts": {"bible": found["texts"]["stories"]},
        **{
            name: [
                each | {"text": "bible"}
                for each in found[name]
                if each["text"] == "stories"
                and each.get("label") in (None, "teacher", "full", "K = 1", "K = 50")
            ]
            for name in ("models", "choices", "less full")
        },
    }
    for each in other["less full"]:
        assert each["t_low"] is None
    text = section(other)
    assert not re.search(r"Shakespeare|(?<!Tiny)Stories|K = (2|5|10|20)\b.*has a median|seven", text)
    assert "on the Bible at" in text
    assert "orders the 3 students" in text
    assert "--text bible --seeds 1\n" in text


def test_easy_choices_are_left_out_of_the_picks(found):
    said = " ".join(verdicts(found).split())  # of top-1 accuracy all students have the same
    assert "In 3 of the 9 no student is worse than the best by more than chance. Of 6 choices" in said
    other = copy.deepcopy(found)
    for choice in other["choices"]:
        choice["picks"]["not_worse"] = choice["picks"]["candidates"]
    assert "nothing to miss in any of the 9 choices" in verdicts(other)


def test_the_picture_is_drawn_of_what_there_is(found, tmp_path):
    picture(found, tmp_path / "all.png")
    assert (tmp_path / "all.png").stat().st_size > 50_000


def test_written_numbers_are_read_back(found, tmp_path):
    write_numbers(tmp_path / "numbers.json", found)
    assert json.loads((tmp_path / "numbers.json").read_text(encoding="utf-8")) == found


def test_the_readme_says_what_the_results_say(tmp_path):
    page = README.read_text(encoding="utf-8")
    copy = tmp_path / "README.md"
    copy.write_text(page, encoding="utf-8")
    write_section(copy, json.loads(RESULTS.read_text(encoding="utf-8")))
    assert copy.read_text(encoding="utf-8") == page
    assert RESULTS.with_suffix(".png").exists()


def test_a_text_takes_what_the_readme_says():
    """On two cores, without the writing of the stories, which is timed apart."""
    said = re.search(
        r"topk_distillation` \| about (\d+) minutes a text \|", README.read_text(encoding="utf-8")
    )
    assert said is not None
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert list(found["texts"]) == ["shakespeare", "stories"]
    for text in found["texts"]:
        assert len(cpu_minutes(found, text)) == 3
        assert sum(cpu_minutes(found, text)) / 2 < minutes_on_two_cores(found, text) < int(said[1])


def test_the_guide_says_what_the_results_say():
    """Its table is of Shakespeare, the mean of the seeds."""
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    rows = re.findall(
        r"^\| (teacher|full|K = \d+) \| (.*) \|$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(rows) == 8
    for label, cells in rows:
        models = models_of_label(found, "shakespeare", label)
        assert len(models) == 3
        values = [float(cell.strip("*")) for cell in cells.split(" | ")]
        for value, name in zip(values, ("mean", "p5", "p25", "p50", "p95"), strict=True):
            assert value == pytest.approx(sum(model["ce"][name] for model in models) / 3, abs=0.0051)
    for text, turn in (("shakespeare", "K = 20"), ("stories", "K = 5")):
        assert lowest_of(found, text, "p50") == [turn] * 3
        assert 0.6 < min(covered(found, text, turn)) < max(covered(found, text, turn)) < 0.7
        assert all(rising(found, text, "mean"))
    assert max(tasks_together(found, "shakespeare", "cloze", "teacher_log_prob")) < -0.8


@pytest.mark.slow
def test_a_small_study_goes_on_where_it_was_killed(tmp_path):
    command = [
        sys.executable,
        "-m",
        "benchmarks.studies.topk_distillation",
        "--quick",
        "--out",
        str(tmp_path),
    ]
    units = tmp_path / "units"
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as killed:
        until = time.monotonic() + 240
        while len(list(units.glob("*.json"))) < 5 and killed.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
        killed.kill()
    kept = {path: path.stat().st_mtime_ns for path in units.glob("*.json")}
    assert 5 <= len(kept) < 16
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert all(path.stat().st_mtime_ns == kept[path] for path in kept)
    result = json.loads((tmp_path / "topk_distillation.json").read_text(encoding="utf-8"))
    assert len(result["models"]) == 16
    assert len(result["choices"]) == 6
    assert "### Which statistic orders the students as a task does?" in done.stdout
    assert (tmp_path / "topk_distillation.png").stat().st_size > 50_000
    assert "K = 5" in (tmp_path / "report.html").read_text(encoding="utf-8")
