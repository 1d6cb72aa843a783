"""The models of the study in processes of their own: which results there are, and what a process needs."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import resumable
from proxy_study_parts import text
from proxy_study_parts.examiner import Examiner
from proxy_study_parts.population import SEED, Unit
from proxy_study_parts.training import run_unit

DECIDES = ("examiner", "models", "population", "tasks", "text", "training")  # the results of a unit
_WORKER: dict[str, Any] = {}


def results(units: list[Unit], out: Path, packages: Path | None, processes: int) -> dict[str, dict[str, Any]]:
    """The results of each unit by its name. Killed and called again it goes on with what is not there yet.

    ``packages`` is the folder of the texts' packages; None: the text that comes with Python.
    """
    files = [resumable.Unit(_path(out, unit), _settings(unit, packages is None)) for unit in units]
    if packages is not None and any(resumable.read(file) is None for file in files):
        text.corpora(packages)  # downloads what is missing, once
    found = resumable.results(files, _work, processes, start=_start, arguments=(packages, units))
    return {unit.name: result for unit, result in zip(units, found, strict=True)}


def _settings(unit: Unit, quick: bool) -> dict[str, Any]:
    """What decides a unit's results; other settings, or other code, make another result."""
    sources = [Path(__file__).with_name(f"{name}.py").read_bytes() for name in DECIDES]
    code = hashlib.sha256(b"".join(sources).replace(b"\r\n", b"\n")).hexdigest()[:16]
    plain = unit._asdict() | {"mix": unit.mix._asdict(), "checkpoints": list(unit.checkpoints)}
    return plain | {"seed": SEED, "code": code, "quick": quick}


def _path(out: Path, unit: Unit) -> Path:
    return out / "units" / (re.sub(r"[^a-z0-9]+", "_", unit.name.lower()) + ".json")


def _start(packages: Path | None, units: list[Unit]) -> None:
    """Once in each process: the texts, what is asked of every model, and the models themselves."""
    corpora = text.quick_corpora() if packages is None else text.corpora(packages)
    by_name = {unit.name: unit for unit in units}
    _WORKER.update(corpora=corpora, examiner=Examiner(corpora, SEED), units=by_name)


def _work(file: resumable.Unit) -> dict[str, Any]:
    unit = _WORKER["units"][file.settings["name"]]
    return run_unit(unit, _WORKER["corpora"], _WORKER["examiner"])
