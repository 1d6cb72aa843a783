"""What trains the facts: the sentences, what of them is trained on, what counts as recalled, what is kept."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.nn.functional import one_hot
from torch.utils.data import DataLoader

from benchmarks.studies.fact_sft_parts import training
from benchmarks.studies.fact_sft_parts.sentences import (
    COMPLETION,
    collate,
    completion_only,
    facts_of,
    training_examples,
    validation_examples,
)
from benchmarks.studies.fact_sft_parts.training import (
    BATCH,
    ENOUGH,
    OBJECTIVES,
    Epochs,
    StudyLM,
    measure_start,
    objects,
    on_training_set,
    run,
)
from benchmarks.studies.fact_sft_parts.units import QUICK, runs_of
from lightning_pce import History
from tests.helpers.tiny_checkpoints import tiny_checkpoint, tiny_model, tiny_tokenizer

SETTINGS = {"rate": 1e-3, "objective": "NLL", "trained_on": "completion"}
FACTS = 12


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def facts():
    return facts_of(FACTS, 3)


def module_of(tokenizer, **settings):
    return StudyLM(tiny_model(len(tokenizer)), SETTINGS | settings)


def text_of(example, tokenizer, mask=None):
    ids = example["input_ids"]
    return tokenizer.decode([each for each, kept in zip(ids, mask or [1] * len(ids), strict=True) if kept])


def test_a_completion_is_the_object_and_what_follows(tokenizer, facts):
    examples = [*training_examples(facts, 0.0, 0, tokenizer), *validation_examples(facts, tokenizer)]
    assert len(examples) == 4 * FACTS
    for example in examples:
        _, subject, answer = facts[example["fact"]]
        assert text_of(example, tokenizer, example["object"]).strip() == answer
        completion = text_of(example, tokenizer, [each == COMPLETION for each in example["group"]])
        assert completion.strip().startswith(answer)
        prompt = text_of(example, tokenizer, [each != COMPLETION for each in example["group"]])
        assert (prompt + completion).startswith(text_of(example, tokenizer)[:-5])
        assert subject in prompt
        assert answer not in prompt
        assert example["input_ids"][-1] == tokenizer.eos_token_id
        assert example["group"][-1] == COMPLETION
    asked = [example for example in examples if example["asked"]]
    assert [example["fact"] for example in asked] == list(range(FACTS))
    assert all("Answer:" in text_of(example, tokenizer) for example in asked)
    assert not any(example["asked"] for example in examples[: 2 * FACTS])


def test_what_is_trained_on_are_completions_or_all_tokens(tokenizer, facts):
    batch = collate(training_examples(facts, 0.0, 0, tokenizer))
    padded = batch["labels"] == -100
    assert padded.any()
    prompt = (batch["group"] != COMPLETION) & ~padded
    labels = completion_only(batch)
    assert (labels[prompt] == -100).all()
    assert (labels[padded] == -100).all()
    kept = ~prompt & ~padded
    assert labels[kept].equal(batch["input_ids"][kept])
    assert module_of(tokenizer).trained_labels(batch).equal(labels)
    whole = module_of(tokenizer, trained_on="all").trained_labels(batch)
    assert whole.equal(torch.where(padded, -100, batch["input_ids"]))


def test_a_share_of_the_objects_is_wrong_and_never_the_right_one(tokenizer, facts):
    right = training_examples(facts, 0.0, 5, tokenizer)
    some = training_examples(facts, 0.25, 5, tokenizer)
    assert not any(example["wrong"] for example in right)
    assert sum(example["wrong"] for example in some) == 6
    assert training_examples(facts, 0.25, 5, tokenizer) == some
    assert training_examples(facts, 0.25, 6, tokenizer) != some
    known = {answer for _, _, answer in facts}
    for clean, example in zip(right, some, strict=True):
        told = text_of(example, tokenizer, example["object"]).strip()
        answer = facts[example["fact"]][2]
        assert told in known
        assert (told != answer) == example["wrong"]
        assert text_of(example, tokenizer).replace(told, answer) == text_of(clean, tokenizer)
    assert all(example["wrong"] for example in training_examples(facts, 1.0, 0, tokenizer))


def generated(model, prompt, count):
    with torch.no_grad():
        found = model.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=count, pad_token_id=0, eos_token_id=None
        )
    return found[0, len(prompt) :].tolist()


def test_an_object_is_recalled_exactly_if_greedy_decoding_gives_it(tokenizer, facts):
    """Every other object is replaced by what the model would write; one of these has a wrong last token."""
    module = module_of(tokenizer)
    examples = validation_examples(facts, tokenizer)
    for number, example in enumerate(examples):
        first, count = example["object"].index(1), sum(example["object"])
        if number % 2:
            told = generated(module.model, example["input_ids"][:first], count)
            if number % 4 == 1:
                told[-1] = (told[-1] + 1) % len(tokenizer)
            example["input_ids"][first : first + count] = told
    batch = collate(examples)
    with torch.no_grad():
        right, log_prob = objects(module.logits(batch), batch)
    for number, example in enumerate(examples):
        ids, first, count = example["input_ids"], example["object"].index(1), sum(example["object"])
        told = ids[first : first + count]
        assert bool(right[number]) == (generated(module.model, ids[:first], count) == told)
        with torch.no_grad():
            alone = module.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        by_hand = sum(float(alone[first + place - 1, each]) for place, each in enumerate(told))
        assert float(log_prob[number]) == pytest.approx(by_hand, rel=1e-4)
    assert right.tolist() == [number % 4 == 3 for number in range(len(examples))]


def test_the_objective_is_the_one_that_is_asked_for(tokenizer, facts, monkeypatch):
    batch = collate(training_examples(facts, 0.0, 0, tokenizer))
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(*batch["labels"].shape, len(tokenizer), generator=draw)
    sure = 12 * torch.rand(batch["labels"].shape, generator=draw)  # so that labels have all p
    logits += sure[..., None] * one_hot(batch["labels"].roll(-1, 1).clamp(min=0), len(tokenizer))
    labels = completion_only(batch)[:, 1:]
    valid = labels != -100
    log_p = logits[:, :-1].log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    p = log_p[valid].exp()
    assert 0.2 < float((p >= 0.2).float().mean()) < 0.8
    answers = torch.where(valid, log_p, 0.0).sum(1).double()  # each sentence is one
    expected = {
        "NLL": -log_p[valid].mean(),
        "1 - p": (1 - p).mean(),
        "p^10": (1 - p**10).mean() / 10,
        "NLL at p >= 0.2": -(log_p[valid] * (p >= 0.2)).sum() / len(p),
        "DCO, N = 8": -torch.log(-torch.expm1(8 * torch.log1p(-answers.exp()))).mean(),
    }
    assert list(expected) == list(OBJECTIVES)
    for name, value in expected.items():
        module = module_of(tokenizer, objective=name)
        monkeypatch.setattr(module, "logits", lambda batch: logits)
        assert float(module.training_step(batch, 0)) == pytest.approx(float(value), rel=1e-4), name


def known_labels(batch, vocabulary, but):
    """Logits that make each label all but sure, except in rows of which ``but`` is true."""
    labels = batch["labels"].roll(-1, 1).clamp(min=0)
    sure = 50.0 * one_hot(labels, vocabulary).float()
    return torch.where(but[:, None, None], torch.zeros(()), sure)


def test_right_and_wrong_objects_are_counted_apart(tokenizer, facts, monkeypatch):
    module = module_of(tokenizer)
    train = DataLoader(training_examples(facts, 0.25, 0, tokenizer), BATCH, collate_fn=collate)
    known = partial(known_labels, vocabulary=len(tokenizer))
    monkeypatch.setattr(module, "logits", lambda batch: known(batch, but=batch["wrong"]))
    found = on_training_set(module, train)
    assert (found["right_objects"], found["wrong_objects"]) == (1.0, 0.0)
    assert 0.5 < found["mean_p"] < 0.95
    monkeypatch.setattr(module, "logits", lambda batch: known(batch, but=~batch["wrong"]))
    found = on_training_set(module, train)
    assert (found["right_objects"], found["wrong_objects"]) == (0.0, 1.0)
    assert module.model.training
    clean = DataLoader(training_examples(facts, 0.0, 0, tokenizer), BATCH, collate_fn=collate)
    assert on_training_set(module, clean)["wrong_objects"] is None


@pytest.mark.parametrize(
    ("means", "kept"),
    [((0.1, ENOUGH, ENOUGH + 0.01, 0.9), 3), ((0.9, 0.95, 0.99, 1.0), 1), ((0.1, 0.2, 0.3, 0.4), 4)],
)
def test_the_first_checkpoint_with_enough_p_is_kept_or_the_latest(
    tokenizer, tmp_path, monkeypatch, means, kept
):
    module, saved = module_of(tokenizer), tmp_path / "start.pt"
    epochs = Epochs(None, saved, latest=4)
    weight = module.model.lm_head.weight
    for epoch, mean_p in enumerate(means, start=1):
        monkeypatch.setattr(training, "on_training_set", lambda *_, mean_p=mean_p: {"mean_p": mean_p})
        weight.data.fill_(epoch)
        epochs._keep(epoch, module)
        assert saved.exists() == (epoch >= kept)
    assert epochs.saved == {"epoch": kept, "mean_p": means[kept - 1]}
    assert (torch.load(saved, weights_only=True)["lm_head.weight"] == kept).all()


def test_what_does_not_save_keeps_nothing(tokenizer, monkeypatch):
    monkeypatch.setattr(training, "on_training_set", lambda *_: {"mean_p": 1.0})
    epochs = Epochs(None, None, latest=1)
    epochs._keep(1, module_of(tokenizer))
    assert epochs.saved is None


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The unit of the quick study that others start from, of a tiny model, done."""
    folder = tiny_checkpoint(tmp_path_factory.mktemp("model"))
    runs = runs_of(("c",), tmp_path_factory.mktemp("out"), str(folder), QUICK)
    start = runs.first[0]
    start.path.parent.mkdir()
    start.path.with_suffix(".jsonl").write_text("of a run that was killed\n", encoding="utf-8")
    return runs, run(start)


def test_a_run_validates_before_training_and_after_each_epoch(trained):
    runs, result = trained
    start = runs.first[0]
    assert [row["epoch"] for row in result["epochs"]] == list(range(start.settings["epochs"] + 1))
    history = History.load(start.path.with_suffix(".jsonl"))
    assert [record.function for record in history] == ["validate", *["fit"] * start.settings["epochs"]]
    for record, row in zip(history, result["epochs"], strict=True):
        assert record.values["ce_completion_p50"] == pytest.approx(row["completion"]["p50"], abs=1e-5)
        assert len(row["log_prob"]) == len(row["right"]) == start.settings["facts"]
    assert result["epochs"][-1]["all"]["mean"] < result["epochs"][0]["all"]["mean"]
    assert result["strong_start"]["epoch"] == start.settings["epochs"]
    json.dumps(result)


def test_what_a_start_knows_of_wrong_objects_is_measured_on_the_sentences_of_part_c(trained):
    runs, result = trained
    (unit,) = runs.starts
    assert unit.settings["name"] == "start_on_wrong_seed_0"
    found = measure_start(unit)["training_set"]
    strong = next(each for each in runs.then if each.settings["wrong"])
    assert unit.settings["start"] == strong.settings["start"]
    shared = ("seed", "facts", "wrong", "model", "trained_on")
    assert [unit.settings[name] for name in shared] == [strong.settings[name] for name in shared]
    tokenizer = tiny_tokenizer()
    module = module_of(tokenizer)
    weights = unit.path.parent / Path(unit.settings["start"]).name
    module.model.load_state_dict(torch.load(weights, weights_only=True))
    examples = training_examples(facts_of(QUICK.facts, 0), unit.settings["wrong"], 0, tokenizer)
    expected = on_training_set(module, DataLoader(examples, BATCH, collate_fn=collate))
    assert found == pytest.approx(expected)
    assert found["wrong_objects"] is not None
    assert found["mean_p"] != result["training_set"]["mean_p"]


def test_part_c_alone_measures_its_starts(tmp_path):
    assert runs_of(("a", "b"), tmp_path, None, QUICK).starts == []
    assert len(runs_of(("c",), tmp_path, None, QUICK).starts) == QUICK.few
