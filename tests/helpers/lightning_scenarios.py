"""What two real processes under DDP do, one scenario after the other: ``run_module_on_ranks`` starts them."""

import copy
import os
import pickle
import sys
from functools import partial
from pathlib import Path

import lightning.pytorch as L
import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, RichProgressBar, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

from lightning_pce import PercentileCECallback, PercentileCrossEntropy
from lightning_pce.integrations.lightning.checkpoints import percentile_checkpoints
from lightning_pce.integrations.lightning.figures import PercentileFigures
from tests.helpers import lit_modules as lit
from tests.helpers.distributions import ce_like
from tests.helpers.ranks import WORLD, counted_collectives

BARS = {"tqdm": TQDMProgressBar, "rich": RichProgressBar}
RANK = int(os.environ.get("RANK", "0"))


class BusyLM(lit.TrainedLM):
    """Logs something else over ranks beside ours: read by the progress bar before our hook runs."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("train_loss", loss, on_step=True, on_epoch=True, sync_dist=True, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self.log("val_other", 1.0 + RANK, on_epoch=True, sync_dist=True, prog_bar=True)


class BufferedLM(lit.LitLM):
    """Has a buffer, as rotary embeddings are: DDP sends it at the first forward after training."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.ones(()))


class ReturningBufferedLM(lit.PlainLM):
    """The same without the mixin."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.ones(()))

    def validation_step(self, batch, batch_idx):
        return {"logits": self(batch), "labels": batch["labels"]}


class LossesLM(lit.LitLM):
    """Its batches are losses."""

    def validation_step(self, batch, batch_idx):
        self.update_percentile_ce(losses=batch)


class ViewsLM(lit.TinyLM, L.LightningModule):
    """Without the mixin: a metric of its own, whose views are logged."""

    def __init__(self):
        super().__init__()
        self.make_layers()
        self.val_ce = PercentileCrossEntropy()

    training_step = lit.PlainLM.training_step

    def validation_step(self, batch, batch_idx):
        self.val_ce.update(self(batch), batch["labels"])

    def on_validation_epoch_end(self):
        for key in ("mean", "p5", "p25", "p50", "p75", "p95", "p99", "trimmed_mean"):
            self.log(f"val_ce_{key}", self.val_ce.view(key), metric_attribute="val_ce")


class MeshLM(lit.TrainedLM):
    """Its head is divided over the tensor-parallel ranks; they see the same batches."""

    divided = False

    def __init__(self, **configuration):
        super().__init__(**{"statistics": ("ce", "rank"), **configuration})
        self.counts = []

    def configure_model(self):
        if self.device_mesh is not None and not self.divided:
            parallelize_module(
                self.head, self.device_mesh["tensor_parallel"], ColwiseParallel(output_layouts=Replicate())
            )
            self.divided = True

    def on_validation_epoch_end(self):
        super().on_validation_epoch_end()
        if not self.trainer.sanity_checking:
            metrics = [self.percentile_ce.metric("val", 0, name) for name in ("ce", "rank", "accuracy")]
            self.counts.append([int(metric.compute()["count"]) for metric in metrics])


def own(count):
    """This rank's own batches."""
    return lit.make_batches(count, seed=10 + RANK)


def trainer_on_ranks(*callbacks, **arguments):
    return lit.make_trainer(
        Path(sys.argv[1]),
        *callbacks,
        **{"devices": WORLD, "strategy": "ddp", "use_distributed_sampler": False, **arguments},
    )


def observed(oracle):
    return [[{i: v.tolist() for i, v in losses.items()}, logged] for losses, logged in oracle.runs]


def validate(loader, module=None, **arguments):
    oracle = lit.Oracle()
    trainer_on_ranks(oracle, **arguments).validate(module or lit.LitLM(), loader, verbose=False)
    return {"runs": observed(oracle)}


def fit(module, train, val, *callbacks, **arguments):
    oracle = lit.Oracle()
    trainer = trainer_on_ranks(oracle, *callbacks, **arguments)
    trainer.fit(module, train, val)
    epochs = [[losses.tolist(), logged] for losses, logged in oracle.epochs]
    return {"runs": observed(oracle), "epochs": epochs, "stopped_after": trainer.current_epoch}


def sampled():
    """Lightning distributes one dataset over the ranks."""
    batches, module = lit.make_batches(6, seed=50), lit.LitLM()
    everything = torch.cat([lit.token_losses(module, batch) for batch in batches])
    return {**validate(lit.sized(batches), module, use_distributed_sampler=True), "all": everything.tolist()}


def padded():
    """Lightning's sampler repeats one of five samples; what the ranks warn of is on stderr."""
    return validate(lit.sized(lit.make_batches(5, seed=50)), use_distributed_sampler=True)


def more_than_a_digest():
    random = np.random.default_rng(RANK)
    batches = [torch.from_numpy(ce_like(3000, random)) for _ in range(3 - RANK)]
    trainer = trainer_on_ranks()
    trainer.validate(LossesLM(), lit.stream(batches), verbose=False)
    return {"runs": [[{0: torch.cat(batches).tolist()}, lit.numbers(trainer.callback_metrics)]]}


class StatisticsLM(lit.LoadersLM):
    """Five statistics of two groups, counted by document: three sequences in four are one each."""

    def __init__(self):
        super().__init__(
            statistics=("ce", "entropy", "log_rank", "margin", "max_prob"),
            groups=("a", "b"),
            percentiles=(50,),
            error_bars=True,
            log_intervals=True,
        )
        self.documents = {}

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        group = torch.arange(batch["labels"].shape[1]).expand(batch["labels"].shape) % 2
        document = batch["labels"].clamp(min=0).sum(-1) % 7 - 3
        self.update_percentile_ce(
            self(batch), batch["labels"], dataloader_idx, group=group, document=document
        )

    def on_validation_end(self):
        super().on_validation_end()
        for statistic in self.percentile_ce.settings.statistics:
            self.documents[statistic] = self.percentile_ce.documents("val", statistic)


def every_statistic():
    """What both ranks log of two dataloaders, the batches they had, and how many gathers carried results."""
    loaders, sizes, all_gather = [own(3 - 2 * RANK), own(1 + RANK)[1:]], [], dist.all_gather
    summed, all_reduce, module = [], dist.all_reduce, StatisticsLM()

    def counting(parts, tensor, *arguments, **keywords):
        if tensor.dtype == torch.float64:  # the states of metrics; settings and lengths are float32
            sizes.append(tensor.numel())
        return all_gather(parts, tensor, *arguments, **keywords)

    def counting_sums(tensor, *arguments, **keywords):
        if tensor.dtype == torch.float64:
            summed.append(tensor.numel())
        return all_reduce(tensor, *arguments, **keywords)

    dist.all_gather, dist.all_reduce = counting, counting_sums
    try:
        notes = validate([lit.stream(batches) for batches in loaders], module)
    finally:
        dist.all_gather, dist.all_reduce = all_gather, all_reduce
    batches = [[{key: part.tolist() for key, part in batch.items()} for batch in each] for each in loaders]
    documents = {
        f"{statistic} {loader} {group}": counts[:, :-1].flatten().tolist()
        for statistic, loaders in module.documents.items()
        for loader, groups in loaders.items()
        for group, counts in groups.items()
    }
    return {**notes, "batches": batches, "sizes": sizes, "summed": summed, "documents": documents}


def under_mesh(data_parallel, tensor_parallel, **configuration):
    """Lightning gives the ranks of a tensor-parallel group the same batches."""
    module, batches = MeshLM(**configuration), lit.make_batches(4, seed=50)
    everything = torch.cat([lit.token_losses(module, batch) for batch in batches])
    strategy = ModelParallelStrategy(data_parallel, tensor_parallel)
    notes = validate(lit.sized(batches), module, strategy=strategy, use_distributed_sampler=True)
    return {**notes, "all": everything.tolist(), "counts": module.counts}


def fit_under_mesh():
    """The train and the validation stage of two epochs, and then copies of the module."""
    module, batches = MeshLM(), lit.make_batches(4, seed=50)
    strategy = ModelParallelStrategy(1, WORLD)
    notes = fit(module, lit.sized(batches), lit.sized(batches[:3]), strategy=strategy, max_epochs=2)
    median = module.percentile_ce.metric("val")
    median.update(losses=torch.tensor([1.0 + RANK]))
    copies = [copy.deepcopy(module.percentile_ce), pickle.loads(pickle.dumps(module.percentile_ce))]
    return {
        **notes,
        "counts": module.counts,
        "copies": [float(room.metric("val").compute()["count"]) for room in copies],
    }


def mesh_then_ddp():
    """What one Trainer's mesh said does not hold under the next."""
    module = MeshLM()
    strategy = ModelParallelStrategy(1, WORLD)
    validate(lit.sized(lit.make_batches(2)), module, strategy=strategy)
    again = MeshLM()
    again.percentile_ce = module.percentile_ce
    again.percentile_ce.forget()
    return {**validate(lit.sized(own(2)), again), "counts": again.counts}


def fit_with_views(validation):
    """Two epochs, validated in the middle of each too, and the checkpoint of the lowest median."""
    best = ModelCheckpoint(Path(sys.argv[1]) / f"views_{validation}", monitor="val_ce_p50")
    val = {"uneven": own(3 - 2 * RANK), "no_batch": own(2 * RANK)}[validation]
    train = lit.sized(own(4))
    notes = fit(ViewsLM(), train, lit.stream(val), best, max_epochs=2, val_check_interval=2)
    return {**notes, "score": float(best.best_model_score)}


def fit_with_a_buffer(kind, empty_rank):
    module = BufferedLM() if kind == "mixin" else ReturningBufferedLM()
    callbacks = [] if kind == "mixin" else [PercentileCECallback()]
    validation = lit.stream(own(0 if empty_rank == RANK else 2))
    return fit(module, lit.sized(own(3)), validation, *callbacks, max_epochs=2)


def two_loaders():
    loaders = [lit.stream(lit.make_batches(n, seed=60 + 10 * RANK + n)) for n in (2 + RANK, 2 - 2 * RANK)]
    return validate(loaders, lit.LoadersLM())


def fit_with_bar(kind, validation):
    uneven = validation == "uneven"
    module = BusyLM() if uneven else lit.TrainedLM()
    val = lit.stream(own(3 - 2 * RANK if uneven else 2 * RANK))
    # Up to Lightning 2.5.3 the rich bar fails when a rank has no batch in the sanity check.
    check = {"num_sanity_val_steps": 0} if (kind, validation) == ("rich", "no_batch") else {}
    return fit(module, lit.sized(own(3)), val, BARS[kind](), max_epochs=2, enable_progress_bar=True, **check)


def fit_with_callbacks():
    best = ModelCheckpoint(Path(sys.argv[1]) / "best", "{epoch}-{val_ce_p50:.4f}", monitor="val_ce_p50")
    stop = EarlyStopping("val_ce_p95", patience=1)
    module = lit.LevelsLM(levels=(3.0, 1.0 + RANK, 2.0 + RANK, 0.1))
    scripted = lit.make_batches(2 + RANK, seed=30 + RANK)
    result = fit(module, lit.sized(own(2)), lit.stream(scripted), best, stop, max_epochs=4)
    result["scripted"] = torch.cat([lit.scripted_losses(b).flatten() for b in scripted]).tolist()
    return {**result, "path": best.best_model_path, "score": float(best.best_model_score)}


def resume_inside_an_epoch():
    """A whole run, and the same resumed from a checkpoint of a validation inside its first epoch."""
    folder = Path(sys.argv[1]) / "resume"
    keep = ModelCheckpoint(folder, "{step}", save_top_k=-1, save_on_train_epoch_end=False)

    def run(*callbacks, **how):
        oracle = lit.Oracle()
        trainer = trainer_on_ranks(oracle, *callbacks, max_epochs=2, val_check_interval=2)
        train = lit.ResumableLoader(own(4), batch_size=None)
        trainer.fit(lit.TrainedLM(), train, lit.stream(own(1 + 2 * RANK)), **how)
        epochs = [[losses.tolist(), logged] for losses, logged in oracle.epochs]
        return {"runs": observed(oracle), "epochs": epochs}

    whole, path = run(keep), folder / "step=2.ckpt"
    saved = torch.load(path)
    keys = [*saved["state_dict"], *saved["callbacks"]]
    return {"whole": whole, "keys": keys, **run(ckpt_path=path)}


class OwnMeanLM(lit.LitLM):
    """Every loss is 1; Lightning's own mean of them stands beside ours."""

    def validation_step(self, batch, batch_idx):
        mean = self.update_percentile_ce(losses=torch.ones(1, 10))
        self.log("val_own_mean", mean, on_epoch=True, sync_dist=True, batch_size=1)


def own_mean_beside():
    trainer = trainer_on_ranks()
    trainer.validate(OwnMeanLM(), lit.stream(own(3 - RANK)), verbose=False)
    return lit.numbers(trainer.callback_metrics)


class ConfiguredLM(BusyLM):
    """Brings its callbacks itself; Lightning puts them behind the progress bar."""

    def configure_callbacks(self):
        folder = Path(sys.argv[1]) / "configured"
        return [*percentile_checkpoints(folder, (50,)), EarlyStopping("val_ce_p95", patience=1)]


def configured_callbacks():
    arguments = {"max_epochs": 2, "enable_progress_bar": True, "enable_checkpointing": True}
    oracle = lit.Oracle()
    trainer = trainer_on_ranks(oracle, TQDMProgressBar(), **arguments)
    trainer.fit(ConfiguredLM(), lit.sized(own(3)), lit.stream(own(3 - 2 * RANK)))
    best = {callback.monitor: callback.best_model_path for callback in trainer.checkpoint_callbacks}
    return {"runs": observed(oracle), "best": best}


def other_settings(rank_settings):
    """What one rank configures differs from what the other does."""
    module = lit.LitLM(**rank_settings[RANK])
    return {"error": error_of(trainer_on_ranks().validate, module, lit.sized(own(2)), verbose=False)}


def other_windows():
    """The callbacks of the two ranks log training at different steps."""
    callback = PercentileCECallback(train_every_n_steps=2 + RANK)
    return {
        "error": error_of(trainer_on_ranks(callback).fit, lit.PlainLM(), lit.sized(own(2)), lit.sized(own(2)))
    }


def figures():
    """A run without and one with figures, and how many collectives each takes."""
    calls = []
    for number, callbacks in enumerate(([], [PercentileFigures()])):
        logger = TensorBoardLogger(sys.argv[1], name="figures", version=number)
        with counted_collectives() as counted:
            loaders = [lit.stream(own(3 - 2 * RANK)), lit.stream(own(2 * RANK))]
            notes = fit(lit.LoadersLM(), lit.sized(own(2)), loaders, *callbacks, max_epochs=3, logger=logger)
        calls.append(counted)
    return {
        **notes,
        "calls": calls,
        "history": callbacks[0].state_dict()["history"],
        "log_dir": logger.log_dir,
    }


def empty_beside_full(allowed_by):
    """The second dataloader of rank 1 is empty, and the user has said that this may be."""
    data, module, oracle = L.LightningDataModule(), lit.LoadersLM(), lit.Oracle()
    data.val_dataloader = lambda: [lit.sized(own(2)), lit.sized(lit.make_batches(2 * (1 - RANK), seed=70))]
    allowing = {"datamodule": data, "module": module}[allowed_by]
    allowing.allow_zero_length_dataloader_with_multiple_devices = True
    error = error_of(trainer_on_ranks(oracle).validate, module, datamodule=data, verbose=False)
    return {"error": error, "runs": observed(oracle)}


def empty_on_rank(how, empty_rank, allowed):
    """The sized dataloader of one rank has no batches."""
    module, trainer = lit.LitLM(), trainer_on_ranks()
    module.allow_zero_length_dataloader_with_multiple_devices = allowed
    loader = lit.sized(own(0 if empty_rank == RANK else 2))
    if how == "fit":
        return {"error": error_of(trainer.fit, module, lit.sized(own(2)), loader)}
    return {"error": error_of(getattr(trainer, how), module, loader, verbose=False)}


def empty_first_of_two():
    loaders = [lit.sized(own(2 - 2 * RANK)), lit.sized(own(2))]
    return {"error": error_of(trainer_on_ranks().validate, lit.LoadersLM(), loaders, verbose=False)}


def empty_for_the_second_module():
    """One Trainer validates two modules in turn; the second meets a rank without batches."""
    trainer = trainer_on_ranks()
    trainer.validate(lit.LitLM(), lit.sized(own(2)), verbose=False)
    return {"error": error_of(trainer.validate, lit.LitLM(), lit.sized(own(2 * RANK)), verbose=False)}


def too_small_a_fraction():
    """limit_val_batches leaves less than a batch on one rank, which Lightning refuses there alone."""
    trainer = trainer_on_ranks(limit_val_batches=0.1)
    try:
        trainer.validate(lit.LitLM(), lit.sized(own(20 - 15 * RANK)), verbose=False)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"error": None}


class OwnSetupLM(lit.LitLM):
    def setup(self, stage):
        pass


def error_of(function, *arguments, **keywords):
    try:
        function(*arguments, **keywords)
    except RuntimeError as error:
        return str(error)
    return None


OTHER_SETTINGS = {
    "groups": (("prompt", "answer"), ("answer", "prompt")),
    "compression": (1024, 512),
    "percentiles": ((50,), (50, 95)),
    "statistics": (("ce",), ("ce", "entropy")),
    "loader_names": (("web",), ("code",)),
}
SCENARIOS = {
    "equal": lambda: validate(lit.sized(own(3))),
    "sampled": sampled,
    "padded": padded,
    "uneven": lambda: validate(lit.stream(own(3 - 2 * RANK))),
    "no_batch": lambda: validate(lit.stream(own(3 * RANK))),
    "all_ignored": lambda: validate(lit.stream(lit.all_ignored(own(2)) if RANK == 0 else own(2))),
    "no_batch_anywhere": lambda: validate(lit.stream([])),
    "more_than_a_digest": more_than_a_digest,
    "every_statistic": every_statistic,
    "two_loaders": two_loaders,
    "tensor_parallel": lambda: under_mesh(1, 2),
    "data_parallel": lambda: under_mesh(2, 1),
    "given_group": lambda: under_mesh(1, 2, process_group=lambda: None),
    "fit_tensor_parallel": fit_under_mesh,
    "mesh_then_ddp": mesh_then_ddp,
    "views_uneven": partial(fit_with_views, "uneven"),
    "views_no_batch": partial(fit_with_views, "no_batch"),
    **{
        f"bar_{kind}_{validation}": partial(fit_with_bar, kind, validation)
        for kind in BARS
        for validation in ("uneven", "no_batch")
    },
    "inside_an_epoch": lambda: fit(
        lit.TrainedLM(), lit.sized(own(4)), lit.stream(own(1 + RANK)), val_check_interval=2
    ),
    **{
        f"buffer_{kind}_{empty_rank}": partial(fit_with_a_buffer, kind, empty_rank)
        for kind in ("mixin", "callback")
        for empty_rank in (0, 1)
    },
    "callbacks": fit_with_callbacks,
    "resumed": resume_inside_an_epoch,
    "own_mean": own_mean_beside,
    "configured": configured_callbacks,
    **{
        f"other_{name}": partial(other_settings, [{name: first}, {name: second}])
        for name, (first, second) in OTHER_SETTINGS.items()
    },
    "other_train_every_n_steps": other_windows,
    "alike": lambda: validate(
        lit.sized(own(2)), lit.LitLM(percentiles=[(5, 25, 50, 75, 95, 99), [5.0, 25, 50, 75, 95, 99]][RANK])
    ),
    "figures": figures,
    "beside_module": lambda: empty_beside_full("module"),
    "beside_datamodule": lambda: empty_beside_full("datamodule"),
    **{
        f"empty_{how}_{empty_rank}_{allowed}": partial(empty_on_rank, how, empty_rank, allowed)
        for how in ("validate", "fit", "test")
        for empty_rank in (0, 1)
        for allowed in (False, True)
    },
    "empty_first_of_two": empty_first_of_two,
    "second_module": empty_for_the_second_module,
    "fraction": too_small_a_fraction,
    "own_setup": lambda: {
        "error": error_of(trainer_on_ranks().validate, OwnSetupLM(), lit.sized(own(2)), verbose=False)
    },
    "after_the_errors": lambda: validate(lit.sized(own(3))),
}
