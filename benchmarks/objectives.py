"""Losses to train on beside F.cross_entropy and what other libraries compute: forward + backward, and memory.

    python benchmarks/objectives.py --out benchmarks/objectives.json      # 1 and 2 threads, some 20 minutes
    python benchmarks/objectives.py --table logits --repeats 5            # one table
    python benchmarks/objectives.py --device cuda --tokens 8192 --vocabulary 128256 --dtypes bfloat16

A row is a name and a function of a :class:`Batch` that returns a loss; to add one, add it to ``LOGITS``,
``HIDDEN`` or ``TOP_K``. Everything in a table is interleaved, one of each in turn, and a figure is the median
of the repeats; a ratio is the median of the ratios within each turn, so that other work on the machine
touches both. CPU seconds are those of all threads of the process. Memory is the growth of the process's peak
(VmHWM), on CUDA of the allocator's, during one forward and backward pass in a child process of its own that
has made a small one before; gradients are in it, and told apart in the column "beyond gradients".
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_pce.objectives import DCO, NLL, Power, Threshold, Unlikelihood, z_loss
from lightning_pce.objectives.topk import topk_distillation
from lightning_pce.tokens.linear_log_prob import linear_token_log_prob
from lightning_pce.tokens.log_prob import token_log_prob

WIDTH, K, ROWS = 576, 20, 16  # of hidden states; labels a token; sequences in the batch
SHARE = 0.3  # of tokens that have a gradient, in the rows that say so


@dataclass
class Batch:
    """Tensors of one table, made when a row first asks for them; all that can have a gradient record one."""

    dtype: torch.dtype
    device: str
    tokens: int
    vocabulary: int

    def __post_init__(self) -> None:
        torch.manual_seed(0)

    @cached_property
    def labels(self) -> Tensor:
        """``[N]``."""
        return torch.randint(0, self.vocabulary, (self.tokens,)).to(self.device)

    @cached_property
    def counted(self) -> Tensor:
        """``[N]`` float64, 1 for the tokens that have a gradient where only some have."""
        return (torch.rand(self.tokens) < SHARE).double().to(self.device)

    @cached_property
    def logits(self) -> Tensor:
        """``[N, V]``."""
        return self._normal(self.tokens, self.vocabulary, 2.0)

    @cached_property
    def hidden(self) -> Tensor:
        """``[N, H]``."""
        return self._normal(self.tokens, WIDTH, 1.0)

    @cached_property
    def head(self) -> Tensor:
        """``[V, H]``; logits have a standard deviation of 2."""
        return self._normal(self.vocabulary, WIDTH, 2 / WIDTH**0.5)

    @cached_property
    def teacher_index(self) -> Tensor:
        """``[N, K]``, different ids."""
        step = self.vocabulary // K
        return (self.labels[:, None] + step * torch.arange(K, device=self.device)) % self.vocabulary

    @cached_property
    def teacher_log_prob(self) -> Tensor:
        """``[N, K]`` float32, of 0.9 together."""
        share = 0.9 * torch.randn(self.tokens, K).softmax(-1)
        return share.log().to(self.device)

    def _normal(self, rows: int, columns: int, scale: float) -> Tensor:
        made = torch.empty(rows, columns, dtype=self.dtype, device=self.device)
        for row in made:  # no large temporary: what was free before could be used without a trace
            row.copy_(scale * torch.randn(columns))
        return made.requires_grad_()

    def forget_gradients(self) -> None:
        """As ``zero_grad`` does before a step."""
        for name in ("logits", "hidden", "head"):
            if name in vars(self):
                vars(self)[name].grad = None

    def gradient_bytes(self) -> int:
        """Of the gradients that there are."""
        made = (vars(self).get(name) for name in ("logits", "hidden", "head"))
        return sum(part.grad.nbytes for part in made if part is not None and part.grad is not None)


Row: TypeAlias = tuple[str, Callable[[Batch], Tensor]]


def dft(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy times a detached p, as libraries write dynamic fine-tuning."""
    own = logits.float().log_softmax(-1).gather(-1, labels[:, None])
    return -(own.detach().exp() * own).mean()


def some(batch: Batch, losses: Tensor) -> Tensor:
    """The mean with a gradient for some tokens only."""
    return (losses.double() * batch.counted).sum() / batch.tokens


def in_rows(batch: Batch) -> Any:
    """Log-probabilities of several answers, ``[rows, T]``."""
    rows = min(ROWS, batch.tokens)
    return token_log_prob(batch.logits.view(rows, -1, batch.vocabulary), batch.labels.view(rows, -1))


def plain_top_k(batch: Batch, *, bucket: bool) -> Tensor:
    """The divergence over K renormalised labels, or with the rest as another, in plain torch."""
    own = batch.logits.float().log_softmax(-1).gather(-1, batch.teacher_index)
    teacher = batch.teacher_log_prob
    if bucket:
        own, teacher = (
            torch.cat([x, (1 - x.exp().sum(-1, keepdim=True)).clamp(min=1e-9).log()], -1)
            for x in (own, teacher)
        )
    else:
        own, teacher = (x - x.logsumexp(-1, keepdim=True) for x in (own, teacher))
    return (teacher.exp() * (teacher - own)).sum(-1).mean()


# The first row of a table is what the others are compared with.
LOGITS: list[Row] = [
    ("F.cross_entropy(x)", lambda b: F.cross_entropy(b.logits, b.labels)),
    ("F.cross_entropy(x.float())", lambda b: F.cross_entropy(b.logits.float(), b.labels)),
    ("DFT over log_softmax(x.float())", lambda b: dft(b.logits, b.labels)),
    ("ours, nll", lambda b: NLL()(token_log_prob(b.logits, b.labels))),
    ("ours, power(1), DFT's gradient", lambda b: Power(1.0)(token_log_prob(b.logits, b.labels))),
    ("ours, power(0.5)", lambda b: Power(0.5)(token_log_prob(b.logits, b.labels))),
    ("ours, threshold(nll, 0.2)", lambda b: Threshold(NLL(), 0.2)(token_log_prob(b.logits, b.labels))),
    ("ours, unlikelihood", lambda b: Unlikelihood()(token_log_prob(b.logits, b.labels))),
    ("ours, dco(8)", lambda b: DCO(8)(in_rows(b))),
    ("ours, z_loss", lambda b: z_loss(token_log_prob(b.logits, b.labels))),
]
HIDDEN: list[Row] = [
    ("F.cross_entropy(h @ W.T)", lambda b: F.cross_entropy(F.linear(b.hidden, b.head), b.labels)),
    ("ours, nll", lambda b: NLL()(linear_token_log_prob(b.hidden, b.head, b.labels))),
    (
        f"ours, {SHARE:.0%} of tokens with a gradient",
        lambda b: some(b, linear_token_log_prob(b.hidden, b.head, b.labels).log_prob),
    ),
    (
        "ours, frozen head",
        lambda b: NLL()(linear_token_log_prob(b.hidden, b.head.detach(), b.labels)),
    ),
    (
        "F.cross_entropy(h @ W.T), frozen head",
        lambda b: F.cross_entropy(F.linear(b.hidden, b.head.detach()), b.labels),
    ),
]
if hasattr(F, "linear_cross_entropy"):
    HIDDEN[1:1] = [("F.linear_cross_entropy", lambda b: F.linear_cross_entropy(b.hidden, b.head, b.labels))]
TOP_K: list[Row] = [
    ("F.cross_entropy(x)", lambda b: F.cross_entropy(b.logits, b.labels)),
    (f"plain torch, {K} renormalised", lambda b: plain_top_k(b, bucket=False)),
    (f"plain torch, {K} and a bucket", lambda b: plain_top_k(b, bucket=True)),
    (
        f"ours, {K} renormalised",
        lambda b: topk_distillation(b.logits, b.teacher_index, b.teacher_log_prob),
    ),
    (
        f"ours, {K} and a bucket",
        lambda b: topk_distillation(b.logits, b.teacher_index, b.teacher_log_prob, rest="bucket"),
    ),
]
TABLES: dict[str, list[Row]] = {"logits": LOGITS, "hidden": HIDDEN, "top-K": TOP_K}
# What the rows of a table read: made before the memory is measured.
NEEDED = {
    "logits": ("logits", "labels"),
    "hidden": ("hidden", "head", "labels", "counted"),
    "top-K": ("logits", "labels", "teacher_index", "teacher_log_prob"),
}


def step(batch: Batch, function: Callable[[Batch], Tensor]) -> None:
    """Forward and backward."""
    batch.forget_gradients()
    function(batch).backward()
    if batch.device == "cuda":
        torch.cuda.synchronize()


def interleaved(batch: Batch, rows: list[Row], repeats: int) -> dict[str, dict[str, float]]:
    """Of each row the median ms and those of the ratios to the first, after one turn to warm up."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name, _ in rows}
    for repeat in range(repeats + 1):
        for name, function in rows:
            begin, cpu = time.perf_counter(), time.process_time()
            step(batch, function)
            if repeat:
                taken[name].append((time.perf_counter() - begin, time.process_time() - cpu))
    first = taken[rows[0][0]]
    found = {}
    for name, times in taken.items():
        ratios = [
            [x / y for x, y in zip(own, other, strict=True)] for own, other in zip(times, first, strict=True)
        ]
        wall, cpu = (statistics.median(values) for values in zip(*ratios, strict=True))
        ms = 1e3 * statistics.median(seconds for seconds, _ in times)
        found[name] = {"ms": ms, "ratio": wall} | ({} if batch.device == "cuda" else {"CPU ratio": cpu})
    batch.forget_gradients()
    return found


def peak(device: str) -> float:
    """The most memory this process has used so far, in MiB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    with Path("/proc/self/status").open() as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


def growth(args: argparse.Namespace, threads: int) -> None:
    """Print the MiB that one row adds to the peak, and its gradients'; the child's part of :func:`memory`."""
    torch.set_num_threads(threads)
    function, dtype = dict(TABLES[args.table[0]])[args.row], getattr(torch, args.dtypes[0])
    step(Batch(dtype, args.device, 64, 1024), function)  # libraries, threads
    batch = Batch(dtype, args.device, args.tokens, args.vocabulary[0])
    for name in NEEDED[args.table[0]]:
        getattr(batch, name)
    before = peak(args.device)
    step(batch, function)
    print(peak(args.device) - before, batch.gradient_bytes() / 2**20)


def memory(
    table: str, dtype: str, vocabulary: int, threads: int, args: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """MiB beyond the arguments, each row in a child process."""
    found = {}
    for name, _ in TABLES[table]:
        command = [sys.executable, __file__, "--row", name, "--table", table, "--dtypes", dtype]
        command += ["--device", args.device, "--tokens", str(args.tokens), "--vocabulary", str(vocabulary)]
        command += ["--threads", str(threads)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        extra, gradients = map(float, output.splitlines()[-1].split())
        found[name] = {"extra MiB": extra, "beyond gradients, MiB": extra - gradients}
    first = found[TABLES[table][0][0]]["extra MiB"]
    return {name: row | {"memory ratio": row["extra MiB"] / max(first, 1)} for name, row in found.items()}


def print_table(title: str, rows: dict[str, dict[str, float]]) -> None:
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    print(f"\n{title}\n\n| |" + "|".join(columns) + "|\n|---|" + "---:|" * len(columns))
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(f"{row[column]:.3g}" for column in columns) + " |", flush=True)


def settings() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument(
        "--vocabulary", type=int, nargs="+", help="default: 32,000; from hidden states 49,152 and 128,256"
    )
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--table", nargs="+", choices=list(TABLES), default=list(TABLES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = settings()
    if args.row:
        growth(args, args.threads[0])
        return
    results: dict[str, Any] = {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "tables": {},
    }
    for table in args.table:
        for vocabulary in args.vocabulary or ([49_152, 128_256] if table == "hidden" else [32_000]):
            for dtype in args.dtypes:
                extra = memory(table, dtype, vocabulary, args.threads[0], args)
                for threads in args.threads:
                    torch.set_num_threads(threads)
                    batch = Batch(getattr(torch, dtype), args.device, args.tokens, vocabulary)
                    rows = interleaved(batch, TABLES[table], args.repeats)
                    rows = {name: row | extra[name] for name, row in rows.items()}
                    title = f"[{args.tokens}, {vocabulary}] {dtype}, from {table}, {threads} threads"
                    load = os.getloadavg()[0]
                    results["tables"][title] = {"load average": load, "rows": rows}
                    print_table(f"{title} (load average {load:.1f})", rows)
                    if args.out is not None:  # also of a run that is ended early
                        args.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
