"""When PercentileCETrainerMixin says that labels seem to need no shift, whatever the loss is made of."""

import pytest
import torch
import torch.nn.functional as F
from transformers import BertForMaskedLM, BertForTokenClassification, LlamaConfig, LlamaForCausalLM, Trainer

from lightning_pce.integrations.transformers import PercentileCETrainerMixin
from tests.helpers import hf_trainers as hf
from tests.helpers.hf_trainers import make_samples, make_trainer
from tests.integrations.test_transformers_labels import make_bert, said_of_shift

MASK = 1


class ScaledTrainer(Trainer):
    """Its loss is the model's, changed as trl and others change theirs."""

    change = staticmethod(lambda loss, tokens: loss)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch=num_items_in_batch)
        loss = self.change(loss, inputs["input_ids"].numel())
        return (loss, outputs) if return_outputs else loss


class ScaledPercentileTrainer(PercentileCETrainerMixin, ScaledTrainer):
    pass


CHANGES = {
    "mean": lambda loss, tokens: loss,
    "divided": lambda loss, tokens: loss / tokens,
    "summed": lambda loss, tokens: loss * tokens,
    "dft": lambda loss, tokens: loss * (-loss).exp(),
    "negative": lambda loss, tokens: -loss,
    "auxiliary": lambda loss, tokens: loss + 40,
}


def evaluated(folder, change, model, samples, **arguments):
    trainer = make_trainer(
        folder, model, ScaledPercentileTrainer, eval_dataset=samples, data_collator=None, **arguments
    )
    trainer.change = CHANGES[change]
    trainer.evaluate()


def masked(samples):
    """What a masked language model is given: every second token is hidden, and only these are scored."""
    hidden = []
    for sample in samples:
        ids, labels = sample["input_ids"].clone(), torch.full_like(sample["input_ids"], hf.IGNORED)
        labels[::2], ids[::2] = ids[::2], MASK
        hidden.append({"input_ids": ids, "labels": labels})
    return hidden


def fitted(model, ids, labels, loss=None, steps=150):
    """Trained without dropout on one batch until it knows it."""
    optimizer = torch.optim.AdamW(model.eval().parameters(), lr=0.03)
    for _ in range(steps):
        output = model(input_ids=ids, labels=labels) if loss is None else model(input_ids=ids)
        (output.loss if loss is None else loss(output.logits, labels)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def stacked(samples):
    return [torch.stack([each[name] for each in samples]) for name in ("input_ids", "labels")]


@pytest.fixture(scope="module")
def masked_lm():
    samples = masked(make_samples(4, equal=True))
    return fitted(make_bert(BertForMaskedLM), *stacked(samples)), samples


@pytest.fixture(scope="module")
def classifier():
    samples = [{**each, "labels": each["input_ids"] % 7} for each in make_samples(4, equal=True)]
    model = make_bert(BertForTokenClassification, num_labels=7)
    return fitted(model, *stacked(samples)), samples


@pytest.mark.parametrize("change", CHANGES)
def test_a_masked_language_model_is_warned_of(tmp_path, masked_lm, change, recwarn):
    evaluated(tmp_path, change, *masked_lm)
    assert len(said_of_shift(recwarn)) == 1


def test_label_smoothing_hides_no_masked_language_model(tmp_path, masked_lm, recwarn):
    evaluated(tmp_path, "mean", *masked_lm, label_smoothing_factor=0.1)
    assert len(said_of_shift(recwarn)) == 1


@pytest.mark.parametrize("change", ["mean", "divided", "dft"])
def test_token_classification_is_warned_of(tmp_path, classifier, change, recwarn):
    evaluated(tmp_path, change, *classifier)
    assert len(said_of_shift(recwarn)) == 1


class ShiftedInTheDataTrainer(Trainer):
    """Its data bring the next token as the label, and its loss shifts nothing."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(input_ids=inputs["input_ids"])
        loss = F.cross_entropy(outputs.logits.flatten(0, 1), inputs["labels"].flatten())
        return (loss / 100, outputs) if return_outputs else loss / 100


class ShiftedInTheDataPercentileTrainer(PercentileCETrainerMixin, ShiftedInTheDataTrainer):
    pass


def test_a_causal_model_whose_labels_are_shifted_already_is_warned_of(tmp_path, recwarn):
    ids = torch.randint(hf.VOCABULARY, (4, 13))
    samples = [{"input_ids": row[:-1], "labels": row[1:]} for row in ids]
    model = fitted(
        hf.make_model(), ids[:, :-1], ids[:, 1:], lambda logits, labels: F.cross_entropy(logits.mT, labels)
    )
    make_trainer(tmp_path, model, ShiftedInTheDataPercentileTrainer, eval_dataset=samples).evaluate()
    assert len(said_of_shift(recwarn)) == 1


def make_tied():
    """Untrained, with one table for both ends: it gives away the token that it was given."""
    config = LlamaConfig(
        vocab_size=hf.VOCABULARY,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    model.model.embed_tokens.weight.data.normal_(std=1.0)
    return model


class OwnLM(torch.nn.Module):
    """A causal model that transformers does not know."""

    def __init__(self, model):
        super().__init__()
        self.lm, self.config = model, model.config

    def forward(self, input_ids, labels=None):
        return dict(self.lm(input_ids, labels=labels))


@pytest.mark.parametrize("change", CHANGES)
def test_no_loss_of_a_causal_model_is_taken_for_a_wrong_shift(tmp_path, change, recwarn):
    samples = make_samples(4, equal=True)
    tied = make_tied()
    logits = tied(torch.stack([each["input_ids"] for each in samples])).logits
    ids = torch.stack([each["input_ids"] for each in samples])
    in_place = F.cross_entropy(logits.flatten(0, 1), ids.flatten())
    assert in_place < 1 < tied(ids, labels=ids).loss - 5
    for model in (tied, hf.make_model(), OwnLM(hf.make_model())):
        evaluated(tmp_path, change, model, samples)
    assert said_of_shift(recwarn) == []


def test_an_untrained_causal_model_of_ones_own_is_not_warned_of(tmp_path, recwarn):
    evaluated(tmp_path, "mean", OwnLM(make_tied()), make_samples(4, equal=True))
    assert said_of_shift(recwarn) == []
