"""``lightning-pce import``: records from log-probabilities that exist."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file that has them.")],
    format_: Annotated[
        str,
        typer.Option("--format", "-f", help="vllm, completions, sglang, llama.cpp, columns or lm-eval."),
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="RECORDS", help="The file of records; others in it stay.")
    ],
    name: Annotated[
        str | None,
        typer.Option("--name", help="What the data is called; records to compare have the same one."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="What the model is called, if not as the file says or is named."),
    ] = None,
    step: Annotated[int | None, typer.Option("--step", help="Steps of training.")] = None,
    column: Annotated[
        str | None,
        typer.Option("--column", help="columns: where the numbers are, one or a list in each row."),
    ] = None,
    kind: Annotated[
        str, typer.Option("--kind", help="columns: logprob (natural logarithms) or loss (nats).")
    ] = "logprob",
    document: Annotated[
        str | None, typer.Option("--document", help="columns: the column with the id of the document.")
    ] = None,
    group: Annotated[
        str | None, typer.Option("--group", help="columns: the column with the kind of the tokens.")
    ] = None,
) -> None:
    """Make a record of log-probabilities that another program has written."""
    from lightning_pce.cli._failures import printable
    from lightning_pce.scoring.imports import import_records

    key = import_records(
        file,
        format_,
        out,
        name=name,
        model=model,
        step=step,
        column=column,
        kind=kind,
        document=document,
        group=group,
    )
    from lightning_pce.runs.history import History

    record = next(each for each in History.load(out) if each.run == key)
    values = record.values
    if "ce_count" in values:
        said = f"{values['ce_count']:.0f} tokens, CE mean {values['ce_mean']:.4f}, p50 {values['ce_p50']:.4f}"
    else:
        said = (
            f"{values['document_count']:.0f} documents of {values['document_nats_mean']:.2f} nats in the mean"
        )
    print(printable(f"{out}: {record.saved[0].path}, {record.name}: {said}"))
    for note in record.how.get("notes", ()):
        print(printable(f"note: {note}"))
