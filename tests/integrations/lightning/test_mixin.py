"""PercentileCEMixin under a real Trainer, in one process: what is logged of validations and tests."""

import math
import warnings

import lightning.pytorch as L
import pytest
import torch
import torch.nn.functional as F

from lightning_pce import PercentileCEMixin
from lightning_pce import digest as td
from tests.helpers.lit_modules import (
    LitLM,
    Oracle,
    TinyLM,
    TrainedLM,
    assert_logged,
    fit,
    loader,
    logged_under,
    make_batches,
    make_lm,
    make_loader,
    make_trainer,
    numbers,
    token_losses,
)
from tests.helpers.summaries import PERCENTILES, expected_log


def test_fit_logs_mean_percentiles_and_trimmed_mean_of_all_tokens_of_each_validation(tmp_path):
    oracle = Oracle()
    fit(tmp_path, LitLM(percentiles=(5, 50, 99.9)), oracle, max_epochs=3)
    assert len(oracle.single) == 3
    for losses, logged in oracle.single:
        assert_logged(logged, losses, percentiles=(5, 50, 99.9))
    assert set(logged) == {"val_ce_mean", "val_ce_p5", "val_ce_p50", "val_ce_p99_9", "val_ce_trimmed_mean"}
    assert len({logged["val_ce_p50"] for _, logged in oracle.single}) == 3


def test_without_any_configuration_the_default_percentiles_are_logged(tmp_path):
    module, oracle = LitLM(), Oracle()
    fit(tmp_path, module, oracle)
    assert_logged(oracle.single[0][1], oracle.single[0][0], percentiles=PERCENTILES)


def test_configuration_may_come_before_the_layers_after_them_or_again_between_two_fits(tmp_path):
    module = LitLM(percentiles=(10,))  # LitLM configures before it makes its layers
    for percentiles in ((10,), (20, 30)):
        module.configure_percentile_ce(percentiles=percentiles)
        oracle = Oracle()
        fit(tmp_path, module, oracle)
        assert_logged(oracle.single[0][1], oracle.single[0][0], percentiles=percentiles)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [({"percentiles": (101,)}, "percentiles"), ({"percentiles": (5, 5)}, "percentiles")],
)
def test_impossible_configuration_raises_where_it_is_written(wrong, named):
    with pytest.raises(ValueError, match=named):
        LitLM(**wrong)


def test_configured_ignore_index_and_shift_decide_which_tokens_count(tmp_path):
    batches = make_batches(3, seed=2)
    module = LitLM(percentiles=(50,), ignore_index=0, shift=True)
    for batch in batches:
        batch["labels"][batch["labels"] == -100] = 0
    result = make_trainer(tmp_path).validate(module, loader(batches), verbose=False)[0]
    losses = []
    for batch in batches:
        logits, labels = module(batch).detach()[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
        losses.append(F.cross_entropy(logits, labels, reduction="none")[labels != 0])
    assert_logged(result, torch.cat(losses), percentiles=(50,))


@pytest.mark.parametrize("sanity_steps", [0, 2])
def test_nothing_of_the_sanity_check_enters_the_first_epoch(tmp_path, sanity_steps):
    oracle = Oracle()
    fit(tmp_path, LitLM(), oracle, num_sanity_val_steps=sanity_steps)
    assert oracle.batches == sanity_steps + 3
    assert_logged(oracle.single[0][1], oracle.single[0][0])


def test_nothing_leaks_from_one_validation_to_the_next_inside_an_epoch(tmp_path):
    oracle = Oracle()
    fit(tmp_path, LitLM(), oracle, train=4, max_epochs=2, val_check_interval=2)
    assert len(oracle.single) == 4
    for losses, logged in oracle.single:
        assert_logged(logged, losses)


def test_validate_then_test_then_fit_then_validate_in_one_process_each_see_their_own_tokens(tmp_path):
    module, oracle = TrainedLM(), Oracle()
    trainer = make_trainer(tmp_path, oracle)
    trainer.validate(module, make_loader(3, seed=2), verbose=False)
    trainer.test(module, make_loader(2, seed=3), verbose=False)
    trainer.fit(module, make_loader(2, seed=1), make_loader(3, seed=4))
    trainer.validate(module, make_loader(1, seed=5), verbose=False)
    for (losses, logged), stage in zip(oracle.single, ("val", "test", "val", "val"), strict=True):
        assert_logged(logged, losses, stage)
    assert_logged(oracle.epochs[0][1], oracle.epochs[0][0], "train")


def test_limit_val_batches_0_logs_nothing_and_does_not_fail(tmp_path):
    oracle = Oracle()
    trainer = fit(tmp_path, TrainedLM(), oracle, limit_val_batches=0)
    metrics = numbers(trainer.callback_metrics)
    assert oracle.batches == 0
    assert not logged_under(metrics, "val")
    assert logged_under(metrics, "train")


def test_limit_val_batches_and_fast_dev_run_measure_the_batches_that_ran(tmp_path):
    for limits in ({"limit_val_batches": 2}, {"fast_dev_run": 2}):
        oracle = Oracle()
        fit(tmp_path, LitLM(), oracle, val=5, **limits)
        losses, logged = oracle.single[0]
        assert len(losses) < len(torch.cat([token_losses(LitLM(), b) for b in make_loader(3, seed=2)]))
        assert_logged(logged, losses)


def test_a_validation_that_never_updates_logs_nan(tmp_path):
    class Forgetful(LitLM):
        def validation_step(self, batch, batch_idx):
            pass

    result = make_trainer(tmp_path).validate(Forgetful(), make_loader(2), verbose=False)[0]
    assert sorted(result) == sorted(expected_log(torch.ones(1), "val"))
    assert all(math.isnan(value) for value in result.values())


def test_losses_mask_and_weights_say_what_counts_and_the_batch_mean_is_returned(tmp_path):
    losses = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    weights = torch.tensor([[1.0, 0.0, 1.0], [2.0, 1.0, 1.0]])
    forms = {
        "losses": ({}, [1, 2, 4, 8, 16, 32]),
        "mask": ({"mask": mask}, [1, 2, 8, 16, 32]),
        "weights": ({"weights": weights}, [1, 4, 8, 8, 16, 32]),
        "both": ({"mask": mask, "weights": weights}, [1, 8, 8, 16, 32]),
    }

    class FormLM(LitLM):
        def __init__(self, arguments):
            super().__init__()
            self.arguments = arguments

        def validation_step(self, batch, batch_idx):
            self.returned.append(self.update_percentile_ce(losses=losses, **self.arguments))

    for arguments, counted in forms.values():
        module, returned = FormLM(arguments), []
        module.returned = returned
        counted = torch.tensor(counted, dtype=torch.float32)
        result = make_trainer(tmp_path).validate(module, make_loader(1), verbose=False)[0]
        assert_logged(result, counted)
        assert (returned[0].shape, returned[0].dtype) == ((), torch.float32)
        assert float(returned[0]) == pytest.approx(float(counted.mean()))


def test_weights_beside_logits_are_repetition(tmp_path):
    class WeightedLM(LitLM):
        def validation_step(self, batch, batch_idx):
            weights = 1 + batch["ids"] % 3
            mean = self.update_percentile_ce(self(batch), batch["labels"], weights=weights)
            counted = weights[batch["labels"] != -100]
            self.parts.append(token_losses(self, batch).repeat_interleave(counted))
            assert float(mean) == pytest.approx(float(self.parts[-1].mean()))

    module = WeightedLM()
    module.parts = []
    result = make_trainer(tmp_path).validate(module, make_loader(3), verbose=False)[0]
    assert_logged(result, torch.cat(module.parts))


def test_the_returned_mean_is_over_the_counted_tokens_of_the_batch(tmp_path):
    class MeansLM(LitLM):
        def validation_step(self, batch, batch_idx):
            mean = self.update_percentile_ce(self(batch), batch["labels"])
            means.append((float(mean), float(token_losses(self, batch).mean())))

    means = []
    make_trainer(tmp_path).validate(MeansLM(), make_loader(3), verbose=False)
    assert len(means) == 3
    for mean, promised in means:
        assert mean == pytest.approx(promised)


def test_wrong_arguments_raise_in_the_step_and_nothing_of_the_batch_enters(tmp_path):
    class CarefulLM(LitLM):
        def validation_step(self, batch, batch_idx):
            with pytest.raises(ValueError, match="labels"):
                self.update_percentile_ce(self(batch), batch["labels"] + 100)
            with pytest.raises(ValueError, match="losses"):
                self.update_percentile_ce()
            super().validation_step(batch, batch_idx)

    oracle = Oracle()
    make_trainer(tmp_path, oracle).validate(CarefulLM(), make_loader(3), verbose=False)
    assert_logged(oracle.single[0][1], oracle.single[0][0])


def test_users_hooks_that_call_super_run_and_can_read_the_digest_of_the_epoch(tmp_path):
    class HookedLM(TrainedLM):
        def setup(self, stage):
            super().setup(stage)
            self.calls = [stage]

        def on_validation_epoch_start(self):
            super().on_validation_epoch_start()
            self.calls.append("start")

        def on_validation_epoch_end(self):
            super().on_validation_epoch_end()
            digest = self.percentile_ce.metric("val").digest
            self.log("val_median_by_hand", td.quantile(digest, 0.5).float())
            self.log("val_tokens", td.count(digest).float())

        def on_train_epoch_end(self):
            super().on_train_epoch_end()
            self.log("train_tokens", td.count(self.percentile_ce.metric("train").digest).float())

    module, oracle = HookedLM(), Oracle()
    fit(tmp_path, module, oracle, max_epochs=2, num_sanity_val_steps=0)
    assert module.calls == ["fit", "start", "start"]
    for losses, logged in oracle.single:
        assert logged["val_median_by_hand"] == pytest.approx(logged["val_ce_p50"])
        assert logged["val_tokens"] == len(losses)
        assert_logged(logged, losses)
    for losses, logged in oracle.epochs:
        assert logged["train_tokens"] == len(losses)
        assert_logged(logged, losses, "train")


def test_update_outside_a_trainer_or_outside_a_measured_stage_says_so(tmp_path):
    class PredictingLM(LitLM):
        def predict_step(self, batch, batch_idx):
            self.update_percentile_ce(self(batch), batch["labels"])

    batch = make_batches(1)[0]
    module = PredictingLM()
    with pytest.raises(RuntimeError, match=r"PredictingLM is not attached to a Trainer"):
        module.update_percentile_ce(module(batch), batch["labels"])
    with pytest.raises(RuntimeError, match="training_step, validation_step and test_step"):
        make_trainer(tmp_path).predict(module, make_loader(1))
    fit(tmp_path, module)
    with pytest.raises(RuntimeError, match="training_step, validation_step and test_step"):
        module.update_percentile_ce(module(batch), batch["labels"])


def test_a_fit_says_nothing_about_its_metrics(tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = fit(tmp_path, TrainedLM(), max_epochs=2)
        trainer.test(TrainedLM(), make_loader(1), verbose=False)
    ours = ("compute", "metric", "percentile", "_ce_", "digest", "lightning_pce")
    said = [str(w.message) for w in caught if any(word in str(w.message).lower() for word in ours)]
    assert said == []


def test_a_model_may_inherit_the_mixin_through_a_base_class_of_its_own(tmp_path):
    class Base(PercentileCEMixin, L.LightningModule):
        pass

    class Derived(TinyLM, Base):
        def __init__(self):
            super().__init__()
            self.make_layers()

        def validation_step(self, batch, batch_idx):
            return self.update_percentile_ce(self(batch), batch["labels"])

    oracle = Oracle()
    make_trainer(tmp_path, oracle).validate(Derived(), make_loader(3), verbose=False)
    assert_logged(oracle.single[0][1], oracle.single[0][0])


def test_hooks_of_the_module_behind_the_mixin_still_run(tmp_path):
    def recording(hook):
        return lambda self, *arguments: calls.append(hook)

    hooks = ["setup"] + [
        f"on_{stage}_{moment}"
        for stage, moments in (
            ("train", ("epoch_start", "epoch_end", "end")),
            ("validation", ("epoch_start", "epoch_end", "end")),
            ("test", ("epoch_start", "epoch_end", "end")),
        )
        for moment in moments
    ]
    base = type("Base", (L.LightningModule,), {hook: recording(hook) for hook in hooks})
    calls, module, oracle = [], make_lm(base)(), Oracle()
    fit(tmp_path, module, oracle, num_sanity_val_steps=0)
    make_trainer(tmp_path, oracle).test(module, make_loader(1), verbose=False)
    assert sorted(calls) == sorted([*hooks, "setup"])
    for (losses, logged), stage in zip(oracle.single, ("val", "test"), strict=True):
        assert_logged(logged, losses, stage)
