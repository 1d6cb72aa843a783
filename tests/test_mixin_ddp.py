"""PercentileCEMixin on two real ranks: the same numbers on both, and nobody waits for ever."""

import os
from pathlib import Path

import pytest
import torch
from distributions import bound, exact_quantile, worst_rank_error
from lightning_processes import run_ranks
from lit_modules import DEFAULT, LitLM, assert_logged, expected, loader, logged_under, make_trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    base = tmp_path_factory.getbasetemp()
    return run_ranks((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "ranks")


def pooled(ranks, scenario, loader=0):
    """For each validation: the losses of both ranks together, and what was logged on both."""
    everything = [notes[scenario]["runs"] for notes in ranks]
    assert len(everything[0]) == len(everything[1]) > 0
    for runs in zip(*everything, strict=True):
        assert_identical(*[logged for _, logged in runs])
        yield torch.cat([torch.tensor(by.get(str(loader), [])) for by, _ in runs]), runs[0][1]


def assert_identical(one, other):
    assert list(one) == list(other)
    assert torch.equal(
        torch.tensor(list(one.values())).nan_to_num(-1), torch.tensor(list(other.values())).nan_to_num(-1)
    )


def token_counts(ranks, scenario):
    return [len(notes[scenario]["runs"][0][0].get("0", [])) for notes in ranks]


@pytest.mark.parametrize("scenario", ["equal", "uneven", "no_batch", "all_ignored"])
def test_both_ranks_log_the_percentiles_of_all_tokens_of_both(ranks, scenario):
    counts = token_counts(ranks, scenario)
    assert counts[1] > 0
    assert (counts[0] == 0) == (scenario in ("no_batch", "all_ignored"))
    [(losses, logged)] = pooled(ranks, scenario)
    assert len(losses) == sum(counts)
    assert_logged(logged, losses)


def test_batches_that_lightning_distributes_are_measured_as_if_by_one_process(ranks):
    [(losses, logged)] = pooled(ranks, "sampled")
    counts = token_counts(ranks, "sampled")
    assert 0 < counts[0] < sum(counts)
    assert_logged(logged, losses)
    assert_logged(logged, torch.tensor(ranks[0]["sampled"]["all"]))


def test_without_a_batch_on_any_rank_both_log_nan(ranks):
    [(losses, logged)] = pooled(ranks, "no_batch_anywhere")
    assert len(losses) == 0
    assert sorted(logged) == sorted(expected(torch.ones(1)))
    assert all(value != value for value in logged.values())


def test_above_the_compression_the_promised_rank_error_holds_over_ranks(ranks):
    [(losses, logged)] = pooled(ranks, "more_than_a_digest")
    assert len(losses) == 15000
    estimates = [logged[f"val_ce_p{p}"] for p in DEFAULT]
    assert worst_rank_error(losses, estimates, [p / 100 for p in DEFAULT]) <= bound(len(losses))
    assert logged["val_ce_mean"] == pytest.approx(float(losses.double().mean()), rel=1e-6)


def test_every_statistic_is_of_the_tokens_of_both_ranks(ranks, tmp_path):
    [(_, logged)] = pooled(ranks, "every_statistic")
    batches = [
        {"ids": torch.tensor(ids), "labels": torch.tensor(labels)}
        for notes in ranks
        for ids, labels in zip(
            notes["every_statistic"]["ids"], notes["every_statistic"]["labels"], strict=True
        )
    ]
    assert len(batches) == 4
    module = LitLM(statistics=("ce", "entropy", "log_rank"))
    alone = make_trainer(tmp_path).validate(module, loader(batches), verbose=False)[0]
    assert logged == pytest.approx(alone, rel=1e-6)
    assert "val_top5_accuracy" in logged


def test_several_dataloaders_with_different_numbers_of_batches_each_log_their_own(ranks):
    for index in (0, 1):
        [(losses, logged)] = pooled(ranks, "two_loaders", index)
        assert len(logged) == 16
        assert_logged(logged, losses, f"val_dl{index}")
    assert "1" not in ranks[1]["two_loaders"]["runs"][0][0]


@pytest.mark.parametrize("bar", ["tqdm", "rich"])
@pytest.mark.parametrize("validation", ["uneven", "no_batch"])
def test_a_progress_bar_that_computes_other_metrics_first_does_not_make_ranks_wait(ranks, bar, validation):
    scenario = f"bar_{bar}_{validation}"
    runs = list(pooled(ranks, scenario))
    assert len(runs) == 2
    for losses, logged in runs:
        assert_logged(logged, losses)
    epochs = [notes[scenario]["epochs"] for notes in ranks]
    assert len(epochs[0]) == len(epochs[1]) == 2
    for both in zip(*epochs, strict=True):
        assert_identical(*[logged_under(logged, "train") for _, logged in both])
        losses = torch.cat([torch.tensor(losses) for losses, _ in both])
        assert_logged(both[0][1], losses, "train")
        if validation == "uneven":
            assert "train_loss_epoch" in both[0][1]
            assert "val_other" in both[0][1]


def test_validations_inside_an_epoch_and_training_keep_their_tokens_apart(ranks):
    runs = list(pooled(ranks, "inside_an_epoch"))
    assert len(runs) == 2
    for losses, logged in runs:
        assert_logged(logged, losses)
    epochs = [notes["inside_an_epoch"]["epochs"][0] for notes in ranks]
    losses = torch.cat([torch.tensor(losses) for losses, _ in epochs])
    for _, logged in epochs:
        assert_logged(logged, losses, "train")


def test_model_checkpoint_and_early_stopping_decide_alike_on_both_ranks(ranks):
    notes = [rank["callbacks"] for rank in ranks]
    levels = [(3.0, 1.0, 2.0), (3.0, 2.0, 3.0)]  # rank 0 and 1, as in lightning_processes.py
    epochs = [
        torch.cat(
            [torch.tensor(n["scripted"]) * level[epoch] for n, level in zip(notes, levels, strict=True)]
        )
        for epoch in range(3)
    ]
    runs = list(pooled(ranks, "callbacks"))
    assert len(runs) == 3  # p95 rose in the third and patience is 1: the fourth never came
    for losses, (_, logged) in zip(epochs, runs, strict=True):
        assert_logged(logged, losses)
    median = float(epochs[1].double().quantile(0.5))
    for note in notes:
        assert note["stopped_after"] == 3
        assert note["score"] == pytest.approx(median)
        assert Path(note["path"]).name == f"epoch=1-val_ce_p50={median:.4f}.ckpt"
        assert Path(note["path"]).exists()


def test_figures_are_of_the_tokens_of_both_ranks_from_rank_0_alone_without_another_collective(ranks):
    notes = [rank["figures"] for rank in ranks]
    for without, with_figures in (note["calls"] for note in notes):
        assert "all_gather" in without
        assert without == with_figures
    for index in (0, 1):
        kept = notes[0]["history"][f"val_dl{index}"]
        assert list(kept) == ["2", "4", "6"]
        for (losses, logged), (mean, values) in zip(
            pooled(ranks, "figures", index), kept.values(), strict=True
        ):
            assert mean == pytest.approx(float(losses.double().mean()))
            assert mean == pytest.approx(logged[f"val_dl{index}_ce_mean"], rel=1e-6)
            exact = [float(exact_quantile(losses, float(p) / 100)) for p in values]
            assert list(values.values()) == pytest.approx(exact)
    assert notes[1]["history"] == {}
    names = [f"val_dl{index}_ce_{kind}" for index in (0, 1) for kind in ("fan", "quantiles")]
    drawn = EventAccumulator(notes[0]["log_dir"]).Reload()
    assert sorted(drawn.Tags()["images"]) == names
    assert [len(drawn.Images(name)) for name in names] == [2, 3, 2, 3]
    assert len(list(Path(notes[0]["log_dir"]).glob("events*"))) == 1


@pytest.mark.parametrize("how", ["validate", "fit", "test"])
@pytest.mark.parametrize("empty_rank", [0, 1])
@pytest.mark.parametrize("allowed", [False, True])
def test_a_sized_dataloader_empty_on_one_rank_raises_the_same_clear_error_on_both(
    ranks, how, empty_rank, allowed
):
    errors = [notes[f"empty_{how}_{empty_rank}_{allowed}"]["error"] for notes in ranks]
    assert errors[0] == errors[1]
    assert "empty dataloader" in errors[0]
    assert ("[[0], [2]]", "[[2], [0]]")[empty_rank] in errors[0]


def test_one_of_several_dataloaders_empty_on_one_rank_raises_on_both_unless_allowed(ranks):
    errors = [notes["empty_first_of_two"]["error"] for notes in ranks]
    assert errors[0] == errors[1]
    assert "empty dataloader" in errors[0]


def test_the_second_module_of_a_trainer_is_checked_as_the_first(ranks):
    errors = [notes["second_module"]["error"] for notes in ranks]
    assert errors[0] == errors[1]
    assert "[[0], [2]]" in errors[0]


def test_a_loader_that_cannot_be_set_up_on_one_rank_stops_both(ranks):
    errors = [notes["fraction"]["error"] for notes in ranks]
    assert "rank 1 could not be set up" in errors[0]
    assert "MisconfigurationException" in errors[1]


def test_a_setup_without_super_is_named_before_ranks_can_wait_for_each_other(ranks):
    errors = [notes["own_setup"]["error"] for notes in ranks]
    assert errors[0] == errors[1]
    assert "super().setup(stage)" in errors[0]


@pytest.mark.parametrize("allowed_by", ["module", "datamodule"])
def test_one_of_several_dataloaders_empty_on_one_rank_is_measured_if_allowed(ranks, allowed_by):
    scenario = f"beside_{allowed_by}"
    assert [notes[scenario]["error"] for notes in ranks] == [None, None]
    for index in (0, 1):
        [(losses, logged)] = pooled(ranks, scenario, index)
        assert_logged(logged, losses, f"val_dl{index}")
    assert "1" not in ranks[1][scenario]["runs"][0][0]


def test_after_these_errors_the_same_processes_go_on(ranks):
    [(losses, logged)] = pooled(ranks, "after_the_errors")
    assert_logged(logged, losses)


def test_the_ranks_call_nothing_that_is_deprecated(ranks):
    ranks[0]["after_the_errors"], ranks[1]["after_the_errors"]  # all scenarios were run
    for notes in ranks:
        said = [line for line in notes.stderr.splitlines() if "all_gather" in line and "deprecated" in line]
        assert said == []
