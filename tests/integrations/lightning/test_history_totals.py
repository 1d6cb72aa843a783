"""What a history keeps beside digests: label totals, and one word when mean and bulk part."""

import warnings

import pytest
import torch

from lightning_pce import History, LabelTotals, PercentileHistory
from tests.helpers.checkpoint_runs import losses_of, split
from tests.helpers.lit_modules import IGNORED, VOCABULARY, LitLM, fit, make_batches


class TotalsLM(LitLM):
    """Computes totals in every second epoch only, and forgets them."""

    def __init__(self):
        super().__init__()
        self.totals = LabelTotals(VOCABULARY)

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self.totals.update(self(batch), batch["labels"])

    def on_validation_epoch_end(self):
        super().on_validation_epoch_end()
        if self.current_epoch % 2 == 0:
            self.totals.compute()
        self.totals.reset()


def test_label_totals_that_were_computed_in_a_validation_are_in_its_record(tmp_path):
    path = tmp_path / "history.jsonl"
    fit(tmp_path, TotalsLM(), PercentileHistory(path), max_epochs=3)
    records = History.load(path)
    assert [list(record.label_totals) for record in records] == [["totals"], [], ["totals"]]
    labels = torch.cat([batch["labels"].flatten() for batch in make_batches(3, seed=2)])
    counted = torch.bincount(labels[labels != IGNORED], minlength=VOCABULARY)
    for record in (records[0], records[2]):
        totals = record.label_totals["totals"]
        assert totals[:, 0].tolist() == counted.tolist()
        assert float(totals[:, 1].sum() / totals[:, 0].sum()) == pytest.approx(
            record.values["ce_mean"], rel=1e-6
        )
        assert record.statistics == ("ce",)
    assert not torch.equal(records[0].label_totals["totals"], records[2].label_totals["totals"])


class SplitLM(LitLM):
    """Its losses are those of a run in which mean and bulk part ways."""

    def __init__(self, error_bars):
        super().__init__(error_bars=error_bars)
        self.document, self.losses = losses_of(split, epochs=6, documents=1600)

    def validation_step(self, batch, batch_idx):
        if batch_idx == 0:
            document = {"document": self.document} if self.percentile_ce.settings.error_bars else {}
            self.update_percentile_ce(losses=self.losses[self.current_epoch], **document)


@pytest.mark.parametrize("error_bars", [True, False])
def test_the_writer_says_once_that_mean_and_bulk_part(tmp_path, error_bars):
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        fit(tmp_path, SplitLM(error_bars), PercentileHistory(tmp_path / "history.jsonl"), max_epochs=6)
    said = [str(each.message) for each in record if "sees mean and bulk part" in str(each.message)]
    assert len(said) == error_bars
