"""Lines go to the end of a file, each by one call of the operating system, and none is ever changed.

So of a process that is killed at most its last line is torn, and several processes may write to one file.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_pce.runs._headers import header_of, plain

# As in _records: looking through a history needs no torch.
if TYPE_CHECKING:
    from torch import Tensor

    from lightning_pce.runs._lines import Contents, Tensors
    from lightning_pce.runs.document_totals import DocumentTotals
    from lightning_pce.runs.tail import TailToken

_NOTHING: Mapping[Any, Any] = {}


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
    _append(path, _line("start", {**header, "time": _now()}))


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
    how: Mapping[str, Any] = _NOTHING,
    digests: Tensors = _NOTHING,
    documents: Tensors = _NOTHING,
    label_totals: Mapping[str, Tensor] = _NOTHING,
    label_texts: Mapping[int, str] = _NOTHING,
    document_totals: DocumentTotals | None = None,
    tail: Sequence[TailToken] = (),
) -> None:
    """One validation of one dataloader; see :class:`~lightning_pce.runs.history.Record`.

    Args:
        path: the file, as in :func:`write_start`.
        run: the id of the run.
        name: what logged names begin with, such as ``"val"``.
        step: steps of the optimizers until then; None: not known.
        function: ``"fit"``, ``"validate"``, ``"evaluate"``, ``"score"`` or ``"import"``.
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
            kept of labels that have tokens.
        how: how it was scored, what JSON can hold.
        label_texts: the texts of labels that have totals.
        document_totals: what each document has cost.
        tail: the tokens of highest cross-entropy.

    Raises:
        OSError: if the file can't be written.
        ValueError: if JSON can't hold the metadata.
    """
    from lightning_pce.runs._lines import Contents

    line = validation_line(
        run=run,
        name=name,
        step=step,
        function=function,
        epoch=epoch,
        batch=batch,
        time=_now(),
        values=values,
        scalars=scalars,
        stale=stale,
        fingerprint=fingerprint,
        metadata=metadata,
        checkpoint=checkpoint,
        how=how,
        contents=Contents(digests, documents, label_totals, label_texts, document_totals, tail),
    )
    _append(path, line)


def validation_line(
    *,
    run: str,
    name: str,
    step: int | None,
    function: str,
    contents: Contents,
    epoch: int | None = None,
    batch: int | None = None,
    time: float | None = None,
    values: Mapping[str, float] = _NOTHING,
    scalars: Mapping[str, float] = _NOTHING,
    stale: Mapping[str, float] = _NOTHING,
    fingerprint: str | None = None,
    metadata: Mapping[str, Any] = _NOTHING,
    checkpoint: str | None = None,
    how: Mapping[str, Any] = _NOTHING,
) -> bytes:
    """The line that :func:`write_validation` appends, with ``time`` in seconds since 1970, if it has one.

    Equal arguments give equal bytes.
    """
    header = {
        "run": run,
        "function": function,
        "name": name,
        "step": step,
        "epoch": epoch,
        "batch": batch,
        **({} if time is None else {"time": time}),
        "checkpoint": checkpoint,
        "fingerprint": fingerprint,
        "values": {key: plain(value) for key, value in values.items()},
        "scalars": {key: plain(value) for key, value in scalars.items()},
        "stale": {key: plain(value) for key, value in stale.items()},
        "metadata": dict(metadata),
        **({"how": dict(how)} if how else {}),
    }
    return _line("validation", header, contents)


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

    Example:
        >>> import tempfile
        >>> from lightning_pce.runs.history import History, write_checkpoint, write_start, write_validation
        >>> path = tempfile.mkdtemp() + "/history.jsonl"
        >>> write_start(path, run="a", step=0, batch=0)
        >>> write_validation(path, run="a", name="val", step=100, values={"ce_p50": 1.5})
        >>> write_checkpoint(path, run="a", checkpoint="step-100.ckpt", step=100, monitor="val_ce_p50")
        >>> History.load(path)[0].checkpoints
        (Checkpoint(path='step-100.ckpt', monitor='val_ce_p50', deleted=True),)
    """
    header = {"run": run, "step": step, "batch": batch, "time": _now(), "path": checkpoint}
    _append(path, _line("checkpoint", {**header, "monitor": monitor}))


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


def _line(kind: str, header: Mapping[str, Any], contents: Contents | None = None) -> bytes:
    from lightning_pce.runs._lines import Contents, encoded

    return encoded(kind, header, Contents() if contents is None else contents)


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
