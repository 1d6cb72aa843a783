"""``lightning-pce evaluate``: checkpoints over files of text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Folders of safetensors, names of the hub, .gguf, .ckpt of Lightning, adapters; patterns.",
        ),
    ],
    data: Annotated[
        list[str],
        typer.Option(
            "--data", metavar="FILE", help="Text, .jsonl, .parquet or a folder; several times for several."
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="RECORDS", help="The file of records, new or with others.")
    ],
    base: Annotated[
        str | None, typer.Option("--base", metavar="MODEL", help="What a .ckpt or an adapter belongs to.")
    ] = None,
    protocol: Annotated[
        str, typer.Option("--protocol", help="windows: every token once; llama.cpp: as that tool scores.")
    ] = "windows",
    context: Annotated[
        int | None,
        typer.Option("--context", metavar="N", help="Tokens seen at most. Default: the model's, up to 2048."),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option("--stride", metavar="N", help="From window to window. Default: half of the context."),
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
    step: Annotated[
        int | None,
        typer.Option("--step", metavar="N", help="Of a model's training. Default: what its name says."),
    ] = None,
    devices: Annotated[
        int, typer.Option("--devices", metavar="N", help="Processes to start on this machine.")
    ] = 1,
    batch_tokens: Annotated[
        int | None,
        typer.Option("--batch-tokens", metavar="N", help="Of a batch. Default: 1024 on a CPU, else 8192."),
    ] = None,
    memory: Annotated[
        str, typer.Option("--memory", metavar="SIZE", help="For logits, beside the model: 512MiB, 4GiB.")
    ] = "1GiB",
    save_tokens: Annotated[
        Path | None,
        typer.Option("--save-tokens", metavar="FILE", help="A parquet file for every token's cross-entropy."),
    ] = None,
    proxies: Annotated[
        bool,
        typer.Option("--proxies", help="Also the 80 proxies of downstream performance, of completions."),
    ] = False,
    token_counts: Annotated[
        Path | None,
        typer.Option(
            "--token-counts",
            metavar="FILE",
            help="For proxies: a corpus in which tokens are counted, or a .npy of counts by id. Default: the "
            "solution itself.",
        ),
    ] = None,
    text: Annotated[
        bool, typer.Option("--text/--no-text", help="Whether records keep text of the data.")
    ] = True,
    trust: Annotated[
        bool, typer.Option("--trust", help="Let code run that comes with a model or in a .ckpt.")
    ] = False,
) -> None:
    """Score checkpoints on text: a record with error bars of each model and file.

    Run it again to go on where it was ended. On several machines that share a folder, start it by torchrun or
    as a SLURM step.
    """
    from lightning_pce.cli._failures import printable
    from lightning_pce.scoring import evaluate as scoring
    from lightning_pce.scoring.processes import place_here

    keys = scoring.evaluate(
        models,
        data,
        out,
        base=base,
        protocol=protocol,
        context=context,
        stride=stride,
        bos=bos,
        dtype=dtype,
        batch_tokens=batch_tokens,
        memory=memory,
        group=group,
        step=step,
        devices=devices,
        save_tokens=save_tokens,
        text=text,
        trust=trust,
        proxies=proxies,
        token_counts=token_counts,
    )
    if place_here().rank == 0:
        for line in scoring.summary(out, keys):
            print(printable(line))
