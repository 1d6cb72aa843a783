"""Several dataloaders, their names, and what happens when a hook does not reach the mixin."""

import warnings
from functools import partial

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, ModelCheckpoint
from lightning.pytorch.utilities import CombinedLoader

from lightning_pce import PercentileCEMixin
from lightning_pce import digest as td
from lightning_pce.integrations.settings import Settings
from lightning_pce.integrations.stages import StageMetrics
from tests.helpers.lit_modules import (
    LitLM,
    LoadersLM,
    Oracle,
    TinyLM,
    TrainedLM,
    assert_logged,
    fit,
    loader,
    make_batches,
    make_loader,
    make_trainer,
    token_losses,
)


def two_loaders():
    return [make_loader(3, seed=2), make_loader(2, seed=3)]


def everything_logged(results):
    return {name: value for result in results for name, value in result.items()}


def test_each_dataloader_logs_its_own_values_under_its_number_in_every_epoch(tmp_path):
    oracle = Oracle()
    fit(tmp_path, LoadersLM(), oracle, val=two_loaders(), max_epochs=2)
    assert len(oracle.runs) == 2
    for losses, logged in oracle.runs:
        assert len(logged) == 16
        for index in (0, 1):
            assert_logged(logged, losses[index], f"val_dl{index}")


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_given_names_stand_in_the_logged_names_in_the_order_of_the_dataloaders(tmp_path, stage):
    module, oracle = LoadersLM(loader_names=("web", "code_2")), Oracle()
    results = getattr(make_trainer(tmp_path, oracle), stage)(module, two_loaders(), verbose=False)
    prefix = {"validate": "val", "test": "test"}[stage]
    assert len(everything_logged(results)) == 16
    for index, name in enumerate(("web", "code_2")):
        assert_logged(everything_logged(results), oracle.runs[0][0][index], f"{prefix}_{name}")


def test_a_checkpoint_can_monitor_one_of_several_dataloaders(tmp_path):
    best, oracle = ModelCheckpoint(tmp_path, monitor="val_code_ce_p50"), Oracle()
    module = LoadersLM(loader_names=("web", "code"))
    fit(tmp_path, module, best, oracle, val=two_loaders(), max_epochs=3)
    medians = [float(losses[1].double().quantile(0.5)) for losses, _ in oracle.runs]
    assert float(best.best_model_score) == pytest.approx(min(medians))
    assert torch.load(best.best_model_path)["epoch"] == medians.index(min(medians))


def test_a_dict_of_dataloaders_is_several(tmp_path):
    oracle = Oracle()
    loaders = dict(zip(("web", "code"), two_loaders(), strict=True))
    make_trainer(tmp_path, oracle).validate(LoadersLM(), loaders, verbose=False)
    for index in (0, 1):
        assert_logged(oracle.runs[0][1], oracle.runs[0][0][index], f"val_dl{index}")


def test_a_step_that_sees_all_dataloaders_at_once_passes_their_numbers_itself(tmp_path):
    class TogetherLM(LitLM):
        def validation_step(self, batches, batch_idx):
            for index, batch in enumerate(batches):
                self.update_percentile_ce(self(batch), batch["labels"], index)

    data = [make_batches(3, seed=2), make_batches(3, seed=3)]
    module = TogetherLM()
    together = CombinedLoader([loader(batches) for batches in data], "min_size")
    results = make_trainer(tmp_path).validate(module, together, verbose=False)
    for index, batches in enumerate(data):
        losses = torch.cat([token_losses(module, batch) for batch in batches])
        assert_logged(everything_logged(results), losses, f"val_dl{index}")


def test_batches_that_a_cycling_combined_loader_repeats_count_as_often_as_they_ran(tmp_path):
    class TogetherLM(LitLM):
        def validation_step(self, batches, batch_idx):
            for index, batch in enumerate(batches):
                self.update_percentile_ce(self(batch), batch["labels"], index)

        def on_validation_epoch_end(self):
            super().on_validation_epoch_end()
            seen.extend(int(td.count(self.percentile_ce.metric("val", index).digest)) for index in (0, 1))

    data, module, seen = [make_batches(4, seed=2), make_batches(2, seed=3)], TogetherLM(), []
    tokens = [sum(len(token_losses(module, batch)) for batch in batches) for batches in data]
    for mode in ("max_size_cycle", "min_size"):
        together = CombinedLoader([loader(batches) for batches in data], mode)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            make_trainer(tmp_path).validate(module, together, verbose=False)
        said = [str(warning.message) for warning in caught if "tokens count" in str(warning.message)]
        assert len(said) == (mode == "max_size_cycle")
    first_two = sum(len(token_losses(module, batch)) for batch in data[0][:2])
    assert seen == [tokens[0], 2 * tokens[1], first_two, tokens[1]]


def test_stages_may_have_different_numbers_of_dataloaders_and_one_alone_has_no_name(tmp_path):
    module = LoadersLM(loader_names=("web", "code"))
    for loaders, prefixes in (
        (two_loaders(), ("val_web", "val_code")),
        (make_loader(2, seed=4), ("val",)),
        (two_loaders(), ("val_web", "val_code")),
    ):
        oracle = Oracle()
        make_trainer(tmp_path, oracle).validate(module, loaders, verbose=False)
        losses, logged = oracle.runs[0]
        assert len(logged) == 8 * len(prefixes)
        for index, prefix in enumerate(prefixes):
            assert_logged(logged, losses[index], prefix)


def test_a_dataloader_without_batches_logs_nan_beside_the_others(tmp_path):
    oracle = Oracle()
    loaders = [make_loader(3, seed=2), loader([])]
    make_trainer(tmp_path, oracle).validate(LoadersLM(), loaders, verbose=False)
    losses, logged = oracle.runs[0]
    assert_logged(logged, losses[0], "val_dl0")
    empty = {name: value for name, value in logged.items() if name.startswith("val_dl1_ce_")}
    assert len(empty) == 8
    assert all(value != value for value in empty.values())


@pytest.mark.parametrize("names", [("web",), ("web", "code", "books")])
def test_the_wrong_number_of_names_raises_before_the_first_batch(tmp_path, names):
    with pytest.raises(ValueError, match=r"`loader_names` for each of the 2 val dataloaders"):
        make_trainer(tmp_path).validate(LoadersLM(loader_names=names), two_loaders(), verbose=False)


@pytest.mark.parametrize("name", ["a.b", "a/b", "a b", "", "a-b", "%", "ä"])
def test_a_name_that_file_names_or_loggers_can_not_hold_raises(name):
    with pytest.raises(ValueError, match="loader_names"):
        LitLM(loader_names=("web", name))


def test_the_same_name_twice_raises():
    with pytest.raises(ValueError, match="without duplicates"):
        LitLM(loader_names=("web", "web"))


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_leaving_out_the_dataloader_index_raises_if_there_are_several(tmp_path, stage):
    class ForgetfulLM(LoadersLM):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            self.update_percentile_ce(self(batch), batch["labels"])

        test_step = validation_step

    with pytest.raises(ValueError, match=r"`dataloader_idx` because there are 2"):
        getattr(make_trainer(tmp_path), stage)(ForgetfulLM(), two_loaders(), verbose=False)


@pytest.mark.parametrize("index", [-1, 2])
def test_a_dataloader_index_out_of_range_raises(tmp_path, index):
    class WrongLM(LoadersLM):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            self.update_percentile_ce(self(batch), batch["labels"], index)

    with pytest.raises(ValueError, match=rf"`dataloader_idx` in \[0, 2\) but got {index}"):
        make_trainer(tmp_path).validate(WrongLM(), two_loaders(), verbose=False)


def without_super(hook, base=LitLM):
    return type("HookedLM", (base,), {hook: lambda self: None})()


@pytest.mark.parametrize("hook", ["on_validation_epoch_start", "on_validation_epoch_end"])
@pytest.mark.parametrize("how", ["fit", "fit without sanity check", "validate"])
def test_a_validation_hook_without_super_is_named(tmp_path, hook, how):
    trainer = make_trainer(tmp_path, num_sanity_val_steps=0 if "without" in how else 2)
    run = trainer.validate if how == "validate" else partial(trainer.fit, val_dataloaders=make_loader(2))
    with pytest.raises(RuntimeError, match=rf"super\(\)\.{hook}\(\)"):
        run(without_super(hook), make_loader(2))


@pytest.mark.parametrize("hook", ["on_test_epoch_start", "on_test_epoch_end"])
def test_a_test_hook_without_super_is_named(tmp_path, hook):
    with pytest.raises(RuntimeError, match=rf"super\(\)\.{hook}\(\)"):
        make_trainer(tmp_path).test(without_super(hook), make_loader(2), verbose=False)


@pytest.mark.parametrize("hook", ["on_train_epoch_start", "on_train_epoch_end"])
@pytest.mark.parametrize("epochs", [1, 2])
def test_a_training_hook_without_super_is_named(tmp_path, hook, epochs):
    with pytest.raises(RuntimeError, match=rf"super\(\)\.{hook}\(\)"):
        fit(tmp_path, without_super(hook, base=TrainedLM), max_epochs=epochs)


def test_training_hooks_without_super_do_not_matter_to_a_step_that_does_not_update(tmp_path):
    for hook in ("on_train_epoch_start", "on_train_epoch_end"):
        oracle = Oracle()
        fit(tmp_path, without_super(hook), oracle, max_epochs=2)
        assert_logged(oracle.single[1][1], oracle.single[1][0])


def test_a_model_checkpoint_does_not_hide_which_hook_lacks_super(tmp_path):
    best = ModelCheckpoint(tmp_path, monitor="val_ce_p50")
    with pytest.raises(RuntimeError, match=r"super\(\)\.on_validation_epoch_end\(\)"):
        fit(tmp_path, without_super("on_validation_epoch_end"), best, num_sanity_val_steps=0)


def test_two_hooks_of_the_end_without_super_are_noticed_at_the_next_validation(tmp_path):
    class TwiceLM(LitLM):
        def on_validation_epoch_end(self):
            pass

        def on_validation_end(self):
            pass

    with pytest.raises(RuntimeError, match=r"super\(\)\.on_validation_epoch_end\(\)"):
        fit(tmp_path, TwiceLM(), max_epochs=2)


def test_two_hooks_of_the_end_without_super_are_noticed_after_a_single_validation_too(tmp_path):
    class TwiceLM(LitLM):
        def on_validation_epoch_end(self):
            pass

        def on_validation_end(self):
            pass

    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    with pytest.raises(RuntimeError, match=r"super\(\)\.on_validation_epoch_end\(\)"):
        trainer.validate(TwiceLM(), two_loaders()[0], verbose=False)


@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_base_classes_in_the_wrong_order_are_named(tmp_path, stage):
    class Backwards(TinyLM, L.LightningModule, PercentileCEMixin):
        def __init__(self):
            super().__init__()
            self.configure_percentile_ce()
            self.make_layers()

        def training_step(self, batch, batch_idx):
            return self.update_percentile_ce(self(batch), batch["labels"])

        validation_step = test_step = training_step

    run = getattr(make_trainer(tmp_path, limit_val_batches=0 if stage == "fit" else None), stage)
    with pytest.raises(RuntimeError, match="PercentileCEMixin stands before LightningModule"):
        run(Backwards(), make_loader(2))


@pytest.mark.parametrize(
    ("stage", "running"), [("train", "training"), ("val", "validating"), ("test", "testing")]
)
def test_after_an_epoch_that_broke_off_the_same_module_starts_anew(tmp_path, stage, running):
    class BreakingLM(TrainedLM):
        broken = True

        def update_percentile_ce(self, *arguments):
            mean = super().update_percentile_ce(*arguments)
            if self.broken and getattr(self.trainer, running):
                raise OSError("the disk is full")
            return mean

    def run(*callbacks):
        if stage == "test":
            make_trainer(tmp_path, *callbacks).test(module, make_loader(3), verbose=False)
        else:
            fit(tmp_path, module, *callbacks, train=3)

    module, oracle = BreakingLM(), Oracle()  # what was seen before the error does not count
    with pytest.raises(OSError, match="the disk is full"):
        run()
    module.broken = False
    run(oracle)
    observed = oracle.epochs if stage == "train" else oracle.single
    assert len(observed) == 1
    assert_logged(observed[0][1], observed[0][0], stage)


def test_metrics_of_a_stage_can_be_read_and_those_of_others_raise(tmp_path):
    class ReadingLM(LoadersLM):
        def on_validation_epoch_end(self):
            super().on_validation_epoch_end()
            counts.append([int(td.count(self.percentile_ce.metric("val", index).digest)) for index in (0, 1)])

    counts, module, oracle = [], ReadingLM(), Oracle()
    make_trainer(tmp_path, oracle).validate(module, two_loaders(), verbose=False)
    assert counts == [[len(oracle.runs[0][0][index]) for index in (0, 1)]]
    for other in (("val", 2), ("test", 0)):
        with pytest.raises(KeyError):
            module.percentile_ce.metric(*other)


def test_where_lightning_logs_nothing_each_epoch_still_begins_empty(tmp_path):
    class CountingLM(TrainedLM):
        def on_validation_epoch_end(self):
            super().on_validation_epoch_end()
            counts.append(int(td.count(self.percentile_ce.metric("val").digest)))

        def on_train_epoch_end(self):
            super().on_train_epoch_end()
            counts.append(int(td.count(self.percentile_ce.metric("train").digest)))

    counts, module = [], CountingLM()
    trainer = L.Trainer(accelerator="cpu", barebones=True, max_epochs=2)
    trainer.fit(module, make_loader(2, seed=1), make_loader(3, seed=2))
    train, val = (
        sum(len(token_losses(module, b)) for b in make_batches(n, seed)) for n, seed in ((2, 1), (3, 2))
    )
    assert counts == [val, train, val, train]
    assert not trainer.callback_metrics


def opened(loaders=1, **settings):
    stages = StageMetrics(Settings(percentiles=(50,), **settings))
    stages.open("val", loaders, torch.device("cpu"))
    return stages


def test_a_stage_that_is_not_open_takes_no_batch():
    stages = StageMetrics(Settings(percentiles=(50,)))
    with pytest.raises(RuntimeError, match="val stage has not begun"):
        stages.measure("val", losses=torch.ones(3))
    stages.open("val", 1, torch.device("cpu"))
    assert float(stages.measure("val", losses=torch.ones(3))) == 1
    assert set(stages.results("val")) == {"ce_mean", "ce_p50", "ce_trimmed_mean"}
    with pytest.raises(RuntimeError, match="val stage has not begun, or is over"):
        stages.measure("val", losses=torch.ones(3))


def test_results_and_digests_have_the_names_of_loaders_and_groups():
    stages = opened(2, loader_names=("web", "code"), groups=("a", "b"), pool_loaders=True)
    for index in range(2):
        losses = torch.tensor([1.0, 2.0]) + 10 * index
        stages.measure("val", losses=losses, group=torch.tensor([0, 1]), dataloader_idx=index)
    results = {name: float(value) for name, value in stages.results("val").items()}
    assert results["web_ce_p50"] == 1.5
    assert results["code_ce_b_mean"] == 12
    assert results["ce_mean"] == 6.5
    digests = stages.digests("val")
    assert {loader: sorted(groups) for loader, groups in digests.items()} == {
        "web": ["", "a", "b"],
        "code": ["", "a", "b"],
    }
    assert float(td.mean(digests["code"][""])) == 11.5
    assert float(td.mean(digests["web"]["a"])) == 1
    assert opened().digests("val").keys() == {""}


def test_what_is_derived_from_a_digest_is_a_result_of_each_dataloader_of_that_stage():
    seen = []

    def highest(loader, digest):
        seen.append(loader)
        return td.maximum(digest)

    stages = opened(2, loader_names=("web", "code"), pool_loaders=True)
    stages.derive("val", {"ce_highest": highest})
    assert "val_web_ce_highest" in stages.names("val", 2)
    stages.open("val", 2, torch.device("cpu"))
    for index, loss in enumerate((3.0, 5.0)):
        stages.measure("val", losses=torch.tensor([loss, 1.0]), dataloader_idx=index)
    results = stages.results("val")
    assert [results[f"{name}ce_highest"] for name in ("web_", "code_", "")] == [3, 5, 5]
    assert seen == ["web", "code", ""]
    stages.open("test", 1, torch.device("cpu"))
    assert not [name for name in stages.results("test") if "highest" in name]
    stages.derive("val", {})
    stages.open("val", 2, torch.device("cpu"))
    assert not [name for name in stages.results("val") if "highest" in name]


def test_metrics_are_found_by_dataloader_and_statistic():
    stages = opened(2, pool_loaders=True, statistics=("ce", "rank"))
    found = stages.by_loader("val")
    assert list(found) == ["dl0", "dl1", ""]
    for index, name in enumerate(found):
        assert list(found[name]) == ["ce", "rank", "accuracy", "top5_accuracy"]
        place = None if name == "" else index
        assert all(each is stages.metric("val", place, of) for of, each in found[name].items())


def test_two_results_under_one_name_are_refused():
    settings = {"statistics": ("ce", "rank", "log_rank"), "loader_names": ("log", "web")}
    opened(2, **settings)
    with pytest.raises(ValueError, match="two results would be 'val_log_rank_mean'"):
        opened(2, **settings, pool_loaders=True)


def test_an_accuracy_is_a_metric_of_sums():
    stages = opened(statistics=("ce", "rank"), groups=("a", "b"))
    logits, labels = torch.eye(4)[None] * 9, torch.tensor([[0, 1, 3, -100]])
    stages.measure(
        "val", logits, labels, group=torch.tensor([[0, 0, 1, 1]]), weights=torch.tensor([[3, 1, 1, 1]])
    )
    results = stages.results("val")
    assert (results["accuracy"], results["accuracy_a"], results["accuracy_b"]) == (0.8, 1, 0)
    assert stages.metric("val", 0, "accuracy").compute()["count"] == 5


def test_settings_are_checked_once_and_frozen():
    settings = Settings(percentiles=[50, 5], statistics=("rank", "ce"), groups=["a"])
    assert (settings.percentiles, settings.statistics, settings.groups) == ((50, 5), ("ce", "rank"), ("a",))
    with pytest.raises(AttributeError):
        settings.shift = True
    assert settings.described != Settings(percentiles=(50, 5), statistics=("rank", "ce")).described


def test_stage_metrics_have_nothing_to_train_and_nothing_to_save():
    stages = opened(2)
    stages.measure("val", losses=torch.ones(3), dataloader_idx=1)
    assert not list(stages.parameters())
    assert not stages.state_dict()


def test_a_trial_of_the_batch_size_finder_that_ran_out_of_memory_leaves_nothing(tmp_path):
    class Hungry(LitLM):
        batch_size = 1

        def val_dataloader(self):
            batches = make_batches(6)
            rows = [{name: part[0] for name, part in batch.items()} for batch in batches]
            return torch.utils.data.DataLoader(rows, batch_size=self.batch_size)

        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            if len(batch["ids"]) > 2:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    module, finder = Hungry(), BatchSizeFinder("power", steps_per_trial=1, max_trials=3)
    result = make_trainer(tmp_path, finder).validate(module, verbose=False)[0]
    assert module.batch_size == 2
    losses = torch.cat([token_losses(module, batch) for batch in module.val_dataloader()])
    assert_logged(result, losses)
