"""A task metric from a file of two columns, and from what records have logged."""

import math

import pytest

from lightning_pce._errors import UserError
from lightning_pce.runs._records import Record, Saved
from lightning_pce.runs.task_values import TaskFile, logged

RECORDS = [
    Record("r", "score", "web", label=label, saved=(Saved(path, None, None, None),))
    for label, path in (
        ("step-1", "out/step-1"),
        ("step-2", "out/step-2"),
        ("a/last.ckpt", "/runs/a/last.ckpt"),
        ("b/last.ckpt", "/runs/b/last.ckpt"),
    )
]


def read(tmp_path, content):
    path = tmp_path / "picks.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return TaskFile.read(path)


def test_with_and_without_a_header(tmp_path):
    with_header = read(tmp_path, "checkpoint,recall\r\nstep-1,0.5\r\n\r\nstep-2, 1e-3 \r\n")
    assert with_header.name == "recall"
    assert with_header.rows == (("step-1", 0.5), ("step-2", 0.001))
    without = read(tmp_path, '\ufeff"step-1, first",0.5\n')
    assert (without.name, without.rows) == ("picks", (("step-1, first", 0.5),))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "has no values"),
        ("checkpoint,recall\n", "has no values"),
        ("step-1\n", "line 1: expected two columns, record and value, with a comma between them but got 1"),
        ("step-1;0.5\n", "expected two columns"),
        ("a,b\nstep-1,0.5,7\n", "line 2: expected two columns"),
        ("a,b\nstep-1,0.5\n\nstep-2,high\n", "line 4: the value of 'step-2' is no number but 'high'"),
        ("a,b\nstep-1,\n", "is no number but ''"),
        ("a,b\nstep-1,1_000\n", "is no number but '1_000'"),
        (b"caf\xe9,0.5\n", "no UTF-8 text"),
        (b"\xff\xfes\x00t\x00", "no UTF-8 text"),
        (b"a\x00,0.5\x00\n\x00", "picks.csv"),
        ('a,b\n"step-1,0.5\n', "is no CSV file"),
    ],
)
def test_what_is_no_such_file_is_refused_in_one_line(tmp_path, content, words):
    with pytest.raises(UserError) as raised:
        read(tmp_path, content)
    assert words in str(raised.value)
    assert "picks.csv" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_folder_a_device_and_nothing_are_refused(tmp_path):
    for path in (tmp_path, "/dev/zero"):
        with pytest.raises(UserError, match="is no file: give a CSV file of two columns"):
            TaskFile.read(path)
    with pytest.raises(FileNotFoundError):
        TaskFile.read(tmp_path / "none.csv")


@pytest.mark.parametrize(
    "name", ["step-1", "out/step-1", "./out/step-1/", "/elsewhere/out/step-1", "a/../out/step-1"]
)
def test_a_line_belongs_to_a_label_a_path_or_the_end_of_one(tmp_path, name):
    assert read(tmp_path, f"{name},0.5").matched(RECORDS) == {"step-1": 0.5}


def test_what_fits_nothing_is_said_and_what_fits_two_is_refused(tmp_path):
    found = read(tmp_path, "r,recall\nstep-1,0.5\nstep-9,1\nstep-8,1\nother/step-2,1\n").matched(RECORDS)
    assert found == {"step-1": 0.5}
    assert found.name == "recall"
    path = tmp_path / "picks.csv"
    assert found.notes == (
        f"{path}: no record for 'step-9', 'step-8' and 'other/step-2'.",
        f"{path}: no recall for 'step-2', 'a/last.ckpt' and 'b/last.ckpt'.",
    )
    with pytest.raises(
        UserError, match=r"'last.ckpt' may be 'a/last.ckpt' and 'b/last.ckpt': write the label"
    ):
        read(tmp_path, "last.ckpt,1").matched(RECORDS)
    with pytest.raises(UserError, match=r"two values for 'step-1', 0.5 and 1: keep one"):
        read(tmp_path, "step-1,0.5\nout/step-1,1").matched(RECORDS)
    assert read(tmp_path, "step-1,0.5\nout/step-1,0.5").matched(RECORDS) == {"step-1": 0.5}
    with pytest.raises(
        UserError, match="names none of the records: it has 'x', they are 'step-1', 'step-2', 'a/"
    ):
        read(tmp_path, "x,1").matched(RECORDS)


def test_nan_is_not_known(tmp_path):
    assert math.isnan(read(tmp_path, "step-1,nan\nstep-2,1").matched(RECORDS)["step-1"])


def test_what_was_logged_comes_before_what_is_known_of_the_tokens():
    records = [
        Record("r", "score", "web", label="a", scalars={"acc": 1.0}, values={"acc": 2.0, "accuracy": 0.5}),
        Record("r", "score", "web", label="b", values={"acc": 3.0}),
        Record("r", "score", "web", label="c"),
    ]
    assert logged(records, "acc") == {"a": 1.0, "b": 3.0}
    assert logged(records, "accuracy") == {"a": 0.5}
    with pytest.raises(
        UserError, match=r"No record has 'f1' among what was logged .*: there is acc, accuracy\."
    ):
        logged(records, "f1")
