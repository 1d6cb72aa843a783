"""How often error bars by document hold the truth, and what they cost.

    python benchmarks/intervals.py --out benchmarks/intervals.json    # about 10 minutes in one thread

Each simulation draws documents whose tokens resemble each other, and two checkpoints' losses of the same
tokens; truths come from 4 million documents. Beside ours run an exact bootstrap of the documents over all
stored tokens, and error bars by tokens.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from lightning_pce import digest as td
from lightning_pce import intervals as iv

STATISTICS = ("p50", "p95", "mean")
SHARES = {"p50": 0.5, "p95": 0.95}
# The published percentiles of a model before fine-tuning on mathematics, with a long tail added.
KNOTS = (0.0001, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 0.9999)
LOSSES = (1e-7, 1.96e-5, 9.18e-5, 3.56e-4, 0.00144, 0.00642, 0.0304, 0.14, 0.535, 1.741, 3.268, 7, 13, 20)
KNOTS_Z = np.array([statistics.NormalDist().inv_cdf(u) for u in KNOTS])
Z95 = statistics.NormalDist().inv_cdf(0.975)
# Exact resamples: enough for coverage to a tenth of a percent.
EXACT_RESAMPLES, CELLS = 400, 256


class Setting(NamedTuple):
    """Documents, the latent correlation within one, whether harder ones are longer, and the usual length."""

    documents: int
    correlation: float
    informative: bool
    length: int


SETTINGS = {
    "100": Setting(100, 0.5, False, 80),
    "200 informative": Setting(200, 0.5, True, 60),
    "150 strong": Setting(150, 0.8, False, 60),
    "1000": Setting(1000, 0.3, False, 20),
    "30": Setting(30, 0.5, False, 80),
}


class Tokens(NamedTuple):
    """The losses of two checkpoints on the same tokens, ``[n]``, and the document of each."""

    document: np.ndarray
    before: np.ndarray
    after: np.ndarray


def losses_at(z: np.ndarray) -> np.ndarray:
    return np.exp(np.interp(z, KNOTS_Z, np.log(LOSSES)))


def draw(
    setting: Setting, documents: int, rng: np.random.Generator, tokens: int | None = None
) -> tuple[Tokens, np.ndarray]:
    """Tokens of documents, and each document's length; with ``tokens`` that many of each instead."""
    u = rng.standard_normal(documents)
    other = rng.standard_normal(documents)
    g = 0.5 * u + math.sqrt(0.75) * other if setting.informative else other
    length = np.maximum(4, np.floor(setting.length * np.exp(0.8 * g - 0.32))).astype(np.int64)
    document = np.repeat(np.arange(documents), length if tokens is None else tokens)
    u_after = 0.95 * u + math.sqrt(1 - 0.95**2) * rng.standard_normal(documents)
    e = rng.standard_normal(len(document))
    e_after = 0.9 * e + math.sqrt(0.19) * rng.standard_normal(len(document))
    a, b = math.sqrt(setting.correlation), math.sqrt(1 - setting.correlation)
    z, z_after = a * u[document] + b * e, a * u_after[document] + b * e_after
    return Tokens(document, losses_at(z), losses_at(1.1 * z_after - 0.1)), length


def truth(setting: Setting, documents: int) -> dict[str, float]:
    """Every statistic and difference over many documents, tokens weighted by their document's length."""
    tokens, length = draw(setting, documents, np.random.default_rng(0), tokens=1)
    before, after = (weighted_statistics(values, length) for values in (tokens.before, tokens.after))
    return before | {f"difference of {name}": after[name] - before[name] for name in before}


def weighted_statistics(values: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    order = np.argsort(values)
    upto = weights[order].cumsum()
    found = {name: values[order[np.searchsorted(upto, p * upto[-1])]] for name, p in SHARES.items()}
    return {**found, "mean": float((values * weights).sum() / weights.sum())}


class Ends(NamedTuple):
    """An interval."""

    low: float
    high: float


def by_slots(tokens: Tokens, ids: np.ndarray) -> dict[str, Ends]:
    """Ours, of digests and counts; ``unpaired`` as if the second record were of other data."""
    slots = iv.slots_of(torch.from_numpy(ids[tokens.document]))
    before, after = (record(values, slots) for values in (tokens.before, tokens.after))
    found = iv.intervals(*before, STATISTICS)
    found |= {
        f"difference of {name}": each for name, each in iv.differences(before, after, STATISTICS).items()
    }
    unpaired = iv.differences(before, (*after, "other data"), STATISTICS)
    found |= {f"unpaired difference of {name}": each for name, each in unpaired.items()}
    return {name: Ends(each.low, each.high) for name, each in found.items()}


def record(values: np.ndarray, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    losses = torch.from_numpy(values.astype(np.float32))
    return td.from_values(losses), iv.add(iv.empty(), losses, None, slots)


def by_documents(tokens: Tokens, rng: np.random.Generator) -> dict[str, Ends]:
    """Percentile intervals of the exact bootstrap: documents are drawn, with all their tokens."""
    number = int(tokens.document[-1]) + 1
    drawn = rng.integers(0, number, (EXACT_RESAMPLES, number)) + number * np.arange(EXACT_RESAMPLES)[:, None]
    times = np.bincount(drawn.ravel(), minlength=EXACT_RESAMPLES * number)
    times = times.reshape(EXACT_RESAMPLES, number).astype(np.float32)  # exact to 2 ** 24 tokens
    before, after = (resampled(tokens.document, values, times) for values in (tokens.before, tokens.after))
    after = {f"difference of {name}": after[name] - before[name] for name in before}
    return {name: percentile_interval(values) for name, values in (before | after).items()}


def percentile_interval(values: np.ndarray) -> Ends:
    return Ends(*np.quantile(values, (0.025, 0.975), method="weibull"))


def resampled(document: np.ndarray, values: np.ndarray, times: np.ndarray) -> dict[str, np.ndarray]:
    """Each statistic of exact resamples ``[R]``, by how often each draws each document, ``[R, documents]``.

    First the cell of tokens in which a resample reaches its percentile is found, then the token in it.
    """
    order = np.argsort(values)
    ordered, owner = values[order], document[order]
    start = np.arange(CELLS + 1) * len(values) // CELLS
    cell = np.repeat(np.arange(CELLS), np.diff(start))
    counts = np.bincount(owner * CELLS + cell, minlength=times.shape[1] * CELLS)
    upto = (times @ counts.reshape(-1, CELLS).astype(np.float32)).cumsum(1, dtype=np.float64)
    rows, widest = np.arange(len(times)), int(np.diff(start).max())
    found = {}
    for name, p in SHARES.items():
        goal = p * upto[:, -1]
        at = (upto < goal[:, None]).sum(1)
        place = np.minimum(start[at][:, None] + np.arange(widest), len(values) - 1)
        weights = np.where(place < start[at + 1][:, None], times[rows[:, None], owner[place]], 0)
        before = np.where(at > 0, upto[rows, at - 1], 0)
        inside = (before[:, None] + weights.cumsum(1) < goal[:, None]).sum(1)
        found[name] = ordered[place[rows, np.minimum(inside, widest - 1)]]
    sums, tokens = (np.bincount(document, weights) for weights in (values, None))
    return {**found, "mean": (times @ sums) / (times @ tokens)}


def by_tokens(tokens: Tokens) -> dict[str, Ends]:
    """As if every token were drawn by itself: binomial ranks for percentiles, normal for means."""
    ordered, n = np.sort(tokens.before), len(tokens.before)
    found = {}
    for name, p in SHARES.items():
        error = Z95 * math.sqrt(p * (1 - p) / n)
        found[name] = Ends(*ordered[[round((n - 1) * (p - error)), round((n - 1) * (p + error))]])
    for name, values in (("mean", tokens.before), ("difference of mean", tokens.after - tokens.before)):
        error = Z95 * values.std() / math.sqrt(n)
        found[name] = Ends(values.mean() - error, values.mean() + error)
    return found


def simulated(setting: Setting, simulations: int, seed: int) -> Iterator[dict[str, dict[str, Ends]]]:
    """The intervals of each method, by their names, once for each simulation."""
    for simulation in range(simulations):
        rng = np.random.default_rng([seed, simulation])
        tokens, _ = draw(setting, setting.documents, rng)
        ids = rng.integers(-(1 << 63), 1 << 63, setting.documents)
        yield {
            "slots": by_slots(tokens, ids),
            "exact": by_documents(tokens, rng),
            "tokens": by_tokens(tokens),
        }


def coverage(setting: Setting, simulations: int, seed: int, truths: int) -> dict[str, dict[str, Any]]:
    """Of each statistic: the share of intervals that hold the truth, in percent, and their mean widths."""
    true = truth(setting, truths)
    held: dict[tuple[str, str], list[bool]] = defaultdict(list)
    widths: dict[tuple[str, str], list[float]] = defaultdict(list)
    for found in simulated(setting, simulations, seed):
        for method, intervals in found.items():
            for name, (low, high) in intervals.items():
                held[method, name].append(low <= true[name.removeprefix("unpaired ")] <= high)
                widths[method, name].append(high - low)
    rows: dict[str, dict[str, Any]] = {name: {"truth": value} for name, value in true.items()}
    for (method, name), flags in held.items():
        row, prefix = rows[name.removeprefix("unpaired ")], "unpaired " if "unpaired" in name else ""
        row[f"{prefix}{method}, %"] = 100 * statistics.fmean(flags)
        row[f"{prefix}{method}, width"] = statistics.fmean(widths[method, name])
    for name, row in rows.items():
        if name.startswith("difference"):
            row["paired / unpaired width"] = row["slots, width"] / row["unpaired slots, width"]
    return rows


def cost(repeats: int) -> dict[str, float]:
    """CPU seconds a million tokens, the size of a state, and milliseconds of the answers."""
    rng, n = np.random.default_rng(0), 1 << 21
    losses = torch.from_numpy(losses_at(rng.standard_normal(n)).astype(np.float32))
    documents = torch.from_numpy(rng.integers(0, 1000, n))
    counted, slots = torch.from_numpy(rng.random(n) < 0.7), iv.slots_of(documents)

    def add(batch: int) -> None:
        counts = iv.empty()
        for start in range(0, n, batch):
            part = slice(start, start + batch)
            counts = iv.add(counts, losses[part], counted[part], slots[part])

    many = ("mean", "p5", "p25", "p50", "p75", "p90", "p95", "p99")
    a, b = (record(values.numpy()[:20_000], slots[:20_000]) for values in (losses, 1.1 * losses))
    found = {
        f"s/M, batches of {batch:,}": cpu_seconds(lambda batch=batch: add(batch), repeats) / n * 1e6
        for batch in (512, 4096, 1 << 19)
    }
    found["s/M, slots_of"] = cpu_seconds(lambda: iv.slots_of(documents), repeats) / n * 1e6
    found["bytes of a state"] = iv.empty().nbytes
    found["ms, intervals of mean and 7 percentiles"] = 1e3 * cpu_seconds(
        lambda: iv.intervals(*a, many), repeats
    )
    found["ms, differences of mean and 7 percentiles"] = 1e3 * cpu_seconds(
        lambda: iv.differences(a, b, many), repeats
    )
    return found


def cpu_seconds(job: Any, repeats: int) -> float:
    """The median of several runs after one that is not timed."""
    times = []
    for _ in range(repeats + 1):
        began = time.process_time()
        job()
        times.append(time.process_time() - began)
    return statistics.median(times[1:])


COLUMNS = (
    "truth",
    "tokens, %",
    "exact, %",
    "slots, %",
    "slots, width",
    "exact, width",
    "unpaired slots, %",
    "paired / unpaired width",
)


def print_table(title: str, rows: dict[str, dict[str, Any]]) -> None:
    print(f"\n{title}\n| |" + "|".join(COLUMNS) + "|\n|---|" + "---:|" * len(COLUMNS))
    for name, row in rows.items():
        cells = [f"{row[column]:.3g}" if column in row else "" for column in COLUMNS]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--truth", type=int, default=4_000_000, help="documents that the truth comes from")
    parser.add_argument("--repeats", type=int, default=5, help="of the timings")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    machine = {
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    results: dict[str, Any] = {"machine": machine, "cost": cost(args.repeats)}
    print(json.dumps(results, indent=2))
    results |= {"simulations": args.simulations, "seed": args.seed, "coverage": {}}
    for name in args.settings:
        rows = coverage(SETTINGS[name], args.simulations, args.seed, args.truth)
        print_table(f"{name}: {SETTINGS[name]}", rows)
        results["coverage"][name] = rows
    if args.out is not None:
        args.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
