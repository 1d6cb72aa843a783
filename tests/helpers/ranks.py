"""Run a function or a module as several ranks, never wait for ever, and count collectives.

``run_function_on_ranks`` makes the ranks of one gloo group by itself: for metrics. ``run_module_on_ranks``
starts ``python -m MODULE`` twice, as ``torchrun`` would: for Trainers, which make their process group.
"""

import datetime
import faulthandler
import fcntl
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

COLLECTIVES = [
    "all_gather",
    "all_gather_coalesced",
    "all_gather_into_tensor",
    "all_gather_object",
    "all_reduce",
    "all_to_all",
    "barrier",
    "broadcast",
    "broadcast_object_list",
    "gather",
    "gather_object",
    "monitored_barrier",
    "recv",
    "reduce",
    "reduce_scatter",
    "scatter",
    "send",
]
_DUMP_BEFORE_DEADLINE = 2.0
ROOT = Path(__file__).parents[2]
WORLD, SCENARIO_SECONDS = 2, 45  # of run_module_on_ranks

# One server imports what the tests of metrics import, 5 seconds, and every rank is a fork of it.
_CONTEXT = mp.get_context("forkserver" if "forkserver" in mp.get_all_start_methods() else "spawn")
_CONTEXT.set_forkserver_preload(["pytest", "torch._dynamo.testing", "torchmetrics", "lightning_pce.metrics"])


def run_function_on_ranks(function, world_size, *args, timeout=60.0):
    """What ``function(rank, world_size, *args)`` returned, by rank; ``function`` must live in a module.

    If a rank fails, or not all are done within ``timeout`` seconds, all are killed and an ``AssertionError``
    shows their tracebacks or the stacks of their threads.
    """
    deadline = time.time() + timeout
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            _CONTEXT.Process(
                target=_rank, args=(function, rank, world_size, folder, deadline, args), daemon=True
            )
            for rank in range(world_size)
        ]
        try:
            for process in ranks:
                process.start()
            while any(p.exitcode is None for p in ranks) and not any(p.exitcode for p in ranks):
                if time.time() > deadline:
                    raise AssertionError(f"not done after {timeout:g} s\n{_logs(folder, world_size)}")
                time.sleep(0.02)
            codes = [process.exitcode for process in ranks]
            if any(codes):
                raise AssertionError(f"exit codes {codes}\n{_logs(folder, world_size)}")
        finally:
            for process in ranks:
                if process.pid is not None:
                    process.kill()
                    process.join()
        return [torch.load(Path(folder, f"{rank}.pt")) for rank in range(world_size)]


def _logs(folder, world_size):
    logs = (Path(folder, f"{rank}.log") for rank in range(world_size))
    return "\n".join(
        f"--- rank {log.stem}\n{log.read_text() if log.exists() else 'not started'}" for log in logs
    )


def _rank(function, rank, world_size, folder, deadline, args):
    left = max(deadline - time.time(), _DUMP_BEFORE_DEADLINE + 0.1)
    with Path(folder, f"{rank}.log").open("w") as log:
        faulthandler.dump_traceback_later(left - _DUMP_BEFORE_DEADLINE, file=log)
        try:
            torch.set_num_threads(1)
            dist.init_process_group(
                "gloo",
                init_method=f"file://{folder}/rendezvous",
                rank=rank,
                world_size=world_size,
                timeout=datetime.timedelta(seconds=left),
            )
            result = function(rank, world_size, *args)
            torch.save(result, Path(folder, f"{rank}.pt"))
            dist.barrier()
            dist.destroy_process_group()
        except BaseException:
            traceback.print_exc(file=log)
            log.flush()
            os._exit(1)
        finally:
            faulthandler.cancel_dump_traceback_later()


def run_module_on_ranks(directory, module, *arguments, seconds=240):
    """The notes of both ranks of ``python -m module directory *arguments``, whose last call is ``note_all``.

    They run once for all pytest workers that ask. A scenario that hangs ends its process with the stacks of
    all threads, and this function ends the other.
    """
    directory.mkdir(exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (directory / "done").exists():
            _start_and_wait(directory, ["-m", module, str(directory), *arguments], seconds)
            (directory / "done").touch()
    return [_Notes(directory, rank) for rank in range(WORLD)]


class _Notes(dict):
    """Results by scenario; a missing one fails with the stacks of its rank."""

    def __init__(self, directory, rank):
        path = directory / f"rank{rank}.json"
        super().__init__(json.loads(path.read_text()) if path.exists() else {})
        self.rank, self.stderr = rank, (directory / f"rank{rank}.err").read_text()

    def __missing__(self, scenario):
        raise AssertionError(
            f"rank {self.rank} did not finish {scenario!r}, only {list(self)}:\n{self.stderr[-6000:]}"
        )


def _start_and_wait(directory, command, seconds):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(WORLD):
        environment = {
            **os.environ,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "NODE_RANK": "0",
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(WORLD),
            "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "default",
        }
        with (directory / f"rank{rank}.err").open("w") as stderr:
            python = [sys.executable, *command]
            processes.append(
                subprocess.Popen(python, env=environment, cwd=ROOT, stdout=stderr, stderr=stderr)
            )
    deadline = time.monotonic() + seconds
    try:
        while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
            if any(process.poll() for process in processes):
                deadline = min(deadline, time.monotonic() + 5)  # the other waits for one that is dead
            time.sleep(0.05)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()


def note_all(scenarios):
    """Run scenarios, functions by name, as one of the two ranks, and note what each returns."""
    torch.set_num_threads(1)
    notes = {}
    for name, scenario in scenarios.items():
        faulthandler.dump_traceback_later(SCENARIO_SECONDS, exit=True)
        print(f"=== {name}", file=sys.stderr, flush=True)
        notes[name] = scenario()  # an unforeseen error ends this rank, and run_module_on_ranks the other
        (Path(sys.argv[1]) / f"rank{os.environ['RANK']}.json").write_text(json.dumps(notes))
    faulthandler.cancel_dump_traceback_later()


@contextmanager
def counted_collectives():
    """A list to which every collective of this process adds its name."""
    calls = []
    originals = {name: getattr(dist, name) for name in COLLECTIVES}

    def counting(name, original):
        def call(*args, **kwargs):
            calls.append(name)
            return original(*args, **kwargs)

        return call

    for name, original in originals.items():
        setattr(dist, name, counting(name, original))
    try:
        yield calls
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)
