"""Run a function as the ranks of one gloo group, never wait for ever, and count its collectives."""

from __future__ import annotations

import datetime
import faulthandler
import os
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

# One server imports torch and lightning once, 4 seconds, and every rank is a fork of it.
_CONTEXT = mp.get_context("forkserver" if "forkserver" in mp.get_all_start_methods() else "spawn")
_CONTEXT.set_forkserver_preload(["torch", "lightning_pce", "pytest"])


def run_ranks(function, world_size, *args, timeout=60.0):
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
