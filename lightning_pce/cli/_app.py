"""All subcommands as one Typer app, and what becomes of its errors.

Neither this file nor those of the subcommands import torch, so that help, mistyped options and missing files
are answered at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from lightning_pce._version import __version__
from lightning_pce.cli._failures import INTERRUPTED, failures_as_lines


def run(arguments: Sequence[str]) -> int:
    """Run a subcommand and give the exit status."""
    return failures_as_lines(lambda: _invoked(arguments))


def app() -> typer.Typer:
    """The app, plain text without boxes and colours."""
    from lightning_pce.cli.capability import capability
    from lightning_pce.cli.compare import compare
    from lightning_pce.cli.evaluate import evaluate
    from lightning_pce.cli.forecast import forecast
    from lightning_pce.cli.import_ import import_
    from lightning_pce.cli.rank import rank
    from lightning_pce.cli.report import report

    made = typer.Typer(
        name="lightning-pce",
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    made.callback(invoke_without_command=True)(_begin)
    made.command("evaluate")(evaluate)
    made.command("import")(import_)
    made.command("compare")(compare)
    made.command("report")(report)
    made.command("capability")(capability)
    made.command("rank")(rank)
    made.command("forecast")(forecast)
    return made


def _begin(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Percentiles of per-token cross-entropy: score checkpoints, compare them with error bars, report."""
    if version:
        print(f"lightning-pce {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(2)


def _invoked(arguments: Sequence[str]) -> int:
    try:
        status = app()(list(arguments), prog_name="lightning-pce", standalone_mode=False)
    except typer.Abort as error:  # what Typer makes of an EOFError, and older ones of Ctrl-C
        raise error.__cause__ or KeyboardInterrupt from None
    except SystemExit as error:  # what it makes of a closed pipe
        raise BrokenPipeError from error
    if status == INTERRUPTED:  # and newer ones of Ctrl-C
        raise KeyboardInterrupt
    return status if isinstance(status, int) else 0
