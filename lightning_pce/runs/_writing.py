"""Lines go to the end of a file, each by one call of the operating system, and none is ever changed.

So of a process that is killed at most its last line is torn, and several processes may write to one file.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_pce.runs._lines import Tensors, encoded, header_of, plain

_NOTHING: Mapping[str, Any] = {}


def new_run_id() -> str:
    """An id that no other run has, 8 hexadecimal digits."""
    return uuid.uuid4().hex[:8]


def write_start(
    path: str | os.PathLike[str],
    *,
    run: str,
    step: int | None,
    batch: int | None,
    epoch: int | None = None,
    resumed_from: str | None = None,
) -> None:
    """Training begins or goes on here: a reader takes back what this run has behind this position.

    Args:
        path: the file; it and its folder are made if they are not there.
        run: the id of the run, which it keeps when it is resumed.
        step: steps of the optimizers until here.
        batch: batches of training until here; None: not known, steps tell what is behind.
        epoch: the number of the epoch that begins or goes on.
        resumed_from: the checkpoint.

    Raises:
        OSError: if the file can't be written.
    """
    header = {"run": run, "step": step, "batch": batch, "epoch": epoch, "resumed_from": resumed_from}
    _append(path, encoded("start", {**header, "time": _now()}, _NOTHING, _NOTHING))


def write_validation(
    path: str | os.PathLike[str],
    *,
    run: str,
    name: str,
    step: int | None,
    function: str = "fit",
    epoch: int | None = None,
    batch: int | None = None,
    values: Mapping[str, float] = _NOTHING,
    scalars: Mapping[str, float] = _NOTHING,
    stale: Mapping[str, float] = _NOTHING,
    fingerprint: str | None = None,
    metadata: Mapping[str, Any] = _NOTHING,
    checkpoint: str | None = None,
    digests: Tensors = _NOTHING,
    documents: Tensors = _NOTHING,
    label_totals: Mapping[str, Tensor] = _NOTHING,
) -> None:
    """One validation of one dataloader; see :class:`~lightning_pce.runs.history.Record`.

    Args:
        path: the file, as in :func:`write_start`.
        run: the id of the run.
        name: what logged names begin with, such as ``"val"``.
        step: steps of the optimizers until then; None: not known.
        function: ``"fit"``, ``"validate"`` or ``"evaluate"``.
        epoch: the number of the epoch.
        batch: batches of training until then.
        values: of the tokens, by name: ``"ce_p50"``.
        scalars: what else was logged in this validation.
        stale: what was logged earlier.
        fingerprint: of the data.
        metadata: what JSON can hold.
        checkpoint: the file whose weights were validated, where the step is not known.
        digests: ``[K + 3, 2]`` float64, by statistic and group: ``{"ce": {"": digest}}``.
        documents: ``[128, 97]`` float64, in the same way, of some or all of these.
        label_totals: ``[V, 2]`` of :class:`lightning_pce.LabelTotals` by the name of the metric; they are
            kept beside digests only, and only of labels that have tokens.

    Raises:
        OSError: if the file can't be written.
        ValueError: if JSON can't hold the metadata.
    """
    header = {
        "run": run,
        "function": function,
        "name": name,
        "step": step,
        "epoch": epoch,
        "batch": batch,
        "time": _now(),
        "checkpoint": checkpoint,
        "fingerprint": fingerprint,
        "values": {key: plain(value) for key, value in values.items()},
        "scalars": {key: plain(value) for key, value in scalars.items()},
        "stale": {key: plain(value) for key, value in stale.items()},
        "metadata": dict(metadata),
    }
    _append(path, encoded("validation", header, digests, documents, label_totals))


def write_checkpoint(
    path: str | os.PathLike[str],
    *,
    run: str,
    checkpoint: str,
    step: int | None,
    batch: int | None = None,
    monitor: str | None = None,
) -> None:
    """A checkpoint was written: its path is that of the run's records of this step.

    Args:
        path: the file, as in :func:`write_start`.
        run: the id of the run.
        checkpoint: the path of the checkpoint.
        step: steps of the optimizers until then.
        batch: batches of training until then.
        monitor: the name of the value that it was chosen by.

    Raises:
        OSError: if the file can't be written.
    """
    header = {"run": run, "step": step, "batch": batch, "time": _now(), "path": checkpoint}
    _append(path, encoded("checkpoint", {**header, "monitor": monitor}, _NOTHING, _NOTHING))


def copy_run(source: Path, target: Path, run: str) -> None:
    """Append all lines of a run in one file to another one.

    Raises:
        OSError: if one can't be read, or the other not be written.
    """
    with source.open("rb") as file:
        for line in file:
            header = header_of(line)
            if header is not None and header.values.get("run") == run:
                _append(target, line.rstrip(b"\n") + b"\n")


def _append(path: str | os.PathLike[str], line: bytes) -> None:
    path = os.path.expanduser(path)
    folder = os.path.dirname(path)
    if folder:
        os.makedirs(folder, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
    try:
        if os.lseek(file, 0, os.SEEK_END):
            os.lseek(file, -1, os.SEEK_END)
            if os.read(file, 1) != b"\n":
                line = b"\n" + line  # after one that is torn
        written = os.write(file, line)
        while written < len(line):  # a full disk takes a part, and raises at the next
            line = line[written:]
            written = os.write(file, line)
    finally:
        os.close(file)


def _now() -> float:
    return round(time.time(), 3)
