"""What the distillation study trains and measures: texts, students, tasks."""

import math

import pytest
import torch
import torch.nn.functional as F

from benchmarks.studies.topk_distillation_parts import kept, measuring, stories, training
from benchmarks.studies.topk_distillation_parts import text as text_module
from benchmarks.studies.topk_distillation_parts.text import Text, rows_of, split, token_ids, trained_tokenizer
from benchmarks.studies.topk_distillation_parts.units import Size, models_of, name_of
from examples.proxy_study_parts.models import build
from examples.resumable import read, write_json
from lightning_pce.runs import History, reshaping, verdict

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
