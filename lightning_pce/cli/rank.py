"""``lightning-pce rank``: models by their proxies, and how far that is to be believed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from lightning_pce._errors import UserError

REFUSED = 3


def rank(
    records: Annotated[
        list[str],
        typer.Argument(
            metavar="RECORDS",
            help="Files of evaluate --proxies or save_proxies, or patterns. Records of the same models "
            "without proxies are baselines.",
        ),
    ],
    truth: Annotated[
        Path | None,
        typer.Option(
            "--truth",
            metavar="FILE",
            help="A CSV file of model, task, value, where higher is better. A task is the name of the data.",
        ),
    ] = None,
    method: Annotated[
        str, typer.Option("--method", help="rank_svm on all proxies, sparse on three, or a single one.")
    ] = "rank_svm",
    kernel: Annotated[str, typer.Option("--kernel", help="Of rank_svm: linear or rbf.")] = "linear",
    hold_out: Annotated[
        str,
        typer.Option(
            "--hold-out",
            help="What the cross-validation has not seen: tasks, or models-and-tasks.",
        ),
    ] = "tasks",
    seed: Annotated[int, typer.Option("--seed", help="Of its random draws.")] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON; docs/ranking.md has its keys.")
    ] = False,
) -> None:
    """Rank models on tasks whose truth is not known, by proxies that are fitted to those where it is.

    First how well that works on tasks that were held out, beside simpler ways; then the models of each task
    without truth, best first. Exit status 3: there are too few models or tasks to say, or the proxies do not
    surely order these models; then nothing is ranked. 2: a mistake in the arguments or files.
    """
    for option, given, choice in (
        ("--method", method, ("rank_svm", "sparse", "single")),
        ("--kernel", kernel, ("linear", "rbf")),
        ("--hold-out", hold_out, ("tasks", "models-and-tasks")),
    ):
        if given not in choice:
            raise UserError(f"{option} {given}: choose one of {', '.join(choice)}.")
    if seed < 0:
        raise UserError(f"--seed {seed}: expected 0 or more.")
    from lightning_pce.cli._failures import printable
    from lightning_pce.runs._new_tasks import ranked
    from lightning_pce.runs.ranking import ProxyTable

    held_out: Any = hold_out.replace("-", "_")
    found = ranked(
        ProxyTable.read(*records, truth=truth), cast(Any, method), held_out, cast(Any, kernel), seed
    )
    if as_json:
        print(json.dumps({"schema": 1, **found.to_plain()}, indent=1, allow_nan=False))
    else:
        print(printable(str(found)))
    if found.refused is not None:
        raise typer.Exit(REFUSED)
