"""One ModelCheckpoint for each percentile of the validation loss, and one for the mean."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_pce._names import checked_names, checked_percentiles, percentile_key


def percentile_checkpoints(
    dirpath: str | Path,
    percentiles: Sequence[float] = (50, 95),
    mean: bool = True,
    *,
    prefix: str = "val",
    save_top_k: int = 1,
    **arguments: Any,
) -> list[ModelCheckpoint]:
    """Callbacks that keep the best checkpoint of each percentile, and of the mean, side by side.

    Each has a state of its own in a checkpoint and file names of its own, such as
    ``best-val_ce_p50=1.2345-epoch=3-step=400.ckpt``, so that all may share a folder. A NaN or an infinite
    value is never better than another; if it comes first it is kept until a finite one comes. Give a Trainer
    ``[*callbacks]``: it puts others into the list that it is given.

    They are ``ModelCheckpoint`` of ``lightning.pytorch``. A Trainer of ``pytorch_lightning`` 2.6 runs them as
    callbacks but does not know them as checkpoints: they are not in its ``checkpoint_callbacks``, and it adds
    one of its own. One of 2.5.0 refuses them with a ``TypeError``.

    Args:
        dirpath: the folder of the files.
        percentiles: which, each in [0, 100]; they must be among those that are logged.
        mean: whether to keep the best mean, too.
        prefix: what stands before ``_ce_`` in the logged names: ``"val"``, or ``"val_web"`` for the
            dataloader ``web`` and ``"val_dl0"`` for one without a name.
        save_top_k: how many each keeps, -1: all.
        arguments: any other of ``ModelCheckpoint``, the same for all; but ``monitor``, ``mode`` and
            ``filename`` are set here. ``save_last=True`` gives each a file of its own, ``last.ckpt``,
            ``last-v1.ckpt`` ..., a copy of what that one saved last and not of the end of the run.

    Returns:
        The percentiles' in the order given, then the mean's; each with ``mode="min"``.

    Raises:
        ValueError: if a percentile is outside [0, 100] or given twice, if there is nothing to keep, or if
            ``prefix`` cannot be part of a logged name.

    Example:
        >>> callbacks = percentile_checkpoints("checkpoints", percentiles=(50, 99.9))
        >>> [callback.monitor for callback in callbacks]
        ['val_ce_p50', 'val_ce_p99_9', 'val_ce_mean']
        >>> callbacks[1].filename
        'best-{val_ce_p99_9:.4f}-{epoch}-{step}'
    """
    checked_names("prefix", (prefix,))
    keys = [percentile_key(percentile) for percentile in checked_percentiles(percentiles)]
    if not keys and not mean:
        raise ValueError("Expected argument `percentiles` to hold one or several if `mean` is False.")
    names = [f"{prefix}_ce_{key}" for key in (*keys, *(["mean"] if mean else []))]
    return [
        ModelCheckpoint(
            dirpath,
            # With its name: several may be best at the same step.
            f"best-{{{name}:.4f}}-{{epoch}}-{{step}}",
            monitor=name,
            mode="min",
            save_top_k=save_top_k,
            **arguments,
        )
        for name in names
    ]
