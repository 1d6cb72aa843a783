"""``lightning-pce capability``: how probable training data are before training."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from lightning_pce._errors import UserError


def capability(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="What is to be trained: as for evaluate, but a single one."),
    ],
    data: Annotated[
        str,
        typer.Option("--data", metavar="FILE", help="The training data, or a sample: as for evaluate."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="RECORDS",
            help="Keep the record, and go on where it was ended. Left out, nothing is kept.",
        ),
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", metavar="MODEL", help="What a .ckpt or an adapter belongs to.")
    ] = None,
    context: Annotated[
        int | None,
        typer.Option("--context", metavar="N", help="Tokens seen at most. Default: the model's, up to 2048."),
    ] = None,
    bos: Annotated[
        int | None,
        typer.Option("--bos", metavar="ID", help="A token to put in front. Default: as the tokenizer does."),
    ] = None,
    dtype: Annotated[
        str, typer.Option("--dtype", help="Of the weights: float32, bfloat16 ... auto: the checkpoint's.")
    ] = "auto",
    group: Annotated[
        str | None,
        typer.Option("--group", metavar="COLUMN", help="The column that says of which group tokens are."),
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Let code run that comes with a model or in a .ckpt.")
    ] = False,
) -> None:
    """Read how probable training data are to a model, and beside which of a paper's anchors that lies.

    The mean probability of the target tokens (of completions, where data have prompts) with a standard error
    by document, percentiles, and where NLL's gradient comes from. The paper is arXiv 2510.00526.
    """
    from lightning_pce.scoring.models import find_models
    from lightning_pce.scoring.processes import place_here

    if out is None and place_here().world > 1:
        raise UserError("Several processes need a file that all of them see: give -o RECORDS.")
    if (number := len(find_models([model], base=base))) > 1:
        raise UserError(f"{model} stands for {number} models: give one of them.")

    def read_into(records: Path) -> None:
        from lightning_pce.scoring.evaluate import evaluate

        [key] = evaluate(
            [model],
            [data],
            records,
            base=base,
            context=context,
            bos=bos,
            dtype=dtype,
            group=group,
            trust=trust,
        )
        if place_here().rank == 0:
            _print(records, key)

    if out is not None:
        read_into(out)
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            read_into(Path(folder) / "records.jsonl")
        except KeyboardInterrupt:
            print("lightning-pce: without -o nothing was kept: it will begin anew.", file=sys.stderr)
            raise
    print("Without -o the record was not kept.", file=sys.stderr)


def _print(path: Path, key: str) -> None:
    from lightning_pce.runs.capability import reading_of
    from lightning_pce.runs.history import History

    [record] = [each for each in History.load(path) if each.run == key and each.function == "score"]
    print(reading_of(record))
