"""A history of a run that is resumed, by whatever it was stopped, is that of an uninterrupted one."""

import copy
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lightning_pce import History, PercentileFigures, PercentileHistory
from tests.helpers.lit_modules import LitLM, ResumableLoader, fit, make_batches, make_loader, make_trainer

STATE = "lightning_pce.PercentileHistory"
KEPT = {
    "epoch end": {"save_on_train_epoch_end": True},
    "validation end": {"save_on_train_epoch_end": False},
    "step": {"every_n_train_steps": 1},
}


def run(folder, path, *callbacks, ckpt_path=None, epochs=3, module=LitLM, **arguments):
    """A run of four batches an epoch, validated after every other one, and its history."""
    callback = PercentileHistory(path)
    arguments = {"val_check_interval": 2, **arguments}
    trainer = make_trainer(folder, callback, *callbacks, max_epochs=epochs, **arguments)
    loader = ResumableLoader(make_batches(4, seed=1), batch_size=None)
    trainer.fit(module(), loader, make_loader(3, seed=2), ckpt_path=ckpt_path)
    return callback


def keep_all(folder, **arguments):
    return ModelCheckpoint(folder / "kept", "{step}", save_top_k=-1, **arguments)


def keys(history):
    return [(each.name, each.step, each.epoch, each.batch) for each in history]


def assert_same(history, other):
    """The same validations, with the same numbers and digests."""
    assert keys(history) == keys(other)
    for one, two in zip(history, other, strict=True):
        assert one.values == pytest.approx(two.values, nan_ok=True, rel=0, abs=0)
        assert torch.equal(one.digest(), two.digest())


@pytest.mark.parametrize("step", [2, 4, 6, 8])
@pytest.mark.parametrize("kept", KEPT)
def test_a_run_that_goes_on_from_a_checkpoint_writes_what_an_uninterrupted_one_does(tmp_path, kept, step):
    if kept == "epoch end" and step % 4:
        step += 2
    keep = keep_all(tmp_path, **KEPT[kept])
    first = run(tmp_path, tmp_path / "history.jsonl", keep)
    whole = History.load(tmp_path / "history.jsonl")
    assert len(whole) == 6
    again = run(tmp_path, tmp_path / "history.jsonl", ckpt_path=tmp_path / "kept" / f"step={step}.ckpt")
    assert again.run == first.run
    after = History.load(tmp_path / "history.jsonl")
    lines = (tmp_path / "history.jsonl").read_text()
    assert lines.count('"kind":"validation"') > 6  # that were written twice
    assert_same(after, whole)
    # Files from after the checkpoint hold weights of steps that were taken back.
    files = {record.step: [Path(each.path).name for each in record.checkpoints] for record in after}
    for at, names in files.items():
        assert names in ([f"step={at}.ckpt"], []) if at <= step else names == [], at
    assert files[step] == [f"step={step}.ckpt"]


def test_what_is_resumed_into_another_file_begins_with_what_was_before(tmp_path):
    run(tmp_path, tmp_path / "other.jsonl", epochs=1)  # another run in the same file
    run(tmp_path, tmp_path / "other.jsonl", keep_all(tmp_path))
    run(tmp_path, tmp_path / "new.jsonl", ckpt_path=tmp_path / "kept" / "step=8.ckpt")
    whole = History.load(tmp_path / "other.jsonl")
    assert len(whole.runs) == 2
    assert_same(History.load(tmp_path / "new.jsonl"), whole.select(run=whole.runs[1]))
    assert_same(
        History.load(tmp_path / "other.jsonl", tmp_path / "new.jsonl").select(run=whole.runs[1]),
        whole.select(run=whole.runs[1]),
    )


def test_by_default_the_folder_of_the_last_part_has_the_whole_run(tmp_path):
    logger = CSVLogger(tmp_path, name="csv")
    run(tmp_path, None, keep_all(tmp_path), logger=logger, epochs=2)
    again = CSVLogger(tmp_path, name="csv")
    run(tmp_path, None, logger=again, ckpt_path=tmp_path / "kept" / "step=4.ckpt")
    assert [logger.version, again.version] == [0, 1]
    history = History.load(Path(again.log_dir) / "percentile_history.jsonl")
    assert [record.step for record in history] == [2, 4, 6, 8, 10, 12]


def test_where_the_old_file_is_gone_the_new_one_has_the_rest(tmp_path):
    run(tmp_path, tmp_path / "old.jsonl", keep_all(tmp_path))
    (tmp_path / "old.jsonl").unlink()
    run(tmp_path, tmp_path / "new.jsonl", ckpt_path=tmp_path / "kept" / "step=8.ckpt")
    assert [record.step for record in History.load(tmp_path / "new.jsonl")] == [10, 12]


def test_a_torn_last_line_is_ended_by_the_run_that_goes_on(tmp_path):
    path = tmp_path / "history.jsonl"
    run(tmp_path, path, keep_all(tmp_path))
    lines = path.read_bytes().splitlines(keepends=True)
    path = path.rename(tmp_path / "whole.jsonl").with_name("history.jsonl")
    path.write_bytes(b"".join(lines[:5]) + lines[5][:300])
    run(tmp_path, path, ckpt_path=tmp_path / "kept" / "step=4.ckpt")
    after = History.load(path)
    assert after.torn == 1
    assert_same(after, History.load(tmp_path / "whole.jsonl"))


def test_a_checkpoint_that_was_saved_right_before_the_kill_is_noted_by_the_run_that_goes_on(tmp_path):
    path = tmp_path / "history.jsonl"
    run(tmp_path, path, keep_all(tmp_path))
    lines = path.read_text().splitlines(keepends=True)
    [noted] = [index for index, line in enumerate(lines) if "step=4.ckpt" in line]
    path.write_text("".join(lines[:noted]))
    assert [len(record.checkpoints) for record in History.load(path)] == [1, 0]
    kept = tmp_path / "kept" / "step=4.ckpt"
    run(tmp_path, path, keep_all(tmp_path), ckpt_path=kept)
    after = {record.step: record.checkpoints for record in History.load(path)}
    assert after[4] == ((str(kept), None, False),)
    assert [len(after[step]) for step in (2, 6, 8)] == [1, 1, 1]


def test_a_fit_that_goes_on_in_the_same_trainer_goes_on_in_the_history(tmp_path):
    path = tmp_path / "history.jsonl"
    trainer = make_trainer(tmp_path, PercentileHistory(path), max_epochs=1)
    module = LitLM()
    for epochs in (1, 3):
        trainer.fit_loop.max_epochs = epochs
        trainer.fit(module, make_loader(2, seed=1), make_loader(3, seed=2))
    history = History.load(path)
    assert [record.step for record in history] == [2, 4, 6]
    assert len(history.runs) == 1


@pytest.mark.parametrize(
    "state", [None, {"run": 1, "path": None, "best": {}}, {"run": "a", "path": "b", "best": {"": 1}}]
)
def test_of_a_damaged_state_one_warning_says_so_and_another_run_begins(tmp_path, state):
    path = tmp_path / "history.jsonl"
    first = run(tmp_path, path, keep_all(tmp_path))
    checkpoint = torch.load(tmp_path / "kept" / "step=4.ckpt", weights_only=True)
    assert checkpoint["callbacks"][STATE].keys() == {"run", "path", "best"}
    checkpoint["callbacks"][STATE] = state if state is not None else [1]
    torch.save(checkpoint, tmp_path / "damaged.ckpt")
    with pytest.warns(match="PercentileHistory begins a new history: its state .* is damaged"):
        second = run(tmp_path, path, ckpt_path=tmp_path / "damaged.ckpt")
    assert second.run != first.run
    assert [record.step for record in second.history] == [6, 8, 10, 12]


def test_figures_go_on_with_the_records_of_the_history(tmp_path):
    path = tmp_path / "history.jsonl"
    run(tmp_path, path, keep_all(tmp_path))  # without figures, so that no checkpoint has their state
    figures = PercentileFigures()
    run(tmp_path, path, figures, ckpt_path=tmp_path / "kept" / "step=8.ckpt")
    drawn = figures.state_dict()["history"]["val"]
    assert list(drawn) == [2, 4, 6, 8, 10, 12]
    for record in History.load(path):
        mean, values = drawn[record.step]
        assert (mean, values[50.0]) == (record.values["ce_mean"], record.values["ce_p50"])


def test_a_resume_that_fails_before_training_leaves_the_history_as_it_was(tmp_path):
    class Failing(LitLM):
        def on_fit_start(self):
            raise RuntimeError("no luck")

    path, keep = tmp_path / "history.jsonl", keep_all(tmp_path)
    run(tmp_path, path, keep)
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="no luck"):
        run(tmp_path, path, keep_all(tmp_path), ckpt_path=tmp_path / "kept" / "step=4.ckpt", module=Failing)
    assert path.read_bytes() == before


def test_validating_an_earlier_checkpoint_changes_nothing_for_the_fit_that_goes_on(tmp_path):
    path, module = tmp_path / "history.jsonl", LitLM()
    callback, keep = PercentileHistory(path), keep_all(tmp_path)
    trainer = make_trainer(tmp_path, callback, keep, max_epochs=2)
    data = make_loader(2, seed=1), make_loader(3, seed=2)
    trainer.fit(module, *data)
    best = callback.state_dict()["best"][""]
    trainer.validate(module, data[1], ckpt_path=tmp_path / "kept" / "step=2.ckpt", verbose=False)
    assert torch.equal(callback.state_dict()["best"][""], best)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(module, *data)
    history = History.load(path)
    assert [(record.function, record.step) for record in history] == [
        ("fit", 2),
        ("fit", 4),
        ("validate", None),
        ("fit", 6),
    ]
    assert history.runs == (callback.run,)


@pytest.mark.slow
def test_a_run_that_is_killed_twenty_times_writes_what_an_uninterrupted_one_does(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "tests.helpers.killed_runs", tmp_path],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert (tmp_path / "done").exists(), result.stderr[-4000:]
    whole = History.load(tmp_path / "whole" / "history.jsonl")
    killed = History.load(tmp_path / "killed" / "history.jsonl")
    lines = (tmp_path / "killed" / "history.jsonl").read_bytes()
    # The last run; an attempt that was killed before its first checkpoint is another one.
    assert_same(killed.select(run=killed.runs[-1]), whole)
    assert lines.count(b'"kind":"start"') > 10


def test_a_copied_callback_writes_another_run(tmp_path):
    """In one file the start of a run of the same id would take back the first one."""
    template = PercentileHistory(tmp_path / "history.jsonl", metadata={"a": 1})
    copies = [copy.deepcopy(template) for _ in range(2)]
    copies.append(copy.deepcopy(fit_one(tmp_path, copies[0])))
    for each in copies[1:]:
        fit_one(tmp_path, each)
    history = History.load(tmp_path / "history.jsonl")
    assert history.runs == tuple(each.run for each in copies)
    for run in history.runs:
        own = history.select(run=run)
        assert len(own) == 2
        assert math.isnan(own[0].values["ce_better_share"])  # and none of the first's best


def fit_one(tmp_path, callback):
    fit(tmp_path, LitLM(), callback, max_epochs=2)
    return callback
