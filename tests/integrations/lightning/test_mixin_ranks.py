"""PercentileCEMixin on two real ranks: the same numbers on both, and nobody waits for ever."""

from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.helpers.distributions import bound, exact_quantile, worst_rank_error
from tests.helpers.lightning_scenarios import OTHER_SETTINGS, StatisticsLM
from tests.helpers.lit_modules import (
    IGNORED,
    assert_logged,
    loader,
    logged_under,
    make_batches,
    make_trainer,
    numbers,
)
from tests.helpers.summaries import PERCENTILES, expected_log


@pytest.fixture
def ranks(lightning_ranks):
    return lightning_ranks


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


@pytest.mark.parametrize("scenario", ["views_uneven", "views_no_batch"])
def test_a_module_without_the_mixin_logs_views_of_its_own_metric(ranks, scenario):
    runs = list(pooled(ranks, scenario))
    assert len(runs) == 4  # in each its own tokens: what was logged is reset
    for losses, logged in runs:
        assert_logged(logged, losses)
    lowest = min(logged["val_ce_p50"] for _, logged in runs)
    assert [notes[scenario]["score"] for notes in ranks] == pytest.approx([lowest] * 2)


@pytest.mark.parametrize("scenario", ["tensor_parallel", "data_parallel"])
def test_under_model_parallelism_each_token_is_counted_once(ranks, scenario):
    for notes in ranks:
        losses = torch.tensor(notes[scenario]["all"])
        assert notes[scenario]["counts"] == [[len(losses)] * 3]
        assert_logged(notes[scenario]["runs"][0][1], losses, tolerance=1e-5)
    assert_identical(*[notes[scenario]["runs"][0][1] for notes in ranks])
    everywhere = token_counts(ranks, scenario)
    assert (everywhere[0] == len(losses)) == (scenario == "tensor_parallel")


def test_a_given_process_group_wins_over_the_mesh(ranks):
    for notes in ranks:
        losses = torch.tensor(notes["given_group"]["all"])
        assert notes["given_group"]["counts"] == [[2 * len(losses)] * 3]
        assert_logged(notes["given_group"]["runs"][0][1], losses.repeat(2), tolerance=1e-5)


def test_training_under_tensor_parallelism_counts_once_and_copies_know_the_group(ranks):
    for notes in ranks:
        fitted = notes["fit_tensor_parallel"]
        assert len(fitted["runs"]) == len(fitted["epochs"]) == len(fitted["counts"]) == 2
        for (losses, logged), counts in zip(fitted["runs"], fitted["counts"], strict=True):
            assert counts == [len(losses["0"])] * 3
            assert_logged(logged, torch.tensor(losses["0"]))
        for losses, logged in fitted["epochs"]:
            assert_logged(logged, torch.tensor(losses), "train")
        assert fitted["copies"] == [1, 1]


def test_the_mesh_of_one_trainer_does_not_hold_under_the_next(ranks):
    [(losses, logged)] = pooled(ranks, "mesh_then_ddp")
    assert_logged(logged, losses)
    assert [notes["mesh_then_ddp"]["counts"] for notes in ranks] == [[[len(losses)] * 3]] * 2


def test_without_a_batch_on_any_rank_both_log_nan(ranks):
    [(losses, logged)] = pooled(ranks, "no_batch_anywhere")
    assert len(losses) == 0
    assert sorted(logged) == sorted(expected_log(torch.ones(1), "val"))
    assert all(value != value for value in logged.values())


def test_above_the_compression_the_promised_rank_error_holds_over_ranks(ranks):
    [(losses, logged)] = pooled(ranks, "more_than_a_digest")
    assert len(losses) == 15000
    estimates = [logged[f"val_ce_p{p}"] for p in PERCENTILES]
    assert worst_rank_error(losses, estimates, [p / 100 for p in PERCENTILES]) <= bound(len(losses))
    assert logged["val_ce_mean"] == pytest.approx(float(losses.double().mean()), rel=1e-6)


def test_every_statistic_of_every_group_is_of_the_tokens_of_both_ranks(ranks, tmp_path):
    notes = [rank["every_statistic"] for rank in ranks]
    logged = [run["runs"][0][1] for run in notes]
    assert logged[0] == logged[1]
    batches = [
        [
            {key: torch.tensor(part) for key, part in batch.items()}
            for rank in notes
            for batch in rank["batches"][index]
        ]
        for index in range(2)
    ]
    assert [len(each) for each in batches] == [4, 1]  # rank 0 has none of the second dataloader
    trainer, alone = make_trainer(tmp_path), StatisticsLM()
    trainer.validate(alone, [loader(each) for each in batches], verbose=False)
    assert len(notes[0]["documents"]) == 5 * 2 * 3
    for name, counts in notes[0]["documents"].items():
        assert notes[1]["documents"][name] == counts
        statistic, index, group = name.split(" ")
        assert counts == alone.documents[statistic][index][group][:, :-1].flatten().tolist()
    assert sum(notes[0]["documents"]["margin dl0 "]) > 20
    assert logged[0] == pytest.approx(numbers(trainer.callback_metrics), rel=1e-6, nan_ok=True)
    assert {"val_dl0_margin_b_p50", "val_dl1_top5_accuracy_a"} < set(logged[0])


def test_one_gather_and_one_sum_merge_all_statistics_and_groups_of_a_dataloader(ranks):
    for rank in ranks:
        digests, sums = 5 * 2 * 1027 * 2, 2 * 2 * 2
        assert rank["every_statistic"]["sizes"] == [digests + sums] * 2
        assert rank["every_statistic"]["summed"] == [5 * 2 * 128 * 97] * 2


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


def test_our_mean_is_right_where_lightnings_own_is_not(ranks):
    # Every loss is 1 and the ranks have 3 and 2 batches.
    for notes in ranks:
        assert notes["own_mean"]["val_ce_mean"] == notes["own_mean"]["val_ce_p50"] == 1
        assert notes["own_mean"]["val_own_mean"] == pytest.approx(1.25)  # of Lightning 2.6.6


def test_callbacks_that_the_module_configures_behind_the_progress_bar_find_their_monitors(ranks):
    runs = list(pooled(ranks, "configured"))
    assert len(runs) == 2
    for losses, logged in runs:
        assert_logged(logged, losses)
    assert ranks[0]["configured"]["best"] == ranks[1]["configured"]["best"]
    assert sorted(ranks[0]["configured"]["best"]) == ["val_ce_mean", "val_ce_p50"]
    assert all(Path(path).exists() for path in ranks[0]["configured"]["best"].values())


@pytest.mark.parametrize("setting", [*OTHER_SETTINGS, "train_every_n_steps"])
def test_settings_that_differ_over_ranks_raise_on_both_before_anything_is_merged(ranks, setting):
    for rank, notes in enumerate(ranks):
        error = notes[f"other_{setting}"]["error"]
        assert (
            f"configured differently on the ranks, so that their percentiles cannot be merged: rank {rank}"
            in error
        )
        assert f"ranks [{1 - rank}] have others" in error
        assert f"{setting}=" in error


def test_equal_settings_in_other_words_are_equal(ranks):
    [(losses, logged)] = pooled(ranks, "alike")
    assert_logged(logged, losses)


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


@pytest.mark.parametrize("kind", ["mixin", "callback"])
@pytest.mark.parametrize("empty_rank", [0, 1])
def test_a_model_with_buffers_does_not_make_a_rank_without_validation_batches_wait(ranks, kind, empty_rank):
    runs = list(pooled(ranks, f"buffer_{kind}_{empty_rank}"))
    assert len(runs) == 2
    for losses, logged in runs:
        assert_logged(logged, losses)


def test_samples_that_a_sampler_repeats_are_counted_and_named_by_rank_0_once(ranks):
    tokens = [sum(len(losses) for losses in notes["padded"]["runs"][0][0].values()) for notes in ranks]
    assert sum(tokens) > sum(int((b["labels"] != IGNORED).sum()) for b in make_batches(5, seed=50))
    said = [notes.stderr.count("DistributedSampler repeats 1 of 5 samples") for notes in ranks]
    assert said == [1, 0]
    assert all("repeats" not in notes.stderr.split("=== padded")[0] for notes in ranks)


def test_the_ranks_call_nothing_that_is_deprecated(ranks):
    ranks[0]["after_the_errors"], ranks[1]["after_the_errors"]  # all scenarios were run
    for notes in ranks:
        said = [line for line in notes.stderr.splitlines() if "all_gather" in line and "deprecated" in line]
        assert said == []
