"""Two real ranks whose dataloaders do not fit together: the same clear error on both, and nobody waits."""

import math

import pytest
import torch

from tests.helpers.lit_modules import assert_logged, logged_under


@pytest.fixture
def ranks(lightning_ranks):
    return lightning_ranks


def errors(ranks, scenario):
    return [notes[scenario]["error"] for notes in ranks]


@pytest.mark.parametrize(
    ("scenario", "stage", "numbers"),
    [
        ("two_and_one", "val", "2, 1"),
        ("one_and_three", "val", "1, 3"),
        ("test_two_and_one", "test", "2, 1"),
        ("callback_two_and_one", "val", "2, 1"),
        ("fit_two_and_one", "val", "2, 1"),
        ("after_a_reload", "val", "1, 2"),
        ("combined", "val", "2, 2 combined"),
    ],
)
def test_other_numbers_of_dataloaders_raise_the_same_error_on_both_ranks(ranks, scenario, stage, numbers):
    first, second = errors(ranks, scenario)
    assert first == second
    assert f"RuntimeError: Ranks have different numbers of {stage} dataloaders" in first
    assert f"Rank by rank: {numbers}. Give every rank" in first


def test_no_dataloader_beside_one_is_an_empty_one(ranks):
    first, second = errors(ranks, "none_and_one")
    assert first == second
    assert "Some ranks have an empty dataloader" in first
    assert "[[0], [2]]" in first


def test_dataloaders_that_are_loaded_again_are_compared_again(ranks):
    assert [notes["after_a_reload"]["epoch"] for notes in ranks] == [1, 1]


@pytest.mark.parametrize("broken", [0, 1])
def test_a_val_dataloader_that_raises_on_one_rank_stops_both(ranks, broken):
    said = errors(ranks, f"broken_on_{broken}")
    assert said[broken] == "FileNotFoundError: no shard here"
    assert f"RuntimeError: The dataloaders of rank {broken} could not be set up" in said[1 - broken]


def test_a_val_dataloader_that_raises_on_both_ranks_raises_its_own_error(ranks):
    assert errors(ranks, "broken_on_both") == ["FileNotFoundError: no shard here"] * 2


def test_the_first_of_two_dataloaders_that_one_rank_refuses_stops_both(ranks):
    first, second = errors(ranks, "fraction_of_two")
    assert "dataloaders of rank 1 could not be set up" in first
    assert "MisconfigurationException" in second


def test_a_dataloader_with_a_length_on_one_rank_only_is_measured(ranks):
    runs = [notes["without_a_length"]["runs"][0] for notes in ranks]
    assert runs[0][1] == runs[1][1]
    for index in ("0", "1"):
        losses = torch.cat([torch.tensor(by[index]) for by, _ in runs])
        assert_logged(runs[0][1], losses, f"val_dl{index}")


def test_numbers_that_change_on_both_ranks_alike_are_measured_and_leave_nan(ranks):
    runs = [notes["other_numbers_on_both"]["runs"] for notes in ranks]
    for (first, logged), (second, also_logged), prefixes in zip(
        *runs, [["val"], ["val_dl0", "val_dl1"], ["val"]], strict=True
    ):
        assert repr(logged) == repr(also_logged)  # NaN too
        for index, prefix in enumerate(prefixes):
            losses = torch.tensor(first[str(index)] + second[str(index)])
            assert_logged(logged, losses, prefix)
        gone = {"val", "val_dl0", "val_dl1"} - set(prefixes)
        values = [value for prefix in gone for value in logged_under(logged, prefix).values()]
        assert all(math.isnan(value) for value in values)
    assert len(values) == 16


def test_no_dataloader_on_any_rank_is_no_error(ranks):
    assert errors(ranks, "no_loader_anywhere") == [None, None]


def test_after_these_errors_the_same_processes_go_on(ranks):
    runs = [notes["after_errors_of_loaders"]["runs"][0] for notes in ranks]
    assert runs[0][1] == runs[1][1]
    assert_logged(runs[0][1], torch.cat([torch.tensor(by["0"]) for by, _ in runs]))
