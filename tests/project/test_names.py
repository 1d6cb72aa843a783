"""docs/start/names.md: every name that it says to monitor is logged by what it says to ask for."""

import re

import pytest
import torch

from lightning_pce import PercentileCECallback, PercentileHistory
from tests.helpers import hf_trainers as hf
from tests.helpers.lit_modules import (
    LitLM,
    Returning,
    ReturningLosses,
    TrainedLM,
    fit,
    make_loader,
    make_trainer,
)
from tests.helpers.pages import DOCS

PAGE = (DOCS / "start/names.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (.+?) \| (.*`.*) \| (.+) \|$", PAGE, re.MULTILINE)
NAMES = {row: set(re.findall(r"`(\w+)`", names)) for row, names, _ in ROWS}
ASKED = {row: asked for row, _, asked in ROWS}


class AnyLM(LitLM):
    """Passes on the dataloader, groups and documents."""

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        labels = batch["labels"]
        settings = self.percentile_ce.settings
        group = torch.ones_like(labels) if settings.groups else None
        document = torch.arange(len(labels)) if settings.error_bars else None
        logits = self(batch)
        self.update_percentile_ce(logits, labels, dataloader_idx, group=group, document=document)


def validated(*rows, loaders=1):
    """What a validation logs by the mixin with the settings that these rows ask for."""

    def names(folder):
        asked = [setting for row in rows for setting in re.findall(r"`([a-z_]+=.*?)`", ASKED[row])]
        trainer = make_trainer(folder)
        module = AnyLM(**eval(f"dict({', '.join(asked)})"))
        trainer.validate(module, [make_loader(2)] * loaders, verbose=False)
        return trainer.callback_metrics

    return names


def evaluated(eval_dataset):
    return lambda folder: hf.make_trainer(folder, eval_dataset=eval_dataset).evaluate()


def of_a_test(folder):
    trainer = make_trainer(folder)
    trainer.test(LitLM(), make_loader(2), verbose=False)
    return trainer.callback_metrics


windows = PercentileCECallback(train_every_n_steps=2)
samples = hf.make_samples(4)
RUNS = {
    "one dataloader": validated("one dataloader"),
    "another percentile": validated("another percentile"),
    "two dataloaders": validated("two dataloaders", loaders=2),
    "two, with names": validated("two, with names", loaders=2),
    "two, and all tokens together": validated("two, and all tokens together", loaders=2),
    "groups of tokens": validated("groups of tokens"),
    "groups in named dataloaders": validated("two, with names", "groups of tokens", loaders=2),
    "other statistics": validated("other statistics"),
    "error bars": validated("error bars"),
    "a test": of_a_test,
    "a training loss by epochs": lambda folder: fit(folder, TrainedLM()).callback_metrics,
    "a training loss by steps": lambda folder: fit(folder, ReturningLosses(), windows).callback_metrics,
    "a history": lambda folder: fit(folder, LitLM(), PercentileHistory(), max_epochs=2).callback_metrics,
    "transformers' Trainer": evaluated(samples),
    "transformers, several sets": evaluated({"web": samples, "code": samples}),
    "transformers, `predict`": lambda folder: hf.make_trainer(folder).predict(samples).metrics,
}


@pytest.mark.parametrize("row", NAMES)
def test_every_name_of_the_page_is_logged(row, tmp_path):
    assert NAMES[row] <= set(RUNS[row](tmp_path))


def test_the_callback_logs_the_names_of_the_mixin(tmp_path):
    for row, loaders in (("one dataloader", 1), ("two dataloaders", 2)):
        trainer = make_trainer(tmp_path, PercentileCECallback())
        trainer.validate(Returning(), [make_loader(2)] * loaders, verbose=False)
        assert NAMES[row] <= set(trainer.callback_metrics)


def test_a_name_that_was_not_asked_for_is_not_logged(tmp_path):
    assert not NAMES["another percentile"] <= set(RUNS["one dataloader"](tmp_path))
    assert "val_ce_p50" not in RUNS["two dataloaders"](tmp_path)
