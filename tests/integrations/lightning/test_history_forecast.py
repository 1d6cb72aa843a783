"""What a real Trainer writes down is a series: of percentiles and of a metric of the module."""

import pytest

from lightning_pce import PercentileHistory
from lightning_pce.runs import History, forecast
from lightning_pce.runs.series import series
from tests.helpers.lit_modules import LitLM, LoadersLM, Oracle, TrainedLM, fit, make_loader


class TaskLM(TrainedLM):
    def on_validation_epoch_end(self):
        super().on_validation_epoch_end()
        self.log("val_accuracy", 0.9 - 0.8 * self.global_step**-0.6 if self.global_step else 0.0)
        if self.current_epoch == 2:
            self.log("val_once", 1.0)


def test_the_series_of_a_run_are_what_was_logged(tmp_path):
    path, oracle = tmp_path / "history.jsonl", Oracle()
    # The sanity check and the validation after the fit are none of its measurements.
    trainer = fit(tmp_path, TaskLM(), oracle, PercentileHistory(path), train=2, max_epochs=8)
    trainer.validate(TaskLM(), make_loader(3, seed=2), verbose=False)
    history, logged = History.load(path), [each for _, each in oracle.single[:-1]]
    assert history.functions == ("fit", "validate")
    for name in ("val_ce_p50", "val_ce_mean", "val_accuracy"):
        found = series(history, name)
        assert found.steps.tolist() == [2.0 * epoch for epoch in range(1, 9)]
        assert found.values == pytest.approx([each[name] for each in logged])
    assert "1 record left out: they are of validate and not of fit." in series(history, "val_ce_p50").notes
    once = series(history, "val_once")
    assert (once.steps.tolist(), once.values.tolist()) == ([6.0], [1.0])
    assert "5 records left out: val_once was logged earlier and not again." in once.notes
    assert forecast(history, "val_once").refused.startswith("1 point is too few")
    risen = forecast(history, "val_accuracy")
    assert risen.refused is None
    assert risen.predict(32).median == pytest.approx(0.8, abs=1e-3)
    assert risen.asymptote.median == pytest.approx(0.9, abs=0.01)


def test_of_several_loaders_a_name_chooses_one_and_a_metric_of_the_module_is_of_all(tmp_path):
    class Two(LoadersLM):
        def on_validation_epoch_end(self):
            super().on_validation_epoch_end()
            self.log("val_task", float(self.global_step))

    path, oracle = tmp_path / "history.jsonl", Oracle()
    fit(tmp_path, Two(), oracle, PercentileHistory(path), val=[make_loader(1), make_loader(2)], max_epochs=2)
    history = History.load(path)
    first, second = history.names
    for name in (f"{first}_ce_p50", f"{second}_ce_p50", "val_task"):
        assert series(history, name).values == pytest.approx([logged[name] for _, logged in oracle.runs])
    with pytest.raises(ValueError, match=f"There is this of several data, '{first}' and '{second}'"):
        series(history, "ce_p50")


def test_accumulated_gradients_leave_one_value_a_step(tmp_path):
    path = tmp_path / "history.jsonl"
    arguments = {"accumulate_grad_batches": 2, "val_check_interval": 1, "max_epochs": 1}
    fit(tmp_path, LitLM(), PercentileHistory(path), train=4, **arguments)
    history = History.load(path)
    assert [record.step for record in history] == [0, 1, 1, 2]
    found = series(history, "val_ce_p50")
    assert found.steps.tolist() == [0, 1, 2]
    assert found.values.tolist() == [history[place].values["ce_p50"] for place in (0, 2, 3)]
