"""Which records are of one training: those of a run, or scored checkpoints whose names differ by the step."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lightning_pce.runs._records import SCORED, Record

# epoch=3-step=100-val_loss=2.31.ckpt: what Lightning writes behind a name.
_WRITTEN = re.compile(r"(?<==)[-+.\d]+(?:e[-+]?\d+)?(?=-|\.ckpt$|$)", re.IGNORECASE)
_VERSION = re.compile(r"-v\d+(?=\.ckpt$)")
_EPOCH = re.compile(r"(?<![a-z])(epoch[-_]?)\d+", re.IGNORECASE)


def trainings_of(records: Sequence[Record]) -> list[str]:
    """What training each record is of: the id of its run, or the names of its checkpoints, ``#`` the step.

    A checkpoint whose name has no number, ``last.ckpt``, is of the one training in its folder.

    Example:
        >>> from lightning_pce.runs._records import Saved
        >>> paths = {"out/checkpoint-500": 500, "out/checkpoint-1000": 1000, "out/last": 1500}
        >>> saved = {step: (Saved(path, None, step, None),) for path, step in paths.items()}
        >>> trainings_of([Record(f"key {k}", "score", "web", step=k, saved=saved[k]) for k in saved])
        ['out/checkpoint-#', 'out/checkpoint-#', 'out/checkpoint-#']
    """
    found = [_pattern(record) for record in records]
    in_folder: dict[str, set[str]] = {}
    for name in found:
        if "#" in name:
            in_folder.setdefault(_folder(name), set()).add(name)
    joined = []
    for record, name in zip(records, found, strict=True):
        others = in_folder.get(_folder(name), set()) if record.function in SCORED and record.saved else set()
        joined.append(next(iter(others)) if "#" not in name and len(others) == 1 else name)
    return joined


def _pattern(record: Record) -> str:
    if record.function not in SCORED or not record.saved:
        return record.run
    name = record.saved[0].path.replace("\\", "/").rstrip("/")
    if "@" in name.rpartition("/")[2]:  # owner/name@revision
        name, _, revision = name.rpartition("@")
        return f"{name}@{_without_step(revision, record.step)}"
    folder, slash, last = name.rpartition("/")
    kept = _without_step(last, record.step)
    # 100/model and 200/model; but seed1/checkpoint-1 and seed2/checkpoint-2 are of two.
    return f"{folder if kept != last else _without_step(folder, record.step)}{slash}{kept}"


def _without_step(text: str, step: int | None) -> str:
    text = _EPOCH.sub(r"\1#", _WRITTEN.sub("#", _VERSION.sub("", text)))
    return text if step is None else re.sub(rf"(?<![\d.])0*{step}(?![\d.]\d|\d)", "#", text)


def _folder(name: str) -> str:
    return name.rpartition("/")[0]
