"""What PercentileCECallback reads from the outputs of a step, and what it says of others."""

import warnings
from collections import namedtuple

import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader
from transformers.modeling_outputs import CausalLMOutput

from lightning_pce import PercentileCECallback
from tests.helpers.lit_modules import (
    LitLM,
    Oracle,
    PlainLM,
    Returning,
    assert_logged,
    fit,
    loader,
    losses_and_mask,
    losses_with_mask,
    make_batches,
    make_loader,
    make_trainer,
    numbers,
)

Scored = namedtuple("Scored", ["logits", "labels"])
FORMS = {
    "dict": lambda logits, batch: {"logits": logits, "labels": batch["labels"]},
    "namedtuple": lambda logits, batch: Scored(logits, batch["labels"]),
    "labels in the batch": lambda logits, batch: CausalLMOutput(loss=logits.mean(), logits=logits),
    "losses": losses_with_mask,
    "losses beside labels in the batch": lambda logits, batch: {
        "losses": losses_with_mask(logits, batch)["losses"]
    },
    "flat losses": lambda logits, batch: {"losses": losses_with_mask(logits, batch)["losses"].flatten()},
    "losses that all count": lambda logits, batch: {
        "losses": losses_with_mask(logits, batch)["losses"][batch["labels"] >= 0]
    },
    "losses beside logits that a kernel overwrote": lambda logits, batch: {
        **losses_with_mask(logits, batch),
        "logits": torch.zeros_like(logits),
    },
    "a list": lambda logits, batch: [
        {"logits": each, "labels": of} for each, of in zip(logits, batch["labels"], strict=True)
    ],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("how", ["fit", "validate", "test"])
def test_the_outputs_of_the_step_are_read_and_logged_under_the_names_of_the_mixin(tmp_path, form, how):
    oracle, module = Oracle(), Returning(FORMS[form])
    callback = PercentileCECallback()
    if how == "fit":
        fit(tmp_path, module, callback, oracle, max_epochs=2)
    else:
        getattr(make_trainer(tmp_path, callback, oracle), how)(module, make_loader(3), verbose=False)
    assert len(oracle.single) == (2 if how == "fit" else 1)
    for losses, logged in oracle.single:
        assert_logged(logged, losses, "test" if how == "test" else "val")


def test_a_module_measured_by_callback_or_by_mixin_logs_the_same_numbers(tmp_path):
    results = []
    for module, callbacks in (
        (LitLM(percentiles=(5, 50)), []),
        (Returning(), [PercentileCECallback((5, 50))]),
    ):
        results.append(numbers(fit(tmp_path, module, *callbacks, max_epochs=2).callback_metrics))
    assert results[0] == results[1]


@pytest.mark.parametrize(
    "read",
    [
        {"logits": "scores", "labels": "targets"},
        lambda outputs, batch: {"logits": outputs["scores"], "labels": batch["labels"]},
        lambda outputs, batch: losses_with_mask(outputs["scores"], batch),
        lambda outputs, batch: [losses_with_mask(outputs["scores"], batch)],
    ],
)
def test_names_or_a_function_say_where_the_arguments_are(tmp_path, read):
    oracle = Oracle()
    module = Returning(lambda logits, batch: {"scores": logits, "targets": batch["labels"]})
    make_trainer(tmp_path, PercentileCECallback(read=read), oracle).validate(
        module, make_loader(3), verbose=False
    )
    assert_logged(oracle.single[0][1], oracle.single[0][0])


def test_a_function_reads_a_tuple_as_it_is(tmp_path):
    oracle = Oracle()
    module = Returning(lambda logits, batch: (logits.mean(), logits))
    callback = PercentileCECallback(read=lambda outs, batch: {"logits": outs[1], "labels": batch["labels"]})
    make_trainer(tmp_path, callback, oracle).validate(module, make_loader(3), verbose=False)
    assert_logged(oracle.single[0][1], oracle.single[0][0])


def test_a_named_mask_may_stand_in_the_batch_and_must_stand_somewhere(tmp_path):
    batches = [{**batch, "counts": batch["labels"] > 3} for batch in make_batches(3)]
    module = Returning(lambda logits, batch: {"losses": losses_with_mask(logits, batch)["losses"]})
    trainer = make_trainer(tmp_path, PercentileCECallback((50,), read={"mask": "counts"}))
    result = trainer.validate(module, loader(batches), verbose=False)[0]
    losses = [losses_and_mask(module(batch), batch)[0][batch["counts"]] for batch in batches]
    assert_logged(result, torch.cat(losses).detach(), percentiles=(50,))
    trainer = make_trainer(tmp_path, PercentileCECallback(read={"mask": "count"}))
    with pytest.raises(ValueError, match=r"`mask` under 'count'.*neither the output, a dict with 'losses'"):
        trainer.validate(module, loader(batches), verbose=False)


def test_a_mask_beside_logits_and_labels_is_refused(tmp_path):
    module = Returning(lambda logits, batch: {"logits": logits, "mask": batch["labels"] > 3})
    with pytest.raises(ValueError, match="no argument `mask`"):
        fit(tmp_path, module, PercentileCECallback())


@pytest.mark.parametrize("given", [("logits", "labels"), {"label": 1}, 3])
def test_a_function_that_returns_something_else_is_told_what_it_may(tmp_path, given):
    callback = PercentileCECallback(read=lambda outputs, batch: given)
    with pytest.raises(ValueError, match="Expected the function `read` to return a dict with some of logits"):
        fit(tmp_path, Returning(), callback)


def test_statistics_need_the_logits_even_beside_losses(tmp_path):
    module = Returning(lambda logits, batch: {"logits": logits, **losses_with_mask(logits, batch)})
    trainer = make_trainer(tmp_path, PercentileCECallback((50,), statistics=("ce", "entropy")))
    assert "val_entropy_p50" in trainer.validate(module, make_loader(2), verbose=False)[0]


def test_outputs_of_several_dataloaders_take_the_labels_of_their_own_batches(tmp_path):
    class AtOnce(PlainLM):
        def validation_step(self, batch, batch_idx):
            return [{"logits": self(each)} for each in batch]

    module, oracle = AtOnce(), [make_batches(2, seed=3), make_batches(2, seed=4)]
    together = CombinedLoader([loader(each) for each in oracle], "min_size")
    trainer = make_trainer(tmp_path, PercentileCECallback((50,)))
    result = trainer.validate(module, together, verbose=False)[0]
    parts = [losses_and_mask(module(batch), batch) for batches in oracle for batch in batches]
    losses = torch.cat([losses[mask] for losses, mask in parts])
    assert_logged(result, losses.detach(), percentiles=(50,))


@pytest.mark.parametrize(
    ("give", "described"),
    [
        (lambda logits, batch: None, "None"),
        (lambda logits, batch: logits.mean(), "a tensor of shape ()"),
        (lambda logits, batch: {"loss": logits.mean(), "acc": 1.0}, "a dict with 'loss', 'acc'"),
        (lambda logits, batch: {}, "a dict with nothing"),
        (lambda logits, batch: (logits, batch["labels"]), "a tuple"),
    ],
)
def test_a_step_that_returns_nothing_readable_is_named_once_and_logs_nan(tmp_path, give, described):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = fit(tmp_path, Returning(give), PercentileCECallback((50,)), max_epochs=2)
    said = [str(each.message) for each in caught if "PercentileCECallback" in str(each.message)]
    assert len(said) == 1
    assert f"what validation_step returned, {described}: it logs NaN" in said[0]
    assert '{"logits": ..., "labels": ...}' in said[0]
    assert {name for name, value in numbers(trainer.callback_metrics).items() if value != value} == {
        "val_ce_mean",
        "val_ce_p50",
        "val_ce_trimmed_mean",
    }


def test_outputs_that_do_not_fit_raise_and_name_the_step(tmp_path):
    module = Returning(lambda logits, batch: {"logits": logits, "labels": batch["labels"][:, :-1]})
    with pytest.raises(ValueError, match=r"what validation_step returned. Expected .*labels"):
        fit(tmp_path, module, PercentileCECallback())
