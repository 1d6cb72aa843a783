"""Error bars by document from the mixin and the callback."""

import warnings

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_pce import PercentileCECallback, PercentileCrossEntropy, intervals
from tests.helpers.lit_modules import (
    LitLM,
    Returning,
    fit,
    loader,
    losses_and_mask,
    make_batches,
    make_trainer,
    numbers,
)


def batches_with_documents(count=40, seed=2):
    return [
        {**batch, "document": torch.tensor([2 * number, 2 * number + 1]) * 5 - 7}
        for number, batch in enumerate(make_batches(count, seed))
    ]


class CountingLM(LitLM):
    """Counts the tokens of each validation by itself, too."""

    def __init__(self, by_document=True, **settings):
        super().__init__(error_bars=True, percentiles=(50, 95), **settings)
        self.by_document, self.results = by_document, []

    def validation_step(self, batch, batch_idx):
        document = {"document": batch["document"]} if self.by_document else {}
        self.update_percentile_ce(self(batch), batch["labels"], **document)

    def on_validation_end(self):
        super().on_validation_end()
        metric = self.percentile_ce.metric("val")
        self.results.append((metric.digest, metric.documents))


def wanted(model, batches):
    """The metric that has seen what a validation sees."""
    metric = PercentileCrossEntropy((50, 95), error_bars=True)
    with torch.no_grad():
        for batch in batches:
            losses, mask = losses_and_mask(model(batch), batch)
            metric.update(losses=losses, mask=mask, document=batch["document"])
    return metric


def ends_in(logged):
    return {name: value for name, value in logged.items() if name.endswith(("_low", "_high"))}


def test_the_mixin_counts_by_document_and_logs_intervals_where_asked_for(tmp_path):
    batches = batches_with_documents()
    for asked in (False, True):
        module, trainer = CountingLM(log_intervals=asked), make_trainer(tmp_path)
        [logged] = trainer.validate(module, loader(batches), verbose=False)
        metric = wanted(module, batches)
        assert torch.equal(module.results[0][1][:, :-1], metric.documents[:, :-1])
        result = metric.compute()
        keys = [f"{name}_{end}" for name in ("mean", "p50", "p95") for end in ("low", "high")]
        promised = {f"val_ce_{key}": float(result[key]) for key in keys} if asked else {}
        assert ends_in(logged) == pytest.approx(promised, rel=1e-6)


def test_an_end_of_an_interval_can_be_monitored(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, monitor="val_ce_p50_high", mode="min")
    module, train = CountingLM(log_intervals=True), loader(batches_with_documents(2))
    fit(tmp_path, module, checkpoint, train=train, val=loader(batches_with_documents()))
    digest, documents = module.results[-1]
    high = intervals.interval(digest, documents, "p50").high
    assert float(checkpoint.best_model_score) == pytest.approx(high, rel=1e-6)


def test_a_sanity_check_of_few_documents_gives_no_word_and_a_validation_does(tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*error bars.*")
        fit(
            tmp_path,
            CountingLM(),
            train=loader(batches_with_documents(2)),
            val=loader(batches_with_documents()),
        )
    few = loader(batches_with_documents(3))
    with pytest.warns(UserWarning, match="error bars: only 6 of 128 slots"):
        make_trainer(tmp_path).validate(CountingLM(), few, verbose=False)


def test_without_ids_each_row_is_a_document_which_is_said(tmp_path):
    batches, module = batches_with_documents(), CountingLM(by_document=False)
    with pytest.warns(UserWarning, match="each row of the labels is one"):
        make_trainer(tmp_path).validate(module, loader(batches), verbose=False)
    [(digest, documents)] = module.results
    assert documents[:, :-1].sum() == sum((batch["labels"] >= 0).sum() for batch in batches)
    assert (documents[:, :-1].sum(-1) > 0).sum() > 50
    assert intervals.interval(digest, documents, "p50").reason is None


def _losses(logits, batch):
    losses, mask = losses_and_mask(logits, batch)
    return {"losses": losses, "mask": mask}


FORMS = {
    "in the batch": (lambda logits, batch: {"logits": logits, "labels": batch["labels"]}, None),
    "in the output": (
        lambda logits, batch: {"logits": logits, "labels": batch["labels"], "document": batch["document"]},
        None,
    ),
    "beside losses": (_losses, None),
    "under another name": (
        lambda logits, batch: {"logits": logits, "labels": batch["labels"], "id": batch["document"]},
        {"document": "id"},
    ),
    "by a function": (
        _losses,
        lambda outputs, batch: {**outputs, "document": batch["document"]},
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_callback_reads_documents(tmp_path, form):
    give, read = FORMS[form]
    batches, module = batches_with_documents(), Returning(give)
    callback = PercentileCECallback((50, 95), read=read, error_bars=True, log_intervals=True)
    trainer = make_trainer(tmp_path, callback)
    trainer.validate(module, loader(batches), verbose=False)
    result = wanted(module, batches).compute()
    ends = ends_in(numbers(trainer.callback_metrics))
    assert ends == pytest.approx(
        {name: float(result[name.removeprefix("val_ce_")]) for name in ends}, rel=1e-6
    )
    assert len(ends) == 6


def test_without_error_bars_the_callback_leaves_documents_alone(tmp_path):
    trainer = make_trainer(tmp_path, PercentileCECallback((50,)))
    [logged] = trainer.validate(Returning(), loader(batches_with_documents(2)), verbose=False)
    assert not ends_in(logged)


def test_a_window_of_training_needs_no_documents(tmp_path):
    class Module(Returning):
        def training_step(self, batch, batch_idx):
            losses, mask = losses_and_mask(self(batch), batch)
            return {"loss": losses[mask].mean(), "losses": losses, "mask": mask}

    callback = PercentileCECallback((50,), error_bars=True, log_intervals=True, train_every_n_steps=1)
    batches = batches_with_documents()
    trainer = fit(tmp_path, Module(), callback, train=loader(batches[:2]), val=loader(batches))
    names = {name for name in trainer.callback_metrics if name.startswith("train_ce_")}
    assert names == {"train_ce_mean", "train_ce_p50", "train_ce_trimmed_mean"}
    assert "val_ce_p50_low" in trainer.callback_metrics


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"log_intervals": True}, "error_bars=True"),
        ({"error_bars": True, "statistics": ("ce", "rank")}, '"log_rank" instead of "rank"'),
        ({"error_bars": True, "level": 95}, "`level`"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    for make in (LitLM, PercentileCECallback):
        with pytest.raises(ValueError, match=message):
            make(**settings)
