"""``lightning-pce compare``: which record, how sure, and what lies between them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from lightning_pce._errors import UserError

DISAGREE = 3


def compare(
    records: Annotated[
        list[Path], typer.Argument(metavar="RECORDS", help="Files of records, as evaluate writes them.")
    ],
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            help="What differences are from: the label of a record, the path of its model, or its place from "
            "0 on. By default the first record.",
        ),
    ] = None,
    task: Annotated[
        str | None, typer.Option("--task", help="A task metric that the records have logged, by its name.")
    ] = None,
    task_file: Annotated[
        Path | None,
        typer.Option("--task-file", help="A task metric in a CSV file: record or path of its model, value."),
    ] = None,
    lower_is_better: Annotated[
        bool, typer.Option("--lower-is-better", help="The task metric is better when it is lower.")
    ] = False,
    name: Annotated[
        str | None, typer.Option("--name", help="Only the records of this data, of several in the files.")
    ] = None,
    of: Annotated[
        str | None, typer.Option("--of", help="Another statistic than ce: entropy or log_rank.")
    ] = None,
    group: Annotated[
        str, typer.Option("--group", help="Only this group of tokens, such as completion.")
    ] = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON; docs/compare.md has its keys.")
    ] = False,
) -> None:
    """Compare records with error bars: what each statistic picks, and whether mean and bulk agree.

    Exit status 0: mean and bulk share a record within error, or there is one record, or no error bars. 3:
    they do not. 2: the records cannot be compared, and a line says why.
    """
    if task is not None and task_file is not None:
        raise UserError("Both --task and --task-file are given: choose one.")
    from lightning_pce.cli._failures import printable
    from lightning_pce.cli._records import checked_sections, load
    from lightning_pce.runs.history import History
    from lightning_pce.runs.task_values import TaskFile

    history = load(records, name)
    metric = task if task_file is None else TaskFile.read(task_file)
    parts = checked_sections(History(history, of=of, group=group, torn=history.torn), reference, metric)

    from lightning_pce.runs.comparison import compare as compared

    found = [
        compared(part, reference=reference, task=metric, higher_is_better=not lower_is_better)
        for part in parts
    ]
    agree = all(each.agree for each in found)
    if as_json:
        plain = {"schema": 1, "agree": agree, "comparisons": [each.to_plain() for each in found]}
        print(json.dumps(plain, indent=1, allow_nan=False))
    else:
        print(printable("\n\n\n".join(map(str, found))))
    if not agree:
        raise typer.Exit(DISAGREE)
