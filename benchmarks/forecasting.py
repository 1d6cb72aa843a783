"""How far a forecast can be believed: synthetic series whose continuation is known, and real ones.

    python -m benchmarks.forecasting --out benchmarks/forecasting.json    # about 5 minutes
    python -m benchmarks.forecasting --only real --real pythia_evaluations.json

Run it in the root of the repository; the generators are in ``tests/helpers/power_laws.py``. ``--real`` takes
a JSON file {model: {task: {step: {"acc": .., "acc_stderr": ..}}}}.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import curve_fit

from lightning_pce.runs.forecasting import fit_power_law
from tests.helpers import power_laws as made

FACTORS = (4.0, 18.0)
PARTS = ("start", "coverage", "refusals", "moved", "real", "time")


def rms(errors: Any, axis: int | None = None) -> Any:
    return np.sqrt(np.nanmean(np.square(errors), axis))


def by_scipy(steps: Any, values: Any, at: Any, bounded: bool) -> Any:
    """``a - b t^-c`` by curve_fit: from ones in raw steps, or bounded in t / t_end."""
    x, unit = (steps / steps[-1], steps[-1]) if bounded else (steps, 1.0)
    within = ([-np.inf, -np.inf, 0.0], [np.inf, np.inf, 3.0]) if bounded else (-np.inf, np.inf)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found, _ = curve_fit(
                lambda t, a, b, c: a - b * t**-c,
                x,
                values,
                p0=(values[-1], values[-1] - values[0], 0.5) if bounded else (1.0, 1.0, 1.0),
                bounds=within,
                maxfev=5000,
            )
        return found[0] - found[1] * (at / unit) ** -found[2]
    except RuntimeError:  # no convergence
        return np.full(len(at), np.nan)


def start_values(number: int) -> dict[str, Any]:
    """Errors of the true value at 4 and 18 times the last step, by methods; n = 20, sd 0.01."""
    random = np.random.default_rng(100)
    errors: dict[str, list[Any]] = {}
    for _ in range(number):
        thousands, values, curve = made.series(random)
        at = np.array(FACTORS) * thousands[-1]
        forecast = fit_power_law(1000 * thousands, values)
        guesses = {
            "ours": np.array([forecast.predict(1000 * step, force=True).median for step in at]),
            "curve_fit from (1, 1, 1), steps in thousands": by_scipy(thousands, values, at, False),
            "curve_fit from (1, 1, 1), steps": by_scipy(1000 * thousands, values, 1000 * at, False),
            "curve_fit in t / t_end, bounded": by_scipy(thousands, values, at, True),
            "the last value": np.full(2, values[-1]),
        }
        for name, guess in guesses.items():
            errors.setdefault(name, []).append(guess - curve(at))
    return {
        name: {"rmse": list(rms(each, 0)), "no result": float(np.isnan(each).any(1).mean())}
        for name, each in ((name, np.array(rows)) for name, rows in errors.items())
    }


def ours(steps: Any, values: Any, errors: Any, bounds: Any) -> tuple[Any, bool]:
    forecast = fit_power_law(steps, values, errors, bounds)
    rows = [forecast.predict(factor * steps[-1], force=True)[:3] for factor in FACTORS]
    return np.array(rows), forecast.refused is None


def by_effective_number(steps: Any, values: Any, errors: Any, bounds: Any) -> tuple[Any, bool]:
    """A simpler rule: fitted as uncorrelated, but n (1 - r) / (1 + r) points; r of the residuals + 3 / n."""
    log_x, number, draws = np.log(steps / steps[-1]), len(steps), 8192
    grid = np.linspace(0.03, 3, 181)
    c = np.concatenate([-grid[::-1], [0], grid])
    shape = np.where(c[:, None] == 0, log_x, -np.expm1(-c[:, None] * log_x) / np.where(c == 0, 1, c)[:, None])
    centre = shape.mean(1)
    g, y = shape - centre[:, None], values - values.mean()
    square = (g * g).sum(1)
    beta = g @ y / square
    left = y - beta[:, None] * g
    ssr = (left * left).sum(1)

    def weights(some: Any) -> tuple[Any, float]:
        rest = left[some][np.argmin(ssr[some])]
        r = min(max(rest[1:] @ rest[:-1] / (rest @ rest) + 3 / number, 0.0), 0.95)
        points = max(number * (1 - r) / (1 + r), 3.0)
        log_weight = -(points - 2) / 2 * np.log(ssr[some]) - 0.5 * np.log(square[some])
        weight = np.exp(log_weight - log_weight.max())
        return weight / weight.sum(), points

    kept = weights(c > -9)[0][c > 0.05].sum() >= 0.9
    weight, points = weights(c >= 0)
    random = np.random.default_rng(0)
    i = np.flatnonzero(c >= 0)[random.choice(182, draws, p=weight)]
    size = np.sqrt(ssr[i] * points / number / random.chisquare(points - 2, draws))
    wide = size * np.sqrt(number / points)
    slope = beta[i] + wide * random.standard_normal(draws) / np.sqrt(square[i])
    level = values.mean() + wide * random.standard_normal(draws) / np.sqrt(number) - slope * centre[i]
    noise, c = size * random.standard_normal(draws), c[i]
    rows = []
    for factor in FACTORS:
        far = np.where(c == 0, np.log(factor), -np.expm1(-c * np.log(factor)) / np.where(c == 0, 1, c))
        low, median, high = np.quantile(level + slope * far + noise, [0.05, 0.5, 0.95])
        rows.append((median, low, high))
    return np.array(rows), bool(kept)


def coverage(
    count: int, seed: int, errors: str | None = None, rule: Any = ours, bounds: Any = None, **how: Any
) -> Any:
    """How often the interval holds a measurement, all by force and those kept; errors of the true value."""
    random = np.random.default_rng(seed)
    held, off, kept, last = [], [], [], []
    sd = how.setdefault("sd", 0.01)
    for _ in range(count):
        steps, values, curve = made.series(random, **how)
        error = {None: None, "right": sd, "half": sd / 2}[errors]
        rows, keep = rule(steps, values, None if error is None else np.full(len(steps), error), bounds)
        true = curve(np.array(FACTORS) * steps[-1])
        later = true + sd * random.standard_normal(2)
        held.append((rows[:, 1] <= later) & (later <= rows[:, 2]))
        off.append(rows[:, 0] - true)
        last.append(values[-1] - true)
        kept.append(keep)
    held, off, keep = np.array(held), np.array(off), np.array(kept)
    none = [float("nan")] * 2
    return {
        "covered": list(held.mean(0)),
        "kept": float(keep.mean()),
        "covered if kept": list(held[keep].mean(0)) if keep.any() else none,
        "rmse": list(rms(off, 0)),
        "rmse if kept": list(rms(off[keep], 0)) if keep.any() else none,
        "rmse of the last value": list(rms(np.array(last), 0)),
    }


COVERED: dict[str, dict[str, Any]] = {
    "independent, n = 20": {},
    "n = 10": {"number": 10},
    "n = 30": {"number": 30},
    "n = 60": {"number": 60},
    "sd 0.003": {"sd": 0.003},
    "sd 0.03": {"sd": 0.03},
    "of more kinds (c 0.1 to 1.5)": {"make": made.wide_power_law},
    "losses, sd 0.02": {"make": made.loss, "sd": 0.02},
    "bounds (0, 1)": {"bounds": (0, 1)},
    "errors given": {"errors": "right"},
    "errors given, half the noise": {"errors": "half"},
    "AR(0.7), n = 20": {"correlation": 0.7},
    "AR(0.7), n = 10": {"correlation": 0.7, "number": 10},
    "AR(0.7), n = 30": {"correlation": 0.7, "number": 30},
    "AR(0.7), of more kinds": {"correlation": 0.7, "make": made.wide_power_law},
    "AR(0.7), errors given, half the noise": {"correlation": 0.7, "errors": "half"},
    "AR(0.9), n = 30": {"correlation": 0.9, "number": 30},
    "by the effective number: independent, n = 20": {"rule": by_effective_number},
    "by the effective number: AR(0.7), n = 20": {"rule": by_effective_number, "correlation": 0.7},
    "two power laws": {"make": made.two_power_laws},
    "two power laws, n = 60, sd 0.003": {"make": made.two_power_laws, "number": 60, "sd": 0.003},
    "a learning-rate decay after the data": {"make": made.decayed},
    "a learning-rate decay after the data, sd 0.003": {"make": made.decayed, "sd": 0.003},
}
LOGISTIC = {
    f"logistic, turns at {low:g} to {high:g} of the data, n = {number}, sd {sd:g}": {
        "make": partial(made.logistic, turn=(low, high)),
        "number": number,
        "sd": sd,
    }
    for low, high in ((0.8, 1.3), (0.5, 0.8), (0.3, 0.5), (0.1, 0.3))
    for number, sd in ((10, 0.01), (20, 0.01), (30, 0.01))
}


def moved_by(times: float, c: float, sd: float = 0.01, last: float = 80.0) -> Any:
    """A power law that changes over the data by so many times the noise."""
    rise = times * sd / (1 - last**-c)
    return partial(made.power_law, c=(c, c), rise=(rise, rise))


MOVED: dict[str, dict[str, Any]] = {
    f"changes by {times} times the noise, c = {c:g}": {"make": moved_by(times, c), "number": 30}
    for times in (10, 30, 100)
    for c in (0.1, 0.2, 0.3, 0.5)
}


def real(path: Path, first: int, last: int, target: int, errors: bool) -> dict[str, Any]:
    """Accuracies predicted at ``target`` from the checkpoints between ``first`` and ``last``."""
    tasks = ("arc_challenge", "arc_easy", "lambada_openai", "piqa", "sciq", "winogrande")
    off, held, kept, before = [], [], [], []
    for by_task in json.loads(path.read_text()).values():
        for task in tasks:
            by_step = {int(step): row for step, row in by_task[task].items()}
            steps = sorted(step for step in by_step if first <= step <= last)
            values, se = ([by_step[step][name] for step in steps] for name in ("acc", "acc_stderr"))
            forecast = fit_power_law(steps, values, se if errors else None, bounds=(0, 1))
            later, true = forecast.predict(target, force=True), by_step[target]["acc"]
            off.append(later.median - true)
            held.append(later.low <= true <= later.high)
            kept.append(forecast.refused is None)
            before.append(values[-1] - true)
    off, held, keep = np.array(off), np.array(held), np.array(kept)
    return {
        "points": len(steps),
        "rmse": float(rms(off)),
        "rmse of the last value": float(rms(np.array(before))),
        "covered": float(held.mean()),
        "kept": float(keep.mean()),
        "rmse if kept": float(rms(off[keep])) if keep.any() else None,
        "rmse of the last value if kept": float(rms(np.array(before)[keep])) if keep.any() else None,
        "covered if kept": float(held[keep].mean()) if keep.any() else None,
    }


def seconds() -> dict[str, float]:
    """CPU milliseconds of a fit."""
    times = {}
    for number, errors in ((8, False), (20, False), (20, True), (1000, False), (100_000, False)):
        steps, values, _ = made.series(np.random.default_rng(0), number=number)
        taken = []
        for _ in range(5 if number < 10_000 else 1):
            begin = time.process_time()
            fit_power_law(steps, values, np.full(number, 0.01) if errors else None)
            taken.append(1000 * (time.process_time() - begin))
        times[f"{number} points" + (", with errors" if errors else "")] = float(np.median(taken))
    return times


def row(name: str, cells: dict[str, Any]) -> str:
    def shown(value: Any) -> str:
        if isinstance(value, list):
            return " / ".join(shown(each) for each in value)
        if value is None or value != value:
            return ""
        return f"{value:.4f}" if isinstance(value, float) and abs(value) < 0.1 else f"{value:.3g}"

    return f"| {name} | " + " | ".join(shown(value) for value in cells.values()) + " |"


def show(title: str, table: dict[str, Any]) -> None:
    columns = list(next(iter(table.values())))
    print(f"\n| {title} | {' | '.join(columns)} |\n|---|" + "---|" * len(columns))
    for name, cells in table.items():
        print(row(name, cells), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--series", type=int, default=2000)
    parser.add_argument("--real", type=Path, help="evaluations of real models, as JSON")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    results: dict[str, Any] = {}
    wanted = (args.only,) if args.only else PARTS
    if "start" in wanted:
        results["start"] = start_values(500)
        show("n = 20, sd 0.01, at 4 / 18 times the last step", results["start"])
    if "coverage" in wanted:
        results["coverage"] = {name: coverage(args.series, 7, **how) for name, how in COVERED.items()}
        show(f"{args.series} series, at 4 / 18 times the last step", results["coverage"])
    if "refusals" in wanted:
        number = max(args.series // 4, 1)
        results["refusals"] = {name: coverage(number, 8, **how) for name, how in LOGISTIC.items()}
        show(f"{number} series", results["refusals"])
    if "moved" in wanted:
        number = max(args.series // 4, 1)
        results["moved"] = {name: coverage(number, 9, **how) for name, how in MOVED.items()}
        show(f"{number} power laws, n = 30", results["moved"])
    if "real" in wanted and args.real:
        results["real"] = {
            f"{first:,} to {last:,}, {'with' if errors else 'without'} errors": real(
                args.real, first, last, 143_000, errors
            )
            for first, last in ((512, 33_000), (1000, 33_000), (512, 13_000), (1000, 73_000), (3000, 73_000))
            for errors in (True, False)
        }
        show("checkpoints, predicted at step 143,000", results["real"])
    if "time" in wanted:
        results["milliseconds"] = seconds()
        show("", {"milliseconds": results["milliseconds"]})
    if args.out is not None:
        args.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
