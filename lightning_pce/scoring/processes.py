"""Several processes that score together: started here on one machine, or by torchrun or SLURM on many."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from lightning_pce._errors import UserError

_T = TypeVar("_T")
_MEETING = timedelta(minutes=10)  # for all to be there
_WORKING = timedelta(days=1)  # for the slowest to have done its share
_ENDING = 5.0  # seconds that a process has to end by itself
_OTHER = "Another of the processes has ended"
_RESUME = "What is finished is kept: run the same command again to go on"


@dataclass(frozen=True)
class Place:
    """Which of several processes this one is, as who started it says in the environment."""

    rank: int = 0
    world: int = 1
    local: int = 0


def place_here(environment: Mapping[str, str] | None = None) -> Place:
    """This process among those that torchrun or SLURM has started; alone if neither has.

    Raises:
        UserError: if the environment says half of it.
    """
    env = os.environ if environment is None else environment
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if "WORLD_SIZE" not in env and int(env.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        # Not SLURM_NTASKS, which a batch script has too that runs one process.
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    elif "RANK" not in env and "WORLD_SIZE" not in env:
        return Place()
    try:
        rank, world = int(env[names[0]]), int(env[names[1]])
        place = Place(rank, world, int(env.get(names[2], rank)))
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{names[0]}={env.get(names[0])} and {names[1]}={env.get(names[1])} in the environment do not "
            "say which process this is: unset both, or start it by torchrun."
        ) from error
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not env.get(name)]
    if world > 1 and missing:
        raise UserError(
            f"{world} processes were started but {' and '.join(missing)} not set, so they cannot meet: "
            'export MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)" and '
            "MASTER_PORT=29500"
        )
    return place


class Together:
    """This process and the others.

    Args:
        place: which this one is.
        group: of torch.distributed; None: it is alone.
    """

    def __init__(self, place: Place, group: Any = None) -> None:
        self.place, self._group = place, group

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes records."""
        return self.place.rank == 0

    def meet(self) -> None:
        """Wait for all.

        Raises:
            UserError: if one of them has ended.
        """
        if self._group is not None:
            import torch.distributed as dist

            _met(lambda: dist.barrier(group=self._group))

    def of_first(self, make: Callable[[], _T]) -> _T:
        """What the first process makes, in all of them.

        Raises:
            UserError: that the first raises, or if one of them has ended.
        """
        if self._group is None:
            return make()
        import torch.distributed as dist

        found: list[Any] = [None, None]
        if self.is_first:
            try:
                found[0] = make()
            except UserError as error:  # for all, else the others would wait
                found[1] = str(error)
        _met(lambda: dist.broadcast_object_list(found, src=0, group=self._group))
        if found[1] is not None:
            raise UserError(found[1])
        made: _T = found[0]
        return made


def _met(wait: Callable[[], object]) -> None:
    try:
        wait()
    except RuntimeError as error:  # of gloo, whose connection has ended or whose time is over
        said = " ".join(str(error).split())[-160:]
        raise UserError(f"{_OTHER} ({said}). {_RESUME}.") from error


@contextmanager
def together(place: Place) -> Iterator[Together]:
    """Meet the other processes, if there are any."""
    if place.world == 1:
        yield Together(place)
        return
    import torch.distributed as dist

    try:
        if dist.is_initialized():
            raise UserError(
                "torch.distributed is in use in this process: score in one of its own, as the command line "
                "does."
            )
        _met(
            lambda: dist.init_process_group(
                "gloo", rank=place.rank, world_size=place.world, timeout=_MEETING, init_method="env://"
            )
        )
        yield Together(place, dist.new_group(backend="gloo", timeout=_WORKING))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def run_on(devices: int, arguments: Mapping[str, Any]) -> list[str]:
    """Let so many new processes evaluate together, and give what they give.

    Args:
        devices: how many.
        arguments: of :func:`~lightning_pce.scoring.evaluate.evaluate`, what JSON can hold.

    Raises:
        UserError: that one of them raises, or if one has been ended.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes: list[_Process] = []
    try:
        for rank in range(devices):  # if one can't be started, those before it are ended
            processes += [_Process(rank, devices, port, arguments)]
        while any(each.code is None for each in processes) and not any(each.code for each in processes):
            time.sleep(0.05)
        deadline = time.monotonic() + _ENDING
        while any(each.code is None for each in processes) and time.monotonic() < deadline:
            time.sleep(0.05)
        # What the others say, once one has failed, is that it has ended: that comes last.
        failed = [each for each in processes if each.code]
        for each in sorted(failed, key=lambda each: _OTHER.encode() in each.answer()):
            each.fail(devices)
        keys: list[str] = json.loads(processes[0].answer())
        return keys
    finally:
        for each in processes:
            each.ask_to_end()
        for each in processes:
            each.end()


class _Process:
    """One that evaluates for this one."""

    def __init__(self, rank: int, world: int, port: int, arguments: Mapping[str, Any]) -> None:
        self.rank, self._said = rank, b""
        place = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "MASTER_PORT": port}
        environment = {
            **os.environ,
            **{name: str(value) for name, value in place.items()},
            "MASTER_ADDR": "127.0.0.1",
            # An installed package is found anyway; one that was put on sys.path is not.
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }
        command = [sys.executable, "-m", "lightning_pce.scoring.one_of_several"]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(  # noqa: S603 - the command is ours, no word of it is the user's
            command,
            env=environment,
            stdin=pipe,
            stdout=pipe,
            # A Ctrl-C is for this process, which ends the others.
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        assert self._process.stdin is not None
        # The pipe stays open: its end tells the process that this one is no more.
        with suppress(BrokenPipeError):  # it has ended already
            self._process.stdin.write(json.dumps(dict(arguments)).encode() + b"\n")
            self._process.stdin.flush()

    @property
    def code(self) -> int | None:
        """Its exit status, None while it runs."""
        return self._process.poll()

    def answer(self) -> bytes:
        """What it has said, once it has ended."""
        self._reader.join()
        return self._said

    def fail(self, world: int) -> None:
        """Raise what it has ended with."""
        code, said = self.code, self.answer()
        if said:
            raise UserError(json.loads(said)["error"])
        if code == 1:
            raise RuntimeError(f"Process {self.rank} of {world} has failed: its traceback stands above.")
        how = f"was ended by signal {-code}" if code and code < 0 else f"has ended with status {code}"
        raise UserError(f"Process {self.rank} of {world} {how}. {_RESUME}.")

    def ask_to_end(self) -> None:
        """Let it end if it runs."""
        if self.code is None:
            self._process.terminate()

    def end(self) -> None:
        """Wait for its end, and not for long."""
        try:
            self._process.wait(_ENDING)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        self._said = self._process.stdout.read()
