"""PercentileFigures under a real Trainer: what TensorBoard and others have of them when the run is over."""

import importlib.util
import io
import json
import logging
import subprocess
import sys
import warnings
from pathlib import Path

import lightning.pytorch as L
import numpy as np
import pytest
import pytorch_lightning
import pytorch_lightning.loggers
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_pce import PercentileCECallback, PercentileFigures
from lightning_pce import digest as td
from lightning_pce.reports.plot import fan_chart, new_axes, quantile_curve
from tests.helpers.lit_modules import (
    TAKES_FOREIGN_CALLBACKS,
    LitLM,
    LoadersLM,
    Oracle,
    PlainLM,
    all_ignored,
    fit,
    loader,
    make_batches,
    make_lm,
    make_loader,
    make_trainer,
    token_losses,
)

KEY = "lightning_pce.PercentileFigures"
BOTH = ["val_ce_fan", "val_ce_quantiles"]


@pytest.fixture
def board(tmp_path):
    return TensorBoardLogger(tmp_path, name="board", version=0)


def images(logger):
    """What a TensorBoardLogger wrote: name -> step -> pixels ``[height, width, 3]``."""
    events = EventAccumulator(logger.log_dir, size_guidance={"images": 0})
    events.Reload()
    return {
        name: {
            image.step: np.asarray(Image.open(io.BytesIO(image.encoded_image_string)).convert("RGB"))
            for image in events.Images(name)
        }
        for name in sorted(events.Tags()["images"])
    }


def steps(logger):
    return {name: list(by_step) for name, by_step in images(logger).items()}


def history(callback, prefix="val"):
    """step -> (mean, values by percentile)"""
    return callback.state_dict()["history"][prefix]


def assert_looks_like(pixels, ax, title):
    ax.set_title(title, loc="left")
    canvas = FigureCanvasAgg(ax.figure)
    canvas.draw()
    expected = np.asarray(canvas.buffer_rgba())[..., :3]
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).mean() < 0.02  # one more line is 0.2


def quantiles(values):
    return [float(torch.quantile(values.double(), p / 100)) for p in (5, 25, 50, 75, 95, 99)]


def said(record):
    return [str(each.message) for each in record if "PercentileFigures" in str(each.message)]


def test_the_figures_show_the_losses_of_the_validations(tmp_path, board):
    oracle = Oracle()
    fit(tmp_path, LitLM(), PercentileFigures(), oracle, logger=board, max_epochs=3, num_sanity_val_steps=2)
    assert oracle.batches == 2 + 3 * 3  # those of the sanity check are not drawn
    runs, drawn = [losses for losses, _ in oracle.single], images(board)
    assert {name: list(by_step) for name, by_step in drawn.items()} == {
        "val_ce_fan": [4, 6],
        "val_ce_quantiles": [2, 4, 6],
    }
    for step, losses in zip((2, 4, 6), runs, strict=True):
        curve = quantile_curve({"all tokens": td.from_values(losses)}, ax=new_axes(dpi=130))
        assert_looks_like(drawn["val_ce_quantiles"][step], curve, f"val, step {step}")
    series = dict(zip((5, 25, 50, 75, 95, 99), zip(*map(quantiles, runs), strict=True), strict=True))
    fan = fan_chart([2, 4, 6], series, [float(run.mean()) for run in runs], ax=new_axes(dpi=130))
    fan.set_xlabel("global step")
    fan.set_xticks([2, 3, 4, 5, 6])
    assert_looks_like(drawn["val_ce_fan"][6], fan, "val, step 6")


def test_each_group_has_a_curve_beside_that_of_all_tokens(tmp_path, board):
    class GroupsLM(LitLM):
        def validation_step(self, batch, batch_idx):
            self.update_percentile_ce(self(batch), batch["labels"], group=torch.tensor([0, 1]))

    module = GroupsLM(groups=("web", "code"))
    make_trainer(tmp_path, PercentileFigures(), logger=board).validate(module, make_loader(3), verbose=False)
    batches = make_batches(3)
    parts = [
        torch.cat(
            [
                token_losses(module, {name: part[row, None] for name, part in batch.items()})
                for batch in batches
            ]
        )
        for row in (0, 1)
    ]
    curves = {"all tokens": torch.cat(parts), "web": parts[0], "code": parts[1]}
    ax = quantile_curve(
        {name: td.from_values(losses) for name, losses in curves.items()}, ax=new_axes(dpi=130)
    )
    assert_looks_like(images(board)["val_ce_quantiles"][0], ax, "val, step 0")


@pytest.mark.parametrize(("names", "prefixes"), [(None, ("dl0", "dl1")), (("web", "code"), ("web", "code"))])
def test_several_dataloaders_have_figures_of_their_own_under_their_names(tmp_path, board, names, prefixes):
    callback, oracle = PercentileFigures(), Oracle()
    loaders = [make_loader(3, seed=2), make_loader(2, seed=3)]
    fit(tmp_path, LoadersLM(loader_names=names), callback, oracle, val=loaders, logger=board, max_epochs=2)
    of_one = {"ce_fan": [4], "ce_quantiles": [2, 4]}
    assert steps(board) == {f"val_{p}_{name}": at for p in prefixes for name, at in of_one.items()}
    for index, prefix in enumerate(prefixes):
        kept = history(callback, f"val_{prefix}")
        for (losses, _), (_, values) in zip(oracle.runs, kept.values(), strict=True):
            assert list(values.values()) == pytest.approx(quantiles(losses[index]))


def test_a_fan_has_its_bands_also_if_only_other_percentiles_are_logged(tmp_path, board):
    callback = PercentileFigures()
    fit(tmp_path, LitLM(percentiles=(50, 99.9)), callback, logger=board, max_epochs=2)
    assert [list(values) for _, values in history(callback).values()] == [[5, 25, 50, 75, 95, 99.9]] * 2
    assert "val_ce_fan" in steps(board)


def test_validations_inside_an_epoch_are_drawn_at_their_steps(tmp_path, board):
    fit(tmp_path, LitLM(), PercentileFigures(), train=6, logger=board, val_check_interval=2)
    assert steps(board) == {"val_ce_fan": [4, 6], "val_ce_quantiles": [2, 4, 6]}


def test_validations_without_tokens_are_drawn_too(tmp_path, board):
    batches = [make_batches(2, seed=2), all_ignored(make_batches(2, seed=3)), make_batches(2, seed=4)]

    class ChangingLM(LitLM):
        def val_dataloader(self):
            return loader(batches[self.current_epoch])

    callback = PercentileFigures()
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        trainer = make_trainer(
            tmp_path, callback, logger=board, max_epochs=3, reload_dataloaders_every_n_epochs=1
        )
        trainer.fit(ChangingLM(), make_loader(2))
    assert said(record) == []
    assert steps(board) == {"val_ce_fan": [4, 6], "val_ce_quantiles": [2, 4, 6]}
    mean, values = history(callback)[4]
    assert np.isnan([mean, *values.values()]).all()
    empty = quantile_curve({"all tokens": td.empty(64)}, ax=new_axes(dpi=130))
    assert_looks_like(images(board)["val_ce_quantiles"][4], empty, "val, step 4")


NAMESPACES = [L, pytorch_lightning] if TAKES_FOREIGN_CALLBACKS else [L]


@pytest.mark.parametrize("namespace", NAMESPACES, ids=lambda namespace: namespace.__name__)
def test_both_lightnings_and_subclasses_of_their_loggers_get_figures(tmp_path, namespace):
    class OwnLogger(namespace.loggers.TensorBoardLogger):
        pass

    logger, module = OwnLogger(tmp_path), make_lm(namespace.LightningModule)()
    fit(tmp_path, module, PercentileFigures(), namespace=namespace, logger=logger, max_epochs=2)
    assert list(steps(logger)) == BOTH


def test_several_loggers_each_get_the_figures_and_one_that_fails_is_left_alone_with_a_warning(
    tmp_path, board
):
    full, csv = TensorBoardLogger(tmp_path, name="full", version=0), CSVLogger(tmp_path)

    def add_image(*args, **kwargs):
        raise OSError("disk full")

    full.experiment.add_image = add_image
    with pytest.warns(match="PercentileFigures") as record:
        trainer = fit(tmp_path, LitLM(), PercentileFigures(), logger=[full, csv, board], max_epochs=3)
    assert trainer.global_step == 6
    [message] = said(record)
    assert "TensorBoardLogger could not take a figure" in message
    assert "OSError: disk full" in message
    assert images(full) == {}
    assert steps(board) == {"val_ce_fan": [4, 6], "val_ce_quantiles": [2, 4, 6]}


class _Without:
    """An import hook: matplotlib cannot be imported."""

    def __init__(self, error):
        self.error = error

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "matplotlib":
            raise self.error


def block_matplotlib(monkeypatch, error=None):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    error = error or ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
    monkeypatch.setattr(sys, "meta_path", [_Without(error), *sys.meta_path])


@pytest.mark.parametrize(
    "error", [None, ImportError("libfreetype.so.6 is broken")], ids=["missing", "broken"]
)
def test_without_matplotlib_one_warning_says_so_and_the_run_goes_on(tmp_path, board, monkeypatch, error):
    block_matplotlib(monkeypatch, error)
    callback = PercentileFigures()
    with pytest.warns(match="PercentileFigures") as record:
        trainer = fit(tmp_path, LitLM(), callback, logger=board, max_epochs=3)
    assert trainer.global_step == 6
    assert list(history(callback)) == [2, 4, 6]  # for the fan of a run that goes on elsewhere
    [message] = said(record)
    hint = "No module named 'matplotlib'. Install it with pip install 'lightning-pce[plot]', or do without"
    assert (hint in message) == ("figures=False" in message) == (error is None)
    assert ("libfreetype" in message) == (error is not None)
    assert images(board) == {}


@pytest.mark.parametrize("logger", ["csv", "none", "fast_dev_run"])
def test_without_a_logger_that_takes_figures_matplotlib_is_not_even_imported(tmp_path, monkeypatch, logger):
    block_matplotlib(monkeypatch)
    arguments = {
        "csv": {"logger": CSVLogger(tmp_path), "max_epochs": 3},
        "none": {"logger": False, "max_epochs": 3},
        "fast_dev_run": {"logger": True, "fast_dev_run": True},
    }[logger]
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        fit(tmp_path, LitLM(), PercentileFigures(), **arguments)
    assert said(record) == []


def test_a_module_that_does_not_measure_percentiles_is_named_in_one_warning(tmp_path, board):
    with pytest.warns(match="PercentileFigures") as record:
        fit(tmp_path, PlainLM(), PercentileFigures(), logger=board, max_epochs=3)
    [message] = said(record)
    assert "PlainLM measures no percentile CE" in message


def test_a_module_that_does_not_measure_percentiles_leaves_later_ones_their_figures(tmp_path, board):
    callback = PercentileFigures()
    with pytest.warns(match="PlainLM measures no percentile CE"):
        fit(tmp_path, PlainLM(), callback, logger=board)
    fit(tmp_path, LitLM(), callback, logger=board, max_epochs=2)
    assert steps(board) == {"val_ce_fan": [4], "val_ce_quantiles": [2, 4]}


@pytest.mark.parametrize("module", [LitLM, PlainLM])
def test_where_warnings_are_errors_a_run_goes_on_and_the_log_has_the_words(
    tmp_path, board, monkeypatch, caplog, module
):
    block_matplotlib(monkeypatch)
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.filterwarnings("error", message=".*PercentileFigures")
        trainer = fit(tmp_path, module(), PercentileFigures(), logger=board, max_epochs=2)
    assert trainer.global_step == 4
    [message] = [each.message for each in caplog.records if each.name.endswith("lightning.figures")]
    assert ("measures no" if module is PlainLM else "draws no figures from here on") in message


def checkpointed(tmp_path, callback, epochs, **arguments):
    keep = ModelCheckpoint(tmp_path / "kept", "{step}", save_top_k=-1)
    fit(tmp_path, LitLM(), callback, keep, max_epochs=epochs, **arguments)
    return lambda step: tmp_path / "kept" / f"step={step}.ckpt"


def test_after_a_resume_the_fan_goes_on_where_the_checkpoint_was(tmp_path, board):
    first, second, whole = PercentileFigures(), PercentileFigures(), PercentileFigures()
    path = checkpointed(tmp_path, first, 3)
    assert list(history(first)) == [2, 4, 6]
    saved = torch.load(path(4), weights_only=True)["callbacks"][KEY]
    assert saved == {"history": {"val": {step: history(first)[step] for step in (2, 4)}}}
    make_trainer(tmp_path, second, logger=board, max_epochs=4).fit(
        LitLM(), make_loader(2, seed=1), make_loader(3, seed=2), ckpt_path=path(4)
    )
    assert steps(board) == {"val_ce_fan": [6, 8], "val_ce_quantiles": [6, 8]}
    fit(tmp_path, LitLM(), whole, max_epochs=4)
    assert list(history(second)) == [2, 4, 6, 8]
    for (mean, values), (other_mean, others) in zip(
        history(second).values(), history(whole).values(), strict=True
    ):
        assert mean == pytest.approx(other_mean)
        assert values == pytest.approx(others)


def test_what_was_validated_after_the_step_where_a_run_begins_is_forgotten(tmp_path):
    def resume(path, epochs):
        make_trainer(tmp_path, callback, max_epochs=epochs).fit(
            LitLM(), make_loader(2, seed=1), make_loader(3, seed=2), ckpt_path=path
        )

    path = checkpointed(tmp_path, PercentileFigures(), 3)
    without = torch.load(path(2), weights_only=True)
    del without["callbacks"][KEY]
    torch.save(without, tmp_path / "without.ckpt")
    callback = PercentileFigures()
    fit(tmp_path, LitLM(), callback, train=1, max_epochs=4)
    assert list(history(callback)) == [1, 2, 3, 4]
    resume(tmp_path / "without.ckpt", 2)
    assert list(history(callback)) == [1, 2, 4]
    fit(tmp_path, LitLM(), callback, train=3)
    assert list(history(callback)) == [3]
    resume(path(6), 4)
    assert list(history(callback)) == [2, 4, 6, 8]
    make_trainer(tmp_path, callback).validate(LitLM(), make_loader(3), verbose=False)
    assert list(history(callback)) == [0]


def test_other_percentiles_after_a_resume_do_not_disturb_the_fan(tmp_path, board):
    path = checkpointed(tmp_path, PercentileFigures(), 1)
    make_trainer(tmp_path, PercentileFigures(), logger=board, max_epochs=2).fit(
        LitLM(percentiles=(50, 90)), make_loader(2), make_loader(2), ckpt_path=path(2)
    )
    assert steps(board)["val_ce_fan"] == [4]


def test_validate_before_and_after_a_fit_is_drawn_and_a_checkpoint_alone_does_not_enter_the_fan(
    tmp_path, board
):
    callback, module, val = PercentileFigures(), LitLM(), make_loader(3, seed=2)
    keep = ModelCheckpoint(tmp_path / "kept", "{step}", save_top_k=-1)
    trainer = make_trainer(tmp_path, callback, keep, logger=board, max_epochs=2)
    trainer.validate(module, val, verbose=False)
    assert list(history(callback)) == [0]
    trainer.fit(module, make_loader(2, seed=1), val)
    trainer.validate(module, val, verbose=False)
    assert list(history(callback)) == [0, 2, 4]
    assert steps(board) == {"val_ce_fan": [2, 4], "val_ce_quantiles": [0, 2, 4]}
    before = history(callback)[2]
    trainer.validate(module, val, ckpt_path=tmp_path / "kept" / "step=2.ckpt", verbose=False)
    assert history(callback)[2] == before
    assert 4 not in history(callback)  # of the checkpoint, as Lightning loads it
    losses = torch.cat([token_losses(module, batch) for batch in make_batches(3, seed=2)])
    curve = quantile_curve({"all tokens": td.from_values(losses)}, ax=new_axes(dpi=130))
    assert_looks_like(images(board)["val_ce_quantiles"][4], curve, "val")


@pytest.mark.slow
@pytest.mark.parametrize("package", ["wandb", "mlflow", "comet_ml"])
def test_the_real_packages_store_the_figures_at_their_steps(tmp_path, package):
    if importlib.util.find_spec(package) is None:
        # An extra that make test does without; in CI a skip is a failure (conftest.py).
        pytest.skip("needs pip install 'lightning-pce[loggers]'")
    result = subprocess.run(
        [sys.executable, "-m", "tests.helpers.real_loggers", package, tmp_path],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr
    assert "could not take" not in result.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    at = {name: sorted(step for step, _ in stored) for name, stored in figures.items()}
    assert at == {"val_ce_fan": [4, 6], "val_ce_quantiles": [2, 4, 6]}
    for path in [Path(path) for stored in figures.values() for _, path in stored]:
        if package == "comet_ml":
            assert "<svg" in path.read_text()
        else:
            assert np.asarray(Image.open(path)).shape[:2] == (585, 1040)


class ReturningLM(PlainLM):
    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        return {"logits": self(batch), "labels": batch["labels"]}


def test_the_measuring_callback_draws_by_itself_and_goes_on_after_a_resume(tmp_path, board):
    keep = ModelCheckpoint(tmp_path, "last", save_on_train_epoch_end=False)
    fit(tmp_path, ReturningLM(), PercentileCECallback((50,)), keep, logger=board, max_epochs=2)
    assert steps(board) == {"val_ce_fan": [4], "val_ce_quantiles": [2, 4]}
    again, other = PercentileCECallback((50,)), TensorBoardLogger(tmp_path, name="other", version=0)
    trainer = make_trainer(tmp_path, again, logger=other, max_epochs=3)
    trainer.fit(ReturningLM(), make_loader(2, 1), make_loader(3, 2), ckpt_path=tmp_path / "last.ckpt")
    assert steps(other) == {"val_ce_fan": [6], "val_ce_quantiles": [6]}
    assert list(history(again)) == [2, 4, 6]


def test_two_dataloaders_of_the_measuring_callback_and_a_combined_one_have_their_figures(tmp_path, board):
    callback = PercentileCECallback(loader_names=("web", "code"), pool_loaders=True)
    loaders = [make_loader(2), make_loader(1)]
    trainer = make_trainer(tmp_path, callback, logger=board)
    trainer.validate(ReturningLM(), loaders, verbose=False)
    assert list(steps(board)) == ["val_code_ce_quantiles", "val_web_ce_quantiles"]


@pytest.mark.parametrize("drawing", [{"figures": False}, {"stages": ("test",)}])
def test_the_measuring_callback_does_not_draw_unasked(tmp_path, board, drawing):
    callback = PercentileCECallback(**drawing)
    fit(tmp_path, ReturningLM(), callback, logger=board, max_epochs=2)
    assert steps(board) == {}
    assert callback.state_dict() == {}


def test_beside_a_callback_for_figures_the_measuring_one_leaves_them_to_it(tmp_path, board):
    measuring, drawing = PercentileCECallback(), PercentileFigures()
    with warnings.catch_warnings(record=True) as record:
        fit(tmp_path, ReturningLM(), measuring, drawing, logger=board, max_epochs=2)
    assert said(record) == []
    assert steps(board) == {"val_ce_fan": [4], "val_ce_quantiles": [2, 4]}
    assert measuring.state_dict() == {}
