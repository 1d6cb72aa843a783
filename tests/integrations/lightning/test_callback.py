"""PercentileCECallback under a real Trainer, on modules that know nothing of it."""

import csv
import warnings
from copy import deepcopy

import lightning.pytorch as L
import pytest
import pytorch_lightning
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import CombinedLoader

from lightning_pce import PercentileCECallback
from lightning_pce import digest as td
from tests.helpers.lit_modules import (
    IGNORED,
    TAKES_FOREIGN_CALLBACKS,
    LitLM,
    Oracle,
    PlainLM,
    Returning,
    ReturningLosses,
    all_ignored,
    assert_logged,
    fit,
    loader,
    losses_and_mask,
    make_batches,
    make_loader,
    make_trainer,
    numbers,
)
from tests.helpers.summaries import expected_log


def test_only_the_stages_asked_for_are_measured(tmp_path):
    callback = PercentileCECallback((50,), stages=("test",))
    trainer = fit(tmp_path, Returning(), callback)
    assert numbers(trainer.callback_metrics) == {}
    trainer.test(Returning(), make_loader(2), verbose=False)
    assert "test_ce_p50" in trainer.callback_metrics


def test_statistics_groups_shift_and_ignore_index_are_those_of_the_mixin(tmp_path):
    configuration = {
        "percentiles": (50,),
        "statistics": ("ce", "entropy", "log_rank"),
        "groups": ("even", "odd"),
        "shift": True,
        "ignore_index": 0,
        "compression": 300,
    }
    batches = [{**batch, "labels": batch["labels"].clamp(min=0)} for batch in make_batches(3)]
    for index, batch in enumerate(batches):
        batch["group"] = index % 2

    class Mixed(LitLM):
        def validation_step(self, batch, batch_idx):
            self.update_percentile_ce(self(batch), batch["labels"], group=batch["group"])

    results = []
    for module, callbacks in (
        (Mixed(**configuration), []),
        (Returning(), [PercentileCECallback(**configuration)]),
    ):
        trainer = make_trainer(tmp_path, *callbacks)
        results += trainer.validate(module, loader(batches), verbose=False)
    assert results[0] == results[1]
    assert {"val_entropy_odd_p50", "val_accuracy", "val_ce_even_mean"} <= results[0].keys()


def test_each_dataloader_has_its_results_and_all_together_on_request(tmp_path):
    oracle = Oracle()
    callback = PercentileCECallback((50,), loader_names=("web", "code"), pool_loaders=True)
    loaders = [make_loader(2, seed=3), make_loader(1, seed=4)]
    trainer = fit(tmp_path, Returning(), callback, oracle, val=loaders, max_epochs=2)
    assert len(oracle.runs) == 2
    for losses, logged in oracle.runs:
        promised = {
            **expected_log(losses[0], "val_web", (50,)),
            **expected_log(losses[1], "val_code", (50,)),
            **expected_log(torch.cat([losses[0], losses[1]]), "val", (50,)),
        }
        assert logged == pytest.approx(promised, rel=1e-6)
    assert float(td.count(callback.metric("val", None).digest)) == 0  # Lightning has reset it
    assert trainer.callback_metrics["val_ce_p50"] == logged["val_ce_p50"]


def test_pooled_dataloaders_of_the_mixin_have_every_statistic_and_one_alone_nothing_more(tmp_path):
    class Indexed(LitLM):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            self.update_percentile_ce(self(batch), batch["labels"], dataloader_idx)

    configuration = {"percentiles": (50,), "statistics": ("ce", "rank"), "pool_loaders": True}
    results = []
    for loaders in ([loader(make_batches(2, 3)), loader(make_batches(1, 4))], make_loader(2)):
        trainer = make_trainer(tmp_path)
        results.append(trainer.validate(Indexed(**configuration), loaders, verbose=False))
    several, one = results[0][0], results[1][0]
    assert {"val_ce_p50", "val_rank_p50", "val_accuracy", "val_dl1_rank_p50"} <= several.keys()
    together = loader([*make_batches(2, 3), *make_batches(1, 4)])
    joined = make_trainer(tmp_path).validate(Indexed(**configuration), together, verbose=False)[0]
    assert {name: several[name] for name in joined} == joined
    assert one.keys() == joined.keys()


def test_a_step_that_sees_all_dataloaders_at_once_has_one_result_of_what_it_returns(tmp_path):
    batches = [make_batches(2, seed=3), make_batches(1, seed=4)]

    class AtOnce(PlainLM):
        def validation_step(self, batch, batch_idx):
            return [{"logits": self(each), "labels": each["labels"]} for each in batch]

    callback, module = PercentileCECallback((50,)), AtOnce()
    together = CombinedLoader([loader(each) for each in batches], "max_size_cycle")
    trainer = make_trainer(tmp_path, callback)
    with pytest.warns(UserWarning, match=r"repeats the shorter dataloaders.*batches: \[2, 1\]"):
        result = trainer.validate(module, together, verbose=False)[0]
    seen = [*batches[0], batches[1][0], batches[1][0]]
    losses = torch.cat([losses[mask] for losses, mask in (losses_and_mask(module(b), b) for b in seen)])
    assert_logged(result, losses.detach(), percentiles=(50,))


def test_windows_of_training_steps_reach_every_logger_and_callback_metrics(tmp_path):
    module = ReturningLosses()
    best = ModelCheckpoint(tmp_path, monitor="train_ce_p50", every_n_train_steps=2, save_top_k=1)
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    callback = PercentileCECallback((50,), train_every_n_steps=2)
    fit(tmp_path, module, callback, best, train=5, logger=logger, max_epochs=2, log_every_n_steps=50)
    with open(f"{logger.log_dir}/metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row.get("train_ce_p50")]
    windows = [torch.cat(module.seen[i : i + 2]) for i in range(0, 10, 2)]
    assert len(rows) == 5
    for row, losses in zip(rows, windows, strict=True):
        logged = {name: float(value) for name, value in row.items() if name.startswith("train_ce")}
        assert logged == pytest.approx(expected_log(losses, "train", (50,)), rel=1e-6)
    assert [int(row["step"]) for row in rows] == [1, 3, 5, 7, 9]  # where Lightning puts these steps
    assert float(best.best_model_score) == pytest.approx(min(float(row["train_ce_p50"]) for row in rows))


def test_a_window_counts_optimizer_steps_when_gradients_accumulate(tmp_path):
    module = ReturningLosses()
    callback = PercentileCECallback((50,), train_every_n_steps=2)
    trainer = fit(tmp_path, module, callback, train=8, accumulate_grad_batches=2)
    logged = {n: v for n, v in numbers(trainer.callback_metrics).items() if n.startswith("train")}
    assert logged == pytest.approx(expected_log(torch.cat(module.seen[4:]), "train", (50,)), rel=1e-6)


def test_a_training_step_without_losses_is_named_even_if_it_returns_logits(tmp_path):
    class Logits(Returning):
        def training_step(self, batch, batch_idx):
            return {"loss": super().training_step(batch, batch_idx), "logits": torch.zeros(1), "labels": 0}

    with pytest.warns(
        UserWarning, match=r"what training_step returned, a dict with 'loss', 'logits', 'labels'"
    ):
        fit(tmp_path, Logits(), PercentileCECallback((50,), train_every_n_steps=1))


class Manual(ReturningLosses):
    """Steps its optimizer itself and returns nothing."""

    def __init__(self, wrapped=True):
        super().__init__()
        self.automatic_optimization, self.wrapped = False, wrapped

    def training_step(self, batch, batch_idx):
        output = super().training_step(batch, batch_idx)
        optimizer = self.optimizers(use_pl_optimizer=self.wrapped)
        optimizer.zero_grad()
        self.manual_backward(output["loss"])
        optimizer.step()
        return None if self.wrapped else output


def test_manual_optimization_that_returns_nothing_is_named(tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(tmp_path, Manual(), PercentileCECallback((50,), train_every_n_steps=1))
    said = [str(each.message) for each in caught]
    assert len([text for text in said if "what training_step returned" in text]) == 1
    assert not [text for text in said if "before the ``update``" in text]


def test_windows_that_lightning_counts_no_steps_for_are_named(tmp_path):
    with pytest.warns(UserWarning, match="logged no window of training"):
        fit(tmp_path, Manual(wrapped=False), PercentileCECallback((50,), train_every_n_steps=1))


def test_without_a_window_training_is_not_looked_at(tmp_path):
    trainer = fit(tmp_path, ReturningLosses(), PercentileCECallback((50,)))
    assert not [name for name in trainer.callback_metrics if name.startswith("train")]


def test_a_module_with_the_mixin_is_told_to_choose(tmp_path):
    with pytest.raises(RuntimeError, match="LitLM has PercentileCEMixin"):
        fit(tmp_path, LitLM(), PercentileCECallback())


def test_two_of_the_callbacks_are_one_too_many(tmp_path):
    with pytest.raises(RuntimeError, match=r"more than one .*PercentileCECallback"):
        fit(tmp_path, Returning(), PercentileCECallback(), PercentileCECallback((99,)))


def test_a_callback_that_the_module_configures_measures_as_well(tmp_path):
    class Configuring(Returning):
        def configure_callbacks(self):
            return [PercentileCECallback((50,))]

    oracle = Oracle()
    fit(tmp_path, Configuring(), oracle, enable_progress_bar=True)
    assert_logged(oracle.single[0][1], oracle.single[0][0], percentiles=(50,))


def test_a_module_of_the_other_namespace_is_measured_too(tmp_path):
    class Module(pytorch_lightning.LightningModule):
        def validation_step(self, batch, batch_idx):
            return {"losses": 1 + batch["ids"].float()}

    if not TAKES_FOREIGN_CALLBACKS:
        with pytest.raises(ValueError, match="Expected a parent"):
            make_trainer(tmp_path, PercentileCECallback((50,)), namespace=pytorch_lightning)
        return
    trainer = make_trainer(tmp_path, PercentileCECallback((50,)), namespace=pytorch_lightning)
    result = trainer.validate(Module(), make_loader(2), verbose=False)[0]
    losses = torch.cat([1 + b["ids"][b["labels"] != IGNORED].float() for b in make_batches(2)])
    assert_logged(result, losses, percentiles=(50,))


def test_checkpoints_and_early_stopping_watch_what_the_callback_logs(tmp_path):
    best = ModelCheckpoint(tmp_path, "{epoch}-{val_ce_p50:.3f}", monitor="val_ce_p50")
    stop = EarlyStopping("val_ce_p95", patience=1)
    module = Returning(lambda logits, batch: {"losses": 1.0 + module.current_epoch + batch["ids"].float()})
    trainer = fit(tmp_path, module, best, stop, PercentileCECallback(), max_epochs=5)
    assert "epoch=0-val_ce_p50=" in best.best_model_path
    assert trainer.current_epoch == 2  # stopped: epoch 1 was worse


def test_after_the_run_the_module_is_as_it_was_and_its_checkpoint_knows_nothing_of_us(tmp_path):
    module = Returning()
    before = {name for name, _ in module.named_modules()}
    trainer = fit(tmp_path, module, PercentileCECallback())
    assert {name for name, _ in module.named_modules()} == before
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    PlainLM().load_state_dict(state, strict=True)


def test_one_callback_serves_run_after_run_and_a_copy_serves_another_module(tmp_path):
    callback, oracle = PercentileCECallback(), Oracle()
    trainer = make_trainer(tmp_path, callback, oracle, max_epochs=2)
    trainer.validate(Returning(), make_loader(2, seed=7), verbose=False)
    trainer.fit(Returning(), make_loader(2), make_loader(1))
    trainer.validate(Returning(), make_loader(3, seed=8), verbose=False)
    assert len(oracle.single) == 4
    for losses, logged in oracle.single:
        assert_logged(logged, losses)
    again = Oracle()
    make_trainer(tmp_path, deepcopy(callback), again).validate(Returning(), make_loader(2), verbose=False)
    assert_logged(again.single[0][1], again.single[0][0])


def test_a_run_that_broke_off_leaves_nothing_to_the_next(tmp_path):
    callback, broken = PercentileCECallback(), Returning(lambda logits, batch: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path, broken, callback)
    assert not hasattr(broken, "percentile_ce_of_callback")
    broken.give, oracle = Returning().give, Oracle()
    fit(tmp_path, broken, callback, oracle)
    assert_logged(oracle.single[0][1], oracle.single[0][0])


def test_the_digest_of_a_stage_can_be_read_in_a_callback_at_its_end(tmp_path):
    callback, digests = PercentileCECallback(), []

    class Reader(L.Callback):
        def on_validation_end(self, trainer, module):
            digests.append(callback.metric("val").digest)

    oracle = Oracle()
    trainer = make_trainer(tmp_path, callback, Reader(), oracle)
    trainer.validate(Returning(), make_loader(3), verbose=False)
    assert float(td.count(digests[0])) == len(oracle.single[0][0])
    for stage, index in (("test", 0), ("val", 1), ("val", None)):
        with pytest.raises(KeyError):
            callback.metric(stage, index)


def test_a_validation_in_which_no_token_counts_logs_nan(tmp_path):
    trainer = make_trainer(tmp_path, PercentileCECallback((50,)))
    result = trainer.validate(Returning(), loader(all_ignored(make_batches(2))), verbose=False)[0]
    assert len(result) == 3
    assert all(value != value for value in result.values())


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"percentiles": (101,)}, "percentiles"),
        ({"statistics": ("entropy",)}, "statistics"),
        ({"stages": ("train",)}, "stages"),
        ({"stages": "val"}, "stages"),
        ({"read": {"logit": "x"}}, "read"),
        ({"read": {"logits": 3}}, "read"),
        ({"read": "logits"}, "read"),
        ({"train_every_n_steps": 0}, "train_every_n_steps"),
        ({"train_every_n_steps": 2.5}, "train_every_n_steps"),
        ({"loader_names": ("a/b",)}, "loader_names"),
    ],
)
def test_impossible_arguments_raise_where_they_are_written(wrong, named):
    with pytest.raises(ValueError, match=f"`{named}`"):
        PercentileCECallback(**wrong)
