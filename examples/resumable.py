"""Units of work in processes of one thread; the result of each is one file, and what is there is kept."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock, Timeout  # torch needs it, so that it is there

REDONE = ("recipe", "code")  # settings of which another value makes a result void


class Unit(NamedTuple):
    """One unit: its settings decide its result, other settings make another one."""

    path: Path
    settings: dict[str, Any]
    """What JSON gives back as it was, with a ``name``."""


def results(
    units: Sequence[Unit],
    work: Callable[[Unit], dict[str, Any]],
    processes: int,
    *,
    start: Callable[..., None] | None = None,
    arguments: tuple[Any, ...] = (),
) -> list[dict[str, Any]]:
    """The result of each unit. Killed and called again it goes on with what is not there yet.

    A result of another recipe or code is made again. One that differs in other settings is not overwritten:
    it may have taken hours.

    Args:
        units: their paths differ.
        work: makes a result, which JSON can hold; it and ``start`` are functions of a module.
        processes: of one thread each.
        start: called once in each process.
        arguments: of ``start``.

    Raises:
        SystemExit: if a file holds a unit of other settings, a process was killed, or another one does units
            of the same folder.
    """
    for unit in units:
        _check_place(unit)
    if any(read(unit) is None for unit in units):
        with contextlib.ExitStack() as locks:
            for folder in sorted({unit.path.parent for unit in units}):
                locks.enter_context(_alone_in(folder))
            _make(units, work, processes, start, arguments)
    found = [read(unit) for unit in units]
    return [result for result in found if result is not None]


def _make(
    units: Sequence[Unit],
    work: Callable[[Unit], dict[str, Any]],
    processes: int,
    start: Callable[..., None] | None,
    arguments: tuple[Any, ...],
) -> None:
    """What is missing."""
    missing = [unit for unit in units if read(unit) is None]
    if missing:
        print(f"{len(missing)} of {len(units)} units to do, in {processes} processes", flush=True)
        begin = time.monotonic()
        # Not forked: threads of torch do not survive a fork.
        context = multiprocessing.get_context("spawn")
        workers = min(processes, len(missing))
        with ProcessPoolExecutor(workers, context, _start, (start, arguments)) as pool:
            jobs = [pool.submit(_work, work, unit) for unit in missing]
            try:
                for number, job in enumerate(as_completed(jobs), start=1):
                    print(f"{number:>3} {time.monotonic() - begin:6.0f} s  {job.result()}", flush=True)
            except BrokenProcessPool:
                # multiprocessing's own Pool would wait for ever for what the process was doing.
                raise SystemExit(
                    f"One of {workers} processes ended in the middle of a unit. Without an error above it "
                    "was killed, perhaps for lack of memory. What is done is kept: call again, or with fewer."
                ) from None
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # those that have begun still end
                raise


def check_made_by(units: Sequence[Unit], **made_by: Any) -> None:
    """Before hours are spent: would all results be made by the same, as far as these fields of them say?

    Args:
        units: of a study, done or not.
        made_by: fields of each result, such as ``versions`` and ``precision``, as this process would write
            them. If nothing is missing, it writes none, and the results are compared with each other.

    Raises:
        SystemExit: if a result has another value.
    """
    done = [(unit, result) for unit in units if (result := read(unit)) is not None]
    if not done:
        return
    where, expected = "here", made_by
    if len(done) == len(units):
        where, expected = f"in {done[0][0].path.name}", {name: done[0][1].get(name) for name in made_by}
    for unit, result in done:
        differ = [
            f"{name} is {there!r} there and {other!r} {where}"
            for field, value in expected.items()
            for name, there, other in _differences(field, result.get(field), value)
        ]
        if differ:
            raise SystemExit(
                f"{unit.path} was made otherwise: {'; '.join(differ)}. Such results are not mixed: go on "
                "with what it was made with, choose another folder with --out, or delete one kind."
            )


def _differences(name: str, there: Any, other: Any) -> Iterator[tuple[str, Any, Any]]:
    """Values that are not the same; of two objects, those of their fields."""
    if isinstance(there, dict) and isinstance(other, dict):
        for key in {**there, **other}:
            yield from _differences(f"{name}.{key}", there.get(key), other.get(key))
    elif there != other:
        yield name, there, other


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Two processes would write the same files. The system's own lock, which ends with whoever holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise SystemExit(
            f"Another process does units in {folder}. Wait until it has ended, or choose another folder with "
            "--out."
        ) from None
    try:
        yield
    finally:
        lock.release()


def read(unit: Unit) -> dict[str, Any] | None:
    """The result of a unit, or None if there is none of these settings."""
    if not unit.path.exists():
        return None
    content: dict[str, Any] = json.loads(unit.path.read_text(encoding="utf-8"))
    return content if content["settings"] == unit.settings else None


def _check_place(unit: Unit) -> None:
    if not unit.path.exists():
        return
    old, new = json.loads(unit.path.read_text(encoding="utf-8"))["settings"], unit.settings
    others = [
        f"{name} is {old.get(name)!r} there and {new.get(name)!r} here"
        for name in sorted({*old, *new})
        if name not in REDONE and old.get(name) != new.get(name)
    ]
    if others:
        raise SystemExit(
            f"{unit.path} holds the result of other settings: {'; '.join(others)}. It is kept. Choose "
            "another folder with --out, or delete it."
        )


def write_json(path: Path, content: Any) -> None:
    with whole(path) as part:
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8", newline="\n")


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write to; in the end the file is at ``path``, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _start(start: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    if start is not None:
        start(*arguments)


def _end_with(sentinel: int) -> None:
    """A pool whose parent was killed would wait for work for ever."""
    wait([sentinel])
    os._exit(1)


def _work(work: Callable[[Unit], dict[str, Any]], unit: Unit) -> str:
    write_json(unit.path, {"settings": unit.settings, **work(unit)})
    return str(unit.settings["name"])
