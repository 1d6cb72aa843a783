"""The command line in a process of its own, for what it must do before torch is there."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

# One command after the other, and whether torch was imported by then.
RUN = """
import contextlib, io, json, sys
from lightning_pce.cli import main
for arguments in json.load(sys.stdin):
    stderr, out = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(out):
        status = main(arguments)
    print(json.dumps([status, stderr.getvalue(), out.getvalue(), "torch" in sys.modules]))
"""


class Ended(NamedTuple):
    status: int
    err: str
    out: str
    has_torch: bool  # whether this command or one before it has imported torch


def ended(commands, cwd=None):
    """How each of some commands has ended, all in one new process."""
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        input=json.dumps([list(map(str, command)) for command in commands]),
        capture_output=True,
        text=True,
        timeout=60,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 0, done.stderr
    return [Ended(*json.loads(line)) for line in done.stdout.splitlines()]


def assert_refused(found, words):
    """It was one line with these words, status 2, and nothing else; torch was not needed."""
    assert (found.status, found.out, found.has_torch) == (2, "", False), found.err
    assert found.err.startswith("lightning-pce: ")
    assert found.err.endswith("\n")
    assert found.err.count("\n") == 1
    assert words in found.err
