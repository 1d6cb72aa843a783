"""Real Trainer runs in which every pair of values of nine axes occurs; ``run`` makes one of them.

``python situations.py DIRECTORY`` is one of two processes that make all runs that need two, one after the
other.
"""

import os
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import lightning.pytorch as L
import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torchmetrics import MeanMetric

from lightning_pce import PercentileCECallback, PercentileCEMixin, PercentileCrossEntropy
from tests.helpers import lit_modules as lit

PERCENTILES = (5, 50, 95)
KEYS = ("mean", "p5", "p50", "p95", "trimmed_mean")
TRAIN_BATCHES, WINDOW = 4, 2
LOADERS = {"one": 1, "two": 2, "three": 3, "cycle": 2}
# Batches by rank and dataloader.
BATCHES = {
    "one": [(3, 2, 1)],
    "equal": [(2, 2, 2), (2, 2, 2)],
    "unequal": [(3, 2, 1), (1, 2, 3)],
    "zero": [(2, 1, 2), (0, 0, 0)],
    "fsdp2": [(2, 2, 1), (2, 2, 1)],  # the forward of a sharded model is itself a collective
}


class Situation(NamedTuple):
    twist: str
    devices: str
    precision: str
    stage: str
    loaders: str
    schedule: str  # none in validate and test, as the sanity check
    entry: str
    bar: str
    sanity: str


# 64-true is none of ModelParallelStrategy's precisions; a sharded model is always made in configure_model.
PLAN = [
    Situation(*row.split())
    for row in """
    none unequal 64-true fit_train three inside views rich on
    limit_0 zero bf16-mixed fit_val cycle epoch callback none on
    compiled zero 64-true validate one - mixin tqdm -
    checkpoint fsdp2 16-true fit_val two second views tqdm off
    configure_model one bf16-true fit_train two inside mixin none off
    no_super equal bf16-true test cycle - views rich -
    metric_in_step one 32-true fit_train one second callback rich off
    validate_first unequal 16-true test three - callback none -
    accumulate equal 32-true fit_val three epoch mixin tqdm on
    validate_first one bf16-mixed fit_train cycle epoch views tqdm off
    none fsdp2 bf16-mixed validate two - callback rich -
    validate_first fsdp2 bf16-true fit_val one inside mixin tqdm on
    checkpoint unequal 32-true validate cycle - mixin none -
    limit_0 zero 16-true fit_train three second mixin rich off
    none equal 64-true fit_val cycle second callback none off
    compiled unequal bf16-true fit_val two epoch callback tqdm off
    no_super zero 32-true fit_val two inside views none on
    configure_model unequal bf16-mixed fit_val one second views none on
    accumulate one 16-true fit_val cycle inside views rich on
    limit_0 one bf16-true validate three - views rich -
    checkpoint equal bf16-mixed fit_train three inside callback none on
    no_super fsdp2 16-true fit_train one epoch mixin tqdm off
    configure_model zero 32-true test cycle - mixin tqdm -
    metric_in_step equal 16-true fit_val two inside views tqdm on
    accumulate fsdp2 bf16-mixed fit_train three second mixin none off
    compiled one 64-true fit_train two second views rich on
    metric_in_step zero 64-true fit_train cycle epoch mixin none on
    configure_model equal 16-true fit_val one epoch callback rich off
    none zero bf16-true fit_val one epoch mixin tqdm off
    checkpoint zero 64-true test one - callback rich -
    compiled one bf16-mixed test three - callback none -
    limit_0 fsdp2 32-true fit_val cycle inside views tqdm on
    no_super unequal 64-true fit_val three second callback none on
    validate_first equal 64-true fit_train two second mixin rich off
    accumulate zero bf16-true fit_train two second callback rich off
    none one 32-true test two - callback tqdm -
    compiled equal 16-true validate cycle - views tqdm -
    validate_first zero 32-true validate three - mixin none -
    limit_0 equal 64-true fit_val one epoch mixin tqdm off
    no_super one bf16-mixed validate three - callback none -
    metric_in_step unequal bf16-true fit_train three second views none off
    accumulate unequal 64-true fit_train one second views rich off
    checkpoint one bf16-true fit_train two epoch callback rich on
    configure_model zero 64-true validate three - callback tqdm -
    limit_0 unequal bf16-mixed fit_val two inside callback tqdm off
    compiled zero 32-true fit_val two inside callback rich on
    metric_in_step fsdp2 bf16-mixed fit_val one epoch mixin tqdm on
    validate_first fsdp2 16-true test one - callback tqdm -
    none one 16-true fit_train cycle second views tqdm off
    """.strip().splitlines()
]
NAMES = [f"{number:02d}-{'-'.join(situation)}" for number, situation in enumerate(PLAN)]


class Model(nn.Sequential):
    def __init__(self):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            super().__init__(nn.Embedding(lit.VOCABULARY, 8), nn.Linear(8, lit.VOCABULARY))


class Situated(L.LightningModule):
    """What the three entries share; keeps the losses of the logits that it saw.

    Each entry has ``trained(logits, labels)`` and ``measured(stage, logits, labels, index)``, which give what
    the steps return.
    """

    def __init__(self, situation):
        super().__init__()
        self.situation, self.seen = situation, {}
        self.sharded = situation.devices == "fsdp2"
        if not self.sharded and situation.twist != "configure_model":
            self.model = Model()
        if situation.twist == "metric_in_step":
            self.running = MeanMetric()

    def configure_model(self):
        if not hasattr(self, "model"):
            self.model = Model()
            if self.sharded and self.device_mesh is not None:
                from torch.distributed.fsdp import fully_shard

                fully_shard(self.model, mesh=self.device_mesh["data_parallel"])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch, batch_idx):
        logits = self.model(batch["ids"])
        self.note("train", logits, batch["labels"])
        if self.situation.stage == "fit_train":
            output = self.trained(logits, batch["labels"])
        else:
            output = F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
        if self.situation.twist != "compiled":  # where Lightning's own log() fails
            loss = output["loss"] if isinstance(output, dict) else output
            self.log("train_loss", loss, on_step=True, on_epoch=True, sync_dist=True, prog_bar=True)
            if self.situation.twist == "metric_in_step":
                self.running.update(loss.detach())
                self.log("train_running", self.running, on_step=False, on_epoch=True)
        return output

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        # Lightning itself waits for ever if a rank without a batch does not log what others log in a step.
        if self.situation.twist != "compiled" and self.situation.devices != "zero":
            self.log("val_other", 1.0, on_epoch=True, sync_dist=True, prog_bar=True)
        return self.evaluated("val", batch, dataloader_idx)

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        return self.evaluated("test", batch, dataloader_idx)

    def evaluated(self, stage, batch, index):
        batches = list(enumerate(batch)) if self.situation.loaders == "cycle" else [(index, batch)]
        outputs = []
        for number, each in batches:
            logits = self.model(each["ids"])
            self.note(number, logits, each["labels"])
            outputs.append(self.measured(stage, logits, each["labels"], number))
        return outputs if len(outputs) > 1 else outputs[0]

    @torch.compiler.disable
    def note(self, key, logits, labels):
        losses = F.cross_entropy(logits.detach().double().flatten(0, 1), labels.flatten(), reduction="none")
        self.seen.setdefault(key, []).append(losses[labels.flatten() != lit.IGNORED])


class WithMixin(PercentileCEMixin, Situated):
    def __init__(self, situation):
        super().__init__(situation)
        self.configure_percentile_ce(PERCENTILES)

    def trained(self, logits, labels):
        return self.update_percentile_ce(logits, labels)

    def measured(self, stage, logits, labels, index):
        self.update_percentile_ce(logits, labels, index)


class LeftAsItIs(Situated):
    def trained(self, logits, labels):
        losses = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="none")
        mask = labels.flatten() != lit.IGNORED
        return {"loss": losses.sum() / mask.sum(), "losses": losses, "mask": mask, "logits": None}

    def measured(self, stage, logits, labels, index):
        return {"logits": logits, "labels": labels}


class WithViews(Situated):
    """A metric for each stage and dataloader; its views are logged in the hooks of the end."""

    def __init__(self, situation):
        super().__init__(situation)
        stages = {"train": 1, "val": LOADERS[situation.loaders], "test": LOADERS[situation.loaders]}
        self.ce = nn.ModuleDict(
            {f"{s}_{i}": PercentileCrossEntropy(PERCENTILES) for s, n in stages.items() for i in range(n)}
        )
        self.views = nn.ModuleDict(
            {f"{key}_{name}": metric.view(name) for key, metric in self.ce.items() for name in KEYS}
        )

    def trained(self, logits, labels):
        return self.ce["train_0"].update_and_mean(logits, labels)

    def measured(self, stage, logits, labels, index):
        self.ce[f"{stage}_{index}"].update(logits, labels)

    def log_views(self, stage):
        indices = [int(key.split("_")[1]) for key in self.ce if key.startswith(stage)]
        for index in indices:
            prefix = stage if len(indices) == 1 else f"{stage}_dl{index}"
            for name in KEYS:
                key = f"{stage}_{index}_{name}"
                log = {"add_dataloader_idx": False, "metric_attribute": f"views.{key}"}
                self.log(f"{prefix}_ce_{name}", self.views[key], **log)

    def on_train_epoch_end(self):
        if self.situation.stage == "fit_train":
            self.log_views("train")

    def on_validation_epoch_end(self):
        self.log_views("val")

    def on_test_epoch_end(self):
        self.log_views("test")


def without_super(entry):
    """The entry's module with hooks that call no super()."""

    class WithoutSuper(entry):
        def on_train_epoch_end(self):
            pass

        def on_validation_epoch_end(self):
            pass

        def on_test_epoch_end(self):
            pass

    return WithoutSuper


ENTRIES = {"mixin": WithMixin, "callback": LeftAsItIs, "views": WithViews}


class Recorder(L.Callback):
    """Keeps what was seen, logged and gathered between the start and the end of each stage."""

    def __init__(self, directory):
        self.directory = directory
        self.runs, self.train, self.dtypes = [], {}, set()
        self._gathers = self._evaluated = 0

    def on_validation_start(self, trainer, module):
        for index in [key for key in module.seen if key != "train"]:
            del module.seen[index]
        self._gathers = gathers.count

    def on_validation_end(self, trainer, module):
        self._evaluated += gathers.count - self._gathers
        if trainer.sanity_checking:
            return
        stage = "test" if trainer.testing else "val"
        self.runs.append(
            {
                "stage": stage,
                "seen": {index: _list(parts) for index, parts in module.seen.items() if index != "train"},
                "logged": ours(trainer.callback_metrics, stage),
                "gathers": gathers.count - self._gathers,
            }
        )
        self.dtypes |= {
            str(metric._state.dtype)
            for metric in module.modules()
            if isinstance(metric, PercentileCrossEntropy)
        }
        if module.situation.twist == "checkpoint":
            path = self.directory / "strict.ckpt"
            trainer.save_checkpoint(path)
            if trainer.is_global_zero:
                load_strictly(module.situation, torch.load(path, weights_only=True)["state_dict"])

    on_test_start, on_test_end = on_validation_start, on_validation_end

    def on_train_end(self, trainer, module):
        parts = module.seen.get("train", [])
        self.train = {
            "seen": [part.tolist() for part in parts],
            "logged": ours(trainer.callback_metrics, "train"),
            "gathers": gathers.count - self._evaluated,
        }


def _list(parts):
    return torch.cat(parts).tolist()


def ours(metrics, stage):
    return {name: float(v) for name, v in metrics.items() if name.startswith(stage) and "_ce_" in name}


def load_strictly(situation, state):
    """What one module saved loads into another that has or has not anything of ours."""
    for entry in (Situated, WithMixin, WithViews):
        module = entry(situation)
        module.configure_model()
        module.load_state_dict(state, strict=True)
        assert module.state_dict().keys() == state.keys()


class _Gathers:
    """Counts the collectives that carry digests."""

    def __init__(self):
        self.count, self._all_gather = 0, dist.all_gather
        dist.all_gather = self

    def __call__(self, parts, tensor, *args, **kwargs):
        self.count += tensor.dtype == torch.float64 and tensor.numel() >= 1027 * 2
        return self._all_gather(parts, tensor, *args, **kwargs)


gathers = _Gathers()


def run(situation, directory):
    """Make a run and note, as plain data, what validations, tests and training saw and logged."""
    rank = int(os.environ.get("RANK", "0")) if situation.devices != "one" else 0
    gathers.count = 0
    entry = ENTRIES[situation.entry]
    if situation.twist == "no_super" and situation.entry != "views":
        entry = without_super(entry)
    module = entry(situation)
    if situation.twist == "compiled":
        module = torch.compile(module, backend="eager")
    recorder = Recorder(directory)
    window = WINDOW if situation.stage == "fit_train" else None
    callbacks = [recorder]
    if situation.entry == "callback":
        callbacks.insert(0, PercentileCECallback(PERCENTILES, train_every_n_steps=window))
    bars = {"tqdm": [TQDMProgressBar()], "rich": [RichProgressBar()], "none": []}[situation.bar]
    trainer = lit.make_trainer(directory, *callbacks, *bars, **arguments(situation))
    error = None
    try:
        if situation.twist == "validate_first":
            trainer.validate(module, evaluation_loader(situation, rank), verbose=False)
        if situation.stage in ("validate", "test"):
            getattr(trainer, situation.stage)(module, evaluation_loader(situation, rank), verbose=False)
        else:
            batches = lit.make_batches(TRAIN_BATCHES, seed=90 + rank)
            trainer.fit(module, lit.stream(batches), evaluation_loader(situation, rank))
    except RuntimeError as failure:
        error = str(failure)
    return {
        "runs": recorder.runs,
        "train": recorder.train,
        "dtypes": sorted(recorder.dtypes),
        "error": error,
    }


def arguments(situation):
    """The Trainer's, for a situation."""
    given = {
        "precision": situation.precision,
        "enable_progress_bar": situation.bar != "none",
        "num_sanity_val_steps": 2 if situation.sanity == "on" else 0,
        "accumulate_grad_batches": 2 if situation.twist == "accumulate" else 1,
        "max_epochs": 1 if situation.schedule == "inside" else 2,
        "use_distributed_sampler": False,
        "log_every_n_steps": 1,
    }
    if situation.schedule == "inside":
        given["val_check_interval"] = 2
    if situation.schedule == "second":
        given["check_val_every_n_epoch"] = 2
    if situation.twist == "limit_0":
        given["limit_val_batches"] = 0
    if situation.devices == "fsdp2":
        strategy = ModelParallelStrategy(
            data_parallel_size=2,
            tensor_parallel_size=1,
            process_group_backend="gloo",
            save_distributed_checkpoint=False,
        )
        given |= {"devices": 2, "strategy": strategy}
    elif situation.devices != "one":
        given |= {"devices": 2, "strategy": "ddp"}
    return given


def evaluation_loader(situation, rank):
    counts = BATCHES[situation.devices][rank][: LOADERS[situation.loaders]]
    loaders = [lit.stream(lit.make_batches(n, seed=10 * i + rank)) for i, n in enumerate(counts)]
    if situation.loaders == "cycle":
        return CombinedLoader(loaders, "max_size_cycle")
    return loaders if len(loaders) > 1 else loaders[0]


if __name__ == "__main__":
    from tests.helpers.ranks import note_all

    wanted = sys.argv[2:] or NAMES
    chosen = [pair for pair in zip(NAMES, PLAN, strict=True) if pair[0] in wanted]
    note_all({name: partial(run, situation, Path(sys.argv[1])) for name, situation in chosen})
