"""Which model a Trainer with PercentileCETrainerMixin keeps, stops at and searches for."""

import shutil

import pytest
import torch
from transformers import EarlyStoppingCallback, Trainer
from transformers.trainer import ALL_HYPERPARAMETER_SEARCH_BACKENDS
from transformers.trainer_utils import BestRun, HPSearchBackend, default_compute_objective

from tests.helpers import hf_trainers as hf
from tests.helpers.hf_trainers import make_model, make_samples, make_scripted, make_trainer

EVERY = ("ce", "entropy", "target_prob", "max_prob", "rank", "margin")


def said(record, what="greater_is_better"):
    return [str(each.message) for each in record if what in str(each.message)]


def best_step(trainer):
    return int(trainer.state.best_model_checkpoint.rpartition("-")[2])


@pytest.mark.parametrize(
    ("metric", "epoch"),
    [("eval_ce_p50", 2), ("ce_p50", 2), ("eval_ce_mean", 1), ("margin_p50", 2), ("rank_mean", 2)],
)
@pytest.mark.parametrize("given", [{}, {"greater_is_better": True}])
def test_the_lowest_is_the_best_if_nothing_says_so(tmp_path, metric, epoch, given, recwarn):
    trainer = make_scripted(tmp_path, metric, 4, **given)
    trainer.configure_percentile_ce((50, 75), statistics=EVERY)
    trainer.train()
    assert best_step(trainer) == 2 * epoch
    assert int(trainer.model.epoch) == epoch - 1
    assert trainer.args.greater_is_better is False
    [message] = said(recwarn)
    assert metric in message


@pytest.mark.parametrize(
    "metric", ["accuracy", "eval_top5_accuracy", "target_prob_p50", "entropy_mean", "max_prob_p50"]
)
def test_what_may_be_better_if_greater_is_left_as_it_is(tmp_path, metric, recwarn):
    trainer = make_scripted(tmp_path, metric, 4)
    trainer.configure_percentile_ce((50, 75), statistics=EVERY)
    trainer.train()
    name = metric if metric.startswith("eval_") else f"eval_{metric}"
    values = [row[name] for row in trainer.state.log_history if name in row]
    assert trainer.state.best_metric == max(values)
    assert best_step(trainer) == 2 * (1 + values.index(max(values)))
    assert trainer.args.greater_is_better is True
    assert said(recwarn) == []


def test_a_name_of_the_users_own_that_ends_alike_is_left_as_it_is(tmp_path, recwarn):
    values = iter([0.2, 0.9, 0.3, 0.4])
    trainer = make_scripted(
        tmp_path, "reciprocal_rank_mean", 4, compute_metrics=lambda _: {"reciprocal_rank_mean": next(values)}
    )
    trainer.configure_percentile_ce(statistics=("ce", "rank"))
    trainer.train()
    assert (trainer.state.best_metric, best_step(trainer)) == (0.9, 4)
    assert said(recwarn) == []


@pytest.mark.parametrize("metric", ["eval_web_ce_p50", "web_ce_p50"])
def test_of_one_set_among_several(tmp_path, metric):
    samples = [{name: torch.zeros(8, dtype=torch.long) for name in ("input_ids", "labels")}] * 3
    trainer = make_scripted(tmp_path, metric, 4, eval_dataset={"code": samples, "web": samples})
    trainer.train()
    assert (trainer.args.greater_is_better, best_step(trainer)) == (False, 4)


class OwnPrefixTrainer(hf.PercentileTrainer):
    """Evaluates a set of its own, under a name that nothing but it knows."""

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        return super().evaluate(eval_dataset, ignore_keys, "eval_held_out")


def test_of_a_set_that_the_users_evaluate_names(tmp_path, recwarn):
    trainer = hf.fit_scripted(tmp_path, "held_out_ce_p50", 4, trainer=OwnPrefixTrainer)
    assert (trainer.args.greater_is_better, best_step(trainer)) == (False, 4)
    assert len(said(recwarn)) == 1


@pytest.mark.parametrize("metric", ["ce_p50", "eval_web_ce_p50"])
def test_early_stopping_takes_lower_for_better(tmp_path, metric):
    samples = [{name: torch.zeros(8, dtype=torch.long) for name in ("input_ids", "labels")}] * 3
    sets = {"web": samples} if "web" in metric else samples
    stopping = EarlyStoppingCallback(early_stopping_patience=2)
    trainer = hf.fit_scripted(tmp_path, metric, 5, callbacks=[stopping], eval_dataset=sets)
    assert trainer.state.epoch == 4
    assert int(trainer.model.epoch) == 1


@pytest.mark.parametrize("epochs", [3, 4])  # 3: nothing is left to train
@pytest.mark.parametrize("given", [{}, {"greater_is_better": False}])
def test_a_resumed_run_that_had_kept_the_worst_keeps_the_best(tmp_path, epochs, given, recwarn):
    hf.fit_scripted(tmp_path, "eval_ce_p50", 3)
    assert hf.as_if_the_worst_had_been_kept(tmp_path, 6) == 2
    trainer = make_scripted(tmp_path, "eval_ce_p50", epochs, **given)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert (best_step(trainer), trainer.state.best_global_step) == (4, 4)
    assert trainer.state.best_metric == pytest.approx(0.1, rel=1e-5)
    assert int(trainer.model.epoch) == 1
    assert len(said(recwarn, "took its worst eval_ce_p50 for its best")) == 1


def test_a_resumed_run_chooses_among_the_checkpoints_that_are_left(tmp_path, recwarn):
    hf.fit_scripted(tmp_path, "eval_ce_p50", 3)
    hf.as_if_the_worst_had_been_kept(tmp_path, 6)
    shutil.rmtree(tmp_path / "checkpoint-4")
    trainer = make_scripted(tmp_path, "eval_ce_p50", 3)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert best_step(trainer) == 6
    assert int(trainer.model.epoch) == 2


def test_a_resumed_run_that_had_kept_the_best_is_left_as_it_is(tmp_path, recwarn):
    hf.fit_scripted(tmp_path, "eval_ce_p50", 3, greater_is_better=False)
    trainer = make_scripted(tmp_path, "eval_ce_p50", 4, greater_is_better=False)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert best_step(trainer) == 4
    assert said(recwarn, "its worst") == []


class Grid:
    """A search backend, as transformers calls them, that trains with each learning rate in turn."""

    def ensure_available(self):
        pass

    def default_hp_space(self, trial):
        raise AssertionError("the rates are given to run")

    def run(self, trainer, n_trials, direction, rates):
        objectives = []
        for trainer.args.learning_rate in rates[:n_trials]:
            trainer.train()
            objectives.append(trainer.compute_objective(trainer.evaluate()))
        best = min(objectives) if direction == "minimize" else max(objectives)
        return BestRun("0", best, {"objectives": objectives})


def searched(folder, monkeypatch, kind, compute_metrics=None, **arguments):
    """The objectives of two learning rates."""
    monkeypatch.setitem(ALL_HYPERPARAMETER_SEARCH_BACKENDS, HPSearchBackend.WANDB, Grid)
    trainer = make_trainer(
        folder,
        trainer=kind,
        model_init=make_model,
        compute_metrics=compute_metrics,
        train_dataset=make_samples(4),
        eval_dataset=make_samples(3, seed=1, equal=True),
        max_steps=2,
    )
    run = trainer.hyperparameter_search(n_trials=2, backend="wandb", rates=[0.001, 0.1], **arguments)
    return run.hyperparameters["objectives"]


def own_metrics(_):
    return {"f1": 3.0, "ce_p50": 11.0}


@pytest.mark.parametrize("compute_metrics", [None, own_metrics])
@pytest.mark.parametrize("arguments", [{}, {"compute_objective": default_compute_objective}])
def test_a_search_optimises_what_it_would_without_percentiles(
    tmp_path, monkeypatch, compute_metrics, arguments
):
    plain, ours = (
        searched(tmp_path, monkeypatch, kind, compute_metrics, **arguments)
        for kind in (Trainer, hf.PercentileTrainer)
    )
    assert ours == plain
    assert ours[0] != ours[1] if compute_metrics is None else ours == [14.0, 14.0]


def test_a_search_by_a_percentile_is_asked_for(tmp_path, monkeypatch):
    seen = []

    def objective(metrics):
        seen.append(metrics["eval_ce_p95"])
        return metrics["eval_ce_p95"]

    assert searched(tmp_path, monkeypatch, hf.PercentileTrainer, compute_objective=objective) == seen
    assert len(seen) == 2
