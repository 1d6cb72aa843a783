"""Histories that two real processes under DDP write, as in :mod:`tests.helpers.lightning_scenarios`."""

import sys
from pathlib import Path

import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, TQDMProgressBar

from lightning_pce import PercentileCECallback, PercentileHistory
from tests.helpers import lit_modules as lit
from tests.helpers.lightning_scenarios import RANK, observed, own, trainer_on_ranks
from tests.helpers.ranks import WORLD, counted_collectives

STATE = "lightning_pce.PercentileHistory"


def fit_with_history(name, val, *callbacks, history=None, module=None, ckpt_path=None, **arguments):
    """A fit whose history is in the folder NAME, on each rank in a file of its own, if it wrote one."""
    oracle, root = lit.Oracle(), Path(sys.argv[1]) / name
    writer = history or PercentileHistory(root / f"history{RANK}.jsonl")
    ranks = {"devices": WORLD, "strategy": "ddp", "use_distributed_sampler": False}
    arguments = {**ranks, "max_epochs": 3, **arguments}
    trainer = lit.make_trainer(root, oracle, *callbacks, writer, **arguments)
    trainer.fit(module or lit.LitLM(), lit.sized(own(3)), val, ckpt_path=ckpt_path)
    return {
        "runs": observed(oracle),
        "run": getattr(writer, "run", None),
        "stopped_after": trainer.current_epoch,
    }


def monitored():
    """Rank 0 has no batches; bars, checkpoints and early stopping read what is logged in between."""
    keep = ModelCheckpoint(
        Path(sys.argv[1]) / "monitored" / "kept",
        "{step}",
        monitor="val_ce_better_share",
        mode="max",
        save_top_k=-1,
    )
    stop = EarlyStopping("val_ce_better_share", mode="max", patience=1, check_finite=False)
    bars = [TQDMProgressBar(leave=False)]
    arguments = {"enable_progress_bar": True, "max_epochs": 6, "val_check_interval": 1}
    val = lit.stream(own(3 * RANK))
    notes = fit_with_history("monitored", val, keep, stop, *bars, module=lit.TrainedLM(), **arguments)
    return {**notes, "kept": sorted(keep.best_k_models), "best": keep.best_model_path}


def resumed():
    """One rank's checkpoint has a damaged state: what rank 0 has read counts."""
    keep = ModelCheckpoint(Path(sys.argv[1]) / "resumed" / "kept", "{step}", save_top_k=-1)
    val = lit.stream(own(1 + RANK))
    whole = fit_with_history("resumed", val, keep)
    path = Path(keep.dirpath) / "step=6.ckpt"
    if RANK:
        checkpoint = torch.load(path, weights_only=True)
        checkpoint["callbacks"][STATE] = [1]
        path = path.with_name("damaged.ckpt")
        torch.save(checkpoint, path)
    return {"whole": whole, "again": fit_with_history("resumed", val, ckpt_path=path)}


def collectives():
    """Of a validation with a history and of one without."""

    class Counting(lit.LitLM):
        def on_validation_start(self):
            self.counted = counted_collectives()
            self.calls = self.counted.__enter__()

        def on_validation_end(self):
            super().on_validation_end()
            self.counted.__exit__(None, None, None)
            self.found.append(list(self.calls))

    found = []
    for history in (True, False):
        module = Counting()
        module.found = []
        writers = [PercentileHistory(Path(sys.argv[1]) / "collectives.jsonl")] if history else []
        trainer_on_ranks(*writers, max_epochs=2).fit(module, lit.sized(own(2)), lit.sized(own(2)))
        found.append(module.found)
    return {"with": found[0], "without": found[1]}


SCENARIOS = {
    "history": lambda: fit_with_history("history", lit.stream(own(1 + RANK))),
    "history_of_callback": lambda: fit_with_history(
        "history_of_callback",
        [lit.stream(own(2 - RANK)), lit.stream(own(2))],
        history=PercentileCECallback(history=True, loader_names=("web", "code")),
        module=lit.Returning(),
        logger=False,
    ),
    "history_monitored": monitored,
    "history_resumed": resumed,
    "history_collectives": collectives,
}
