"""The command line as a whole: exit statuses, one line for each mistake, and nothing heavy before it."""

import errno
import subprocess
import sys

import pytest
import typer

from lightning_pce import __version__
from lightning_pce._errors import UserError
from lightning_pce.cli import _app, main
from lightning_pce.cli._failures import failures_as_lines
from tests.helpers.command_line import assert_refused, ended

COMMANDS = ("evaluate", "import", "compare", "report", "capability", "rank", "forecast")

# What a subcommand refuses, and words of the line that says so. It is found without torch.
REFUSED = {
    "no such command": (["nothing"], "No such command 'nothing'. See: lightning-pce --help"),
    "no such option": (["compare", "--nope", "x"], "No such option"),
    "compare nothing": (["compare"], "Missing argument 'RECORDS'"),
    "evaluate no data": (["evaluate", "x", "-o", "r.jsonl"], "Missing option '--data'"),
    "evaluate no model": (["evaluate", "/no/x", "--data", "/no/y", "-o", "r"], "/no/x: no such file"),
    "compare of nobody": (["compare", "~no-such-user/r.jsonl"], "No such file"),
    "evaluate an odd type": (["evaluate", "x", "--data", "y", "-o", "r", "--dtype", "int8"], "--dtype int8"),
    "evaluate into a device": (["evaluate", "x", "--data", "y", "-o", "/dev/full"], "is a device"),
    "evaluate into a file": (["evaluate", "x", "--data", "y", "-o", f"{__file__}/r"], "is a file"),
    "evaluate over code": (["evaluate", "x", "--data", "y", "-o", __file__], "is no history"),
    "evaluate by halves": (["evaluate", "x", "--data", "y", "-o", "r", "--stride", "0"], "--stride 0"),
    "evaluate in no memory": (["evaluate", "x", "--data", "y", "-o", "r", "--memory", "1"], "--memory 1"),
    "evaluate counts of nothing": (
        ["evaluate", "x", "--data", "y", "-o", "r", "--token-counts", "z"],
        "--token-counts is what proxies are weighted by: give --proxies too",
    ),
    "evaluate proxies of a half": (
        ["evaluate", "x", "--data", "y", "-o", "r", "--proxies", "--protocol", "llama.cpp"],
        "--proxies are of completions",
    ),
    "evaluate proxies of groups": (
        ["evaluate", "x", "--data", "y", "-o", "r", "--proxies", "--group", "topic"],
        "which --group topic replaces",
    ),
    "import nothing": (["import", "nothing.jsonl", "-f", "vllm", "-o", "x"], "No such file"),
    "import no format": (["import", "a.jsonl", "-f", "csv", "-o", "x"], "There is no format 'csv'"),
    "import no column": (["import", "a.jsonl", "-f", "columns", "-o", "x"], "needs --column NAME"),
    "capability of nothing": (["capability"], "Missing argument 'MODEL'"),
    "capability on nothing": (["capability", "x"], "Missing option '--data'"),
    "capability of no model": (["capability", "/no/x", "--data", "/no/y"], "/no/x: no such file"),
    "rank nothing": (["rank"], "Missing argument 'RECORDS'"),
    "rank no file": (["rank", "none.jsonl"], "none.jsonl: No such file"),
    "rank no pattern": (["rank", "none/*.jsonl"], "No file fits 'none/*.jsonl'"),
    "rank by no method": (["rank", "x", "--method", "svm"], "--method svm: choose one of rank_svm, sparse"),
    "rank by no kernel": (["rank", "x", "--kernel", "poly"], "--kernel poly: choose one of linear, rbf"),
    "rank and hold out models": (
        ["rank", "x", "--hold-out", "models"],
        "choose one of tasks, models-and-tasks",
    ),
    "rank by a seed": (["rank", "x", "--seed", "-1"], "--seed -1: expected 0 or more"),
    "forecast nothing": (["forecast"], "Missing argument 'RUN'"),
    "forecast no metric": (["forecast", "x"], "Missing option '--metric'"),
    "forecast of nobody": (["forecast", "/no/x", "--metric", "ce_p50"], "/no/x: No such file"),
    "forecast backwards": (
        ["forecast", "/no/x", "--metric", "ce_p50", "--at=-5"],
        "--at -5: expected a step",
    ),
    "import no output": (["import", "a.jsonl", "-f", "vllm"], "Missing option '-o'"),
}


@pytest.fixture(scope="module")
def refused():
    """How each of REFUSED has ended."""
    return dict(zip(REFUSED, ended(arguments for arguments, _ in REFUSED.values()), strict=True))


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_one_line_and_needs_no_torch(refused, case):
    assert_refused(refused[case], REFUSED[case][1])


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_plain_text_and_needs_no_torch(command, capsys):
    assert main([command, "--help"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"Usage: lightning-pce {command} [OPTIONS]")
    assert err == ""
    assert out.isascii()  # no boxes, no colours


def test_without_a_command_there_is_help_and_the_status_of_a_mistake(capsys):
    assert main([]) == 2
    out = capsys.readouterr().out
    assert all(f"\n  {command} " in out for command in COMMANDS)


def test_the_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lightning-pce {__version__}\n"


def test_the_module_is_the_command_and_a_full_disk_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "lightning_pce", "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert done.returncode == 2
    assert done.stderr.startswith("lightning-pce: cannot write: No space left on device.")
    assert done.stderr.count("\n") == 1


def test_a_closed_pipe_is_quiet():
    process = subprocess.Popen(
        [sys.executable, "-m", "lightning_pce", "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    assert process.wait(60) == 2
    assert process.stderr.read() == ""
    process.stderr.close()


def raising(error):
    def work():
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("mend it"), 2, "mend it"),
        (UserError("first\nsecond \x1b[31m\r"), 2, "first second \\x1b[31m\\r"),
        (KeyboardInterrupt(), 130, "interrupted; run the same command again to go on."),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a b.jsonl"), 2, "a b.jsonl: No such"),
        (PermissionError(errno.EACCES, "Permission denied", "x", None, "y"), 2, "x -> y: Permission denied."),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "cannot write: No space left on device."),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_what_the_user_can_mend_is_one_line(capsys, error, status, line):
    assert failures_as_lines(raising(error)) == status
    err = capsys.readouterr().err
    assert err.startswith(f"lightning-pce: {line}")
    assert err.count("\n") == 1
    assert err[:-1].isprintable()


@pytest.mark.parametrize("error", [ValueError("ours"), KeyError("k"), OSError("of a socket"), SystemError()])
def test_a_mistake_of_ours_keeps_its_traceback(capsys, error):
    assert failures_as_lines(raising(error)) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last):\n")
    assert "in work" in err
    assert type(error).__name__ in err.splitlines()[-1]


def test_a_mistake_of_ours_inside_a_command_keeps_its_traceback(capsys, monkeypatch):
    monkeypatch.setattr(_app, "app", lambda: lambda *_, **__: [][0])
    assert main(["compare"]) == 1
    assert "IndexError: list index out of range" in capsys.readouterr().err


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, 130), (EOFError, 1)])
def test_of_what_a_command_raises_only_ctrl_c_is_an_interruption(capsys, monkeypatch, error, status):
    def raising_it():
        raise error

    made = typer.Typer()
    made.callback()(lambda: None)
    made.command("wait")(raising_it)
    monkeypatch.setattr(_app, "app", lambda: made)
    assert main(["wait"]) == status
    err = capsys.readouterr().err.strip()
    assert err == "lightning-pce: interrupted; run the same command again to go on." or status == 1
    assert ("Traceback" in err) == (status == 1)
