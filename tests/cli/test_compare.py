"""``lightning-pce compare``: what it prints, what it refuses, and how it ends."""

import json

import pytest
import torch

from lightning_pce.cli import main
from lightning_pce.runs.history import write_validation
from tests.helpers import checkpoint_runs as generators
from tests.helpers.checkpoint_runs import losses_of
from tests.helpers.command_line import assert_refused, ended
from tests.helpers.scored_records import HOW, write_scored

DOCUMENTS = 60


def write(path, curve, epochs, **more):
    ids, losses = losses_of(curve, 12, DOCUMENTS)
    for epoch in epochs:
        write_scored(path, f"out/step-{epoch}", losses[epoch], ids, scalars={"recall": epoch / 12}, **more)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files of records, by what is to be said of them."""
    folder = tmp_path_factory.mktemp("records")
    write(folder / "agree.jsonl", generators.agreeing, (0, 5))
    write(folder / "part.jsonl", generators.saturating, (3, 11))
    write(folder / "one.jsonl", generators.agreeing, (5,))
    ids = torch.arange(2000) // 1000
    for name, shift in (("a", 0.0), ("b", 1.0)):
        write_scored(folder / "book.jsonl", name, torch.linspace(1, 9, 2000) + shift, ids)
    both = folder / "two_data.jsonl"
    write(both, generators.agreeing, (0, 5), name="web")
    write(both, generators.saturating, (3, 11), name="code", how={"data": "e1", "token_ids": "e2"})
    return folder


def ran(capsys, *arguments):
    status = main(["compare", *map(str, arguments)])
    out, err = capsys.readouterr()
    return status, out, err


def test_it_ends_with_0_where_mean_and_bulk_agree_and_with_3_where_they_do_not(folder, capsys):
    status, out, err = ran(capsys, folder / "agree.jsonl")
    assert (status, err) == (0, "")
    assert "Mean, p50 and p95 agree on step-5" in out
    status, out, err = ran(capsys, folder / "part.jsonl", "--task", "recall")
    assert (status, err) == (3, "")
    assert "Shortlist: step-3 and step-11." in out
    assert "recall is 0.250 at step-3" in out
    status, out, _ = ran(capsys, folder / "part.jsonl", "--task", "recall", "--lower-is-better")
    assert status == 3
    assert "Of the shortlist step-3 has the best recall" in out


def test_one_record_and_one_book_end_with_0(folder, capsys):
    status, out, _ = ran(capsys, folder / "one.jsonl")
    assert status == 0
    assert "There is one record, step-5" in out
    status, out, _ = ran(capsys, folder / "book.jsonl")
    assert status == 0
    assert "No error bars: only 2 of 128 slots of documents hold tokens, 20 are needed." in out


def test_several_data_are_compared_each_by_itself(folder, capsys):
    status, out, _ = ran(capsys, folder / "two_data.jsonl", "--json")
    found = json.loads(out)
    assert (status, found["agree"], found["schema"]) == (3, False, 1)
    assert [(each["name"], each["agree"]) for each in found["comparisons"]] == [
        ("web", True),
        ("code", False),
    ]
    assert ran(capsys, folder / "two_data.jsonl", "--name", "web")[0] == 0
    assert ran(capsys, folder / "two_data.jsonl", "--name", "code")[0] == 3


def test_files_are_compared_in_their_order_and_from_the_reference(folder, capsys):
    files = [folder / "one.jsonl", folder / "agree.jsonl"]  # step-5 is in both
    found = json.loads(ran(capsys, *files, "--json")[1])["comparisons"][0]
    assert [each["label"] for each in found["records"]] == [
        "step-0",
        "step-5",
    ]  # of two lines the last counts
    other = write(folder / "later.jsonl", generators.agreeing, (8,))
    found = json.loads(ran(capsys, other, folder / "one.jsonl", "--json")[1])["comparisons"][0]
    assert [each["label"] for each in found["records"]] == ["step-8", "step-5"]
    assert found["reference"] == "step-8"
    for reference in ("step-5", "out/step-5", "1", "-1"):
        arguments = [other, folder / "one.jsonl", "--json", "--reference", reference]
        assert json.loads(ran(capsys, *arguments)[1])["comparisons"][0]["reference"] == "step-5"


def test_a_task_from_a_file(folder, capsys):
    picks = folder / "picks.csv"
    picks.write_text("checkpoint,f1\nout/step-3,0.9\nout/step-11,0.1\nout/step-12,1\n")
    status, out, _ = ran(capsys, folder / "part.jsonl", "--task-file", picks)
    assert status == 3
    assert "Of the shortlist step-3 has the best f1, 0.900." in out
    assert f"{picks}: no record for 'out/step-12'." in out.replace("\n  ", " ")


def test_a_torn_last_line_is_skipped_and_said(folder, capsys):
    torn = folder / "torn.jsonl"
    torn.write_bytes((folder / "agree.jsonl").read_bytes()[:-40])
    status, out, _ = ran(capsys, torn)
    assert status == 0
    assert "There is one record, step-0" in out
    assert "1 line was torn" in out


def test_a_name_cannot_send_controls_to_the_terminal(tmp_path, capsys):
    path = tmp_path / "r.jsonl"
    ids, losses = losses_of(generators.agreeing, 1, DOCUMENTS)
    write_scored(path, "out/\x1b[31mred\u202e", losses[0], ids)
    status, out, _ = ran(capsys, path)
    assert status == 0
    assert "There is one record, \\x1b[31mred\\u202e" in out
    assert out.replace("\n", "").isprintable()


REFUSED = {
    "missing": (["none.jsonl"], "none.jsonl: No such file or directory."),
    "a folder": (["folder"], "folder is a folder: give the file of records in it."),
    "a device": (["/dev/null"], "is no file but a device or a pipe"),
    "empty": (["empty"], "There are no records in empty: write them with evaluate or import."),
    "not JSON": (["text"], "text is no history: none of its 2 lines is one of a history."),
    "binary": (["binary"], "binary is no history"),
    "other JSON": (["other.json"], "other.json is no history"),
    "only torn": (["only_torn"], "There are no records in only_torn, but 1 torn line:"),
    "newer": (["newer"], "newer, line 1, has schema 99"),
    "second file": (["agree.jsonl", "none.jsonl"], "none.jsonl: No such file"),
    "other data": (
        ["agree.jsonl", "data"],
        "'topics step-0' and 'x x' cannot be compared: data is d0d0d0d0d0d0d0d0 and e",
    ),
    "other context": (
        ["agree.jsonl", "context"],
        "context is 512 and 128; score both with the same --context.",
    ),
    "other fingerprint": (["fits"], "the fingerprint of the data is f1 and f2"),
    "other vocabulary": (
        ["agree.jsonl", "vocabulary"],
        "tokenizer is a1a1a1a1a1a1a1a1 and b2, and one does not",
    ),
    "reference": (["agree.jsonl", "--reference", "x"], "no record 'x' to be the reference"),
    "task": (
        ["agree.jsonl", "--task", "f1"],
        "No record has 'f1' among what was logged in its validation: there is ",
    ),
    "two tasks": (
        ["agree.jsonl", "--task", "f1", "--task-file", "x"],
        "Both --task and --task-file are given",
    ),
    "no task file": (["agree.jsonl", "--task-file", "none.csv"], "none.csv: No such file"),
    "a wrong task file": (["agree.jsonl", "--task-file", "text"], "expected two columns"),
    "a binary task file": (["agree.jsonl", "--task-file", "binary"], "binary is no UTF-8 text"),
    "a task file of others": (
        ["agree.jsonl", "--task-file", "others.csv"],
        "others.csv names none of the records",
    ),
    "name": (["agree.jsonl", "--name", "x"], "There are no records of 'x': --name is one of topics."),
    "statistic": (
        ["agree.jsonl", "--of", "margin"],
        "has no digest of margin of all tokens: it has ce of all",
    ),
    "group": (["agree.jsonl", "--group", "x"], "has no digest of ce of x"),
    "no digests": (["fits_only"], "it was kept without digests"),
    "of several data": (
        ["two_data.jsonl", "--reference", "x"],
        "Of the data 'web': There is no record 'x' to be the reference: choose one of 'step-0', 'step-5'. "
        "Choose others by --name.",
    ),
    "nested": (["nested"], "nested is no history"),
    "other kinds": (["kinds"], "There are no records in kinds, but 5 torn lines"),
}


@pytest.fixture(scope="module")
def refused(folder):
    (folder / "folder").mkdir()
    (folder / "empty").touch()
    (folder / "text").write_text("hello\nworld\n")
    (folder / "binary").write_bytes(bytes(range(256)) * 40)
    (folder / "other.json").write_text('{"a": [1, 2]}\n')
    (folder / "others.csv").write_text("step-99,1\n")
    whole = (folder / "one.jsonl").read_bytes()
    (folder / "only_torn").write_bytes(whole[:500])
    (folder / "nested").write_text("[" * 100_000)
    kinds = [
        (b'"name":"topics"', b'"name":null'),
        (b'"how":{', b'"how":[],"x":{'),
        (b'"metadata":{}', b'"metadata":[1]'),
        (b'"step":null', b'"step":"x"'),
        (b'"checkpoint":"out/step-5"', b'"checkpoint":5'),
    ]
    (folder / "kinds").write_bytes(b"".join(whole.replace(*each) for each in kinds))
    (folder / "newer").write_bytes(whole.replace(b'"schema":1', b'"schema":99'))
    ids, losses = losses_of(generators.agreeing, 1, DOCUMENTS)
    write_scored(folder / "data", "x", losses[0], ids, how={"data": "e1", "token_ids": "e2"}, name="x")
    write_scored(folder / "context", "x", losses[0], ids, how={"context": 128})
    other = {"tokenizer": "b2", "token_ids": "e2"}
    write_scored(folder / "vocabulary", "x", losses[0], ids, how=other, without=["data"])
    for step in (1, 2):
        write_validation(folder / "fits", run="r", name="val", step=step, fingerprint=f"f{step}")
        write_validation(folder / "fits_only", run="r", name="val", step=step, fingerprint="f1")
    return dict(
        zip(REFUSED, ended((["compare", *each] for each, _ in REFUSED.values()), folder), strict=True)
    )


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_one_line_and_needs_no_torch(refused, case):
    assert_refused(refused[case], REFUSED[case][1])


def test_what_the_digests_tell_is_refused_in_one_line_too(folder, capsys):
    ids, losses = losses_of(generators.agreeing, 1, DOCUMENTS - 5)
    path = write_scored(folder / "slots", "x", losses[0], ids, function="import", without=[*HOW])
    status, out, err = ran(capsys, folder / "agree.jsonl", path)
    assert (status, out) == (2, "")
    assert "'step-0' and 'x' are not of the same data: they have 900 and 825 tokens" in err
    assert err.count("\n") == 1
    damaged = folder / "damaged"
    damaged.write_text((folder / "one.jsonl").read_text().replace('"digest":"', '"digest":"x'))
    status, out, err = ran(capsys, damaged)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert "A record cannot be read" in err
