"""Evaluations and a training of transformers' Trainer in two processes."""

import os
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from transformers import (
    EarlyStoppingCallback,
    Trainer,
)

from lightning_pce import History
from tests.helpers import hf_trainers as hf
from tests.helpers.hf_trainers import (
    assert_percentiles,
    make_model,
    make_samples,
    make_trainer,
    percentiles_in,
    sample_losses,
)
from tests.helpers.lit_modules import Stream
from tests.helpers.ranks import counted_collectives, run_function_on_ranks


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
    notes["resumed"] = resume_in_two_processes(Path(folder) / "resumed", rank)
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
    )
    path = Path(folder) / f"history{dist.get_rank()}.jsonl"
    trainer.configure_percentile_ce(history=path)
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
        "history": [(r.name, r.step, r.values["ce_p50"]) for r in History.load(path)]
        if path.exists()
        else None,
    }


def resume_in_two_processes(folder, rank):
    """A finished run whose state says that the worst was the best; only the first process sees the disk."""
    # transformers 4.56 cannot load an optimizer on several CPU ranks.
    last = hf.fit_scripted(folder, "eval_ce_p50", 3, save_only_model=True).state.global_step
    if rank == 0:
        hf.as_if_the_worst_had_been_kept(folder, last)
    dist.barrier()
    trainer = hf.make_scripted(folder, "eval_ce_p50", 3)
    with pytest.MonkeyPatch.context() as patched:
        if rank:
            patched.setattr("lightning_pce.integrations._best_checkpoint._lowest", lambda *_: None)
        trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{last}"))
    return int(trainer.model.epoch), trainer.state.best_metric


def is_ddp(trainer):
    return isinstance(trainer.model_wrapped, torch.nn.parallel.DistributedDataParallel)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return run_function_on_ranks(in_two_processes, 2, str(tmp_path_factory.mktemp("two")), timeout=200)


@pytest.mark.parametrize("name", SETS)
def test_in_two_processes_every_token_of_the_set_counts_once(two, name):
    samples, _, counted = SETS[name]
    samples = list(samples)[counted]
    for notes in two:
        assert notes[name]["said"] == []
        for metrics in notes[name]["results"]:
            if samples:
                assert_percentiles(metrics, sample_losses(make_model(), samples))
            else:
                assert len(metrics) == 8
                assert all(value != value for value in metrics.values())


@pytest.mark.parametrize("name", COUNTED_TWICE)
def test_repeats_that_cannot_be_told_apart_are_named_once(two, name):
    samples = list(COUNTED_TWICE[name][0])
    assert len(two[0][name]["said"]) == 1
    for metrics in two[0][name]["results"]:
        if name == "sharded_stream":
            assert_percentiles(metrics, sample_losses(make_model(), [*samples, samples[0]]))


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


def test_in_two_processes_the_first_writes_each_evaluation_once(two):
    first, second = (notes["fit"] for notes in two)
    assert second["history"] is None
    expected = [
        (f"eval_{name}", 4 * (index + 1), metrics[f"eval_{name}_ce_p50"])
        for index in range(first["steps"] // 4)
        for name, (_, metrics) in ((name, seen[index]) for name, seen in first["observed"].items())
    ]
    assert first["history"] == [*expected, ("best", None, first["best"])]


def test_in_two_processes_a_resumed_run_that_had_kept_the_worst_keeps_the_best_on_both(two):
    for notes in two:
        assert notes["resumed"] == (1, pytest.approx(0.1, rel=1e-5))
