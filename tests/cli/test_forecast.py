"""``lightning-pce forecast``: numbers or the reason why not, and no torch for either."""

import json
import math
import re

import pytest

from lightning_pce.cli import main
from lightning_pce.runs import forecast
from lightning_pce.runs.history import History
from lightning_pce.runs.series import series
from tests.helpers.command_line import assert_refused, ended
from tests.helpers.scored_runs import hostile
from tests.helpers.series_runs import STEPS, checkpoints, numbers, rising, training
from tests.helpers.tiny_checkpoints import tiny_checkpoint

STRANGE = hostile(0).replace("\ud83d", "")  # which no terminal's arguments can hold
HISTORY, BOTH = "{folder}/history.jsonl", "{folder}/both.jsonl"
MISTAKES = {
    "nothing": ([], "Missing argument 'RUN'"),
    "no metric": ([HISTORY], "Missing option '--metric'"),
    "no such file": (["{folder}/nothing.jsonl", "--metric", "x"], "nothing.jsonl: No such file or directory"),
    "a folder": (["{folder}", "--metric", "x"], "is a folder: give the file of records in it"),
    "no history": (["{folder}/text.jsonl", "--metric", "x"], "is no history"),
    "empty": (["{folder}/empty.jsonl", "--metric", "x"], "There are no records"),
    "no such metric": ([HISTORY, "--metric", "val_ce_p51"], "Did you mean 'ce_p50'? There is val_accuracy, "),
    "two runs": ([BOTH, "--metric", "ce_p50"], "but these are of 'a' and 'b': choose one by its run"),
    "no such run": (
        [BOTH, "--metric", "ce_p50", "--run", "c"],
        "No record of the run 'c': there is 'a' and 'b'",
    ),
    "no such name": ([HISTORY, "--metric", "ce_p50", "--name", "web"], "--name is one of val"),
    "no step": (
        ["{folder}/models.jsonl", "--metric", "ce_p50"],
        "None of 2 records with ce_p50 knows the step",
    ),
    "a step of 0": ([HISTORY, "--metric", "ce_p50", "--at", "0"], "--at 0: expected a step above 0"),
    "no step at all": ([HISTORY, "--metric", "ce_p50", "--at", "nan"], "--at nan: expected a step above 0"),
    "a gain without end": (
        [HISTORY, "--metric", "ce_p50", "--gain", "inf", "--json"],
        "`gain` to be finite but got inf",
    ),
    "one bound": ([HISTORY, "--metric", "ce_p50", "--bounds", "3"], "--bounds 3: expected LOW,HIGH"),
    "bounds in words": (
        [HISTORY, "--metric", "ce_p50", "--bounds", "a,b"],
        "--bounds a,b: expected LOW,HIGH",
    ),
    "bounds upside down": ([HISTORY, "--metric", "ce_p50", "--bounds", "1,0"], "(1.0, 0.0)"),
    "a level of 2": (
        [HISTORY, "--metric", "ce_p50", "--level", "2"],
        "`level` to be above 0 and at most 0.999",
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forecast")
    scalars = {"val_accuracy": numbers(rising), STRANGE: numbers(), "constant": dict.fromkeys(STEPS, 1.0)}
    training(folder / "history.jsonl", scalars=scalars)
    training(folder / "both.jsonl")
    training(folder / "both.jsonl", run="b", values=numbers(seed=1))
    checkpoints(folder / "scored.jsonl")
    checkpoints(folder / "models.jsonl", {1: 2.0, 2: 1.0}, model="model-{}".format, step=None)
    training(folder / "odd.jsonl", numbers() | {STEPS[3]: math.inf, STEPS[5]: math.nan})
    with (folder / "odd.jsonl").open("ab") as file:
        file.write(b'{"kind":"validation","schema":1,"ru')
    training(folder / "wide.jsonl", error=2.0)
    (folder / "empty.jsonl").touch()
    (folder / "text.jsonl").write_text("no records\n")
    return folder


@pytest.fixture(scope="module")
def found(folder):
    """How each mistake has ended, then a forecast and a refusal, all in one process."""
    commands = [arguments for arguments, _ in MISTAKES.values()]
    commands += [[HISTORY, "--metric", "val_ce_p50"], [HISTORY, "--metric", "constant"]]
    return ended(["forecast", *(each.format(folder=folder) for each in command)] for command in commands)


def run(capsys, folder, file, metric, *options):
    status = main(["forecast", str(folder / file), "--metric", metric, *options])
    out, err = capsys.readouterr()
    assert err == ""
    return status, out


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_and_needs_no_torch(found, case):
    assert_refused(found[list(MISTAKES).index(case)], MISTAKES[case][1])


def test_a_forecast_needs_no_torch(found):
    made, refused = found[-2:]
    assert (made.status, made.err, made.has_torch) == (0, "", False)
    assert (refused.status, refused.err, refused.has_torch) == (3, "", False)
    assert "No forecast: All values are 1.000: nothing rises or falls." in refused.out


def test_it_prints_the_forecast_of_the_series(capsys, folder):
    status, out = run(capsys, folder, "history.jsonl", "val_ce_p50", "--gain", "0.05", "--at", "25000")
    known = forecast(History.load(folder / "history.jsonl"), "val_ce_p50")
    at, limit = known.predict(25_000), known.asymptote
    lines = out.splitlines()
    assert status == 0
    assert lines[0] == "val_ce_p50: 14 values from step 100 to 10,000, falling, the last 2.299"
    assert re.split(" {2,}", lines[2]) == ["step", "median", "90 % of what will be measured"]
    assert lines[3].split() == ["25,000", f"{at.median:.3f}", f"{at.low:.3f}", "to", f"{at.high:.3f}"]
    assert f"Limit {limit.median:.3f} ({limit.low:.3f} to {limit.high:.3f})." in lines
    assert "With a chance of 0 % it falls by less than 0.05 from step 10,000 to 25,000." in lines


def test_it_looks_2_and_4_times_as_far_and_warns_beyond(capsys, folder):
    _, out = run(capsys, folder, "scored.jsonl", "ce_p50")
    assert [line.split()[0] for line in out.splitlines()[3:5]] == ["20,000", "40,000"]
    assert "times the last one" not in out
    _, out = run(capsys, folder, "scored.jsonl", "ce_p50", "--at", "20000", "--at", "50000")
    assert out.count("Step 50,000 is 5 times the last one") == 1


def test_json_has_all_of_it(capsys, folder):
    status, out = run(capsys, folder, "odd.jsonl", "ce_p50", "--json", "--level", "0.5", "--gain", "0.1")
    plain = json.loads(out)
    assert status == 0
    assert plain["steps"] == [step for step in STEPS if step not in (STEPS[3], STEPS[5])]
    assert plain["errors"] == pytest.approx([0.005] * 12)
    assert (plain["schema"], plain["name"], plain["level"], plain["dropped"]) == (1, "ce_p50", 0.5, 2)
    assert (plain["bounds"], plain["rising"], plain["refused"]) == ([0, None], False, None)
    known = forecast(History.load(folder / "odd.jsonl"), "ce_p50", level=0.5)
    for each, step in zip(plain["predictions"], (20_000, 40_000), strict=True):
        there = known.predict(step)
        assert [each[name] for name in ("step", "median", "low", "high")] == [step, *there[:3]]
        assert (each["gain"], each["chance_below"]) == (0.1, known.chance_below(0.1, step))
    assert plain["limit"] == known.asymptote._asdict()
    assert "1 torn line skipped: a writer was killed." in plain["notes"]


def test_a_refusal_has_status_3_and_force_prints_what_was_refused(capsys, folder):
    options = ("--bounds", "3,4")
    status, out = run(capsys, folder, "history.jsonl", "ce_p50", *options)
    assert status == 3
    assert "No forecast: No curve through the values ends within the bounds (3.000, 4.000)." in out
    assert "20,000" not in out
    status, out = run(capsys, folder, "history.jsonl", "ce_p50", *options, "--json")
    plain = json.loads(out)
    assert (status, plain["predictions"], plain["limit"], plain["exponent"]) == (3, [], None, None)
    assert "within the bounds" in plain["refused"]
    status, out = run(capsys, folder, "history.jsonl", "ce_p50", *options, "--force")
    assert status == 0
    assert "Shown by --force, though it is refused: No curve through" in out
    assert "20,000" in out
    status, out = run(capsys, folder, "history.jsonl", "constant", "--force")  # where nothing was fitted
    assert status == 3
    assert "No forecast" in out


def test_options_choose_the_series(capsys, folder):
    _, first = run(capsys, folder, "both.jsonl", "ce_p50", "--run", "a")
    _, second = run(capsys, folder, "both.jsonl", "ce_p50", "--run", "b", "--name", "val")
    assert first != second
    _, out = run(capsys, folder, "wide.jsonl", "ce_p50")
    assert "The error bars are used: --no-errors leaves them out." in out
    status, out = run(capsys, folder, "wide.jsonl", "ce_p50", "--no-errors", "--json")
    assert (status, json.loads(out)["errors"], json.loads(out)["notes"]) == (0, None, [])
    _, out = run(capsys, folder, "history.jsonl", "val_accuracy")
    assert "By its name the limit of val_accuracy is taken to lie between 0 and 1" in out
    _, out = run(capsys, folder, "history.jsonl", "val_accuracy", "--bounds", "none")
    assert "By its name" not in out
    for text, bounds in (
        ("0,", [0, None]),
        ("0,0.9", [0, 0.9]),
        (",0.9", [None, 0.9]),
        ("none", [None, None]),
    ):
        _, out = run(capsys, folder, "history.jsonl", "val_accuracy", "--bounds", text, "--json")
        assert json.loads(out)["bounds"] == bounds


def test_hostile_names_are_written_out(capsys, folder):
    status, out = run(capsys, folder, "history.jsonl", STRANGE)
    assert status == 0
    assert all(letter.isprintable() or letter == "\n" for letter in out)
    assert "\\x1b[31m" in out


@pytest.mark.slow
def test_checkpoints_that_evaluate_has_scored_are_a_series(capsys, tmp_path):
    for step in (100, 200, 1000):
        tiny_checkpoint(tmp_path / "out" / f"checkpoint-{step}", seed=step)
    (tmp_path / "web.txt").write_text("\n\n".join(f"the {k} in the then {k * 7} winner" for k in range(60)))
    models, records = str(tmp_path / "out" / "checkpoint-*"), tmp_path / "records.jsonl"
    assert main(["evaluate", models, "--data", str(tmp_path / "web.txt"), "-o", str(records)]) == 0
    capsys.readouterr()
    status, out = run(capsys, tmp_path, "records.jsonl", "web_ce_p50", "--json")
    plain, history = json.loads(out), History.load(records)
    assert (status, plain["steps"]) == (3, [100, 200, 1000])
    assert plain["values"] == [record.values["ce_p50"] for record in history]
    assert plain["refused"].startswith("3 points are too few")
    for name in ("ce_completion_p50", "accuracy", "bits_per_byte", "log_rank_mean"):
        if name in history[0].values:
            found = series(history, name)
            assert found.values.tolist() == [record.values[name] for record in history]
            assert found.bounds is not None
