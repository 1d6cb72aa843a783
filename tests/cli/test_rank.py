"""``lightning-pce rank``: what it prints, when it refuses, and that it needs no torch."""

import json

import numpy as np
import pytest

from lightning_pce import proxy_names
from lightning_pce.cli import main
from lightning_pce.runs.ranking import ProxyTable, fit_ranker, save_proxies
from tests.helpers.command_line import assert_refused, ended
from tests.helpers.proxy_populations import changed, population
from tests.helpers.proxy_records import with_errors, write_record
from tests.helpers.tiny_checkpoints import tiny_checkpoint

TASKS = ("t0", "t1", "t2", "t3")


def write(folder, table, *, new=("t3",)):
    """Records of a table, text scored without proxies, and the truth of tasks that are not new."""
    for model, task, values in zip(table.models, table.tasks, table.values, strict=True):
        named = dict(zip(table.names, values.tolist(), strict=True))
        write_record(folder / "records.jsonl", f"out/{model}", task, with_errors(named))
    for model, loss in dict(zip(table.models, table.baselines["text_ce"].tolist(), strict=True)).items():
        write_record(folder / "text.jsonl", f"out/{model}", "web", {"ce_mean": loss}, proxies=None)
    lines = [
        f"out/{model},{task},{value}\n"
        for model, task, value in zip(table.models, table.tasks, table.truth.tolist(), strict=True)
        if task not in new
    ]
    (folder / "truth.csv").write_text("model,task,value\n" + "".join(lines), encoding="utf-8")
    return [folder / "*.jsonl", "--truth", folder / "truth.csv"]


@pytest.fixture(scope="module")
def table():
    return population(12, 4, proxies=6)


@pytest.fixture(scope="module")
def given(table, tmp_path_factory):
    return write(tmp_path_factory.mktemp("ranked"), table)


@pytest.fixture(scope="module")
def nothing(tmp_path_factory):
    """Proxies that carry no truth."""
    return write(tmp_path_factory.mktemp("nothing"), population(12, 4, proxies=6, carry=0.0, seed=4))


def ran(capsys, *arguments):
    status = main(["rank", *map(str, arguments)])
    out, err = capsys.readouterr()
    return status, out, err


def test_the_models_of_a_new_task_best_first_after_what_is_known_of_that(given, table, capsys):
    status, out, err = ran(capsys, *given)
    assert (status, err) == (0, "")
    assert out.startswith(
        "rank_svm (linear kernel): 12 models, 3 tasks, 6 proxies; one task held out at a time."
    )
    assert [line.split()[0] for line in out.splitlines()[3:8]] == [
        "rank_svm",
        "web_ce",
        "expert_ce",
        "known_tasks",
        "models",
    ]
    last = out.split("t3, best first:\n")[1].splitlines()
    known = np.where(np.array(table.tasks) == "t3", np.nan, table.truth)
    own = np.array(table.tasks) == "t3"
    scores = fit_ranker(changed(table, truth=known)).score(table)[own]
    expected = [table.select(tasks=["t3"]).models[row] for row in np.argsort(-scores)]
    assert [line.split()[1] for line in last] == expected
    assert [line.split()[0] for line in last] == [str(place) for place in range(1, 13)]
    assert float(last[0].split()[2]) == pytest.approx(scores.max(), abs=0.005)


def test_json_has_the_same(given, capsys):
    found = json.loads(ran(capsys, *given, "--json")[1])
    assert (found["schema"], found["refused"]) == (1, None)
    assert found["cross_validation"]["rho"]["low"] > 0
    [order] = found["orders"]
    assert order["task"] == "t3"
    assert [each["score"] for each in order["models"]] == sorted(
        (each["score"] for each in order["models"]), reverse=True
    )


def test_methods_and_protocols(given, capsys):
    status, out, _ = ran(capsys, *given, "--method", "single", "--hold-out", "models-and-tasks")
    assert status == 0
    assert out.startswith("single: 12 models, 3 tasks")
    assert "one task held out at a time, and half of the models." in out
    for more, expected in (
        (["--kernel", "rbf"], ("rank_svm", "rbf")),
        (["--method", "sparse"], ("sparse", None)),
    ):
        found = json.loads(ran(capsys, *given, "--json", *more)[1])["cross_validation"]
        assert (found["method"], found["kernel"]) == expected


def test_what_carries_no_truth_is_not_ranked_and_ends_with_3(nothing, capsys):
    status, out, err = ran(capsys, *nothing)
    assert (status, err) == (3, "")
    assert "Refused: the correlation of " in out
    assert "best first" not in out
    found = json.loads(ran(capsys, *nothing, "--json")[1])
    assert found["orders"] == []
    assert "is not surely above" in found["refused"]


def test_too_few_tasks_end_with_3(tmp_path, table, capsys):
    given = write(tmp_path, table, new=("t1", "t2", "t3"))
    status, out, err = ran(capsys, *given)
    assert (status, err) == (3, "")
    assert out.startswith("Refused: A cross-validation needs 3 tasks ")
    assert json.loads(ran(capsys, *given, "--json")[1])["cross_validation"] is None


def test_where_all_truth_is_known_there_is_nothing_left_to_rank(tmp_path, table, capsys):
    status, out, _ = ran(capsys, *write(tmp_path, table, new=()))
    assert status == 0
    assert out.endswith("The truth of all models is known: there is nothing left to rank.\n")


def test_a_model_without_truth_is_ranked_among_those_of_its_task(tmp_path, table, capsys):
    given = write(tmp_path, table, new=())
    lines = given[2].read_text().splitlines(keepends=True)
    given[2].write_text("".join(line for line in lines if not line.startswith(("out/m3,t1", "out/m5,t1"))))
    status, out, _ = ran(capsys, *given)
    assert status == 0
    assert {line.split()[1] for line in out.split("t1, best first:\n")[1].splitlines()} == {"m3", "m5"}


def test_nothing_of_it_needs_torch_and_mistakes_are_one_line(given, tmp_path):
    save_proxies(tmp_path / "a.json", model="a", task="t", result=with_errors({"ce_uniform": 1.0}))
    (tmp_path / "truth.csv").write_text("b,t,1\n")
    found = ended(
        [
            ["rank", *given],
            ["rank", tmp_path / "a.json"],
            ["rank", tmp_path / "a.json", "--truth", tmp_path / "none.csv"],
            ["rank", tmp_path / "a.json", "--truth", tmp_path / "truth.csv"],
        ]
    )
    assert (found[0].status, found[0].has_torch) == (0, False)
    assert_refused(
        found[1], "The truth of no model is known: give a CSV file of model, task, value (--truth)."
    )
    assert_refused(found[2], "none.csv: No such file")
    assert_refused(found[3], "names none of the models and tasks: it has 'b, t', they are 'a, t'.")


@pytest.mark.slow
def test_what_evaluate_has_scored_is_ranked(tmp_path, capsys):
    for seed in range(8):
        tiny_checkpoint(tmp_path / f"models/m{seed}", seed=seed)
    data = []
    for task in range(4):
        rows = [{"prompt": f"{n}: ", "completion": f"water in winter {n * (task + 3)}"} for n in range(6)]
        path = tmp_path / f"task{task}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        data += ["--data", str(path)]
    (tmp_path / "web.txt").write_text("water in the winter and so on\n" * 8, encoding="utf-8")
    models = str(tmp_path / "models/*")
    assert main(["evaluate", models, *data, "--proxies", "-o", str(tmp_path / "scored/a.jsonl")]) == 0
    assert (
        main(
            ["evaluate", models, "--data", str(tmp_path / "web.txt"), "-o", str(tmp_path / "scored/b.jsonl")]
        )
        == 0
    )
    table = ProxyTable.read(tmp_path / "scored/*.jsonl")
    assert table.names == proxy_names()
    assert repr(table) == (
        "ProxyTable(8 models x 4 tasks, 80 proxies; truth of 0 of 32 rows; baselines: web_ce)"
    )
    # The truth is a proxy's own: what is fitted must find its order again.
    lines = [
        f"models/{model},{task},{-ce}\n"
        for model, task, ce in zip(table.models, table.tasks, table.column("ce_uniform"), strict=True)
        if task != "task3"
    ]
    (tmp_path / "truth.csv").write_text("".join(lines), encoding="utf-8")
    capsys.readouterr()
    status, out, err = ran(
        capsys, tmp_path / "scored/*.jsonl", "--truth", tmp_path / "truth.csv", "--method", "single"
    )
    assert (status, err) == (0, "")
    new = table.select(tasks=["task3"])
    expected = [new.models[row] for row in np.argsort(new.column("ce_uniform"))]
    assert [line.split()[1] for line in out.split("task3, best first:\n")[1].splitlines()] == expected
