"""All token statistics beside the mean loss that people compute today: time and memory.

    python benchmarks/token_statistics.py --out benchmarks/token_statistics.json     # 2 threads, 3 minutes
    python benchmarks/token_statistics.py --busy 4 --repeats 5    # beside four processes that do nothing else
    python benchmarks/token_statistics.py --device cuda --tokens 8192 --vocabulary 128256

Everything that is compared is interleaved in one run, and a figure is the median of the repeats: compare
ratios, not the figures of two runs. Memory is the growth of the process's peak (VmHWM), on CUDA of the
allocator's, during one call in a child process of its own that has made a small call before.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_pce import linear_token_statistics, token_statistics

Job = Callable[[], Any]
WIDTH = 512  # of the hidden states in the comparison from hidden states


def naive(logits: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """Every statistic by the formula one would write down."""
    log_p = logits.float().log_softmax(-1)
    own = logits.gather(-1, labels[:, None])
    p = log_p.exp()
    before = torch.arange(logits.shape[-1], device=logits.device) < labels[:, None]
    rank = 1 + (logits > own).sum(-1) + ((logits == own) & before).sum(-1)
    return F.nll_loss(log_p, labels, reduction="none"), -(p * log_p).sum(-1), p.amax(-1), rank


def perplexity(logits: Tensor, labels: Tensor) -> Any:
    from torchmetrics.text import Perplexity

    metric = Perplexity().to(logits.device)
    metric.update(logits[None], labels[None])
    return metric


def liger(logits: Tensor, labels: Tensor) -> Tensor:
    from liger_kernel.transformers.functional import liger_cross_entropy

    return liger_cross_entropy(logits, labels, reduction="none")


def apple(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy

    return linear_cross_entropy(hidden, head, labels, reduction="none")


def from_logits(logits: Tensor, labels: Tensor) -> dict[str, Job]:
    """Jobs on the same logits; the first is what all are compared with."""
    backends = ["eager", "compile", *(["triton"] if logits.is_cuda else [])]
    jobs: dict[str, Job] = {
        "F.cross_entropy(x.float())": lambda: F.cross_entropy(logits.float(), labels, reduction="none"),
        "F.cross_entropy(x)": lambda: F.cross_entropy(logits, labels, reduction="none"),
        "torchmetrics Perplexity": lambda: perplexity(logits, labels),
        "naive formulas": lambda: naive(logits, labels),
    }
    if logits.is_cuda and find_spec("liger_kernel"):
        jobs["Liger cross-entropy"] = lambda: liger(logits, labels)
    for backend in backends:
        jobs[f"ours, {backend}, all"] = lambda backend=backend: token_statistics(
            logits, labels, backend=backend
        )
        jobs[f"ours, {backend}, ce"] = lambda backend=backend: token_statistics(
            logits, labels, statistics=("ce",), backend=backend
        )
    return jobs


def from_hidden(hidden: Tensor, head: Tensor, labels: Tensor) -> dict[str, Job]:
    """Jobs on hidden states and an output layer."""
    jobs: dict[str, Job] = {
        "F.cross_entropy(h @ W.T)": lambda: F.cross_entropy(
            F.linear(hidden, head).float(), labels, reduction="none"
        )
    }
    if hasattr(F, "linear_cross_entropy"):
        jobs["F.linear_cross_entropy"] = lambda: F.linear_cross_entropy(
            hidden, head, labels, reduction="none"
        )
    if hidden.is_cuda and find_spec("cut_cross_entropy"):
        jobs["cut-cross-entropy"] = lambda: apple(hidden, head, labels)
    for backend in ["eager", "compile", *(["triton"] if hidden.is_cuda else [])]:
        jobs[f"ours, {backend}, all from hidden states"] = lambda backend=backend: linear_token_statistics(
            hidden, head, labels, backend=backend
        )
    return jobs


def jobs_of(kind: str, dtype: torch.dtype, device: str, tokens: int, vocabulary: int) -> dict[str, Job]:
    """The jobs of a kind on data that is made without temporaries of the data's size."""
    torch.manual_seed(0)
    labels = torch.randint(0, vocabulary, (tokens,), device=device)
    if kind == "hidden":
        head = torch.randn(vocabulary, WIDTH, device=device, dtype=dtype).div_(WIDTH**0.5)
        return from_hidden(torch.randn(tokens, WIDTH, device=device, dtype=dtype), head, labels)
    logits = torch.empty(tokens, vocabulary, dtype=dtype, device=device)
    for row in logits:
        row.copy_(2 * torch.randn(vocabulary, device=device))
    return from_logits(logits, labels)


def interleaved(jobs: dict[str, Job], device: str, repeats: int) -> dict[str, float]:
    """Median seconds of each job, one of each in turn after one to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for repeat in range(repeats + 1):
        for name, job in jobs.items():
            begin = time.perf_counter()
            job()
            if device == "cuda":
                torch.cuda.synchronize()
            if repeat:
                seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(times) for name, times in seconds.items()}


@contextmanager
def busy_loops(number: int) -> Iterator[None]:
    """Processes that keep a core busy each, as the workers of a dataloader do, until the block ends."""
    # Killed below; the condition is for the case that this process is killed itself.
    code = f"import os\nwhile os.getppid() == {os.getpid()}:\n for _ in range(1_000_000): pass"
    loops: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(number):
            # One by one: those that did start are killed if another cannot.
            loops.append(subprocess.Popen([sys.executable, "-c", code]))  # noqa: PERF401 - as said above
        if loops:
            print(f"{number} busy loops beside: processes {', '.join(str(loop.pid) for loop in loops)}")
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def peak(device: str) -> float:
    """The most memory this process has used so far, in MiB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    with Path("/proc/self/status").open() as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


def growth(args: argparse.Namespace) -> float:
    """MiB that one job adds to the peak; the child's part of :func:`memory`."""
    dtype = getattr(torch, args.dtype)
    jobs_of(args.kind, dtype, args.device, 64, 1024)[args.job]()  # libraries, threads, compiled code
    job = jobs_of(args.kind, dtype, args.device, args.tokens, args.vocabulary)[args.job]
    before = peak(args.device)
    job()
    return peak(args.device) - before


def memory(names: list[str], kind: str, dtype: str, args: argparse.Namespace) -> dict[str, float]:
    """MiB beyond the arguments, each job in a child process."""
    result = {}
    for name in names:
        command = [sys.executable, __file__, "--device", args.device, "--threads", str(args.threads)]
        command += ["--tokens", str(args.tokens), "--vocabulary", str(args.vocabulary)]
        command += ["--job", name, "--kind", kind, "--dtype", dtype]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        result[name] = float(output.split()[-1])
    return result


def extremes() -> dict[str, dict[str, float]]:
    """Perplexities of ordinary losses that end in inf elsewhere: a float16 token 25 nats behind."""
    logits, labels = torch.zeros(1, 8, 100, dtype=torch.float16), torch.zeros(1, 8, dtype=torch.long)
    logits[0, 0, 1] = 25
    ours = token_statistics(logits, labels, statistics=("ce",)).ce
    theirs = perplexity(logits[0], labels[0]).compute()
    return {
        "one of 8 float16 tokens 25 nats behind": {"ours": math.exp(ours.mean()), "Perplexity": float(theirs)}
    }


def print_table(title: str, rows: dict[str, dict[str, float]]) -> None:
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    print(f"\n{title}\n\n| |" + "|".join(columns) + "|\n|---|" + "---:|" * len(columns))
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(f"{row[column]:.3g}" for column in columns) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--busy", type=int, default=0, help="processes that take the cores meanwhile")
    parser.add_argument("--out", type=Path)
    for name in ("--job", "--kind", "--dtype"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.job:
        print(growth(args))
        return
    results: dict[str, Any] = {
        "machine": {
            "threads": torch.get_num_threads(),
            "processor": platform.processor() or platform.machine(),
            "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "shape": [args.tokens, args.vocabulary],
        "busy loops beside": args.busy,
    }
    for kind in ("logits", "hidden"):
        for dtype in ("float32", "bfloat16"):
            title = f"[{args.tokens}, {args.vocabulary}] {dtype}, from {kind}"
            jobs = jobs_of(kind, getattr(torch, dtype), args.device, args.tokens, args.vocabulary)
            with busy_loops(args.busy):
                seconds = interleaved(jobs, args.device, args.repeats)
            extra = {} if args.busy else memory(list(jobs), kind, dtype, args)
            base = next(iter(seconds.values()))
            results[title] = {
                name: {"ms": 1e3 * time_, "ratio to the first": time_ / base}
                | ({"extra MiB": extra[name]} if extra else {})
                for name, time_ in seconds.items()
            }
            print_table(title, results[title])
            del jobs
    results["perplexity"] = extremes()
    print_table("Perplexity", results["perplexity"])
    if args.out is not None:
        args.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
