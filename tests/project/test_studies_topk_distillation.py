"""The parts of the distillation study, a small one that goes all the way, and what its page says."""

import copy
import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks.studies.numbers_file import write_numbers
from benchmarks.studies.topk_distillation import train
from benchmarks.studies.topk_distillation_parts import kept, measuring, stories, training
from benchmarks.studies.topk_distillation_parts import numbers as numbers_module
from benchmarks.studies.topk_distillation_parts import text as text_module
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
from benchmarks.studies.topk_distillation_parts.text import Text, rows_of, split, token_ids, trained_tokenizer
from benchmarks.studies.topk_distillation_parts.units import Models, Size, label_of, models_of, name_of
from benchmarks.studies.topk_distillation_parts.verdicts import beside_the_paper, in_short, verdicts
from examples.proxy_study_parts.models import build
from examples.resumable import Unit, read, write_json
from lightning_pce import PercentileCrossEntropy
from lightning_pce.runs import History, reshaping, verdict

ROOT = Path(__file__).parents[2]
README = ROOT / "benchmarks" / "studies" / "README.md"
RESULTS = ROOT / "benchmarks" / "studies" / "topk_distillation.json"
GUIDE = ROOT / "docs" / "distillation.md"
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
    for choices, length, line in zip(cloze.ids, cloze.lengths.tolist(), cloze.lines.tolist(), strict=True):
        seen = [text.tokenizer.decode(row.tolist()) for row in choices]
        words = [text.tokenizer.decode(row[-length:].tolist()) for row in choices]
        assert seen[0] in whole
        assert seen[0].rsplit("\n", 1)[-1] in text.lines[line]
        assert text.lines[line].rstrip(".,;:!?").endswith(words[0])
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


def write_stories(out, story):
    """All pieces as if they had been written, each of the same stories."""
    pieces = stories.pieces(out)
    for unit in pieces:
        said = [f"{story} {unit.settings['seed']} {number}." for number in range(64)]
        result = {"precision": "torch.float32", "tokens": [200] * 64, "stories": said}
        write_json(unit.path, {"settings": unit.settings, **result})
    return pieces


def test_a_text_of_other_stories_is_made_again(tmp_path, capsys):
    write_stories(tmp_path, "A fox met an owl")
    first = text_module.text_of("stories", tmp_path, 300)
    path = tmp_path / "texts" / "stories_300.pt"
    made = path.stat().st_mtime_ns
    text_module.text_of.cache_clear()
    again = text_module.text_of("stories", tmp_path, 300)
    assert path.stat().st_mtime_ns == made
    assert (again.digest, again.lines, capsys.readouterr().out) == (first.digest, first.lines, "")
    write_stories(tmp_path, "A fox ate an owl")
    text_module.text_of.cache_clear()
    other = text_module.text_of("stories", tmp_path, 300)
    assert "stories_300.pt is made again" in capsys.readouterr().out
    assert other.digest != first.digest
    assert "ate" in other.lines[0]


def test_stories_of_two_precisions_are_not_mixed(tmp_path, monkeypatch):
    monkeypatch.setattr(stories, "precision", lambda: "bf16-mixed")
    pieces = write_stories(tmp_path, "A fox met an owl")
    kept.prepare_stories(pieces)  # all are there: nothing is written here
    pieces[2].path.unlink()
    with pytest.raises(
        SystemExit, match=r"precision is 'torch.float32' in stories, piece 0 and 'torch.bfloat16'"
    ):
        kept.prepare_stories(pieces)
    monkeypatch.setattr(stories, "precision", lambda: "32-true")
    kept.prepare_stories(pieces)


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
