"""All that is known of a Trainer's inside: its loops, steps, ranks and resumes. No other module reads it.

Ranks stay together, each token counts once, and a resumed run measures what an uninterrupted one does.
"""

from __future__ import annotations

import math
import warnings
import weakref
import zlib
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


# A connector sets the attributes of these two, and no class of Lightning says so to a type checker.
def callbacks_of(trainer: Any) -> list[Any]:
    """A Trainer's callbacks, in the order in which they are called; the list itself."""
    callbacks: list[Any] = trainer.callbacks
    return callbacks


def is_fast_dev_run(trainer: Any) -> bool:
    """Whether a few batches are run as a test, of which nothing is to be kept."""
    return bool(trainer.fast_dev_run)


def evaluation_loops(trainer: Any) -> tuple[Any, Any, Any]:
    """A Trainer's three: validation in fit, validate, test."""
    return trainer.fit_loop.epoch_loop.val_loop, trainer.validate_loop, trainer.test_loop


def running_loop(trainer: Any) -> Any:
    """The evaluation loop that runs now."""
    in_fit, validate, test = evaluation_loops(trainer)
    if trainer.testing:
        return test
    return validate if trainer.state.fn == "validate" else in_fit


def one_after_the_other(loop: Any) -> bool:
    """Whether a step sees one dataloader, not all at once."""
    return loop._combined_loader is None or loop._combined_loader._mode == "sequential"


def data_parallel_group(trainer: Any) -> Callable[[], ProcessGroup | None] | None:
    """How to find the ranks that see tokens of their own, where a device mesh has others; None: all do."""
    # Not the module's mesh, which may be of an earlier Trainer.
    mesh: Any = getattr(trainer.strategy, "device_mesh", None)
    names = getattr(mesh, "mesh_dim_names", None) or ()
    return mesh["data_parallel"].get_group if "data_parallel" in names else None


def logged_step(trainer: Any) -> int:
    """The step under which Lightning logs what training logs now."""
    step: int = trainer.fit_loop.epoch_loop._batches_that_stepped
    return step


def trained_batches(trainer: Any) -> int:
    """How many batches training has seen, over all epochs and before a resume too."""
    batches: int = trainer.fit_loop.epoch_loop.batch_progress.total.processed
    return batches


def evaluated_checkpoint(trainer: Any) -> str | None:
    """The checkpoint whose weights are evaluated by themselves, None: they are of the trainer's step.

    The weights stay where they were loaded: also an evaluation without ``ckpt_path`` is of them then, until
    training goes on. So all callbacks that ask look at each evaluation, in ``setup``.
    """
    loop, module = trainer.fit_loop, trainer.lightning_module
    if trainer.state.fn == "fit":
        loop.evaluated_checkpoint = None
    elif trainer.ckpt_path is not None:
        loop.evaluated_checkpoint = str(trainer.ckpt_path), weakref.ref(module)
    path, of = getattr(loop, "evaluated_checkpoint", None) or (None, None)
    return path if of is not None and of() is module else None


def logged_values(trainer: Any) -> dict[str, Any]:
    """What was logged for callbacks so far, by name; what is logged again becomes another object.

    Reading ``trainer.callback_metrics`` may compute metrics, a collective that rank 0 would enter alone.
    """
    return dict(trainer._logger_connector._callback_metrics)


def saved_models(trainer: Any) -> dict[str, tuple[str | None, Any]]:
    """The files that each ModelCheckpoint keeps by their path, but for ``last.ckpt``, which is of any step.

    Args:
        trainer: the trainer, with callbacks of either namespace of Lightning.

    Returns:
        What the file was chosen by, and an object that is another one when it was written over.
    """
    found: dict[str, tuple[str | None, Any]] = {}
    for callback in trainer.callbacks:
        kept, best = getattr(callback, "best_k_models", None), getattr(callback, "best_model_path", None)
        monitor = getattr(callback, "monitor", None)
        if not isinstance(kept, dict) or not isinstance(best, str):
            continue
        if monitor is None and best:  # it has no values to compare
            found[best] = None, getattr(callback, "_last_global_step_saved", None)
        for path, value in kept.items():  # not the number: reading it would wait for the device
            found[str(path)] = monitor, value
    return found


def warn_of_repeats(trainer: Any) -> None:
    """Warn, once for each evaluation loop, if the dataloaders of the running one give some tokens twice."""
    loop = running_loop(trainer)
    combined = loop._combined_loader
    if trainer.sanity_checking or combined is None or getattr(loop, "warned_of_repeats", False):
        return
    loop.warned_of_repeats = True
    said = []
    for loader, batches in zip(combined.flattened, loop.max_batches, strict=False):
        sampler = getattr(loader, "sampler", None)
        if not isinstance(sampler, DistributedSampler):
            sampler = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
        if isinstance(sampler, DistributedSampler) and batches >= len(loader):
            samples = len(cast(Sized, sampler.dataset))  # the sampler has asked for it itself
            if sampler.total_size > samples and not getattr(loader, "drop_last", False):
                said.append(
                    f"DistributedSampler repeats {sampler.total_size - samples} of {samples} samples to give "
                    "every rank as many, and their tokens count twice. To count each once, pass "
                    "Trainer(use_distributed_sampler=False) and DataLoader(..., sampler=range(rank, "
                    "len(dataset), world_size)); ranks may have unequal numbers of batches here."
                )
    if combined._mode == "max_size_cycle" and len(set(loop.max_batches)) > 1:
        said.append(
            "CombinedLoader(mode='max_size_cycle') repeats the shorter dataloaders, and their tokens count "
            f"as often (batches: {loop.max_batches}). mode='sequential' or 'max_size' repeats none."
        )
    if trainer.is_global_zero:
        for text in said:
            warnings.warn(text, stacklevel=2)


def sync_buffers(trainer: Any) -> None:
    """Send the model's buffers, such as rotary embeddings, from rank 0 to all ranks now, if they are to be.

    DDP would do so at the first forward after training. A rank without a validation batch is in the first
    collective of the percentiles by then, and both wait for ever.

    Args:
        trainer: the trainer, at the start of a validation.
    """
    if not isinstance(trainer.strategy.model, DistributedDataParallel):
        return
    model: Any = trainer.strategy.model  # whose methods have no types, and none of them is public
    if model.will_sync_module_buffers():
        model._sync_buffers()
        model.require_forward_param_sync = False  # until the next backward, as after a validation batch


def check_settings_over_ranks(configuration: str, trainer: Any) -> None:
    """Raise on all ranks if percentile CE is not configured alike on all.

    Groups in another order would be merged with each other, and other sizes end the process.

    Args:
        configuration: this rank's settings in words.
        trainer: the trainer.
    """
    if trainer.world_size == 1:
        return
    checksum = zlib.crc32(configuration.encode()) >> 8  # 24 bits, which float32 holds
    everywhere = [numbers[0] for numbers in _gather([checksum], trainer)]
    if len(set(everywhere)) > 1:
        others = [rank for rank, number in enumerate(everywhere) if number != checksum]
        raise RuntimeError(
            "Percentile CE is configured differently on the ranks, so that their percentiles cannot be "
            f"merged: rank {trainer.global_rank} has {configuration}, and ranks {others} have others. "
            "Configure it with values that do not depend on the rank or its data, groups in one order."
        )


def check_lengths_over_ranks(loop: Any, trainer: Any) -> None:
    """Make an evaluation loop raise on all ranks if their dataloaders do not fit together.

    Ranks with different numbers of dataloaders would enter different collectives. Lightning skips the whole
    loop on a rank whose sized loaders are empty (or raises there alone), and the others wait for it.

    Args:
        loop: an evaluation loop of the trainer.
        trainer: the trainer.
    """
    if trainer.world_size == 1 or getattr(loop, "checks_lengths_over_ranks", False):
        return
    setup_data = loop.setup_data

    def setup_data_and_check() -> None:
        before = loop._combined_loader
        failure: Exception | None = None
        try:
            with _one_collective(loop, trainer):
                setup_data()
        except Exception as error:  # a fraction of a short loader that is less than a batch, say
            failure = error
        if failure is None and loop._combined_loader is before:
            return
        _check_number(loop, trainer, failure)
        if loop.max_batches:
            _check_batches(loop, trainer)

    loop.setup_data, loop.checks_lengths_over_ranks = setup_data_and_check, True


@contextmanager
def _one_collective(loop: Any, trainer: Any) -> Iterator[None]:
    """Let a loop set up its dataloaders with one collective on every rank, a barrier, whatever they are.

    Lightning adds up the length of each sized dataloader over the ranks. Other numbers of dataloaders on one
    rank, one without a length, or an error in between, and ranks are in different collectives for ever. And a
    rank whose ``val_dataloader`` raises never gets to the barrier, so its error is kept until then.

    Raises:
        Exception: what ``val_dataloader`` raised, when the dataloaders have been set up.
    """
    failure: Exception | None = None
    source, strategy, before = loop._data_source, trainer.strategy, loop._combined_loader
    request = source.dataloader

    def dataloader() -> Any:
        nonlocal failure
        try:
            return request()
        except Exception as error:
            failure = error
            return []
        finally:
            strategy.reduce = lambda tensor, *_, **__: tensor

    source.dataloader = dataloader
    try:
        yield
    finally:
        for patched, name in ((source, "dataloader"), (strategy, "reduce")):
            vars(patched).pop(name, None)  # what the class defines is there again
    if failure is not None:
        loop._combined_loader = before
        raise failure


def _check_number(loop: Any, trainer: Any, failure: Exception | None) -> None:
    """Raise on all ranks if one has failed, or if their steps see other numbers of dataloaders."""
    loaders = 0 if failure is not None else len(loop.max_batches)
    together = failure is None and not one_after_the_other(loop)
    everywhere = _gather([float(failure is not None), loaders, float(together)], trainer)
    if failure is not None:
        raise failure
    failed = [rank for rank, (flag, *_) in enumerate(everywhere) if flag]
    if failed:
        raise RuntimeError(f"The dataloaders of rank {failed[0]} could not be set up: see its own error.")
    if len({tuple(rank) for rank in everywhere}) > 1:
        numbers = [f"{int(number)}{' combined' if flag else ''}" for _, number, flag in everywhere]
        raise RuntimeError(
            f"Ranks have different numbers of {loop._stage.dataloader_prefix} dataloaders, so some would "
            f"wait for ever for the others' percentiles. Rank by rank: {', '.join(numbers)}. Give every rank "
            "the same dataloaders in the same order; where a rank has nothing to read from one, an "
            "IterableDataset without a length may yield nothing."
        )


def _check_batches(loop: Any, trainer: Any) -> None:
    """Raise on all ranks if some have an empty dataloader that others have batches of."""
    module, data = trainer.lightning_module, trainer.datamodule
    allowed = module.allow_zero_length_dataloader_with_multiple_devices or (
        data is not None and data.allow_zero_length_dataloader_with_multiple_devices
    )
    batches = [math.inf if math.isinf(count) else int(count) for count in loop.max_batches]
    everywhere = _gather(batches, trainer)
    skipped = any(sum(rank) == 0 for rank in everywhere) and any(sum(rank) > 0 for rank in everywhere)
    forbidden = not allowed and any(
        min(counts) == 0 and max(counts) > 0 for counts in zip(*everywhere, strict=True)
    )
    if skipped or forbidden:
        raise RuntimeError(
            "Some ranks have an empty dataloader, others do not, so that some would wait for ever for "
            f"the others' percentiles. Batches per dataloader, rank by rank: {everywhere}. Give every "
            "rank at least one batch (a DistributedSampler does), or use an IterableDataset without a "
            "length."
        )


def _gather(numbers: list[float], trainer: Any) -> list[list[float]]:
    """The numbers of each rank, which are as many on every one."""
    local = torch.tensor(numbers, dtype=torch.float32, device=trainer.strategy.root_device)
    everyone = [torch.empty_like(local) for _ in range(trainer.world_size)]
    dist.all_gather(everyone, local)
    return [[math.inf if math.isinf(count) else int(count) for count in rank.tolist()] for rank in everyone]


def monitors(trainer: Any) -> list[tuple[str, str, Any]]:
    """What chooses or stops by a logged value: its class, the name of the value, and the callback itself."""
    found = [
        (type(callback).__name__, callback.monitor, callback)
        for callback in trainer.callbacks
        if isinstance(getattr(callback, "monitor", None), str)
    ]
    return found + [
        (type(config.scheduler).__name__, config.monitor, None)
        for config in trainer.lr_scheduler_configs
        if config.reduce_on_plateau and isinstance(config.monitor, str)
    ]


def validation_loaders(trainer: Any) -> int | None:
    """How many dataloaders validation in fit has, 0 without a batch, None if they are not known yet."""
    loop = evaluation_loops(trainer)[0]
    if not trainer.enable_validation:
        return 0
    if loop._combined_loader is None:
        return None
    return len(loop.max_batches) if sum(loop.max_batches) else 0


def logged_by_the_sanity_check(trainer: Any) -> set[str]:
    """All names that it logged, also those of the user."""
    return {result.meta.name for result in evaluation_loops(trainer)[0]._results.values()}


def saves_unvalidated(checkpoint: Any, trainer: Any) -> str | None:
    """Why a ModelCheckpoint may save a model under the value of an earlier validation; None: it does not.

    Args:
        checkpoint: which, of either namespace of Lightning.
        trainer: when training starts.
    """
    if checkpoint.save_top_k == 0 or getattr(checkpoint, "saves_validated_models_only", False):
        return None
    if checkpoint._every_n_train_steps:
        return f"every_n_train_steps={checkpoint._every_n_train_steps} saves before that step's validation"
    if checkpoint._train_time_interval is not None:
        return "train_time_interval saves between validations"
    if not checkpoint._should_save_on_train_epoch_end(trainer):
        return None
    if not _validates_at_the_end_of_each_epoch(trainer):
        return "it saves at the end of epochs, and the last validation is of an earlier step"
    # With one to keep, the value of an earlier validation is not better than itself.
    if checkpoint.save_top_k != 1 and _ends_inside_an_epoch(trainer):
        return f"it saves when max_steps={trainer.max_steps} is reached, inside an epoch and unvalidated"
    return None


def saves_an_earlier_epoch(checkpoint: Any, trainer: Any) -> bool:
    """Whether a ModelCheckpoint saves at other times than right after an epoch of training."""
    if checkpoint.save_top_k == 0:
        return False
    if checkpoint._every_n_train_steps or checkpoint._train_time_interval is not None:
        return True
    return not checkpoint._should_save_on_train_epoch_end(trainer)


def _validates_at_the_end_of_each_epoch(trainer: Any) -> bool:
    by_time = getattr(trainer, "_val_check_time_interval", None) is not None  # from Lightning 2.6 on
    if by_time or trainer.check_val_every_n_epoch != 1:
        return False
    every: float = trainer.val_check_batch
    return math.isinf(every) or trainer.num_training_batches % every == 0  # NaN of a stream: nobody knows


def _ends_inside_an_epoch(trainer: Any) -> bool:
    batches, last = trainer.num_training_batches, trainer.max_steps
    if last < 1 or math.isinf(batches) or not trainer.lightning_module.automatic_optimization:
        return False
    steps = math.ceil(batches / trainer.accumulate_grad_batches)
    epochs = trainer.max_epochs
    return bool(last % steps) and (epochs is None or epochs < 0 or last < epochs * steps)


def resumed_inside_epoch(trainer: Any) -> bool:
    """Whether training went on inside an epoch, from a checkpoint; says so in a warning.

    Lightning calls no ``on_train_epoch_start`` in the epoch that it resumes.

    Args:
        trainer: the trainer.
    """
    if not trainer.fit_loop.restarted_mid_epoch:
        return False
    if trainer.fit_loop.epoch_loop.batch_idx and trainer.is_global_zero:
        warnings.warn(
            f"Training was resumed inside epoch {trainer.current_epoch}: percentile CE of the train stage is "
            "of the tokens since then, in this epoch only.",
            stacklevel=2,
        )
    return True


def repeat_interrupted_validation(trainer: Any) -> None:
    """Let a validation that a checkpoint was written in begin anew.

    Lightning leaves out as many batches as had been validated, but of the end: it starts the dataloader from
    its beginning. Neither the digests nor the dataloader are where they were.

    Args:
        trainer: the trainer, when training starts.
    """
    validation = trainer.fit_loop.epoch_loop.val_loop
    if validation.restarted_mid_evaluation:
        validation.restarting = False
