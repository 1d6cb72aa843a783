"""``lightning-pce report``: what it refuses before torch is there, and that its options reach the page."""

import json
import os
import subprocess
import sys

import pytest

from lightning_pce.cli import main
from tests.helpers.command_line import RUN
from tests.helpers.scored_runs import scored

RECORDS, PAGE = "{folder}/records.jsonl", "{folder}/new/page.html"
REFUSED = {
    "no page": ([RECORDS], "Missing option '-o' / '--output'"),
    "no such file": (["{folder}/nothing.jsonl", "-o", PAGE], "nothing.jsonl: No such file or directory"),
    "empty": (["{folder}/empty.jsonl", "-o", PAGE], "There are no records"),
    "no history": (["{folder}/text.jsonl", "-o", PAGE], "is no history"),
    "a newer schema": (["{folder}/newer.jsonl", "-o", PAGE], "upgrade lightning-pce"),
    "other data": (["{folder}/other.jsonl", "-o", PAGE], "protocol is windows and llama.cpp"),
    "the page is the records": ([RECORDS, "-o", RECORDS], "holds the records themselves"),
    "the page is a folder": ([RECORDS, "-o", "{folder}"], "is a folder"),
    "its parent is a file": ([RECORDS, "-o", f"{RECORDS}/page.html"], "is a file and no folder"),
    "a device": ([RECORDS, "-o", "/dev/full"], "is no regular file"),
    "no such task": ([RECORDS, "-o", PAGE, "--task", "recall"], "No record has 'recall'"),
    "two tasks": ([RECORDS, "-o", PAGE, "--task", "a", "--task-file", "b"], "choose one"),
    "no such reference": ([RECORDS, "-o", PAGE, "--reference", "x"], "There is no record 'x'"),
    "no such name": ([RECORDS, "-o", PAGE, "--name", "web"], "There are no records of 'web': --name is"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    scored(folder / "records.jsonl", 3)
    scored(folder / "other.jsonl", 1)
    scored(folder / "other.jsonl", 1, model=lambda _: "b", how={"protocol": "llama.cpp"})
    (folder / "empty.jsonl").touch()
    (folder / "text.jsonl").write_text("no records\n")
    line = (folder / "other.jsonl").read_text().splitlines()[0]
    (folder / "newer.jsonl").write_text(line.replace('"schema":1', '"schema":99') + "\n")
    (folder / "task.csv").write_text(
        "checkpoint,$re<call>\ncheckpoints/step-1,0.25\ncheckpoints/step-3,0.75\n"
    )
    return folder


@pytest.fixture(scope="module")
def refused(folder):
    """Status, standard error, standard output and torch of each, all by one new process."""
    arguments = [
        ["report", *(each.format(folder=folder) for each in arguments)] for arguments, _ in REFUSED.values()
    ]
    done = subprocess.run(
        [sys.executable, "-c", RUN], input=json.dumps(arguments), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(REFUSED, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_one_line_and_needs_no_torch(refused, folder, case):
    status, stderr, stdout, torch = refused[case]
    assert REFUSED[case][1] in stderr
    assert (status, stdout, torch) == (2, "", False)
    assert stderr.count("\n") == 1
    assert not (folder / "new").exists()


def test_options_reach_the_page(folder, tmp_path, capsys):
    page = tmp_path / "page.html"
    command = ["report", str(folder / "records.jsonl"), "-o", str(page), "--task-file"]
    command += [str(folder / "task.csv"), "--lower-is-better", "--reference", "step-2", "--no-text"]
    assert main(command) == 0
    assert capsys.readouterr().out == f"See {page}.\n"
    assert sorted(os.listdir(tmp_path)) == ["page.html", "page.json"]
    text = page.read_text(encoding="utf-8")
    assert "The best $re&lt;call&gt; is 0.250 at step-1." in text
    assert "Each record less step-2" in text
    assert "The capital city" not in text
    [found] = json.loads((tmp_path / "page.json").read_text(encoding="utf-8"))["comparisons"]
    assert (found["reference"], found["task"]["best"]) == ("step-2", "step-1")
