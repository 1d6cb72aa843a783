"""What is said of a step whose module is a part of another, and of steps that return nothing sometimes."""

import warnings

import lightning.pytorch as L
import pytest
import torch

from lightning_pce import PercentileCECallback
from tests.helpers.lit_modules import (
    LitLM,
    PlainLM,
    Returning,
    ReturningLosses,
    TinyLM,
    assert_logged,
    fit,
    losses_with_mask,
    make_batches,
    make_loader,
    make_trainer,
    token_losses,
)


class OuterPlain(PlainLM):
    """Scores with a module that has the mixin, and calls that one's update."""

    def __init__(self):
        super().__init__()
        self.inner = LitLM()

    def validation_step(self, batch, batch_idx):
        self.inner.validation_step(batch, batch_idx)

    test_step = validation_step


class OuterMixed(LitLM):
    """Has the mixin itself, and still calls the part's update."""

    def __init__(self):
        super().__init__()
        self.inner = LitLM()

    validation_step = test_step = OuterPlain.validation_step


class OuterTraining(PlainLM):
    """In training_step."""

    def __init__(self):
        super().__init__()
        self.inner = LitLM()

    def training_step(self, batch, batch_idx):
        return self.inner.update_percentile_ce(self.inner(batch), batch["labels"])


@pytest.mark.parametrize(
    ("outer", "how"),
    [
        *((outer, how) for outer in (OuterPlain, OuterMixed) for how in ("fit", "validate", "test")),
        (OuterTraining, "fit"),
    ],
)
def test_a_part_with_the_mixin_is_told_that_the_whole_measures(tmp_path, outer, how):
    loaders = [make_loader(2)] * (2 if how == "fit" else 1)
    with pytest.raises(RuntimeError) as caught:
        getattr(make_trainer(tmp_path), how)(outer(), *loaders)
    said = str(caught.value)
    assert f"LitLM is a part of {outer.__name__}, which is what the Trainer runs" in said
    assert f"call self.update_percentile_ce(...) in the steps of {outer.__name__}" in said
    assert (f"Give PercentileCEMixin to {outer.__name__}" in said) == (outer is not OuterMixed)
    assert "super()" not in said


def test_what_it_says_works(tmp_path):
    class Outer(LitLM):
        def __init__(self):
            super().__init__()
            self.inner = LitLM()

        def validation_step(self, batch, batch_idx):
            self.update_percentile_ce(self.inner(batch), batch["labels"])

    module, batches = Outer(), make_batches(3, seed=2)
    trainer = make_trainer(tmp_path)
    [logged] = trainer.validate(module, make_loader(3, seed=2), verbose=False)
    assert_logged(logged, torch.cat([token_losses(module.inner, batch) for batch in batches]))


def test_a_forgotten_super_is_still_named_as_such(tmp_path):
    class Forgetful(LitLM):
        def on_validation_epoch_start(self):
            pass

    with pytest.raises(RuntimeError, match=r"super\(\)\.on_validation_epoch_start\(\)"):
        fit(tmp_path, Forgetful())


def test_a_module_that_only_lightning_knows_of_is_no_part_of_another(tmp_path):
    """Its own update works outside of a Trainer as before: it is told that it has none."""

    class Alone(TinyLM, L.LightningModule):
        def validation_step(self, batch, batch_idx):
            LitLM().update_percentile_ce(torch.zeros(2, 5, 3), torch.zeros(2, 5, dtype=torch.long))

    module = Alone()
    module.make_layers()
    with pytest.raises(RuntimeError, match="LitLM is not attached to a Trainer"):
        make_trainer(tmp_path).validate(module, make_loader(1), verbose=False)


# ------------------------------------------------------------------------------- some steps return nothing


class SometimesNothing(Returning):
    """Returns nothing from every third step, or from all but these."""

    def __init__(self, from_third):
        super().__init__()
        self.from_third = from_third

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        give = (batch_idx % 3 == 2) == self.from_third
        return None if give else super().validation_step(batch, batch_idx)


def run(tmp_path, module, callback, **arguments):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = fit(tmp_path, module, callback, **arguments)
    return trainer, [str(each.message) for each in caught if "found nothing to measure" in str(each.message)]


@pytest.mark.parametrize("from_third", [True, False])
def test_of_some_steps_without_anything_it_is_said_that_their_tokens_are_missing(tmp_path, from_third):
    module = SometimesNothing(from_third)
    trainer, said = run(tmp_path, module, PercentileCECallback(), val=6, num_sanity_val_steps=0)
    assert len(said) == 1
    assert ("are not in the percentiles" in said[0]) == from_third
    assert ("it logs NaN, unless other steps return something" in said[0]) == (not from_third)
    batches = [b for i, b in enumerate(make_batches(6, seed=2)) if (i % 3 == 2) != from_third]
    assert_logged(trainer.callback_metrics, torch.cat([token_losses(module, batch) for batch in batches]))


def test_an_output_of_several_without_anything_is_said_in_these_words_too(tmp_path):
    module = Returning(lambda logits, batch: [{"logits": logits, "labels": batch["labels"]}, None])
    _, said = run(tmp_path, module, PercentileCECallback())
    assert len(said) == 1
    assert "the tokens of this step and of others like it are not in the percentiles" in said[0]


def test_of_training_steps_it_is_said_by_what_the_window_holds(tmp_path):
    class Training(ReturningLosses):
        def training_step(self, batch, batch_idx):
            given = losses_with_mask(self(batch), batch)
            loss = {"loss": given["losses"].mean()}
            return {**loss, **given} if batch_idx % 2 == 0 else loss

    _, said = run(tmp_path, Training(), PercentileCECallback(train_every_n_steps=4), train=4)
    assert len(said) == 1
    assert "what training_step returned" in said[0]
    assert "are not in the percentiles" in said[0]
