"""PercentileCETrainerMixin in a real Trainer of transformers, in one process."""

import weakref

import pytest
import torch
from transformers import Trainer

from lightning_pce.integrations.transformers import PercentileCETrainerMixin
from tests.helpers import hf_trainers as hf
from tests.helpers.distributions import exact_quantile
from tests.helpers.hf_trainers import (
    assert_percentiles,
    make_model,
    make_samples,
    make_trainer,
    percentiles_in,
    sample_losses,
)
from tests.helpers.summaries import expected_log


def test_evaluate_gives_the_percentiles_of_every_token_of_the_set(tmp_path):
    samples = make_samples(7)
    trainer = make_trainer(tmp_path, eval_dataset=samples)
    metrics = trainer.evaluate()
    losses = sample_losses(trainer.model, samples)
    assert 20 < len(losses) < 60
    assert_percentiles(metrics, losses)
    assert_percentiles(trainer.state.log_history[-1], losses)
    assert all(type(value) is float for value in percentiles_in(metrics).values())
    assert abs(metrics["eval_loss"] - metrics["eval_ce_mean"]) > 1e-3  # the Trainer's mean is one of batches


def test_settings_are_kept(tmp_path):
    samples = make_samples(5)
    trainer = make_trainer(tmp_path, eval_dataset=samples)
    trainer.configure_percentile_ce(percentiles=(50, 99.9), statistics=("ce", "log_rank"), compression=64)
    metrics = trainer.evaluate(metric_key_prefix="valid")
    losses = sample_losses(trainer.model, samples)
    for key, value in expected_log(losses, "valid", (50,)).items():
        assert metrics[key] == pytest.approx(value, rel=1e-5)
    assert "valid_ce_p99_9" in metrics
    assert 0 <= metrics["valid_accuracy"] <= metrics["valid_top5_accuracy"] <= 1
    assert metrics["valid_log_rank_p50"] >= 0
    with pytest.raises(ValueError, match="percentiles"):
        trainer.configure_percentile_ce(percentiles=(101,))


def test_several_evaluation_sets_each_have_their_own(tmp_path):
    sets = {"web": make_samples(3, seed=1), "code": make_samples(4, seed=2)}
    trainer = make_trainer(tmp_path, eval_dataset=sets)
    metrics = trainer.evaluate()
    for name, samples in sets.items():
        own = {key: value for key, value in metrics.items() if key.startswith(f"eval_{name}_")}
        assert_percentiles(own, sample_losses(trainer.model, samples), f"eval_{name}")
    assert len(percentiles_in(metrics)) == 16


def test_predict_gives_them_too(tmp_path):
    samples = make_samples(3, equal=True)
    trainer = make_trainer(tmp_path)
    output = trainer.predict(samples)
    assert output.predictions.shape == (3, 8, hf.VOCABULARY)
    assert_percentiles(output.metrics, sample_losses(trainer.model, samples), "test")


@pytest.mark.parametrize("batchwise", [False, True])
def test_compute_metrics_of_the_user_goes_on_working(tmp_path, batchwise):
    samples, shapes = make_samples(5, equal=True), []

    def compute_metrics(prediction, compute_result=True):
        shapes.append(tuple(prediction.predictions.shape))
        return {"rows": sum(shape[0] for shape in shapes)}

    trainer = make_trainer(
        tmp_path, eval_dataset=samples, compute_metrics=compute_metrics, batch_eval_metrics=batchwise
    )
    metrics = trainer.evaluate()
    assert metrics["eval_rows"] == 5
    assert shapes[-1] == ((1 if batchwise else 5), 8, hf.VOCABULARY)
    assert_percentiles(metrics, sample_losses(trainer.model, samples))


def test_names_that_compute_metrics_of_the_user_gives_stay_as_it_gave_them(tmp_path):
    samples = make_samples(3, equal=True)
    trainer = make_trainer(
        tmp_path, eval_dataset=samples, compute_metrics=lambda prediction: {"accuracy": 7.0, "ce_p50": -1.0}
    )
    trainer.configure_percentile_ce((50, 95), statistics=("ce", "rank"))
    metrics = trainer.evaluate()
    assert (metrics["eval_accuracy"], metrics["eval_ce_p50"]) == (7.0, -1.0)
    assert metrics["eval_top5_accuracy"] <= 1
    assert metrics["eval_ce_p95"] == pytest.approx(
        float(exact_quantile(sample_losses(trainer.model, samples), 0.95)), rel=1e-5
    )


def test_no_logits_of_earlier_batches_are_kept(tmp_path):
    alive, counts = [], []

    def count(module, inputs, output):
        alive.append(weakref.ref(output.logits))
        counts.append(sum(ref() is not None for ref in alive))

    trainer = make_trainer(tmp_path, eval_dataset=make_samples(12))
    trainer.model.register_forward_hook(count)
    trainer.evaluate()
    assert len(counts) == 6
    assert max(counts) == 1
    assert all(ref() is None for ref in alive)


def test_low_precision_models_are_measured_in_float32(tmp_path):
    samples, seen = make_samples(6, equal=True), []
    trainer = make_trainer(tmp_path, eval_dataset=samples, bf16_full_eval=True)
    trainer.model.register_forward_hook(lambda module, inputs, output: seen.append(output.logits.detach()))
    metrics = trainer.evaluate()
    logits = torch.cat(seen)
    assert logits.dtype == torch.bfloat16
    labels = torch.stack([sample["labels"] for sample in samples])[:, 1:].flatten()
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].double().flatten(0, 1), labels, reduction="none"
    )
    assert_percentiles(metrics, losses[labels != hf.IGNORED])


@pytest.mark.parametrize("how", ["label_smoothing_factor", "compute_loss_func"])
def test_what_the_loss_is_made_of_does_not_matter(tmp_path, how):
    samples = make_samples(5)
    arguments = {
        how: 0.3 if how.startswith("label") else lambda outputs, labels, **_: outputs["logits"].mean()
    }
    trainer = make_trainer(tmp_path, eval_dataset=samples, **arguments)
    metrics = trainer.evaluate()
    assert_percentiles(metrics, sample_losses(trainer.model, samples))
    plain = make_trainer(tmp_path, trainer=Trainer, eval_dataset=samples, **arguments).evaluate()
    assert metrics["eval_loss"] == plain["eval_loss"]
    assert abs(metrics["eval_loss"] - metrics["eval_ce_mean"]) > 0.1


class TupleLM(torch.nn.Module):
    """Returns a tuple: the loss of each device, as DataParallel has it, logits, hidden states."""

    def __init__(self):
        super().__init__()
        self.lm = make_model()

    def forward(self, input_ids, attention_mask=None, labels=None):
        output = self.lm(input_ids, attention_mask, labels=labels, output_hidden_states=True)
        return output.loss[None], output.logits, *output.hidden_states


def test_logits_are_found_in_tuples(tmp_path):
    samples = make_samples(5)
    trainer = make_trainer(tmp_path, TupleLM(), eval_dataset=samples)
    assert_percentiles(trainer.evaluate(), sample_losses(trainer.model.lm, samples))


class HeadlessLM(torch.nn.Module):
    """Computes its loss without logits where it is asked to."""

    def __init__(self):
        super().__init__()
        self.lm, self.without = make_model(), None

    def forward(self, input_ids, attention_mask=None, labels=None, skip_logits=None):
        outputs = self.lm(input_ids, attention_mask, labels=labels)
        without = skip_logits if self.without is None else self.without
        return {"loss": outputs.loss} if without else {"loss": outputs.loss, "logits": outputs.logits}


class SkippingTrainer(Trainer):
    """Asks for no logits, as transformers' own does with Liger's kernels."""

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        return super().prediction_step(
            model, {**inputs, "skip_logits": True}, prediction_loss_only, ignore_keys
        )


class SkippingPercentileTrainer(PercentileCETrainerMixin, SkippingTrainer):
    pass


def test_models_that_may_skip_logits_do_not_in_evaluations(tmp_path):
    samples = make_samples(5)
    trainer = make_trainer(tmp_path, HeadlessLM(), trainer=SkippingPercentileTrainer, eval_dataset=samples)
    assert_percentiles(trainer.evaluate(), sample_losses(trainer.model.lm, samples))


def test_a_model_without_logits_is_refused_and_the_next_evaluation_is_untouched(tmp_path):
    samples = make_samples(5)
    trainer = make_trainer(tmp_path, HeadlessLM(), eval_dataset=samples)
    trainer.evaluate(make_samples(3, seed=9))
    trainer.model.without = True
    with pytest.raises(ValueError, match=r"return `logits` .* but got \['loss'\]"):
        trainer.evaluate()
    trainer.model.without = False
    assert_percentiles(trainer.evaluate(), sample_losses(trainer.model.lm, samples))


@pytest.mark.parametrize("count", [0, 3])
def test_without_a_token_that_counts_all_are_nan(tmp_path, count):
    samples = [{**s, "labels": torch.full_like(s["labels"], hf.IGNORED)} for s in make_samples(count)]
    metrics = percentiles_in(make_trainer(tmp_path, eval_dataset=samples).evaluate())
    assert sorted(metrics) == sorted(expected_log(torch.ones(1), "eval"))
    assert all(value != value for value in metrics.values())


def test_the_mixin_behind_the_trainer_is_refused():
    with pytest.raises(TypeError, match=r"before Trainer .* of Backwards"):

        class Backwards(Trainer, PercentileCETrainerMixin):
            pass
