"""Units of work in processes of one thread; the results of each are one file, and what is there is kept."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import threading
import time
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch

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
    settings = {unit.name: _settings(unit, packages is None) for unit in units}
    found = {unit.name: _read(_path(out, unit), settings[unit.name]) for unit in units}
    missing = [unit for unit in units if found[unit.name] is None]
    if missing:
        if packages is not None:
            text.corpora(packages)  # downloads what is missing, once
        print(f"{len(missing)} of {len(units)} models to train, in {processes} processes", flush=True)
        begin = time.monotonic()
        # Not forked: threads of torch do not survive a fork.
        context = multiprocessing.get_context("spawn")
        with context.Pool(processes, _start, (packages,)) as pool:
            jobs = [(unit, settings[unit.name], _path(out, unit)) for unit in missing]
            for number, name in enumerate(pool.imap_unordered(_work, jobs), start=1):
                print(f"{number:>3} {time.monotonic() - begin:6.0f} s  {name}", flush=True)
        found |= {unit.name: _read(_path(out, unit), settings[unit.name]) for unit in missing}
    return {name: result for name, result in found.items() if result is not None}


def write_json(path: Path, content: Any) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8", newline="\n")
    os.replace(part, path)


def _settings(unit: Unit, quick: bool) -> dict[str, Any]:
    """What decides a unit's results; other settings, or other code, make another result."""
    sources = [Path(__file__).with_name(f"{name}.py").read_bytes() for name in DECIDES]
    code = hashlib.sha256(b"".join(sources).replace(b"\r\n", b"\n")).hexdigest()[:16]
    plain = unit._asdict() | {"mix": unit.mix._asdict(), "checkpoints": list(unit.checkpoints)}
    return plain | {"seed": SEED, "code": code, "quick": quick}


def _path(out: Path, unit: Unit) -> Path:
    return out / "units" / (re.sub(r"[^a-z0-9]+", "_", unit.name.lower()) + ".json")


def _read(path: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    if not path.exists():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    return content if content["settings"] == settings else None


def _start(packages: Path | None) -> None:
    """Once in each process: one thread, the texts, and an end with the process that started it."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    corpora = text.quick_corpora() if packages is None else text.corpora(packages)
    _WORKER.update(corpora=corpora, examiner=Examiner(corpora, SEED))


def _end_with(sentinel: int) -> None:
    """A pool whose parent was killed would wait for work for ever."""
    wait([sentinel])
    os._exit(1)


def _work(job: tuple[Unit, dict[str, Any], Path]) -> str:
    unit, settings, path = job
    result = run_unit(unit, _WORKER["corpora"], _WORKER["examiner"])
    write_json(path, {"settings": settings, **result})
    return unit.name
