"""Where PercentileCETrainerMixin finds the logits of a batch, without running the model once more."""

import weakref

import pytest
import torch
import torch.nn.functional as F
from transformers import Trainer

from lightning_pce.integrations.transformers import PercentileCETrainerMixin
from tests.helpers import hf_trainers as hf
from tests.helpers.hf_trainers import (
    FusedLM,
    assert_percentiles,
    make_model,
    make_samples,
    make_trainer,
    sample_losses,
)


def with_mixin(kind):
    return type(f"Percentile{kind.__name__}", (PercentileCETrainerMixin, kind), {})


def shifted_loss(logits, labels):
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=hf.IGNORED)


class OwnLossTrainer(Trainer):
    """Computes its loss of the logits; ``beside`` is what it returns beside it."""

    beside = staticmethod(lambda logits: logits)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        logits = model(**inputs).logits
        loss = shifted_loss(logits, labels)
        return (loss, self.beside(logits)) if return_outputs else loss


BESIDE = {
    "logits": lambda logits: logits,
    "tuple": lambda logits: (torch.zeros(()), logits, torch.zeros(2, 3)),
    "chunks": lambda logits: list(logits.split(3, dim=1)),
    "named chunks": lambda logits: {"logits": list(logits.split(5, dim=1))},
    "an object": lambda logits: type("Outputs", (), {"logits": logits, "__getitem__": lambda *_: ()})(),
    "nothing": lambda logits: (None,),
    "predictions": lambda logits: {"predictions": logits.argmax(-1)},
}


@pytest.mark.parametrize("beside", BESIDE)
def test_whatever_a_compute_loss_returns_beside_the_loss(tmp_path, beside):
    samples, kind = make_samples(5), with_mixin(OwnLossTrainer)
    kind.beside = staticmethod(BESIDE[beside])
    trainer = make_trainer(tmp_path, trainer=kind, eval_dataset=samples)
    trainer.configure_percentile_ce(statistics=("ce", "rank"))
    metrics = trainer.evaluate()
    ranks = [each for each in metrics if "rank" in each]
    assert_percentiles(metrics, sample_losses(trainer.model, samples))
    assert len(ranks) == 8
    assert 0 < metrics["eval_top5_accuracy"] < 1


class LossOnlyTrainer(Trainer):
    """Asks its compute_loss for the loss alone and runs the model once more for outputs, as trl's do."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        return (loss, model(**inputs)) if return_outputs else loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad():
            return self.compute_loss(model, inputs), None, None


def counted_calls(model):
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    return calls


HOW = {
    "plain": {},
    "label_smoothing": {"label_smoothing_factor": 0.3},
    "compute_loss_func": {"compute_loss_func": lambda outputs, labels, **_: outputs["logits"].mean()},
    "checkpointing": {"gradient_checkpointing": True},
}


@pytest.mark.parametrize("how", HOW)
def test_no_model_runs_once_more(tmp_path, how):
    samples = make_samples(5)
    trainer = make_trainer(tmp_path, trainer=with_mixin(LossOnlyTrainer), eval_dataset=samples, **HOW[how])
    calls = counted_calls(trainer.model)
    metrics = trainer.evaluate()
    assert len(calls) == 3
    assert_percentiles(metrics, sample_losses(trainer.model, samples))


@pytest.mark.parametrize("how", ["wrapped", "in place", "in place and warm"])
def test_a_compiled_model(tmp_path, how):
    samples, model = make_samples(6, equal=True), make_model().eval()
    losses = sample_losses(model, samples)
    if how == "wrapped":
        compiled = torch.compile(model, backend="eager")
    else:
        compiled = model
        model.compile(backend="eager")
    if "warm" in how:
        with torch.no_grad():
            compiled(**hf.collate(samples[:2]))
    trainer = make_trainer(
        tmp_path, compiled, with_mixin(LossOnlyTrainer), eval_dataset=samples, remove_unused_columns=False
    )
    for _ in range(2):
        assert_percentiles(trainer.evaluate(), losses)


def test_no_logits_are_kept_nor_a_hook(tmp_path):
    alive, counts = [], []

    def count(module, inputs, output):
        alive.append(weakref.ref(output.logits))
        counts.append(sum(ref() is not None for ref in alive))

    trainer = make_trainer(tmp_path, trainer=with_mixin(LossOnlyTrainer), eval_dataset=make_samples(12))
    trainer.model.register_forward_hook(count)
    trainer.evaluate()
    assert counts == [1] * 6
    assert all(ref() is None for ref in alive)
    assert len(trainer.model._forward_hooks) == 1


def test_no_hook_is_left_by_a_loss_that_fails(tmp_path):
    def fail(outputs, labels, **_):
        raise OSError("as a loss may")

    trainer = make_trainer(tmp_path, eval_dataset=make_samples(3), compute_loss_func=fail)
    with pytest.raises(OSError, match="as a loss may"):
        trainer.evaluate()
    assert not trainer.model._forward_hooks


class ChunkedLM(torch.nn.Module):
    """Returns the logits as litgpt does with lm_head_chunk_size: a list of chunks along the sequence."""

    def __init__(self):
        super().__init__()
        self.lm = make_model()

    def forward(self, input_ids, attention_mask=None):
        return list(self.lm(input_ids, attention_mask).logits.split(4, dim=1))


class ChunkedTrainer(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        chunks = model(**inputs)
        loss = shifted_loss(torch.cat(chunks, dim=1), labels)
        return (loss, chunks) if return_outputs else loss


@pytest.mark.parametrize("asked", [True, False])
def test_chunks_of_logits_along_the_sequence(tmp_path, asked):
    samples, kind = make_samples(5), with_mixin(ChunkedTrainer)
    if not asked:
        kind.prediction_step = LossOnlyTrainer.prediction_step
    trainer = make_trainer(
        tmp_path, ChunkedLM(), kind, eval_dataset=samples, label_names=["labels"], remove_unused_columns=False
    )
    trainer.configure_percentile_ce(statistics=("ce", "rank"))
    assert_percentiles(trainer.evaluate(), sample_losses(trainer.model.lm, samples))


class TwiceTrainer(Trainer):
    """Runs the model for a reference too: its second call is the one that counts."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        model(input_ids=inputs["input_ids"].flip(0))
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


def said_of_calls(record):
    return [str(each.message) for each in record if "calls of the model" in str(each.message)]


def test_of_several_calls_the_returned_one_counts(tmp_path, recwarn):
    samples = make_samples(5)
    trainer = make_trainer(tmp_path, trainer=with_mixin(TwiceTrainer), eval_dataset=samples)
    assert_percentiles(trainer.evaluate(), sample_losses(trainer.model, samples))
    assert said_of_calls(recwarn) == []


def test_several_calls_of_which_none_is_returned_are_named_once(tmp_path, recwarn):
    kind = with_mixin(TwiceTrainer)
    kind.prediction_step = LossOnlyTrainer.prediction_step
    trainer = make_trainer(tmp_path, trainer=kind, eval_dataset=make_samples(5))
    trainer.evaluate()
    [message] = said_of_calls(recwarn)
    assert "first of 2 calls" in message


@pytest.mark.parametrize("base", [Trainer, LossOnlyTrainer])
def test_log_probabilities_of_a_fused_head_are_losses(tmp_path, base):
    samples = make_samples(5)
    trainer = make_trainer(tmp_path, FusedLM(), with_mixin(base), eval_dataset=samples)
    calls = counted_calls(trainer.model)
    assert_percentiles(trainer.evaluate(), sample_losses(trainer.model.lm, samples))
    assert len(calls) == 3


def test_what_needs_logits_is_refused_of_a_fused_head(tmp_path):
    trainer = make_trainer(tmp_path, FusedLM(), eval_dataset=make_samples(5))
    trainer.configure_percentile_ce(statistics=("ce", "rank"))
    with pytest.raises(ValueError, match=r"log_probs.* Leave rank out of `statistics`"):
        trainer.evaluate()


def test_another_ignore_index_than_that_of_a_fused_head_is_refused(tmp_path):
    trainer = make_trainer(tmp_path, FusedLM(), eval_dataset=make_samples(5))
    trainer.configure_percentile_ce(ignore_index=0)
    with pytest.raises(ValueError, match="Expected ignore_index=-100 but got 0"):
        trainer.evaluate()


class ElsewhereTrainer(Trainer):
    """Calls another model than the one it is given, and returns nothing of it."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = make_model()(**inputs).loss
        return (loss, None) if return_outputs else loss

    prediction_step = LossOnlyTrainer.prediction_step


def test_a_model_that_was_not_called_is_said(tmp_path):
    trainer = make_trainer(tmp_path, trainer=with_mixin(ElsewhereTrainer), eval_dataset=make_samples(5))
    with pytest.raises(ValueError, match="it was not called"):
        trainer.evaluate()


def test_no_label_is_ignored_if_none_is_to_be(tmp_path):
    samples = [{**each, "labels": each["input_ids"]} for each in make_samples(4, equal=True)]
    trainer = make_trainer(tmp_path, eval_dataset=samples)
    trainer.configure_percentile_ce(ignore_index=None)
    assert_percentiles(trainer.evaluate(), sample_losses(trainer.model, samples))
