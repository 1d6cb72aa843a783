"""Our digest beside every other quantile sketch that Python can install: speed, size, accuracy.

    python benchmarks/digest.py --out benchmarks/digest.json        # one thread, about 8 minutes
    python benchmarks/digest.py --speed                             # no accuracy, about a minute
    python benchmarks/digest.py --threads 0                         # all threads
    python benchmarks/digest.py --device cuda                       # ours on an accelerator, nobody else's
    python benchmarks/digest.py --billion                           # ours over 1e9 values, about 5 minutes
    python benchmarks/digest.py --busy 4 --threads 2                # beside busy processes, half a minute

Everything that is compared is interleaved in one run, and a figure is the median of the repeats: compare
ratios, not the figures of two runs. `benchmarks/README.md` explains the columns.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightning_pce import StreamingQuantiles
from lightning_pce import digest as td

QUANTILES = np.array([0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999])
DENSE = np.concatenate([np.arange(1, 100) / 100, [0.999]])


@dataclass
class Sketch:
    """One way to summarise a stream: make one, add a batch, merge many, ask for quantiles, weigh it."""

    name: str
    new: Callable[[], Any]
    add: Callable[[Any, np.ndarray], Any]
    quantiles: Callable[[Any, np.ndarray], np.ndarray]
    merge: Callable[[list[Any]], Any] | None = None
    size: Callable[[Any], int] | None = None
    values_a_second: float = 1e7  # roughly; decides how much of the stream it gets
    notes: list[str] = field(default_factory=list)
    finish: Callable[[Any], Any] = lambda sketch: sketch  # after the last batch


def ours(compression: int) -> Sketch:
    """What a user calls: the metric, which lets values wait until they are worth sorting."""

    def update(metric: StreamingQuantiles, batch: np.ndarray) -> StreamingQuantiles:
        metric.update(torch.from_numpy(batch))
        return metric

    return Sketch(
        f"lightning-pce ({compression})",
        lambda: StreamingQuantiles(compression=compression),
        update,
        digest_quantiles,
        lambda digests: td.merge(torch.stack(digests)),
        lambda digest: digest.numel() * digest.element_size(),
        1e8,
        finish=lambda metric: metric.digest,
    )


def ours_pure(compression: int) -> Sketch:
    """The function below the metric: each batch enters the digest at once."""
    return Sketch(
        f"lightning-pce, digest.add ({compression})",
        lambda: td.empty(compression),
        lambda digest, batch: td.add(digest, torch.from_numpy(batch)),
        digest_quantiles,
        values_a_second=1e8,
    )


def digest_quantiles(digest: torch.Tensor, q: np.ndarray) -> np.ndarray:
    return td.quantile(digest, torch.from_numpy(q)).numpy()


def in_place(method: str) -> Callable[[Any, np.ndarray], Any]:
    def add(sketch: Any, batch: np.ndarray) -> Any:
        getattr(sketch, method)(batch)
        return sketch

    return add


def peers() -> list[Sketch]:
    """Those that are installed, each at the settings the comparison names."""
    found: list[Sketch] = []

    def offer(package: str, make: Callable[[], list[Sketch]]) -> None:
        try:
            version(package)
        except PackageNotFoundError:
            print(f"not installed: {package}", file=sys.stderr)
            return
        found.extend(make())

    offer("fastdigest", fastdigest_sketches)
    offer("crick", crick_sketches)
    offer("pytdigest", pytdigest_sketches)
    offer("datasketches", datasketches_sketches)
    offer("ddsketch", ddsketch_sketches)
    offer("boost-histogram", boost_sketches)
    offer("tdigest", tdigest_sketches)
    return found


def fastdigest_sketches() -> list[Sketch]:
    import fastdigest

    def sketch(size: int) -> Sketch:
        return Sketch(
            f"fastdigest ({size})",
            lambda: fastdigest.TDigest(max_centroids=size),
            in_place("batch_update"),
            lambda d, q: np.array([d.quantile(x) for x in q]),
            fastdigest.merge_all,
            lambda d: 16 * d.n_centroids,
        )

    return [sketch(1000)]


def crick_sketches() -> list[Sketch]:
    import crick

    def merge(digests: list[Any]) -> Any:
        result = crick.TDigest(digests[0].compression)
        result.merge(*digests)
        return result

    def sketch(compression: int) -> Sketch:
        return Sketch(
            f"crick ({compression})",
            lambda: crick.TDigest(compression),
            in_place("update"),
            lambda d, q: d.quantile(q),
            merge,
            lambda d: d.centroids().nbytes,
        )

    return [sketch(100), sketch(1000)]


def pytdigest_sketches() -> list[Sketch]:
    import pytdigest

    return [
        Sketch(
            "pytdigest (1000)",
            lambda: pytdigest.TDigest(compression=1000),
            in_place("update"),
            lambda d, q: np.asarray(d.inverse_cdf(q)),
            pytdigest.TDigest.combine,
            lambda d: d.get_centroids().nbytes,
        )
    ]


def datasketches_sketches() -> list[Sketch]:
    import datasketches as ds

    def merged(new: Callable[[], Any]) -> Callable[[list[Any]], Any]:
        def merge(parts: list[Any]) -> Any:
            result = new()
            for part in parts:
                result.merge(part)
            return result

        return merge

    def sketch(name: str, new: Callable[[], Any]) -> Sketch:
        return Sketch(
            name,
            new,
            in_place("update"),
            lambda d, q: np.array([d.get_quantile(x) for x in q]),
            merged(new),
            lambda d: len(d.serialize()),
        )

    return [
        sketch("datasketches KLL (200)", lambda: ds.kll_floats_sketch(200)),
        sketch("datasketches REQ (12)", lambda: ds.req_floats_sketch(12)),
        sketch("datasketches t-digest (200)", lambda: ds.tdigest_double(200)),
    ]


def ddsketch_sketches() -> list[Sketch]:
    import ddsketch

    def add(sketch: Any, batch: np.ndarray) -> Any:
        for value in batch.tolist():
            sketch.add(value)
        return sketch

    def merge(parts: list[Any]) -> Any:
        result = ddsketch.DDSketch(0.01)
        for part in parts:
            result.merge(part)
        return result

    return [
        Sketch(
            "ddsketch (1 %)",
            lambda: ddsketch.DDSketch(0.01),
            add,
            lambda d, q: np.array([d.get_quantile_value(x) for x in q]),
            merge,
            values_a_second=2e6,
            notes=["one value a call"],
        )
    ]


def boost_sketches() -> list[Sketch]:
    import boost_histogram as bh

    def new() -> Any:
        return bh.Histogram(bh.axis.Regular(4096, 2.0**-24, 2.0**8, transform=bh.axis.transform.log))

    def quantiles(histogram: Any, q: np.ndarray) -> np.ndarray:
        counts = histogram.values(flow=True)
        edges = np.concatenate([[0.0], histogram.axes[0].edges, [2.0**8]])
        cumulative = np.concatenate([[0.0], counts.cumsum()])
        return np.interp(q * cumulative[-1], cumulative, edges)

    return [
        Sketch(
            "boost-histogram (4096)",
            new,
            in_place("fill"),
            quantiles,
            lambda parts: sum(parts[1:], parts[0]),
            lambda h: h.values(flow=True).nbytes,
            1e8,
            ["fixed range, positive values"],
        )
    ]


def tdigest_sketches() -> list[Sketch]:
    import tdigest

    def merge(parts: list[Any]) -> Any:
        result = parts[0]
        for part in parts[1:]:
            result = result + part
        return result

    return [
        Sketch(
            "tdigest (0.01)",
            tdigest.TDigest,
            lambda d, batch: (d.batch_update(batch.tolist()), d)[1],
            lambda d, q: np.array([d.percentile(100 * x) for x in q]),
            merge,
            lambda d: 16 * len(d),
            7e4,
            ["pure Python"],
        )
    ]


def ce_like(n: int, seed: int = 0) -> np.ndarray:
    """Like token losses: 2 % zeros, two log-normal modes with a valley near the median, a gamma tail."""
    rng = np.random.default_rng(seed)
    kind = rng.random(n)
    low, high = np.exp(rng.normal(-5, 1.8, n)), np.exp(rng.normal(0.4, 0.45, n))
    tail = 1 + rng.gamma(4, 1.6, n)
    return np.select([kind < 0.02, kind < 0.55, kind < 0.9], [0.0, low, high], tail).astype(np.float32)


def rank_error(ordered: np.ndarray, estimates: np.ndarray, q: np.ndarray) -> np.ndarray:
    """The distance of q from [F(x-), F(x)] in the exact data; below a float32 step of a loss, 6e-8, is 0."""
    estimates = np.asarray(estimates, dtype=np.float64)
    estimates = np.where(np.abs(estimates) < 6e-8, 0.0, estimates)
    below = np.searchsorted(ordered, estimates, "left") / len(ordered)
    upto = np.searchsorted(ordered, estimates, "right") / len(ordered)
    return np.maximum(np.maximum(below - q, q - upto), 0)


def fill(sketch: Sketch, batches: list[np.ndarray]) -> Any:
    state = sketch.new()
    for batch in batches:
        state = sketch.add(state, batch)
    return sketch.finish(state)


def interleaved(jobs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each job, one of each in turn; each runs once more right before, untimed.

    Else a job of a few milliseconds would be measured with the caches of the one before.
    """
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(repeats):
        for name, job in jobs.items():
            job()
            begin = time.perf_counter()
            job()
            seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(times) for name, times in seconds.items()}


def ingest(sketches: list[Sketch], batch_size: int, budget_s: float, repeats: int) -> dict[str, float]:
    """Million values a second; each sketch gets as much of the stream as fits its budget."""
    stream, jobs, sizes = ce_like(3_000_000), {}, {}
    for sketch in sketches:
        wanted = int(min(len(stream), max(batch_size, sketch.values_a_second * budget_s)))
        batches = np.array_split(stream[: wanted // batch_size * batch_size], wanted // batch_size)
        jobs[sketch.name] = lambda sketch=sketch, batches=batches: fill(sketch, batches)
        sizes[sketch.name] = sum(map(len, batches))
    return {name: sizes[name] / seconds / 1e6 for name, seconds in interleaved(jobs, repeats).items()}


def merging(sketches: list[Sketch], count: int, repeats: int) -> dict[str, float]:
    """Milliseconds to merge `count` sketches of 32,768 values each (of 2,000 if it adds one value a call)."""
    jobs = {}
    for sketch in sketches:
        if sketch.merge is None or (sketch.values_a_second < 1e6 and count > 64):
            continue
        size = 32_768 if sketch.values_a_second > 3e6 else 2_000
        parts = [fill(sketch, [ce_like(size, seed)]) for seed in range(count)]
        jobs[sketch.name] = lambda sketch=sketch, parts=parts: sketch.merge(parts)
    return {name: 1e3 * seconds for name, seconds in interleaved(jobs, repeats).items()}


def accuracy(sketches: list[Sketch], n: int, batch_size: int) -> dict[str, dict[str, float]]:
    """Worst rank and relative value error over QUANTILES, rank over DENSE too; single and merged from 64."""
    stream = ce_like(n)
    results = {}
    for sketch in sketches:
        data = stream if sketch.values_a_second > 3e6 else stream[: n // 100]
        ordered = np.sort(data)
        exact = ordered[np.minimum((QUANTILES * len(ordered)).astype(int), len(ordered) - 1)].astype(
            np.float64
        )
        batches = [data[i : i + batch_size] for i in range(0, len(data), batch_size)]
        row: dict[str, float] = {"values": len(data)}
        states = {"single": fill(sketch, batches)}
        if sketch.merge is not None:
            parts = [data[i * len(data) // 64 : (i + 1) * len(data) // 64] for i in range(64)]
            shards = [
                fill(sketch, [part[i : i + batch_size] for i in range(0, len(part), batch_size)])
                for part in parts
            ]
            states["merged"] = sketch.merge(shards)
        for kind, state in states.items():
            estimates = sketch.quantiles(state, QUANTILES)
            row[f"{kind}_rank"] = float(rank_error(ordered, estimates, QUANTILES).max())
            row[f"{kind}_rank_dense"] = float(
                rank_error(ordered, sketch.quantiles(state, DENSE), DENSE).max()
            )
            large = exact > 0
            row[f"{kind}_value"] = float(np.abs(estimates[large] / exact[large] - 1).max())
        if sketch.size is not None:
            row["bytes"] = sketch.size(states["single"])
        results[sketch.name] = row
    return results


def exact_torch(n: int, repeats: int) -> dict[str, float]:
    """torch.quantile of everything kept, for scale: million values a second for ten quantiles."""
    data, q = torch.from_numpy(ce_like(n)), torch.from_numpy(QUANTILES).float()
    seconds = interleaved({"torch.quantile": lambda: torch.quantile(data, q)}, repeats)
    return {name: n / s / 1e6 for name, s in seconds.items()}


def on_accelerator(device: str, repeats: int) -> dict[str, float]:
    """Microseconds for 32,768 values in deterministic mode, with every wait for the device an error."""
    batch = torch.from_numpy(ce_like(32_768)).to(device)
    digest = td.add(td.empty(1024, device=device), batch)
    metric = StreamingQuantiles().to(device)

    def add() -> None:
        nonlocal digest
        digest = td.add(digest, batch)

    torch.use_deterministic_algorithms(True)
    return {
        "digest.add": microseconds_on(device, add, repeats),
        "StreamingQuantiles.update": microseconds_on(device, lambda: metric.update(batch), repeats),
    }


def microseconds_on(device: str, job: Callable[[], None], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(device)
        torch.cuda.set_sync_debug_mode("error")
        begin.record()
        for _ in range(64):
            job()
        end.record()
        torch.cuda.set_sync_debug_mode("default")
        end.synchronize()
        times.append(begin.elapsed_time(end) / 64 * 1e3)
    return statistics.median(times)


def billion() -> dict[str, float]:
    """A billion values in batches of 32,768, against exact counts in buckets of 1/65,536 octave."""
    import resource  # not on Windows

    metric, counts, total, n = StreamingQuantiles(), np.zeros(1 << 24, dtype=np.int64), 0.0, 0
    seconds, peak = 0.0, 0
    for chunk in range(500):
        values = ce_like(2_000_000, seed=chunk)
        counts += np.bincount(values.view(np.int32) >> 7, minlength=len(counts))
        total, n = total + values.sum(dtype=np.float64), n + len(values)
        begin = time.perf_counter()
        for batch in torch.from_numpy(values).split(32_768):
            metric.update(batch)
        seconds += time.perf_counter() - begin
        if chunk == 4:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / peak
    digest = metric.digest
    bucket = digest_quantiles(digest, DENSE).astype(np.float32).view(np.int32) >> 7
    upto = counts.cumsum()
    below = (upto[bucket] - counts[bucket]) / n
    return {
        "values": n,
        "count is off by": float(td.count(digest)) - n,
        "mean is off by (relative)": float(td.mean(digest)) / (total / n) - 1,
        "worst rank error (.01 ... .999)": float(
            np.maximum(np.maximum(below - DENSE, DENSE - upto[bucket] / n), 0).max()
        ),
        "million values a second": n / seconds / 1e6,
        "memory after 1e9 over memory after 1e7": grown,
    }


@contextmanager
def busy_processes(number: int) -> Iterator[None]:
    """Keep so many processes busy, as the workers of a dataloader are."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def beside_busy_processes(number: int, repeats: int) -> dict[str, dict[str, float]]:
    """Seconds for 4,000,000 values in batches of 131,072, quiet and beside busy processes."""
    sketches = [ours(1024), *[peer for peer in peers() if peer.name.startswith("fastdigest")]]
    stream = ce_like(4_000_000)
    batches = [stream[i : i + 131_072] for i in range(0, len(stream), 131_072)]
    jobs = {sketch.name: lambda sketch=sketch: fill(sketch, batches) for sketch in sketches}
    rows: dict[str, dict[str, float]] = {name: {} for name in jobs}
    for busy in (0, number):
        with busy_processes(busy):
            seconds = interleaved(jobs, repeats)
        for name in jobs:
            rows[name][f"s, {busy} busy"] = seconds[name]
            rows[name][f"of the last row, {busy} busy"] = seconds[name] / seconds[sketches[-1].name]
    return rows


def speeds(sketches: list[Sketch], repeats: int) -> dict[str, dict[str, float]]:
    large, small = ingest(sketches, 32_768, 0.3, repeats), ingest(sketches, 512, 0.1, repeats)
    few, many = merging(sketches, 64, repeats), merging(sketches, 1024, repeats)
    base = large[sketches[0].name]
    rows = {
        sketch.name: {
            "Mv/s, batches of 32,768": large[sketch.name],
            "ours is faster by": base / large[sketch.name],
            "Mv/s, batches of 512": small[sketch.name],
            **({"merge 64, ms": few[sketch.name]} if sketch.name in few else {}),
            **({"merge 1024, ms": many[sketch.name]} if sketch.name in many else {}),
        }
        for sketch in sketches
    }
    exact = exact_torch(3_000_000, repeats)
    return rows | {name: {"Mv/s, batches of 32,768": speed} for name, speed in exact.items()}


def print_table(title: str, rows: dict[str, dict[str, float]]) -> None:
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    print(f"\n{title}\n| |" + "|".join(columns) + "|\n|---|" + "---:|" * len(columns))
    for name, row in rows.items():
        cells = [f"{row[column]:.3g}" if column in row else "" for column in columns]
        print(f"| {name} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=1, help="0 means all")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--values", type=int, default=10_000_000, help="stream length of the accuracy part")
    parser.add_argument("--speed", action="store_true", help="without the accuracy part")
    parser.add_argument("--billion", action="store_true")
    parser.add_argument("--busy", type=int, metavar="N", help="ingest beside N busy processes")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    results: dict[str, Any]
    machine = {
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    if args.billion:
        results = {"machine": machine, "a billion values": billion()}
        print(json.dumps(results, indent=2))
    elif args.busy is not None:
        results = {
            "machine": machine,
            "beside busy processes": beside_busy_processes(args.busy, args.repeats),
        }
        print(json.dumps(machine))
        print_table("4,000,000 values in batches of 131,072", results["beside busy processes"])
    elif args.device != "cpu":
        results = {"machine": machine, args.device: on_accelerator(args.device, args.repeats)}
        print(json.dumps(results, indent=2))
    else:
        sketches = [ours(1024), ours(256), ours_pure(1024), *peers()]
        results = {"machine": machine, "speed": speeds(sketches, args.repeats)}
        print(json.dumps(machine))
        print_table("Speed", results["speed"])
        if not args.speed:
            results["accuracy"] = accuracy(sketches, args.values, 32_768)
            print_table(f"Accuracy, {args.values:,} values in batches of 32,768", results["accuracy"])
            results["accuracy, batches of 512"] = accuracy([ours(1024)], args.values, 512)
            print_table(
                f"Accuracy, {args.values:,} values in batches of 512", results["accuracy, batches of 512"]
            )
    if args.out is not None:
        args.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
