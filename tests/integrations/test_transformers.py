"""Percentile CE from a real Trainer of transformers, in one process and in two."""

import os
import warnings
import weakref

import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    EarlyStoppingCallback,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
)

from lightning_pce.integrations.transformers import PercentileCETrainerMixin
from tests.helpers import hf_trainers as hf
from tests.helpers.hf_trainers import (
    expected,
    losses_of,
    make_model,
    make_samples,
    make_trainer,
    percentiles_in,
)
from tests.helpers.processes import counted_collectives, run_ranks

# ---------------------------------------------------------------------------------------------- one process


def assert_percentiles(metrics, losses, prefix="eval"):
    """They are those of the losses, and nothing else is called so."""
    assert percentiles_in(metrics) == pytest.approx(expected(losses, prefix), rel=1e-5)


def test_evaluate_gives_the_percentiles_of_every_token_of_the_set(tmp_path):
    samples = make_samples(7)
    trainer = make_trainer(tmp_path, eval_dataset=samples)
    metrics = trainer.evaluate()
    losses = losses_of(trainer.model, samples)
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
    losses = losses_of(trainer.model, samples)
    for key, value in expected(losses, "valid", (50,)).items():
        assert metrics[key] == pytest.approx(value, rel=1e-5)
    assert "valid_ce_p99_9" in metrics
    assert 0 <= metrics["valid_accuracy"] <= metrics["valid_top5_accuracy"] <= 1
    assert metrics["valid_log_rank_p50"] >= 0
    with pytest.raises(ValueError, match="percentiles"):
        trainer.configure_percentile_ce(percentiles=(101,))


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
    assert percentiles_in(metrics) == pytest.approx(expected(counted, percentiles=(50,)), rel=1e-5)


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
    assert "far above the Trainer's own loss" in message
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

    for shift, warned in ((True, 0), (None, 1)):
        trainer = make_trainer(tmp_path, trainer=SmallLossPercentileTrainer, eval_dataset=samples)
        trainer.configure_percentile_ce(shift=shift)
        trainer.evaluate()
        assert len(said_of_shift(recwarn)) == warned


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


# The mean is lowest after the first epoch, the median after the second.
SCRIPTED = [[1.0] * 7, [0.1] * 5 + [9.0] * 2, [0.4] * 5 + [8.0] * 2, [0.5] * 5 + [8.0] * 2, [0.01] * 7]


def fit_scripted(folder, metric, epochs, *callbacks):
    samples = [
        {"input_ids": torch.zeros(8, dtype=torch.long), "labels": torch.zeros(8, dtype=torch.long)}
    ] * 3
    trainer = make_trainer(
        folder,
        hf.ScriptedLM(SCRIPTED),
        callbacks=[hf.NextEpoch(), *callbacks],
        train_dataset=samples,
        eval_dataset=samples,
        num_train_epochs=epochs,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model=metric,
        greater_is_better=False,
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    ("metric", "best", "score"),
    [("eval_ce_p50", 1, 0.1), ("ce_p50", 1, 0.1), ("eval_ce_mean", 0, 1.0), ("eval_loss", 0, 1.0)],
)
def test_the_best_model_is_that_of_the_chosen_statistic(tmp_path, metric, best, score):
    trainer = fit_scripted(tmp_path, metric, 4)
    assert int(trainer.model.epoch) == best
    assert trainer.state.best_metric == pytest.approx(score, rel=1e-5)
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{2 * (best + 1)}")


def test_early_stopping_follows_the_median(tmp_path):
    trainer = fit_scripted(tmp_path, "ce_p50", 5, EarlyStoppingCallback(early_stopping_patience=2))
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


def test_several_evaluation_sets_each_have_their_own(tmp_path):
    sets = {"web": make_samples(3, seed=1), "code": make_samples(4, seed=2)}
    trainer = make_trainer(tmp_path, eval_dataset=sets)
    metrics = trainer.evaluate()
    for name, samples in sets.items():
        own = {key: value for key, value in metrics.items() if key.startswith(f"eval_{name}_")}
        assert_percentiles(own, losses_of(trainer.model, samples), f"eval_{name}")
    assert len(percentiles_in(metrics)) == 16


def test_predict_gives_them_too(tmp_path):
    samples = make_samples(3, equal=True)
    trainer = make_trainer(tmp_path)
    output = trainer.predict(samples)
    assert output.predictions.shape == (3, 8, hf.VOCABULARY)
    assert_percentiles(output.metrics, losses_of(trainer.model, samples), "test")


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
    assert_percentiles(metrics, losses_of(trainer.model, samples))


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
        float(hf.exact_quantile(losses_of(trainer.model, samples), 0.95)), rel=1e-5
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
    assert_percentiles(metrics, losses_of(trainer.model, samples))
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
    assert_percentiles(trainer.evaluate(), losses_of(trainer.model.lm, samples))


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
    assert_percentiles(trainer.evaluate(), losses_of(trainer.model.lm, samples))


def test_a_model_without_logits_is_refused_and_the_next_evaluation_is_untouched(tmp_path):
    samples = make_samples(5)
    trainer = make_trainer(tmp_path, HeadlessLM(), eval_dataset=samples)
    trainer.evaluate(make_samples(3, seed=9))
    trainer.model.without = True
    with pytest.raises(ValueError, match=r"return `logits` .* but got \['loss'\]"):
        trainer.evaluate()
    trainer.model.without = False
    assert_percentiles(trainer.evaluate(), losses_of(trainer.model.lm, samples))


@pytest.mark.parametrize("count", [0, 3])
def test_without_a_token_that_counts_all_are_nan(tmp_path, count):
    samples = [{**s, "labels": torch.full_like(s["labels"], hf.IGNORED)} for s in make_samples(count)]
    metrics = percentiles_in(make_trainer(tmp_path, eval_dataset=samples).evaluate())
    assert sorted(metrics) == sorted(expected(torch.ones(1)))
    assert all(value != value for value in metrics.values())


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


def test_training_is_not_measured(tmp_path):
    trainer = make_trainer(tmp_path, train_dataset=make_samples(4), max_steps=2)
    trainer.train()
    assert not hasattr(trainer, "percentile_ce")


def test_the_mixin_behind_the_trainer_is_refused():
    with pytest.raises(TypeError, match=r"before Trainer .* of Backwards"):

        class Backwards(Trainer, PercentileCETrainerMixin):
            pass


# -------------------------------------------------------------------------------------------- two processes


class Stream(torch.utils.data.IterableDataset):
    def __init__(self, samples):
        self.samples = samples

    def __iter__(self):
        return iter(self.samples)


def joined(samples):
    """All samples of a batch one after the other in a single row."""
    return {name: torch.cat([sample[name] for sample in samples])[None] for name in ("input_ids", "labels")}


EQUAL = make_samples(7, seed=5, equal=True)
# What is evaluated, in two batches of two for each process if nothing else is said, and what counts once.
SETS = {
    "seven": (make_samples(7), {}, slice(7)),
    "one": (make_samples(1), {}, slice(1)),
    "eight": (make_samples(8), {}, slice(8)),
    "none": ([], {}, slice(0)),
    "last_dropped": (make_samples(7), {"dataloader_drop_last": True}, slice(4)),
    "split": (make_samples(7), {"accelerator_config": {"split_batches": True}}, slice(7)),
    "dispatched": (EQUAL, {"accelerator_config": {"dispatch_batches": True}}, slice(7)),
    "stream": (Stream(EQUAL), {}, slice(7)),
    "joined_singly": (EQUAL, {"data_collator": joined, "per_device_eval_batch_size": 1}, slice(7)),
    "uneven": (make_samples(7), {"accelerator_config": {"even_batches": False}}, slice(7)),
}
# Here nobody can tell what is repeated: the first sample, by the second process.
COUNTED_TWICE = {
    "joined": (EQUAL, {"data_collator": joined}),
    "sharded_stream": (Stream(EQUAL), {"accelerator_config": {"dispatch_batches": False}}),
}


def in_two_processes(rank, world, folder):
    # What torchrun sets; the group is there already, and nobody asks the master.
    local = {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1"}
    os.environ.update(local, RANK=str(rank), WORLD_SIZE=str(world), MASTER_PORT="1")
    notes = {}
    for name, (samples, arguments, *_) in {**SETS, **COUNTED_TWICE}.items():
        trainer = make_trainer(folder, eval_dataset=samples, **arguments)
        assert trainer.args.world_size == world
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            results = [percentiles_in(trainer.evaluate()) for _ in range(2)]
        said = [str(warning.message) for warning in caught if "Percentile CE" in str(warning.message)]
        notes[name] = {"results": results, "said": said}
    notes["collectives"] = [gathered(folder, trainer) for trainer in (Trainer, hf.PercentileTrainer)]
    notes["fit"] = fit_in_two_processes(folder)
    return notes


def gathered(folder, kind):
    """The names of all collectives of an evaluation, and the most numbers that one gathered."""
    trainer, sizes = make_trainer(folder, trainer=kind, eval_dataset=make_samples(7)), []
    if kind is hf.PercentileTrainer:
        trainer.configure_percentile_ce(compression=8)
    all_gather = dist.all_gather

    def measured(tensors, tensor, *arguments, **keywords):
        sizes.append(tensor.numel())
        return all_gather(tensors, tensor, *arguments, **keywords)

    trainer.evaluate()  # the first prepares the model too
    dist.all_gather = measured
    try:
        with counted_collectives() as calls:
            trainer.evaluate()
    finally:
        dist.all_gather = all_gather
    return sorted(calls), max(sizes)


def fit_in_two_processes(folder):
    sets = {"web": make_samples(7, seed=6), "code": make_samples(3, seed=7)}
    observers = {name: hf.Observer(samples) for name, samples in sets.items()}
    trainer = make_trainer(
        folder,
        callbacks=[*observers.values(), EarlyStoppingCallback(early_stopping_patience=1)],
        train_dataset=make_samples(16),
        eval_dataset=sets,
        max_steps=24,
        eval_strategy="steps",
        eval_steps=4,
        save_strategy="steps",
        save_steps=4,
        load_best_model_at_end=True,
        metric_for_best_model="eval_web_ce_p50",
        greater_is_better=False,
    )
    trainer.train()
    observed = {}
    for name, observer in observers.items():
        own = [(losses, metrics) for losses, metrics in observer.seen if f"eval_{name}_ce_p50" in metrics]
        observed[name] = own
    best = trainer.evaluate(sets["web"], metric_key_prefix="best")["best_ce_p50"]
    return {
        "observed": observed,
        "steps": trainer.state.global_step,
        "best": best,
        "wrapped": is_ddp(trainer),
    }


def is_ddp(trainer):
    return isinstance(trainer.model_wrapped, torch.nn.parallel.DistributedDataParallel)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return run_ranks(in_two_processes, 2, str(tmp_path_factory.mktemp("two")), timeout=200)


@pytest.mark.parametrize("name", SETS)
def test_in_two_processes_every_token_of_the_set_counts_once(two, name):
    samples, _, counted = SETS[name]
    samples = list(samples)[counted]
    for notes in two:
        assert notes[name]["said"] == []
        for metrics in notes[name]["results"]:
            if samples:
                assert_percentiles(metrics, losses_of(make_model(), samples))
            else:
                assert len(metrics) == 8
                assert all(value != value for value in metrics.values())


@pytest.mark.parametrize("name", COUNTED_TWICE)
def test_repeats_that_cannot_be_told_apart_are_named_once(two, name):
    samples = list(COUNTED_TWICE[name][0])
    assert len(two[0][name]["said"]) == 1
    for metrics in two[0][name]["results"]:
        if name == "sharded_stream":
            assert_percentiles(metrics, losses_of(make_model(), [*samples, samples[0]]))


def test_an_evaluation_gathers_one_digest_and_no_logits(two):
    for notes in two:
        (plain, _), (calls, most) = notes["collectives"]
        assert calls == sorted([*plain, "all_gather"])
        assert most == (8 + 3) * 2


def test_in_two_processes_training_stops_and_chooses_by_the_median_of_all(two):
    first, second = (notes["fit"] for notes in two)
    for name, evaluations in first["observed"].items():
        assert len(evaluations) == first["steps"] // 4
        for (losses, metrics), (_, others) in zip(evaluations, second["observed"][name], strict=True):
            assert metrics == others
            assert_percentiles(metrics, losses, f"eval_{name}")
    medians = [metrics["eval_web_ce_p50"] for _, metrics in first["observed"]["web"]]
    assert first["steps"] == second["steps"] == 4 * len(medians) < 24
    assert first["best"] == second["best"] == pytest.approx(min(medians), rel=1e-6)
    assert first["wrapped"]
    assert second["wrapped"]
