"""Which runs there are: each differs from its neighbours in one setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.studies.fact_sft_parts.training import OBJECTIVES
from examples.resumable import Unit, read

RECIPE = 1  # raise it when other code makes other results
RATE = 1e-4
PARTS = ("a", "b", "c")
WRONG = 0.2  # share of the training objects that are replaced in part c


class Size(NamedTuple):
    facts: int
    epochs: int
    """Of part a."""
    short: int
    """Of parts b and c."""
    seeds: int
    """Of part a."""
    few: int
    """Of parts b and c."""
    rates: tuple[float, ...]
    objectives: tuple[str, ...]


FULL = Size(120, 12, 6, 5, 3, (5e-5, RATE, 2e-4), tuple(OBJECTIVES))
QUICK = Size(12, 2, 1, 1, 1, (RATE,), ("NLL", "1 - p"))


class Runs(NamedTuple):
    """Units; the second begin with weights that some of the first have saved."""

    first: list[Unit]
    then: list[Unit]
    starts: list[Unit]
    """What these weights know of the training set of part c, which is measured without training."""


def runs_of(parts: tuple[str, ...], out: Path, model: str | None, size: Size) -> Runs:
    """The runs of the parts, and those of part a whose checkpoints they start from."""

    def unit(name: str, seed: int, epochs: int, **more: Any) -> Unit:
        settings: dict[str, Any] = {"name": name, "recipe": RECIPE, "model": model, "seed": seed}
        settings |= {"facts": size.facts, "epochs": epochs, "wrong": 0.0, "rate": RATE, "objective": "NLL"}
        settings |= {"trained_on": "completion", "start": None, "saves": False}
        return Unit(out / "units" / f"{name}.json", settings | more)

    starts = [unit(f"a_completion_seed_{seed}", seed, size.epochs, saves=True) for seed in range(size.few)]
    first, then = list(starts), []
    if "a" in parts:
        first += [
            unit(f"a_{trained_on}_seed_{seed}", seed, size.epochs, trained_on=trained_on)
            for seed in range(size.seeds)
            for trained_on in ("completion", "all")
            if trained_on == "all" or seed >= size.few
        ]
    for part, wrong in (("b", 0.0), ("c", WRONG)):
        if part not in parts:
            continue
        for objective in size.objectives:
            for seed in range(size.few):
                made = {"objective": objective, "wrong": wrong}
                name = f"{part}_{{}}_{_word(objective)}_seed_{seed}"
                first.append(unit(name.format("weak"), seed, size.short, **made))
                start = starts[seed].path.with_suffix(".pt").name
                then.append(unit(name.format("strong"), seed, size.short, start=start, **made))
    if "b" in parts:
        first += [
            unit(f"b_rate_{rate:g}_{_word(objective)}_seed_0", 0, size.short, objective=objective, rate=rate)
            for rate in size.rates
            if rate != RATE
            for objective in ("NLL", "1 - p")
        ]
    return Runs(first, then, [_measured(start) for start in starts] if "c" in parts else [])


def without_weights(runs: Runs) -> list[Unit]:
    """Units that are done, but whose weights are not there and are needed by one that is missing."""
    needed = {unit.settings["start"] for unit in (*runs.then, *runs.starts) if read(unit) is None}
    return [
        unit
        for unit in runs.first
        if read(unit) is not None
        and unit.path.with_suffix(".pt").name in needed
        and not unit.path.with_suffix(".pt").exists()
    ]


def ready(runs: Runs) -> list[Unit]:
    """The first units, and those of the second whose weights are there.

    Part a before the others, and of these all that have one seed before the next: when a study stops half way
    it has every comparison, of fewer seeds.
    """
    begun = [unit for unit in runs.then if (unit.path.parent / unit.settings["start"]).exists()]
    return sorted([*runs.first, *begun], key=lambda unit: _order(unit.settings))


def _measured(start: Unit) -> Unit:
    """Of the checkpoint that a unit saves."""
    kept = ("recipe", "model", "seed", "facts", "rate", "objective", "trained_on")
    settings = {name: start.settings[name] for name in kept}
    settings |= {"name": f"start_on_wrong_seed_{settings['seed']}", "wrong": WRONG}
    settings |= {"start": start.path.with_suffix(".pt").name}
    return Unit(start.path.with_name(f"{settings['name']}.json"), settings)


def _order(settings: dict[str, Any]) -> tuple[bool, int]:
    return not settings["name"].startswith("a_"), settings["seed"]


def _word(objective: str) -> str:
    """A name as part of a file's name."""
    return "_".join("".join(c if c.isalnum() or c == "." else " " for c in objective).split()).lower()
