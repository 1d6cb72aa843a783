"""Which labels PercentileCETrainerMixin scores against which logits, and what it says of missing ones."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
)

from lightning_pce.integrations.transformers import PercentileCETrainerMixin
from tests.helpers import hf_trainers as hf
from tests.helpers.hf_trainers import assert_percentiles, make_samples, make_trainer, percentiles_in
from tests.helpers.summaries import expected_log


def test_labels_that_stand_where_their_logits_do_need_no_shift(tmp_path):
    samples = make_samples(3, equal=True)
    trainer = make_trainer(tmp_path, eval_dataset=samples)
    trainer.configure_percentile_ce((50,), shift=False)
    metrics = trainer.evaluate()
    losses = []
    for sample in samples:
        logits = trainer.model(input_ids=sample["input_ids"][None]).logits[0]
        losses.append(torch.nn.functional.cross_entropy(logits, sample["labels"], reduction="none"))
    counted = torch.cat(losses)[torch.cat([s["labels"] for s in samples]) != hf.IGNORED].detach().double()
    assert percentiles_in(metrics) == pytest.approx(expected_log(counted, "eval", (50,)), rel=1e-5)


def make_bert(kind, **arguments):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        return kind(BertConfig(vocab_size=hf.VOCABULARY, **sizes, **arguments))


def make_t5():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
        config = T5Config(vocab_size=hf.VOCABULARY, **sizes, decoder_start_token_id=0, pad_token_id=0)
        model = T5ForConditionalGeneration(config)
        model.lm_head.weight.data *= 20  # losses that differ
        return model


def unshifted_losses(model, samples):
    losses = []
    for sample in samples:
        batch = {name: value[None] for name, value in sample.items()}
        logits = model(**batch).logits[0].detach().double()
        losses.append(torch.nn.functional.cross_entropy(logits, sample["labels"], reduction="none"))
    return torch.cat(losses)[torch.cat([sample["labels"] for sample in samples]) != hf.IGNORED]


def said_of_shift(record):
    return [str(each.message) for each in record if "shift=False" in str(each.message)]


def test_labels_of_encoder_decoder_models_are_not_shifted(tmp_path, recwarn):
    samples, model = make_samples(3, equal=True), make_t5()
    metrics = make_trainer(tmp_path, model, eval_dataset=samples).evaluate()
    assert_percentiles(metrics, unshifted_losses(model.eval(), samples))
    assert said_of_shift(recwarn) == []


def test_a_masked_language_model_is_named_once_until_its_labels_are_not_shifted(tmp_path, recwarn):
    samples, model = make_samples(4, equal=True), make_bert(BertForMaskedLM)
    model.cls.predictions.decoder.weight.data *= 50  # certain of what it is given
    samples = [{**each, "labels": each["input_ids"]} for each in samples]
    trainer = make_trainer(tmp_path, model, train_dataset=samples, eval_dataset=samples, num_train_epochs=30)
    trainer.train()
    metrics = [trainer.evaluate() for _ in range(2)][-1]
    assert metrics["eval_ce_mean"] > metrics["eval_loss"] + 1
    [message] = said_of_shift(recwarn)
    assert "far above the 0.00" in message
    other = make_trainer(tmp_path, model, eval_dataset=samples)
    other.configure_percentile_ce(shift=False)
    assert_percentiles(other.evaluate(), unshifted_losses(model, samples))
    causal = make_trainer(tmp_path, eval_dataset=samples)
    causal.evaluate()
    assert len(said_of_shift(recwarn)) == 1


def test_a_shift_that_was_asked_for_or_another_loss_is_not_warned_of(tmp_path, recwarn):
    samples = make_samples(3)
    arguments = {"compute_loss_func": lambda outputs, labels, **_: 0 * outputs["logits"].mean()}
    make_trainer(tmp_path, eval_dataset=samples, **arguments).evaluate()

    class SmallLossTrainer(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
            return (0 * loss, outputs) if return_outputs else 0 * loss

    class SmallLossPercentileTrainer(PercentileCETrainerMixin, SmallLossTrainer):
        pass

    for shift in (True, None):
        trainer = make_trainer(tmp_path, trainer=SmallLossPercentileTrainer, eval_dataset=samples)
        trainer.configure_percentile_ce(shift=shift)
        trainer.evaluate()
    assert said_of_shift(recwarn) == []


def test_classification_is_refused_until_its_labels_are_not_shifted(tmp_path):
    model = make_bert(BertForSequenceClassification, num_labels=3).eval()
    samples = [
        {"input_ids": each["input_ids"], "labels": torch.tensor(number % 3)}
        for number, each in enumerate(make_samples(4, equal=True))
    ]
    trainer = make_trainer(tmp_path, model, eval_dataset=samples, data_collator=None)
    with pytest.raises(ValueError, match=r"\[batch, sequence\] but got \[2\].*shift=False"):
        trainer.evaluate()
    trainer.configure_percentile_ce(shift=False)
    logits = model(input_ids=torch.stack([sample["input_ids"] for sample in samples])).logits.detach()
    labels = torch.stack([sample["labels"] for sample in samples])
    losses = torch.nn.functional.cross_entropy(logits.double(), labels, reduction="none")
    assert_percentiles(trainer.evaluate(), losses)


def test_labels_that_a_batch_brings_shifted_are_taken_as_they_are(tmp_path):
    # Under context parallelism each process has a part of a sequence, whose last label is the next part's.
    halves = [
        {"input_ids": ids[:6], "labels": ids[:6], "shift_labels": ids[1:7]}
        for ids in torch.randint(hf.VOCABULARY, (3, 12))
    ]
    trainer = make_trainer(tmp_path, eval_dataset=halves, remove_unused_columns=False, data_collator=None)
    metrics = trainer.evaluate()
    ids = torch.stack([half["input_ids"] for half in halves])
    shifted = torch.stack([half["shift_labels"] for half in halves])
    logits = trainer.model(input_ids=ids).logits.detach().double()
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), shifted.flatten(), reduction="none")
    assert len(losses) == 18
    assert_percentiles(metrics, losses)


def test_missing_labels_are_named_once(tmp_path, recwarn):
    samples = [{"input_ids": sample["input_ids"]} for sample in make_samples(3, equal=True)]
    trainer = make_trainer(tmp_path, eval_dataset=samples, data_collator=None)
    results = [trainer.evaluate() for _ in range(2)]
    assert all(result["eval_ce_p50"] != result["eval_ce_p50"] for result in results)
    said = [str(warning.message) for warning in recwarn if "saw no labels" in str(warning.message)]
    assert len(said) == 1


class OwnLossTrainer(hf.PercentileTrainer):
    """Computes its loss without asking super."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss


class GeneratingTrainer(PercentileCETrainerMixin, Seq2SeqTrainer):
    pass


@pytest.mark.parametrize("how", ["compute_loss", "label_names", "predict_with_generate"])
def test_labels_that_never_arrive_are_warned_of_with_the_cause_among_those_named(tmp_path, how, recwarn):
    samples = make_samples(3, equal=True)
    if how == "compute_loss":
        trainer = make_trainer(tmp_path, trainer=OwnLossTrainer, eval_dataset=samples)
    elif how == "label_names":
        trainer = make_trainer(tmp_path, eval_dataset=samples, label_names=["other"])
    else:
        arguments = Seq2SeqTrainingArguments(
            str(tmp_path), report_to="none", use_cpu=True, predict_with_generate=True, generation_max_length=4
        )
        trainer = GeneratingTrainer(
            make_t5(),
            arguments,
            eval_dataset=samples,
            data_collator=hf.collate,
            compute_metrics=lambda prediction: {
                "rows": len(prediction.predictions)
            },  # or nothing is generated
        )
    metrics = trainer.evaluate()
    assert metrics["eval_ce_p50"] != metrics["eval_ce_p50"]
    [message] = [str(warning.message) for warning in recwarn if "saw no labels" in str(warning.message)]
    assert how in message
