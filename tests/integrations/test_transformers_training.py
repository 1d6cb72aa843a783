"""Evaluations inside a training of transformers' Trainer: checkpoints, early stopping, what is saved."""

import pytest
from safetensors import safe_open
from transformers import EarlyStoppingCallback, Trainer

from tests.helpers import hf_trainers as hf
from tests.helpers.hf_trainers import assert_percentiles, make_samples, make_trainer


def test_each_evaluation_inside_training_measures_the_model_of_that_moment_and_nothing_older(tmp_path):
    samples = make_samples(5, seed=1)
    observer = hf.Observer(samples)
    trainer = make_trainer(
        tmp_path,
        callbacks=[observer],
        train_dataset=make_samples(8),
        eval_dataset=samples,
        num_train_epochs=2,
        eval_strategy="steps",
        eval_steps=2,
    )
    trainer.train()
    assert len(observer.seen) == 4
    for losses, metrics in observer.seen:
        assert_percentiles(metrics, losses)
    medians = [metrics["eval_ce_p50"] for _, metrics in observer.seen]
    assert len(set(medians)) == 4
    logged = [entry["eval_ce_p50"] for entry in trainer.state.log_history if "eval_ce_p50" in entry]
    assert logged == medians


@pytest.mark.parametrize(
    ("metric", "best", "score"),
    [("eval_ce_p50", 1, 0.1), ("ce_p50", 1, 0.1), ("eval_ce_mean", 0, 1.0), ("eval_loss", 0, 1.0)],
)
def test_the_best_model_is_that_of_the_chosen_statistic(tmp_path, metric, best, score):
    trainer = hf.fit_scripted(tmp_path, metric, 4, greater_is_better=False)
    assert int(trainer.model.epoch) == best
    assert trainer.state.best_metric == pytest.approx(score, rel=1e-5)
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{2 * (best + 1)}")


def test_early_stopping_follows_the_median(tmp_path):
    stopping = EarlyStoppingCallback(early_stopping_patience=2)
    trainer = hf.fit_scripted(tmp_path, "ce_p50", 5, callbacks=[stopping], greater_is_better=False)
    assert trainer.state.epoch == 4
    assert int(trainer.model.epoch) == 1


def test_nothing_of_it_is_saved(tmp_path):
    def files(name, trainer):
        arguments = {"train_dataset": make_samples(2), "eval_dataset": make_samples(3), "max_steps": 1}
        strategies = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
        make_trainer(tmp_path / name, trainer=trainer, **arguments, **strategies).train()
        folder = tmp_path / name / "checkpoint-1"
        with safe_open(folder / "model.safetensors", "pt") as weights:
            return sorted(path.name for path in folder.iterdir()), sorted(weights.keys())

    with_mixin = files("with", hf.PercentileTrainer)
    assert with_mixin == files("without", Trainer)
    assert "eval_ce_p50" in (tmp_path / "with" / "checkpoint-1" / "trainer_state.json").read_text()


def test_training_is_not_measured(tmp_path):
    trainer = make_trainer(tmp_path, train_dataset=make_samples(4), max_steps=2)
    trainer.train()
    assert not hasattr(trainer, "percentile_ce")
