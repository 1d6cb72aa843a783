"""How often the intervals of a cross-validation of rankers hold what they should, in simulated populations.

    python -m benchmarks.ranking --out benchmarks/ranking.json    # 10 to 15 minutes
    python -m benchmarks.ranking --proxies 24 --populations 120

Run it in the root of the repository. What an interval should hold is the mean over all populations. Where
proxies carry no truth, what is not refused is counted.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from lightning_pce.runs.ranking import ProxyTable, Resampled, cross_validate

MODELS, TASKS, ITEMS = 24, 6, 150
# Loadings that all populations have in common: of a seed of their own.
_WORLD = 7
METHODS = (("rank_svm", "linear"), ("rank_svm", "rbf"), ("single", "linear"), ("sparse", "linear"))


def population(seed: int, proxies: int, carry: float) -> ProxyTable:
    """Models with a skill at each task, a text that they predict, and a character of their own.

    Args:
        seed: of the models.
        proxies: how many; the first is the cross-entropy of the experts.
        carry: how much of the skill is in them.
    """
    random = np.random.default_rng(seed)
    skill = random.normal(size=(MODELS, 1)) + 0.6 * random.normal(size=(MODELS, TASKS))
    text = -0.7 * carry * skill.mean(1) + random.normal(size=MODELS)
    of_model = np.stack([text, random.normal(size=MODELS)], axis=1)[:, None].repeat(TASKS, 1)
    factors = np.concatenate(
        [carry * skill[..., None], random.normal(size=(MODELS, TASKS, 1)), of_model], axis=2
    )
    loadings = np.random.default_rng(_WORLD).normal(size=(4, proxies))
    loadings[:, 0] = -0.6, 0.5, -0.3, 0.6
    values = factors @ loadings + 2 * random.normal(size=(MODELS, TASKS, proxies))
    accuracy = random.binomial(ITEMS, 1 / (1 + np.exp(-skill - np.linspace(-1, 1, TASKS)))) / ITEMS
    return ProxyTable(
        [f"model {model}" for model in range(MODELS) for _ in range(TASKS)],
        [f"task {task}" for _ in range(MODELS) for task in range(TASKS)],
        ["ce_uniform", *(f"proxy {number}" for number in range(1, proxies))],
        values.reshape(-1, proxies),
        truth=accuracy.ravel(),
        baselines={"text_ce": -text.repeat(TASKS)},
    )


def held(found: list[Resampled]) -> tuple[float, float]:
    """The mean over populations, and how many of a hundred intervals hold it."""
    value, low, high = np.array(found).T
    return float(value.mean()), 100 * float(((low <= value.mean()) & (value.mean() <= high)).mean())


def measured(method: str, kernel: str, hold_out: str, number: int, proxies: int) -> dict[str, float]:
    """Of as many populations: means, coverage in percent, and what was not refused without any signal."""
    arguments: dict[str, Any] = {"method": method, "kernel": kernel, "hold_out": hold_out}
    reports = [
        cross_validate(population(1000 + seed, proxies, 0.7), **arguments, seed=seed)
        for seed in range(number)
    ]
    nothing = [
        cross_validate(population(5000 + seed, proxies, 0.0), **arguments, seed=seed)
        for seed in range(number)
    ]
    found = {"populations": float(number)}
    found["rho"], found["rho held, %"] = held([each.rho for each in reports])
    for name in reports[0].baselines:
        differences = [each.baselines[name].difference for each in reports]
        found[f"less {name}"], found[f"less {name} held, %"] = held(differences)
    found["exchanged"] = float(np.mean([each.null for each in nothing]))
    found["no signal: rho"] = float(np.mean([each.rho.value for each in nothing]))
    found["no signal: not refused, %"] = 100 * float(np.mean([each.refused is None for each in nothing]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--populations", type=int, default=40)
    parser.add_argument("--proxies", type=int, default=80)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    results = {}
    for hold_out in ("tasks", "models_and_tasks"):
        for method, kernel in METHODS:
            # All triples of 80 proxies take their time.
            number = args.populations // (3 if method == "sparse" else 1)
            name = f"{method} {kernel}, {hold_out}" if method == "rank_svm" else f"{method}, {hold_out}"
            results[name] = measured(method, kernel, hold_out, number, args.proxies)
            words = ", ".join(f"{key} {value:.2f}" for key, value in results[name].items())
            print(f"{name}: {words}", flush=True)
    if args.out is not None:
        args.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
