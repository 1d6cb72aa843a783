"""Several processes that score together: started here on one machine, or by torchrun or SLURM on many.

``python -m lightning_pce.scoring.processes`` is one of those that :func:`run_on` starts.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from lightning_pce._errors import UserError

_T = TypeVar("_T")
_MEETING = timedelta(minutes=10)  # for all to be there
_WORKING = timedelta(days=1)  # for the slowest to have done its share
_ENDING = 5.0  # seconds that a process has to end by itself
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
            f"{names[0]}={env.get(names[0])} and {names[1]}={env.get(names[1])} in the environment do not say "
            "which process this is: unset both, or start it by torchrun."
        ) from error
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not env.get(name)]
    if world > 1 and missing:
        raise UserError(
            f"{world} processes were started but {' and '.join(missing)} not set, so they cannot meet: export "
            'MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)" MASTER_PORT=29500'
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
        raise UserError(f"Another of the processes has ended ({said}). {_RESUME}.") from error


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
                "torch.distributed is in use in this process: score in one of its own, as the command line does."
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
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(devices):
            processes.append(_started(rank, devices, port, arguments))
        _wait_for(processes)
        results = [json.loads(process.stdout.read()) for process in processes if process.stdout is not None]
    finally:
        _end(processes)
    keys: list[str] = results[0]
    return keys


def _started(rank: int, world: int, port: int, arguments: Mapping[str, Any]) -> subprocess.Popen[bytes]:
    place = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "MASTER_PORT": port}
    environment = {
        **os.environ,
        **{name: str(value) for name, value in place.items()},
        "MASTER_ADDR": "127.0.0.1",
        # An installed package is found anyway; one that was put on sys.path is not.
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    command = [sys.executable, "-m", "lightning_pce.scoring.processes"]
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    # The pipe stays open: its end tells the process that this one is no more.
    process.stdin.write(json.dumps(dict(arguments)).encode() + b"\n")
    process.stdin.flush()
    return process


def _wait_for(processes: list[subprocess.Popen[bytes]]) -> None:
    """Wait until all have ended well, or raise what the first says that has not."""
    while any(process.poll() is None for process in processes):
        if any(process.poll() for process in processes):
            break
        time.sleep(0.05)
    codes = [process.poll() for process in processes]
    if not any(codes):
        return
    # What the others say then is that this one has ended.
    rank = next(number for number, code in enumerate(codes) if code)
    stdout = processes[rank].stdout
    said = b"" if stdout is None else stdout.read()
    if said:
        raise UserError(json.loads(said)["error"])
    code = codes[rank]
    how = f"was ended by signal {-code}" if code is not None and code < 0 else f"has ended with status {code}"
    raise UserError(f"Process {rank} of {len(processes)} {how}. {_RESUME}.")


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        try:
            process.wait(_ENDING)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


def _work() -> int:
    from lightning_pce.scoring.evaluate import evaluate

    arguments = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    stdout = os.fdopen(os.dup(1), "w")  # for our answer alone, whatever a library prints
    os.dup2(2, 1)
    try:
        json.dump(evaluate(**arguments), stdout)
    except UserError as error:
        json.dump({"error": str(error)}, stdout)
        return 2
    except KeyboardInterrupt:
        return 130  # the one that has started this one says it
    finally:
        stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(_work())
