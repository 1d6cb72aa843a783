"""How often a verdict is right: simulated runs of checkpoints whose loss changes in a known way.

    python -m benchmarks.concordance --out benchmarks/concordance.json    # about 10 minutes
    python -m benchmarks.concordance --band --runs 150    # about 2 minutes

Run it in the root of the repository. The generators are in ``tests/helpers/checkpoint_runs.py``.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightning_pce.runs import concordance
from tests.helpers import checkpoint_runs as generators

P95 = generators.SHARES.index(0.95)
RUNS: dict[str, tuple[Callable[[int], Any], int, int]] = {
    "one curve": (generators.agreeing, 12, 240),
    "one curve, up again at the end": (generators.overtrained, 12, 240),
    "weak split, 100 documents": (generators.split, 6, 100),
    "weak split, 400 documents": (generators.split, 6, 400),
    "weak split, 1,600 documents": (generators.split, 6, 1600),
    "saturating": (generators.saturating, 12, 240),
    "tail regression": (generators.tail_regression, 12, 240),
}


def rates(name: str, number: int, first: int) -> dict[str, float]:
    """Of how many runs in a hundred something is said, and the median time of a verdict."""
    curve, epochs, documents = RUNS[name]
    # The best p95 by the generator, not by one sample of it.
    best_p95 = f"epoch {min(range(1, epochs + 1), key=lambda epoch: curve(epoch)[P95])}"
    said: dict[str, list[bool]] = {}
    seconds = []
    for seed in range(first, first + number):
        run = generators.run_of(curve, epochs, documents, seed)
        begin = time.perf_counter()
        verdict = concordance.verdict(run)
        seconds.append(time.perf_counter() - begin)
        bulk = verdict.bulk or "mean"
        facts = {
            "lowest mean and bulk differ": verdict.picks["mean"] != verdict.picks[bulk],
            "disagrees": not verdict.agree,
            "mean and bulk disagree": not concordance.common_tie(run),
            "alarm": verdict.alarm is not None,
            "bulk is p75": verdict.bulk == "p75",
            "shortlist has the truly best p95": best_p95 in verdict.shortlist,
        }
        for fact, value in facts.items():
            said.setdefault(fact, []).append(value)
    return {fact: 100 * statistics.fmean(values) for fact, values in said.items()} | {
        "verdict, ms": 1000 * statistics.median(seconds)
    }


def band(start: int, stop: int, curve: Callable[[int], Any], documents: int, number: int) -> float:
    """In how many of a hundred simulations the band of ``reshaping`` holds all 199 true differences."""
    shares = np.arange(1, 200) / 200
    # The latent of every checkpoint is normal, so that its quantile function is the one it was drawn from.
    true = [np.exp(np.interp(shares, generators.SHARES, np.log(curve(epoch)))) for epoch in (start, stop)]
    difference, held = torch.from_numpy(true[1] - true[0]), 0
    for seed in range(number):
        pair = generators.run_of(lambda epoch: curve((start, stop)[epoch - 1]), 2, documents, seed)
        change = concordance.reshaping(*pair)
        held += bool(((change.low <= difference) & (difference <= change.high)).all())
    return 100 * held / number


def bands(number: int) -> None:
    pairs = {
        "no change": (9, 9, generators.agreeing),
        "one curve, epoch 3 to 9": (3, 9, generators.agreeing),
        "saturating, epoch 4 to 12": (4, 12, generators.saturating),
    }
    print(f"| the band holds all, % of {number} | 60 documents | 240 | 1,000 |\n|---|---:|---:|---:|")
    for name, pair in pairs.items():
        cells = [f"{band(*pair, documents, number):.0f}" for documents in (60, 240, 1000)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=20_000, help="of the first run")
    parser.add_argument("--band", action="store_true", help="the coverage of the band of reshaping instead")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.band:
        bands(args.runs)
        return
    results = {}
    for number, name in enumerate(RUNS):
        results[name] = rates(name, args.runs, args.seed)
        columns = list(results[name])
        if not number:
            print(f"| % of {args.runs} runs |" + "|".join(columns) + "|\n|---|" + "---:|" * len(columns))
        cells = [f"{value:.0f}" if math.isfinite(value) else "" for value in results[name].values()]
        print(f"| {name} |" + "|".join(cells) + "|", flush=True)
    if args.out is not None:
        args.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
