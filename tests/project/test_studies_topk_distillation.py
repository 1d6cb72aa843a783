"""The parts of the distillation study, a small one that goes all the way, and what its page says."""

import json
import math
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks.studies.markdown import with_section
from benchmarks.studies.numbers_file import write_numbers
from benchmarks.studies.topk_distillation_parts import measuring, reading, stories, training
from benchmarks.studies.topk_distillation_parts import text as text_module
from benchmarks.studies.topk_distillation_parts.numbers import finished, numbers
from benchmarks.studies.topk_distillation_parts.page import NOT_YET, section, write_section
from benchmarks.studies.topk_distillation_parts.pictures import picture
from benchmarks.studies.topk_distillation_parts.text import Text, rows_of, split, token_ids, trained_tokenizer
from benchmarks.studies.topk_distillation_parts.units import Size, label_of, models_of, name_of
from benchmarks.studies.topk_distillation_parts.verdicts import IN_SHORT, beside_the_paper, verdicts
from examples.proxy_study_parts.models import build
from examples.resumable import Unit, read, write_json
from lightning_pce import PercentileCrossEntropy
from lightning_pce.runs import History, reshaping, verdict

ROOT = Path(__file__).parents[2]
README = ROOT / "benchmarks" / "studies" / "README.md"
RESULTS = ROOT / "benchmarks" / "studies" / "topk_distillation.json"
CONTEXT = 24
ANIMALS = ("cat", "dog", "cow", "pig", "hen", "fox", "owl", "bee")


LINES = [
    f"The {first} of the {place} has seen one {then}{mark}"
    for place in ("farm", "town", "wood", "hill", "sea")
    for first in ANIMALS
    for then, mark in zip(ANIMALS, ".,;:!?.,", strict=True)
]


@pytest.fixture(scope="module")
def text():
    train, held_out = LINES[:128], LINES[128:]
    tokenizer = trained_tokenizer(train, 320)
    return Text("farm", tokenizer, token_ids(tokenizer, train), token_ids(tokenizer, held_out), held_out)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build("GPT", 320, 32, 1, CONTEXT).eval()


def test_text_is_tokens_and_back(text):
    assert text.tokenizer.decode(text.held_out.tolist()) == "\n".join([*text.lines, ""])
    odd = "Ünë 雪 🙂"  # no text lacks a token
    assert text.tokenizer.decode(text.tokenizer.encode(odd).ids) == odd


def test_the_last_lines_are_held_out():
    train, held_out = split([f"line {number:02}" for number in range(40)])
    assert [*train, *held_out] == [f"line {number:02}" for number in range(40)]
    assert len(held_out) == 4


def test_rows_hold_every_token_once_as_a_label():
    rows = rows_of(torch.arange(23), 5)
    assert rows[:, 1:].flatten().tolist() == list(range(1, 21))
    assert torch.equal(rows[1:, 0], rows[:-1, -1])


def test_a_cloze_line_has_its_own_word_first_and_nothing_after_it(text):
    cloze = measuring.cloze_of(text, CONTEXT, seed=0)
    assert len(cloze.ids) > 20
    whole = "\n".join(text.lines)
    for choices, length in zip(cloze.ids, cloze.lengths.tolist(), strict=True):
        seen = [text.tokenizer.decode(row.tolist()) for row in choices]
        words = [text.tokenizer.decode(row[-length:].tolist()) for row in choices]
        assert seen[0] in whole
        assert len(set(words)) == measuring.CHOICES
        assert {word.strip() for word in words} <= set(ANIMALS)
        before = {row[: len(row) - len(word)] for row, word in zip(seen, words, strict=True)}
        assert len(before) == 1
    assert torch.equal(cloze.ids, measuring.cloze_of(text, CONTEXT, seed=0).ids)
    assert not torch.equal(cloze.ids, measuring.cloze_of(text, CONTEXT, seed=1).ids)


def test_who_knows_the_lines_chooses_their_words_and_who_avoids_them_none(text):
    cloze = measuring.cloze_of(text, CONTEXT, seed=0)
    right = {tuple(row.tolist()) for row in cloze.ids[:, 0]}

    class Knows(torch.nn.Module):
        def __init__(self, sign):
            super().__init__()
            self.sign, self.weight = sign, torch.nn.Parameter(torch.zeros(1))

        def forward(self, ids):
            logits = torch.zeros(*ids.shape, 320)
            for number, row in enumerate(ids.tolist()):
                for each in right:
                    if tuple(row) == each[:-1]:
                        logits[number, -1, each[-1]] = self.sign
            return logits, None

    assert measuring.chosen_rightly(Knows(5.0), cloze).mean() == 1
    assert measuring.chosen_rightly(Knows(-5.0), cloze).mean() == 0


def test_the_log_probability_of_samples_is_that_of_a_direct_computation(model):
    samples = measuring.sampled(model, 7, CONTEXT, begin=3, seed=0)
    assert samples.shape == (7, CONTEXT + 1)
    assert samples[:, 0].eq(3).all()
    with torch.no_grad():
        logits, _ = model(samples[:, :-1])
        losses = F.cross_entropy(logits.transpose(1, 2), samples[:, 1:], reduction="none")
        torch.testing.assert_close(measuring.log_prob_of(model, samples), -losses.mean(1))


@torch.no_grad()
def test_samples_are_drawn_from_the_model(model):
    """Its first tokens come as often as they are probable."""
    model.embed.weight.mul_(3.0)  # less even
    samples = measuring.sampled(model, 20_000, 1, begin=3, seed=0)
    shares = samples[:, 1].bincount(minlength=320) / len(samples)
    probabilities = model(torch.tensor([[3]]))[0][0, 0].softmax(-1)
    assert probabilities.max() > 0.03
    assert (shares - probabilities).abs().max() < 0.01


def test_measures_are_those_of_all_held_out_tokens(text, model):
    found = measuring.measure(model, model, text, CONTEXT, seed=0)
    rows = rows_of(text.held_out, CONTEXT)
    rows = rows[: len(rows) // measuring.BLOCK * measuring.BLOCK]
    with torch.no_grad():
        logits, _ = model(rows[:, :-1])
    losses = F.cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none").flatten()
    ce, tasks = found.result["ce"], found.result["tasks"]
    assert ce["count"] == len(losses)
    assert ce["mean"] == pytest.approx(losses.mean().item(), abs=1e-5)
    assert ce["p75"] == pytest.approx(losses.quantile(0.75).item(), abs=1e-2)
    assert ce["mean_low"] < ce["mean"] < ce["mean_high"]  # by document: there are enough of them
    likeliest = logits.topk(5).indices == rows[:, 1:, None]
    assert found.result["within_top"]["5"] == pytest.approx(likeliest.any(-1).float().mean().item(), abs=1e-4)
    right = (logits.argmax(-1) == rows[:, 1:]).float()
    assert tasks["top_1"] == pytest.approx(right.view(-1, 4 * CONTEXT).mean(1).tolist(), abs=1e-4)
    assert len(tasks["teacher_log_prob"]) == measuring.SAMPLES
    assert tasks["teacher_log_prob"] == found.result["own_log_prob"]  # it is its own teacher here
    assert set(tasks["cloze"]) <= {0.0, 1.0}


@pytest.mark.parametrize("k", [1, 5, 50])
def test_what_was_stored_trains_as_the_logits_do(text, model, tmp_path, k):
    rows = rows_of(text.train, CONTEXT)
    path = tmp_path / "top.pt"
    training.save(training.stored(model, rows), path)
    numbers = torch.tensor([4, 0, 7])
    logits = torch.randn(3, CONTEXT, 320)
    found = training.loss_of(k, model, path)(logits, rows[numbers], numbers)
    with torch.no_grad():
        teacher, _ = model(rows[numbers, :-1])
    kept = teacher.topk(k).indices
    target = torch.full_like(teacher, -math.inf).scatter(-1, kept, teacher.gather(-1, kept)).softmax(-1)
    by_hand = F.kl_div(logits.log_softmax(-1), target, reduction="none").sum(-1).mean()
    assert found.item() == pytest.approx(by_hand.item(), abs=2e-3)  # float16
    whole = training.loss_of(None, model, path)(logits, rows[numbers], numbers)
    exact = F.kl_div(logits.log_softmax(-1), teacher.softmax(-1), reduction="none").sum(-1).mean()
    assert whole.item() == pytest.approx(exact.item(), abs=1e-5)


def test_batches_go_through_all_rows_before_any_comes_again():
    first = list(training.batches(10, steps=5, size=4, seed=0))
    assert [len(each) for each in first] == [4] * 5
    numbers = torch.cat(first)
    assert sorted(numbers[:10].tolist()) == sorted(numbers[10:].tolist()) == list(range(10))
    assert torch.equal(numbers, torch.cat(list(training.batches(10, 5, 4, seed=0))))


def test_students_of_a_seed_differ_in_k_alone(tmp_path):
    size = Size(layers=1, width=16, context=16, vocabulary=260, batch=4, steps=2)
    teachers, students = models_of(("topics 1",), 3, tmp_path, size)
    assert [unit.settings["k"] for unit in students] == [1, 2, 5, 10, 20, 50, None]
    own = ("name", "label", "k")
    shared = [{name: value for name, value in unit.settings.items() if name not in own} for unit in students]
    assert all(each == shared[0] for each in shared)
    assert teachers[0].settings["steps"] == 2 * students[0].settings["steps"]
    begun = [
        training.new_model(unit.settings).state_dict() for unit in (students[0], students[4], teachers[0])
    ]
    assert torch.equal(begun[0]["embed.weight"], begun[1]["embed.weight"])
    assert not torch.equal(begun[0]["embed.weight"], begun[2]["embed.weight"])
    assert begun[0]["place.weight"].std() < begun[0]["embed.weight"].std()  # or tokens drown in their places
    assert name_of("topics 1", 3, "K = 5") == "topics_1_seed_3_k_5"


def test_stories_are_cut_at_enough_tokens_and_a_sentence_is_a_line(tmp_path):
    for number in range(2):
        piece = {"stories": [f"One {number}. \n Two!", f"Three {number}?  Four."], "tokens": [6, 6]}
        write_json(tmp_path / f"{number}.json", piece)
    found = stories.first_tokens([tmp_path / "0.json", tmp_path / "1.json"], enough=13)
    assert [line for story in found for line in stories.sentences(story)] == [
        "One 0.", "Two!", "Three 0?", "Four.", "One 1.", "Two!",
    ]  # fmt: skip
    seeds = [unit.settings["seed"] for unit in stories.pieces(tmp_path)]
    assert len(set(seeds)) == stories.PIECES
    assert stories.PIECES * stories.STORIES * stories.NEW_TOKENS > stories.ENOUGH


def test_a_student_learns_from_its_teacher(tmp_path, monkeypatch):
    monkeypatch.setattr(text_module, "lines_of", lambda name, out: LINES * 3)
    size = Size(layers=1, width=32, context=16, vocabulary=260, batch=8, steps=15)
    teachers, students = models_of(("farm",), 0, tmp_path, size)
    for unit in (teachers[0], students[2], students[-1]):
        write_json(unit.path, {"settings": unit.settings, **training.run(unit)})
    paths = [unit.path.with_suffix(".jsonl") for unit in (teachers[0], students[2], students[-1])]
    history = History.load(*paths)
    assert [record.label for record in history] == ["teacher", "K = 5", "full"]
    assert reshaping(history[0], history[1]).difference.shape == (199,)
    assert set(verdict(history[1:]).shortlist) <= {"K = 5", "full"}
    for unit, record in zip((students[2], students[-1]), history[1:], strict=True):
        result = read(unit)
        assert result["training_loss"][-1] < result["training_loss"][0]
        assert result["ce"]["mean"] == pytest.approx(record.values["ce_mean"])
        assert record.scalars["cloze"] == pytest.approx(
            sum(result["tasks"]["cloze"]) / len(result["tasks"]["cloze"])
        )


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
    with pytest.raises(SystemExit, match="several versions"):
        numbers([units[0], other, *units[2:8]], [])


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
    full = json.loads(units[7].path.read_text(encoding="utf-8"))
    compared = found["less full"]
    [each] = [e for e in compared if (e["text"], e["label"], e["task"]) == ("shakespeare", "K = 5", "cloze")]
    assert each["by_seed"][0] == pytest.approx(np.mean(cloze) - np.mean(full["tasks"]["cloze"]), abs=1e-4)


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
    assert "The stories are the first" not in text
    stories = {
        "kept": 200_000,
        "temperature": 0.7,
        "tokens": 200,
        "seeds": [0, 1],
        "precision": "torch.bfloat16",
    }
    assert "wrote at temperature\n  0.7" in section(found | {"stories": stories | {"cpu_seconds": 600.0}})


def test_sentences_are_made_of_the_numbers(found):
    said = verdicts(found)
    assert "**Shakespeare**" in said
    assert "The mean rises with each smaller K in 2 of 2 seeds" in said
    assert "and was 1.00 in the last tenth of its training." in said
    assert "p5 at K = 1; p25 at K = 1; p75 at full" in said
    assert "The best student, by seed: cloze accuracy full" in said
    assert "rho of cloze accuracy and the teacher's log p is 1.00" in said
    assert "p75 -1.00, p95 -1.00, the closest: mean, p75, p95;" in said
    assert "half of all tokens from K = 10 on" in said
    missed = [choice["picks"]["picks"]["p25"]["missed"] for choice in found["choices"]]
    assert f"p25 in {sum(missed)}" in said
    assert sum(missed) >= 6
    theirs = beside_the_paper(found)
    assert "Shakespeare: the mean is monotone in 2 of 2 seeds" in theirs
    assert "of the seven means the 5th lowest" in theirs


def test_the_picture_is_drawn_of_what_there_is(found, tmp_path):
    picture(found, tmp_path / "all.png")
    assert (tmp_path / "all.png").stat().st_size > 50_000


def test_written_numbers_are_read_back(found, tmp_path):
    write_numbers(tmp_path / "numbers.json", found)
    assert json.loads((tmp_path / "numbers.json").read_text(encoding="utf-8")) == found


def test_the_readme_says_what_the_results_say(tmp_path):
    """Or that there are none."""
    readme, results = (
        ROOT / "benchmarks" / "studies" / name for name in ("README.md", "topk_distillation.json")
    )
    page = readme.read_text(encoding="utf-8")
    if results.exists():
        (tmp_path / "README.md").write_text(page, encoding="utf-8")
        write_section(tmp_path / "README.md", json.loads(RESULTS.read_text(encoding="utf-8")))
        assert (tmp_path / "README.md").read_text(encoding="utf-8") == page
        assert RESULTS.with_suffix(".png").exists()
    else:
        assert with_section(page, "topk_distillation", NOT_YET) == page


def test_what_the_page_says_in_short_is_in_the_results():
    """Or the page does not say it yet."""
    if not RESULTS.exists():
        assert IN_SHORT not in README.read_text(encoding="utf-8")
        return
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    turns = {"shakespeare": "K = 20", "stories": "K = 5"}
    assert list(found["texts"]) == list(turns)
    for text, turn in turns.items():
        teachers = reading.models_of_label(found, text, "teacher")
        assert len(teachers) == 3
        for seed, teacher in enumerate(teachers):
            assert reading.rises_with_smaller_k(found, text, seed, "mean")
            assert reading.falls_with_smaller_k(found, text, seed, "p5")
            assert teacher["within_top"][turn.removeprefix("K = ")] > 0.5
        assert reading.lowest_of(found, text, "p50") == [turn] * 3
        assert max(reading.spearmans(found, text, "cloze", "mean")) < -0.85
        assert max(reading.spearmans(found, text, "teacher_log_prob", "p25")) < -0.85
        assert max(reading.tasks_together(found, text, "cloze", "teacher_log_prob")) < -0.85
        entropies = [
            [-model["own_log_prob"][0] for model in reading.models_of_label(found, text, label)]
            for label in reading.labels_of(found)[1:]
        ]
        assert all(
            low < high for row, then in pairwise(entropies) for high, low in zip(row, then, strict=True)
        )
    assert all(
        model["less_teacher"]["p50"][2] < 0 for model in reading.models_of_label(found, "stories", "K = 5")
    )
    for task in ("cloze", "teacher_log_prob"):
        for choice in reading.choices_of(found, "shakespeare", task):
            assert choice["picks"]["picks"]["p50"]["missed"]


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
