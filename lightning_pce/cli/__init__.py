"""The command line: ``lightning-pce``, or ``python -m lightning_pce``.

One file a subcommand, which holds its arguments and nothing else; what it does is a function of
:mod:`lightning_pce.scoring`, :mod:`lightning_pce.runs` or :mod:`lightning_pce.reports`. Errors are made
lines in ``_failures``.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Args:
        argv: what follows the name of the program; None: what this process was started with.

    Returns:
        The exit status. 0: done. 1: a mistake of ours, whose traceback is printed. 2: a mistake in the
        arguments or in the files, one line of standard error says which. 3: ``compare`` has found that mean
        and bulk share no record, ``rank`` does not rank, or ``forecast`` says nothing of the future. 130:
        ended by Ctrl-C.

    Example:
        >>> main(["--version"])
        lightning-pce 0.1.0
        0
    """
    if importlib.util.find_spec("typer") is None:
        print("lightning-pce: the command line needs Typer: pip install lightning-pce[cli]", file=sys.stderr)
        return 2
    from lightning_pce.cli._app import run

    return run(sys.argv[1:] if argv is None else list(argv))
