"""The history that a Trainer of transformers writes of its evaluations."""

import json
import os
import warnings

import pytest

from lightning_pce import History
from tests.helpers import hf_trainers as hf
from tests.helpers.hf_trainers import make_samples, make_trainer, sample_losses

STEPS = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "history.jsonl"


def trainer_of(folder, path, trainer=hf.PercentileTrainer, **arguments):
    """Of 16 samples, 8 steps."""
    arguments = {"train_dataset": make_samples(8), "eval_dataset": make_samples(5, seed=1), **arguments}
    made = make_trainer(folder, trainer=trainer, num_train_epochs=2, **{**STEPS, **arguments})
    made.configure_percentile_ce((50, 95), statistics=("ce", "entropy"), history=path)
    return made


def keys(history):
    return [(record.function, record.name, record.step) for record in history]


def test_each_evaluation_is_a_record_of_its_tokens(tmp_path, path):
    samples = make_samples(5, seed=1)
    observer = hf.Observer(samples)
    trainer = trainer_of(
        tmp_path / "out", path, callbacks=[observer], compute_metrics=lambda _: {"task": 0.25}
    )
    before = sample_losses(trainer.model, samples)
    trainer.evaluate()
    trainer.train()
    trainer.predict(samples)  # the test stage is not written down
    history = History.load(path)
    assert keys(history) == [("evaluate", "eval", step) for step in (0, 2, 4, 6, 8)]
    assert [record.label for record in history] == [f"step {step}" for step in (0, 2, 4, 6, 8)]
    assert [record.epoch for record in history[1:]] == [None, 1, None, 2]
    assert history[0].epoch in (0, None)  # transformers before 5 does not know yet
    for record, losses in zip(history[1:], [losses for losses, _ in observer.seen][1:], strict=True):
        assert record.values["ce_mean"] == pytest.approx(float(losses.mean()), rel=1e-5)
        assert record.values["ce_p95"] == pytest.approx(float(losses.quantile(0.95)), rel=1e-5)
        assert float(record.digest()[:-3, 1].sum()) == record.values["ce_count"] == len(losses)
        assert record.values["entropy_mean"] > 0
        assert record.scalars["eval_task"] == 0.25
        assert record.scalars["eval_loss"] > 0
        assert not [name for name in record.scalars if "_ce_" in name or "entropy" in name]
    assert history[0].values["ce_mean"] == pytest.approx(float(before.mean()), rel=1e-5)
    assert record.statistics == ("ce", "entropy")
    assert len({record.fingerprint for record in history}) == 1


def test_an_evaluation_of_other_samples_after_training_leaves_the_last_record(tmp_path, path):
    trainer = trainer_of(tmp_path / "out", path)
    trainer.train()
    *_, last = History.load(path)
    trainer.evaluate(make_samples(7, seed=9))
    *_, still, other = History.load(path)
    assert (still.step, still.values) == (last.step, last.values)
    assert (other.step, other.fingerprint != last.fingerprint) == (8, True)


def test_several_sets_have_records_of_their_own_names(tmp_path, path):
    sets = {"web": make_samples(5, seed=1), "code": make_samples(3, seed=2)}
    trainer = trainer_of(tmp_path / "out", path, eval_dataset=sets)
    trainer.train()
    trainer.evaluate(make_samples(2), metric_key_prefix="mine")
    history = History.load(path)
    assert [record.name for record in history] == ["eval_web", "eval_code"] * 4 + ["mine"]
    for name, samples in sets.items():
        counts = {record.values["ce_count"] for record in history.select(name=f"eval_{name}")}
        assert counts == {len(sample_losses(trainer.model, samples))}


def test_checkpoints_are_those_of_their_steps_and_deleted_ones_say_so(tmp_path, path):
    trainer_of(tmp_path / "out", path, save_total_limit=2, save_steps=4).train()
    trainer = trainer_of(tmp_path / "other", path, save_total_limit=1)
    trainer.train()
    history = History.load(path)
    found = [
        [(each.path, each.deleted) for each in record.checkpoints]
        for run in history.runs
        for record in history.select(run=run)
    ]
    folder, other = (str(tmp_path / name / "checkpoint-{}") for name in ("out", "other"))
    assert found == [
        [],
        [(folder.format(4), False)],
        [],
        [(folder.format(8), False)],
        *([(other.format(step), step < 8)] for step in (2, 4, 6, 8)),
    ]


@pytest.mark.parametrize("how", ["path", "latest"])
def test_a_training_that_is_resumed_goes_on_in_its_run(tmp_path, path, how):
    folder = tmp_path / "out"
    trainer_of(folder, path).train()
    whole = [(record.key, record.values["ce_p50"]) for record in History.load(path)]
    if how == "latest":
        for step in (6, 8):
            (folder / f"checkpoint-{step}").rename(folder / f"away-{step}")
    resume = True if how == "latest" else os.path.relpath(folder / "checkpoint-4")
    trainer_of(folder, path).train(resume_from_checkpoint=resume)
    again = History.load(path)
    assert path.read_text().count('"kind":"validation"') == 6
    assert [record.key for record in again] == [key for key, _ in whole]
    medians = [record.values["ce_p50"] for record in again]
    assert medians == pytest.approx([median for _, median in whole], rel=1e-4)


def test_two_trainings_are_two_runs_also_of_one_trainer(tmp_path, path):
    trainer = trainer_of(tmp_path / "out", path)
    trainer.train()
    trainer.train()
    trainer_of(tmp_path / "out", path).train()
    assert [len(History.load(path).select(run=run)) for run in History.load(path).runs] == [4, 4, 4]


def test_the_best_model_that_is_loaded_at_the_end_is_of_no_step(tmp_path, path):
    trainer = hf.make_scripted(tmp_path / "out", "eval_ce_p50", 4, greater_is_better=False)
    trainer.configure_percentile_ce(history=path)
    trainer.train()
    trainer.evaluate()
    history = History.load(path)
    assert [record.step for record in history] == [2, 4, 6, 8, None]
    assert history[-1].values["ce_p50"] == history[1].values["ce_p50"] < history[3].values["ce_p50"]
    assert history[-1].checkpoints[0].path == trainer.state.best_model_checkpoint
    assert history[-1].label == "checkpoint-4"


def test_by_default_it_is_in_the_output_folder_and_without_asking_nowhere(tmp_path):
    trainer = trainer_of(tmp_path / "out", True)
    trainer.evaluate()
    assert len(History.load(tmp_path / "out" / "percentile_history.jsonl")) == 1
    make_trainer(tmp_path / "none", eval_dataset=make_samples(2)).evaluate()
    assert list((tmp_path / "none").rglob("*.jsonl")) == []


def test_a_file_that_cannot_be_written_is_one_warning_and_the_training_goes_on(tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = trainer_of(tmp_path / "out", tmp_path)
        trainer.train()
    [message] = [str(each.message) for each in caught if "could not write" in str(each.message)]
    assert str(tmp_path) in message
    assert trainer.state.global_step == 8
    assert json.loads((tmp_path / "out/checkpoint-8/trainer_state.json").read_text())["global_step"] == 8
