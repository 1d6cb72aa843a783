"""Prompt tuning under PercentileCETrainerMixin: virtual tokens in front make logits longer than labels."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from transformers import Trainer

from lightning_pce.integrations.transformers import PercentileCETrainerMixin
from tests.helpers import hf_trainers as hf
from tests.helpers.hf_trainers import assert_percentiles, make_model, make_samples, make_trainer

VIRTUAL = 3


class PromptTunedLM(torch.nn.Module):
    """A model with a trained prompt in front of its embeddings, which it declares as peft's models do."""

    def __init__(self, declared=VIRTUAL, chunk=None):
        super().__init__()
        self.lm, self.chunk = make_model(), chunk
        self.config = self.lm.config
        width = self.lm.config.hidden_size
        self.prompt = torch.nn.Parameter(
            torch.randn(VIRTUAL, width, generator=torch.Generator().manual_seed(1))
        )
        if declared is not None:
            self.active_peft_config = SimpleNamespace(num_virtual_tokens=declared, is_prompt_learning=True)

    def forward(self, input_ids, attention_mask=None, labels=None):
        embedded = self.lm.get_input_embeddings()(input_ids)
        embedded = torch.cat([self.prompt.expand(len(embedded), -1, -1), embedded], dim=1)
        if attention_mask is not None:
            attention_mask = F.pad(attention_mask, (VIRTUAL, 0), value=1)
        if labels is not None:
            labels = F.pad(labels, (VIRTUAL, 0), value=hf.IGNORED)
        output = self.lm(inputs_embeds=embedded, attention_mask=attention_mask, labels=labels)
        if self.chunk:
            return {"loss": output.loss, "logits": list(output.logits.split(self.chunk, dim=1))}
        return output


def losses_of(model, samples, shift=True):
    """Of every label that counts, the first one too: the last virtual token predicts it."""
    losses = []
    chunk, model.chunk = model.chunk, None
    for sample in samples:
        with torch.no_grad():
            logits = model.eval()(sample["input_ids"][None]).logits[0].double()
        logits = logits[VIRTUAL - 1 : -1] if shift else logits[VIRTUAL:]
        losses.append(F.cross_entropy(logits, sample["labels"], reduction="none"))
    model.chunk = chunk
    return torch.cat(losses)[torch.cat([each["labels"] for each in samples]) != hf.IGNORED]


def whole(samples):
    """Samples of which every token is scored."""
    return [{"input_ids": each["input_ids"], "labels": each["input_ids"]} for each in samples]


@pytest.mark.parametrize("samples", [make_samples(5), whole(make_samples(5))], ids=["masked", "whole"])
@pytest.mark.parametrize("chunk", [None, 2, 5])
def test_the_prompt_comes_first_and_is_not_scored(tmp_path, samples, chunk):
    trainer = make_trainer(tmp_path, PromptTunedLM(chunk=chunk), eval_dataset=samples)
    trainer.configure_percentile_ce(statistics=("ce", "rank"))
    assert_percentiles(trainer.evaluate(), losses_of(trainer.model, samples))


@pytest.mark.parametrize("how", ["label_smoothing", "compute_loss_func"])
def test_whatever_the_loss_is_made_of(tmp_path, how):
    def loss(outputs, labels, **_):
        return outputs["logits"].mean()

    class CutTrainer(Trainer):
        """Cuts the prompt from the logits, which transformers' own smoothing would fail on."""

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            labels = inputs.pop("labels")
            outputs = model(**inputs)
            value = F.cross_entropy(
                outputs.logits[:, VIRTUAL:-1].flatten(0, 1), labels[:, 1:].flatten(), label_smoothing=0.3
            )
            return (value, outputs) if return_outputs else value

    class CutPercentileTrainer(PercentileCETrainerMixin, CutTrainer):
        pass

    samples = make_samples(5)
    if how == "label_smoothing":
        trainer = make_trainer(tmp_path, PromptTunedLM(), CutPercentileTrainer, eval_dataset=samples)
    else:
        trainer = make_trainer(tmp_path, PromptTunedLM(), eval_dataset=samples, compute_loss_func=loss)
    assert_percentiles(trainer.evaluate(), losses_of(trainer.model, samples))


def test_the_mean_is_the_models_own_loss(tmp_path):
    samples = whole(make_samples(4, equal=True))
    metrics = make_trainer(tmp_path, PromptTunedLM(), eval_dataset=samples).evaluate()
    model = PromptTunedLM().eval()
    with torch.no_grad():
        own = model(**hf.collate(samples)).loss.item()
    assert metrics["eval_ce_mean"] == pytest.approx(own, rel=1e-5)


def test_labels_that_stand_where_their_logits_do(tmp_path):
    samples = whole(make_samples(4, equal=True))
    trainer = make_trainer(tmp_path, PromptTunedLM(), eval_dataset=samples)
    trainer.configure_percentile_ce(shift=False)
    assert_percentiles(trainer.evaluate(), losses_of(trainer.model, samples, shift=False))


def test_a_prompt_that_is_switched_off(tmp_path):
    class Off(PromptTunedLM):
        def forward(self, input_ids, attention_mask=None, labels=None):
            return self.lm(input_ids, attention_mask, labels=labels)

    samples = make_samples(5)
    trainer = make_trainer(tmp_path, Off(), eval_dataset=samples)
    assert_percentiles(trainer.evaluate(), hf.sample_losses(trainer.model.lm, samples))


@pytest.mark.parametrize("declared", [None, 2, 4])
def test_positions_that_nothing_explains_are_refused(tmp_path, declared):
    samples = make_samples(2, equal=True)
    trainer = make_trainer(tmp_path, PromptTunedLM(declared), eval_dataset=samples)
    with pytest.raises(
        ValueError, match=r"labels \(2, 8\) but got logits \(2, 11, 50\).*SFTConfig.*logits\[:, added:\]"
    ):
        trainer.evaluate()
