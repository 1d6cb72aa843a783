"""A run that is killed again and again, and resumed each time: ``python -m tests.helpers.killed_runs DIR``.

This process imports everything and trains nothing, so that each attempt is a quick fork of it.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_pce import PercentileHistory
from tests.helpers.lit_modules import LitLM, ResumableLoader, make_batches, make_loader, make_trainer

KILLS, EPOCHS = 20, 60


def train(folder):
    """Go on from the newest checkpoint to the end, writing a history."""
    torch.set_num_threads(1)
    kept = sorted(folder.glob("kept/*.ckpt"), key=lambda path: int(path.stem.rpartition("=")[2]))
    keep = ModelCheckpoint(folder / "kept", "{step}", save_top_k=-1, save_on_train_epoch_end=True)
    callbacks = [keep, PercentileHistory(folder / "history.jsonl")]
    trainer = make_trainer(folder, *callbacks, max_epochs=EPOCHS, val_check_interval=2, logger=False)
    loader = ResumableLoader(make_batches(4, seed=1), batch_size=None)
    trainer.fit(LitLM(), loader, make_loader(3, seed=2), ckpt_path=kept[-1] if kept else None)


def started(folder):
    """A process that trains."""
    child = os.fork()
    if child == 0:
        try:
            train(folder)
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    return child


def finish(folder):
    _, status = os.waitpid(started(folder), 0)
    assert status == 0, "an attempt has failed"


def kill_one(folder, checkpoints, seconds):
    """Kill an attempt so many seconds after it has saved so many checkpoints, and see that it was running."""
    before, child = saved(folder), started(folder)
    while saved(folder) < before + checkpoints:
        time.sleep(0.001)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "an attempt has ended by itself"


def saved(folder):
    return len(list(folder.glob("kept/*.ckpt")))


def main(folder):
    begin = time.monotonic()
    finish(folder / "whole")
    of_one = (time.monotonic() - begin) / saved(folder / "whole")
    chance = random.Random(0)
    for _ in range(KILLS):
        kill_one(folder / "killed", chance.randrange(3), chance.uniform(0, 2 * of_one))
    finish(folder / "killed")
    (folder / "done").touch()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
