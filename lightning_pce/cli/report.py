"""``lightning-pce report``: a comparison as one page that people send each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lightning_pce._errors import UserError


def report(
    records: Annotated[
        list[Path], typer.Argument(metavar="RECORDS", help="Files of records, as evaluate writes them.")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The page; the same name with .json is written beside it.")
    ],
    reference: Annotated[
        str | None,
        typer.Option("--reference", help="What differences are from, as of compare. By default the first."),
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
    no_text: Annotated[
        bool, typer.Option("--no-text", help="Leave out all text of the data: of the tail and of labels.")
    ] = False,
) -> None:
    """Write a comparison as one HTML page: verdict, pictures, tables, the tail in its text."""
    if task is not None and task_file is not None:
        raise UserError("Both --task and --task-file are given: choose one.")
    from lightning_pce.cli._records import checked_sections, load
    from lightning_pce.reports._files import check_packages, checked_target
    from lightning_pce.runs.task_values import TaskFile

    history = load(records, name)
    checked_target(output, history)
    check_packages()
    metric = task if task_file is None else TaskFile.read(task_file)
    checked_sections(history, reference, metric)

    from lightning_pce.reports import html

    html.report(
        history,
        output,
        task=metric,
        reference=reference,
        higher_is_better=not lower_is_better,
        text=not no_text,
    )
    print(f"See {output}.")
