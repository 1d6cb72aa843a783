"""A series out of a history: which numbers of which records it holds, and what is refused."""

import math

import numpy as np
import pytest

from lightning_pce._errors import UserError
from lightning_pce.runs import forecast
from lightning_pce.runs._known_statistics import known_by_name, known_of_tokens
from lightning_pce.runs._trainings import trainings_of
from lightning_pce.runs.history import History, Record, write_start
from lightning_pce.runs.series import series
from tests.helpers.series_runs import STEPS, checkpoints, numbers, rising, training

VALUES = numbers()


def records(values=VALUES, **more):
    settings = {"run": "a", "function": "fit", "name": "val", "batch": None, **more}
    return [Record(step=step, values={"ce_p50": value}, **settings) for step, value in values.items()]


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    path = tmp_path_factory.mktemp("series") / "history.jsonl"
    return training(
        path, scalars={"val_accuracy": numbers(rising), "val_accuracy_se": dict.fromkeys(STEPS, 0.01)}
    )


@pytest.mark.parametrize("name", ["ce_p50", "val_ce_p50"])
def test_a_statistic_has_the_values_and_errors_of_its_records(history, name):
    found = series(history, name)
    assert found.steps.tolist() == list(STEPS)
    assert found.values.tolist() == list(VALUES.values())
    assert found.errors == pytest.approx(np.full(len(STEPS), 0.005))
    assert (found.bounds, found.rising, found.notes) == ((0, None), False, ())


def test_a_task_metric_has_the_standard_errors_that_were_logged_beside_it(history):
    found = series(history, "val_accuracy")
    assert found.values.tolist() == list(numbers(rising).values())
    assert found.errors.tolist() == [0.01] * len(STEPS)
    assert (found.bounds, found.rising) == ((0, 1), True)
    assert "between 0 and 1" in found.notes[0]
    other = series(history, "val_accuracy", bounds=(0, 0.7))
    assert (other.bounds, other.rising, other.notes) == ((0, 0.7), True, ())
    assert series(history, "val_accuracy", bounds=None).bounds is None


def test_the_forecast_is_that_of_the_series(history):
    found = forecast(history, "val_ce_p50", level=0.8, seed=3)
    assert found.refused is None
    assert (found.level, found.bounds, found.rising) == (0.8, (0, None), False)
    assert found.predict(40_000).low < 2.15 < found.predict(40_000).high
    assert forecast(history, "val_ce_p50", errors=False).errors is None
    free = forecast(history, "val_ce_p50", bounds=(1.9995, None))
    assert free.asymptote.low >= 1.9995 > found.asymptote.low


def test_scored_checkpoints_are_one_series(tmp_path):
    path = tmp_path / "records.jsonl"
    reverse = dict(sorted(VALUES.items(), reverse=True))
    found = series(checkpoints(path, reverse, key="proxy_top1_uniform"), "proxy_top1_uniform")
    assert found.steps.tolist() == list(STEPS)
    assert found.errors is None
    assert found.bounds == (0, 1)
    both = checkpoints(path, VALUES, folder="other", key="proxy_top1_uniform")
    with pytest.raises(UserError, match="'out/checkpoint-#' and 'other/checkpoint-#': choose one by its run"):
        series(both, "proxy_top1_uniform")
    assert len(series(both, "proxy_top1_uniform", run="other/checkpoint-#").steps) == len(STEPS)
    with pytest.raises(UserError, match="No record of the run 'third': there is 'out/checkpoint-#'"):
        series(both, "proxy_top1_uniform", run="third")


@pytest.mark.parametrize(
    ("paths", "same"),
    [
        ({100: "out/epoch=1-step=100.ckpt", 200: "out/epoch=2-step=200-v1.ckpt"}, True),
        (
            {100: "out/epoch=1-step=100-val_loss=2.3e-1.ckpt", 200: "out/epoch=2-step=200-val_loss=9.ckpt"},
            True,
        ),
        ({100: "out/epoch=1-step=100.ckpt", 300: "out/last.ckpt", 200: "out/epoch=2-step=200.ckpt"}, True),
        ({1: "owner/pythia-70m@step1", 143000: "owner/pythia-70m@step143000"}, True),
        ({1: "owner/pythia-70m@step1", 143000: "owner/pythia-160m@step143000"}, False),
        ({100: "runs/100/model", 200: "runs/200/model"}, True),
        ({1: "seed1/checkpoint-1", 2: "seed2/checkpoint-2"}, False),
        ({100: "lr1/checkpoint-100", 1: "lr1/checkpoint-1", 11: "lr11/checkpoint-11"}, False),
        ({100: "out\\checkpoint-100\\", 200: "out\\checkpoint-200"}, True),
        ({100: "out/small-step100", 200: "out/large-step200"}, False),
    ],
)
def test_checkpoints_of_one_training_have_names_that_differ_by_the_step(tmp_path, paths, same):
    found = checkpoints(tmp_path / "r.jsonl", dict.fromkeys(paths, 2.0), model=paths.get)
    assert (len(set(trainings_of(found))) == 1) == same


def test_the_same_weights_twice_are_one_value_and_others_of_that_step_are_refused(tmp_path):
    path = tmp_path / "r.jsonl"
    checkpoints(path)
    last = STEPS[-1]
    found = series(checkpoints(path, {last: VALUES[last]}, model=lambda _: "out/last"), "ce_p50")
    assert len(found.steps) == len(STEPS)
    assert found.notes == ("1 record left out: a later one is of the same step.",)
    again = checkpoints(path, {last: VALUES[last] + 0.01}, model=lambda _: "out/averaged")
    with pytest.raises(
        UserError, match=f"are both of step {last} but measure 2.299 and 2.309: leave out one"
    ):
        series(again, "ce_p50")


def test_of_a_fit_the_last_record_of_a_step_counts():
    """Gradients are accumulated: several validations share a step."""
    more = [Record("a", "fit", "val", STEPS[-1], batch=7, values={"ce_p50": 1.5})]
    found = series(records() + more, "ce_p50")
    assert found.values[-1] == 1.5
    assert found.notes == ("1 record left out: a later one is of the same step.",)


def test_what_is_stale_or_has_no_step_is_left_out_and_counted():
    more = [
        Record("a", "fit", "val", 99, stale={"val_task": 3.0}),
        Record("a", "fit", "val", 98),
        Record("b", "fit", "val", 97),
        Record("a", "fit", "val", None, scalars={"val_task": 3.0}),
    ]
    logged = [Record("a", "fit", "val", step, scalars={"val_task": 1.0}) for step in STEPS]
    found = series(logged + more, "val_task")
    assert found.steps.tolist() == list(STEPS)
    assert found.notes == (
        "1 record left out: val_task was logged earlier and not again.",
        "1 record left out: there is no val_task.",
        "1 record left out: the step is not known.",
    )


def test_a_fit_is_taken_and_not_the_validations_that_repeat_it():
    found = series(records() + records({99: 9.0}, function="validate"), "ce_p50")
    assert found.steps.tolist() == list(STEPS)
    assert found.notes == ("1 record left out: they are of validate and not of fit.",)
    assert len(series(records(function="validate"), "ce_p50").steps) == len(STEPS)


def test_a_name_chooses_its_dataloader_and_what_all_have_is_one_series():
    task = {"scalars": {"task": 0.5}}
    both = [*records(name="val_web", **task), *records(dict.fromkeys(STEPS, 1.0), name="val_code", **task)]
    assert set(series(both, "val_code_ce_p50").values) == {1.0}
    assert len(series(both, "task").values) == len(STEPS)
    with pytest.raises(UserError, match="There is this of several data, 'val_web' and 'val_code'"):
        series(both, "ce_p50")


REFUSED = {
    "nothing": ([], "Expected records but got none."),
    "no such name": (records(), "No record has 'ce_p51'. Did you mean 'ce_p50'? There is ce_p50."),
    "two runs": (
        records() + records(run="b"),
        "of one training, but these are of 'a' and 'b': choose one by",
    ),
    "two functions": (records() + records(function="score"), "made by fit and score: take those of one"),
    "no step": ([Record("a", "fit", "val", values={"ce_p51": 1.0})], "None of 1 records with ce_p51 knows"),
    "other data": (records(fingerprint="x") + records({9: 1.0}, fingerprint="y"), "compare validations of"),
    "only stale": (
        [Record("a", "fit", "val", 1, stale={"ce_p51": 1.0})],
        "was logged before the validations",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_series_is_refused_in_one_line(case):
    history, words = REFUSED[case]
    name = "ce_p51" if case in ("no such name", "no step", "only stale", "nothing") else "ce_p50"
    with pytest.raises(UserError) as error:
        series(history, name)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_other_tokenizers_are_a_series_of_bits_per_byte_alone():
    def scored(step, tokenizer):
        how = {"data": "d", "tokenizer": tokenizer, "token_ids": tokenizer}
        return Record("a", "score", "web", step, values={"ce_p50": 1.0, "bits_per_byte": 1.0}, how=how)

    both = [scored(1, "t"), scored(2, "u")]
    with pytest.raises(UserError, match="other tokenizers"):
        series(both, "ce_p50")
    assert series(both, "bits_per_byte").bounds == (0, None)


def test_values_that_are_not_finite_stay_for_the_forecast_to_count(tmp_path):
    path = tmp_path / "history.jsonl"
    values = VALUES | {STEPS[2]: math.inf, STEPS[3]: math.nan}
    found = series(training(path, values), "ce_p50")
    assert found.values[2:4].tolist() == pytest.approx([math.inf, math.nan], nan_ok=True)
    assert np.isnan(found.errors).tolist() == [step in STEPS[2:4] for step in STEPS]
    assert forecast(History.load(path), "ce_p50").dropped == 2
    nothing = forecast(training(tmp_path / "nan.jsonl", dict.fromkeys(STEPS, math.nan)), "ce_p50")
    assert (nothing.dropped, len(nothing.steps)) == (len(STEPS), 0)
    assert nothing.refused is not None


def test_errors_are_of_all_values_or_of_none(tmp_path):
    path = tmp_path / "history.jsonl"
    training(path, dict(list(VALUES.items())[:10]))
    found = series(training(path, dict(list(VALUES.items())[10:]), error=None), "ce_p50")
    assert len(found.steps) == 14
    assert found.errors is None
    assert found.notes == ("4 of 14 values have no error bar, so that none is used.",)


def test_numbers_that_another_program_has_written_are_no_crash(tmp_path):
    for step in (math.nan, math.inf, 10**400):
        found = series(records() + records({step: 1.0}), "ce_p50")
        assert found.steps.tolist() == list(STEPS)
        assert found.notes == ("1 record left out: the step is not known.",)
    path = tmp_path / "history.jsonl"
    training(path, error=-0.1)
    assert series(History.load(path), "ce_p50").errors is None
    line = path.read_text().splitlines()[-1]
    with path.open("a") as file:
        file.write(line.replace(str(numbers()[STEPS[-1]]), "1" + 400 * "0") + "\n")
    assert History.load(path).torn == 1


def test_what_a_resumed_run_does_again_takes_the_place_of_what_it_did(tmp_path):
    path = tmp_path / "history.jsonl"
    training(path)
    write_start(path, run="a", step=STEPS[9], batch=STEPS[9])
    assert series(History.load(path), "ce_p50").steps.tolist() == list(STEPS[:10])
    with path.open("ab") as file:
        file.write(path.read_bytes().splitlines()[-2][:40])  # a torn line
    assert History.load(path).torn == 1
    assert len(series(History.load(path), "ce_p50").steps) == 10


@pytest.mark.parametrize(
    ("key", "bounds", "rises"),
    [
        ("ce_mean", (0, None), False),
        ("ce_a_b_p99_9", (0, None), False),
        ("ce_count", None, None),
        ("ce_better_share", (0, 1), None),
        ("bits_per_byte", (0, None), False),
        ("log_rank_p50", (0, None), False),
        ("rank_mean", (1, None), False),
        ("entropy_p50", (0, None), None),
        ("top5_accuracy_web", (0, 1), True),
        ("margin_p50", (0, 1), None),
        ("proxy_top5_uniform", (0, 1), True),
        ("proxy_top5_probability", (0, 1), None),
        ("proxy_reciprocal_rank_inverse_frequency", (0, 1), True),
        ("proxy_rank_uniform", (1, None), False),
        ("proxy_ce_uniform", (0, None), False),
        ("proxy_ce_uniform_se", None, None),
        ("proxy_wrong_confidence_uniform", (0, 1), None),
        ("proxy_tokens", None, None),
        ("cell_p50", None, None),
    ],
)
def test_what_is_known_of_token_statistics(key, bounds, rises):
    assert known_of_tokens(key)[:2] == (bounds, rises)


@pytest.mark.parametrize(
    ("name", "values", "bounds", "rises"),
    [
        ("val_accuracy", [0.1, 1.0], (0, 1), True),
        ("val_accuracy/dataloader_idx_1", [0.1, 1.0], (0, 1), True),
        ("val_accuracy", [10.0, 90.0], None, None),
        ("task/Recall", [0.1], (0, 1), True),
        ("val_pass_at_8", [0.1], (0, 1), True),
        ("val_loss", [0.1, 3.0], (0, None), False),
        ("val_loss", [-0.1, 3.0], None, None),
        ("val_reward", [0.1, 0.9], None, None),
        ("val_map", [0.1, 0.9], None, None),
        ("glossaccuracyish", [0.1], None, None),
    ],
)
def test_of_what_a_user_logs_little_is_assumed_and_all_of_it_said(name, values, bounds, rises):
    found = known_by_name(name, values)
    assert found[:2] == (bounds, rises)
    assert (found.note is not None) == (bounds is not None)
