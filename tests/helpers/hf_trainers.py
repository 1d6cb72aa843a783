"""A tiny Llama, samples of unequal lengths, and an oracle that knows every token's loss, for transformers."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from lightning_pce.integrations.transformers import PercentileCETrainerMixin
from tests.helpers.summaries import expected_log

VOCABULARY, IGNORED = 50, -100


class PercentileTrainer(PercentileCETrainerMixin, Trainer):
    pass


def make_model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
        )
        model = LlamaForCausalLM(config)
        model.lm_head.weight.data *= 20  # losses that differ
        return model


def make_samples(count, seed=0, equal=False):
    """Ids of 4 to 12 tokens, of which the first three and some others are not scored."""
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for _ in range(count):
        length = 8 if equal else int(torch.randint(4, 13, (), generator=generator))
        ids = torch.randint(VOCABULARY, (length,), generator=generator)
        labels = ids.clone()
        labels[:2] = IGNORED
        labels[torch.rand(length, generator=generator) < 0.2] = IGNORED
        labels[-1] = ids[-1]
        samples.append({"input_ids": ids, "labels": labels})
    return samples


def collate(samples):
    ids = [sample["input_ids"] for sample in samples]
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(each) for each in ids], batch_first=True),
        "labels": pad_sequence([s["labels"] for s in samples], batch_first=True, padding_value=IGNORED),
    }


def sample_losses(model, samples):
    """The losses of all scored tokens of the samples, each sample by itself."""
    training = model.training
    model.eval()
    with torch.no_grad():
        losses = [
            F.cross_entropy(
                model(input_ids=sample["input_ids"][None]).logits[0, :-1].double(),
                sample["labels"][1:],
                reduction="none",
            )[sample["labels"][1:] != IGNORED]
            for sample in samples
        ]
    model.train(training)
    return torch.cat(losses)


def percentiles_in(metrics):
    return {key: value for key, value in metrics.items() if "_ce_" in key}


def assert_percentiles(metrics, losses, prefix="eval"):
    """They are those of the losses, and nothing else is called so."""
    assert percentiles_in(metrics) == pytest.approx(expected_log(losses, prefix), rel=1e-5)


def make_trainer(folder, model=None, trainer=PercentileTrainer, callbacks=None, **arguments):
    """A Trainer of batches of two on the CPU that writes only what it must."""
    parts = (
        "train_dataset",
        "eval_dataset",
        "compute_metrics",
        "data_collator",
        "compute_loss_func",
        "model_init",
    )
    given = {name: arguments.pop(name) for name in parts if name in arguments}
    defaults = {
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "report_to": "none",
        "use_cpu": True,
        "save_strategy": "no",
        "learning_rate": 0.03,
    }
    return trainer(
        make_model() if model is None and "model_init" not in given else model,
        TrainingArguments(str(folder), **{**defaults, **arguments}),
        callbacks=callbacks,
        **{"data_collator": collate, **given},
    )


class FusedLM(torch.nn.Module):
    """Gives log-probabilities and no logits, as a model with trl's fused head."""

    def __init__(self):
        super().__init__()
        self.lm = make_model()

    def forward(self, input_ids, attention_mask=None, labels=None):
        logits, labels = self.lm(input_ids, attention_mask).logits[:, :-1], labels[:, 1:]
        mask = labels != IGNORED
        own = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
        log_probs = own.masked_fill(~mask, 0)
        return {"loss": -log_probs.sum() / mask.sum(), "log_probs": log_probs, "label_mask": mask}


class Observer(TrainerCallback):
    """After each evaluation: what the callbacks were given, and the losses of that moment's model."""

    def __init__(self, samples):
        self.samples, self.seen = samples, []

    def on_evaluate(self, args, state, control, metrics, model, **_):
        self.seen.append((sample_losses(model, self.samples), percentiles_in(metrics)))


class ScriptedLM(torch.nn.Module):
    """Its losses are given, epoch by epoch: token t of every sample loses ``losses[epoch][t]`` nats."""

    def __init__(self, losses):
        super().__init__()
        self.register_buffer("losses", torch.tensor(losses))
        self.register_buffer("epoch", torch.tensor(-1))
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, input_ids, labels, **_):
        losses = self.losses[self.epoch].expand(len(input_ids), -1)
        against = losses.expm1().log()  # the logit of id 1; all labels are 0, and their logit
        logits = torch.stack([torch.zeros_like(against), against], dim=-1)
        return {"loss": losses.mean() + 0 * self.weight, "logits": pad_last(logits)}


def pad_last(logits):
    """A position more, that of the last token, which predicts nothing."""
    return F.pad(logits, (0, 0, 0, 1))


class NextEpoch(TrainerCallback):
    def on_epoch_begin(self, args, state, control, model, **_):
        model.epoch += 1


# The mean is lowest after the first epoch, the median after the second.
SCRIPTED = [[1.0] * 7, [0.1] * 5 + [9.0] * 2, [0.4] * 5 + [8.0] * 2, [0.5] * 5 + [8.0] * 2, [0.01] * 7]


def make_scripted(folder, metric, epochs, trainer=PercentileTrainer, callbacks=(), **arguments):
    """A Trainer whose evaluations give the losses of SCRIPTED; an epoch has two steps."""
    samples = [
        {"input_ids": torch.zeros(8, dtype=torch.long), "labels": torch.zeros(8, dtype=torch.long)}
    ] * 3
    defaults = {
        "train_dataset": samples,
        "eval_dataset": samples,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "load_best_model_at_end": True,
    }
    return make_trainer(
        folder,
        ScriptedLM(SCRIPTED),
        trainer,
        [NextEpoch(), *callbacks],
        num_train_epochs=epochs,
        metric_for_best_model=metric,
        **{**defaults, **arguments},
    )


def fit_scripted(*given, **arguments):
    trainer = make_scripted(*given, **arguments)
    trainer.train()
    return trainer


def as_if_the_worst_had_been_kept(folder, last):
    """The state of a run that took greater for better: its best value is the greatest. Returns its step."""
    path = folder / f"checkpoint-{last}" / "trainer_state.json"
    state = json.loads(path.read_text())
    rows = [row for row in state["log_history"] if "eval_ce_p50" in row]
    worst = max(rows, key=lambda row: row["eval_ce_p50"])
    state.update(
        best_metric=worst["eval_ce_p50"],
        best_global_step=worst["step"],
        best_model_checkpoint=str(folder / f"checkpoint-{worst['step']}"),
    )
    path.write_text(json.dumps(state))
    return worst["step"]
