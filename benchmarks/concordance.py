"""How often a verdict is right: simulated runs of checkpoints whose loss changes in a known way.

    python -m benchmarks.concordance --runs 60 --out benchmarks/concordance.json    # about 10 minutes

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
            "lowest differ": verdict.picks["mean"] != verdict.picks[bulk],
            "disagrees": not verdict.agree,
            "mean and bulk disagree": not concordance.common_tie(run),
            "alarm": verdict.alarm is not None,
            "bulk is p75": verdict.bulk == "p75",
            "shortlist has the best p95": best_p95 in verdict.shortlist,
        }
        for fact, value in facts.items():
            said.setdefault(fact, []).append(value)
    return {fact: 100 * statistics.fmean(values) for fact, values in said.items()} | {
        "verdict, ms": 1000 * statistics.median(seconds)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1000, help="of the first run")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
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
