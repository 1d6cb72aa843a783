"""Real processes: two give the bytes of one, kills lose a chunk, and a dead one ends the others."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lightning_pce.scoring.chunks import folder_of
from tests.helpers.tiny_checkpoints import tiny_checkpoint

pytestmark = pytest.mark.slow
SECONDS = 120
ROOT = Path(__file__).parents[2]
COMMAND = [
    sys.executable,
    "-m",
    "lightning_pce",
    "evaluate",
    "model",
    "--data",
    "text.txt",
    "--batch-tokens",
    "64",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, a text of some 60 chunks, and the record that nobody disturbs."""
    folder = tmp_path_factory.mktemp("processes")
    tiny_checkpoint(folder / "model")
    text = "\n\n".join(f"{n}: " + "the thing in there is another " * (1 + n % 9) for n in range(900))
    (folder / "text.txt").write_text(text, encoding="utf-8")
    done = started(folder, "whole.jsonl")
    assert done.wait(SECONDS) == 0, done.stderr.read()
    return folder


@pytest.fixture(scope="module")
def whole(folder):
    return (folder / "whole.jsonl").read_bytes()


def started(folder, out, *more, command=COMMAND):
    return subprocess.Popen(
        [*command, "-o", out, *more],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a Ctrl-C is for it and its children
    )


def wait_for_chunks(folder, out, number):
    """Wait until so many chunks are done."""
    deadline = time.monotonic() + SECONDS
    while len(list(folder_of(folder / out).glob("*/0*.json"))) < number:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def children(process):
    """The processes that a process has started."""
    with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
        return [int(each) for each in file.read().split()]


def ended(process):
    """The status, the last line of stderr, and all of stdout."""
    out, err = process.communicate(timeout=SECONDS)
    return process.returncode, err.splitlines()[-1] if err else "", out


def test_two_processes_give_the_bytes_of_one(folder, whole):
    status, err, out = ended(started(folder, "two.jsonl", "--devices", "2"))
    assert status == 0, err
    assert (folder / "two.jsonl").read_bytes() == whole
    assert out.startswith("model on text: ")
    assert out.count("\n") == 1


def test_killed_at_five_points_it_gives_the_same_bytes(folder, whole):
    for kill, number in enumerate((1, 5, 12, 20, 30)):
        # With another number of processes each time.
        devices = str(1 + kill % 2)
        process = started(folder, "killed.jsonl", "--devices", devices)
        wait_for_chunks(folder, "killed.jsonl", number)
        os.killpg(process.pid, signal.SIGKILL)
        ended(process)
        assert not (folder / "killed.jsonl").exists(), "it was done before it was killed"
    status, err, _ = ended(started(folder, "killed.jsonl"))
    assert status == 0, err
    assert (folder / "killed.jsonl").read_bytes() == whole


def test_a_process_that_is_killed_ends_the_command_and_says_how_to_go_on(folder, whole):
    process = started(folder, "one.jsonl", "--devices", "2")
    wait_for_chunks(folder, "one.jsonl", 2)
    others = children(process)
    os.kill(others[1], signal.SIGKILL)
    status, err, out = ended(process)
    assert (status, out) == (2, "")
    assert "Process 1 of 2 was ended by signal 9. What is finished is kept: run the same command again" in err
    assert not [each for each in others if os.path.exists(f"/proc/{each}")]
    assert ended(started(folder, "one.jsonl", "--devices", "3"))[0] == 0
    assert (folder / "one.jsonl").read_bytes() == whole


@pytest.mark.parametrize("devices", ["1", "2"])
def test_interrupted_it_says_how_to_go_on(folder, whole, devices):
    out = f"interrupted{devices}.jsonl"
    process = started(folder, out, "--devices", devices)
    wait_for_chunks(folder, out, 2)
    os.killpg(process.pid, signal.SIGINT)
    status, err, _ = ended(process)
    assert status == 130
    assert err == "lightning-pce: interrupted; run the same command again to go on."
    assert ended(started(folder, out))[0] == 0
    assert (folder / out).read_bytes() == whole


def test_a_killed_parent_leaves_no_children(folder):
    process = started(folder, "parent.jsonl", "--devices", "2")
    wait_for_chunks(folder, "parent.jsonl", 1)
    others = children(process)
    assert len(others) == 2
    process.kill()
    process.communicate(timeout=SECONDS)
    deadline = time.monotonic() + SECONDS
    while any(os.path.exists(f"/proc/{each}") for each in others):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_two_commands_by_mistake_write_the_same_bytes_twice(folder, whole):
    both = [started(folder, "both.jsonl") for _ in range(2)]
    assert [ended(process)[0] for process in both] == [0, 0]
    assert (folder / "both.jsonl").read_bytes() == whole


def test_commands_for_other_settings_keep_both_records(folder, whole):
    both = [started(folder, "others.jsonl", *more) for more in ((), ("--context", "16"))]
    assert [ended(process)[0] for process in both] == [0, 0]
    lines = (folder / "others.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 2
    assert whole in lines


def test_torchrun_starts_it_on_several_machines(folder, whole):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    status, err, out = ended(started(folder, "run.jsonl", command=[*launcher, *COMMAND[1:]]))
    assert status == 0, err
    assert (folder / "run.jsonl").read_bytes() == whole
    assert out.count("model on text") == 1
