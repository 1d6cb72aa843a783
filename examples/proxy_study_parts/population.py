"""Who is trained on what: 24 models, the small models of the data choice, and the runs to forecast.

The population is built so that text and tasks compete: a model that reads much text sees few tasks. Mixes
differ in that, in the families, in the style of the solutions and in how many of these are wrong.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from proxy_study_parts.tasks import FAMILIES, STYLES

SEED = 16
STEPS = 2000  # of a model; a run to forecast is longer
RUN_STEPS = 4500
PARTS = 8  # checkpoints of a run in a factor of 18; the last of 16 is its end
# Per kind: width, layers and learning rate, from some 9,000 parameters to 105,000.
SIZES = {
    "GPT": ((24, 1, 8e-3), (32, 2, 8e-3), (48, 2, 5e-3), (64, 2, 3e-3)),
    "GRU": ((36, 1, 1e-2), (64, 1, 6e-3), (96, 1, 4e-3), (124, 1, 4e-3)),
    "LSTM": ((32, 1, 1e-2), (64, 1, 1e-2), (88, 1, 8e-3), (108, 1, 6e-3)),
    "TCN": ((20, 1, 8e-3), (36, 1, 6e-3), (48, 1, 5e-3), (64, 1, 4e-3)),
}
TARGET = ("TCN", *SIZES["TCN"][3])
# Width and steps of the small models: some 1.6 % and 11 % of the target's parameters x characters.
SCALES = {"small": (24, 210), "middle": (40, 547)}
RANDOM_KINDS = ("GPT", "GRU", "LSTM") * 4 + ("TCN",) * 2


class Mix(NamedTuple):
    """What a model is trained on: shares of sources and styles, and of wrong solutions (``noise``)."""

    sources: dict[str, float]  # plays, bible and the families; they add up to 1
    styles: dict[str, float]
    noise: float


class Unit(NamedTuple):
    """A model to train on a mix, and after which steps to measure it."""

    name: str
    kind: str
    width: int
    layers: int
    rate: float
    steps: int
    mix: Mix
    checkpoints: tuple[int, ...]


def _mix(text: float, bible: float, families: list[float], styles: tuple[float, ...], noise: float) -> Mix:
    sources = {"plays": text * (1 - bible), "bible": text * bible}
    for name, part in zip(FAMILIES, families, strict=True):
        sources[name] = (1 - text) * part / sum(families)
    parts = [style / sum(styles) for style in styles]
    return Mix(sources, dict(zip(STYLES, parts, strict=True)), noise)


def fixed_mixes() -> dict[str, Mix]:
    """The ten corpora to choose from."""
    alike, letters, numbers = [1.0] * 6, [3.0, 3.0, 3.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 3.0, 3.0, 3.0]
    return {
        "mostly tasks": _mix(0.1, 0.5, alike, (8, 1, 1), 0.0),
        "mostly tasks, noisy": _mix(0.1, 0.5, alike, (1, 8, 1), 0.4),
        "letters, told": _mix(0.3, 0.2, letters, (1, 8, 1), 0.0),
        "numbers, answer first": _mix(0.3, 0.8, numbers, (1, 1, 8), 0.1),
        "half and half": _mix(0.5, 0.5, alike, (1, 1, 1), 0.0),
        "half and half, listed": _mix(0.5, 0.8, alike, (8, 1, 1), 0.2),
        "half and half, answer first": _mix(0.5, 0.2, letters, (1, 1, 8), 0.0),
        "much text, told": _mix(0.7, 0.5, numbers, (1, 8, 1), 0.0),
        "much text, noisy": _mix(0.7, 0.2, alike, (1, 1, 1), 0.3),
        "mostly text": _mix(0.9, 0.5, alike, (4, 1, 4), 0.0),
    }


def random_mix(rng: random.Random) -> Mix:
    """Half of the mixes without wrong solutions; most with one style before others."""
    families = [rng.gammavariate(1.5, 1.0) for _ in FAMILIES]
    styles = tuple(rng.gammavariate(0.4, 1.0) + 0.01 for _ in STYLES)
    noise = rng.choice((0.0, rng.uniform(0.05, 0.4)))
    return _mix(rng.uniform(0.1, 0.9), rng.random(), families, styles, noise)


def models() -> list[Unit]:
    """The 24 models: the target on each of the ten mixes, and 14 others, each on a mix of its own."""
    found = [Unit(f"target: {name}", *TARGET, STEPS, mix, (STEPS,)) for name, mix in fixed_mixes().items()]
    rng = random.Random(SEED)
    for number, kind in enumerate(RANDOM_KINDS):
        # Of three kinds in turn each gets all four sizes; of TCNs, which the targets are, two others.
        width, layers, rate = SIZES[kind][number // 3 if kind != "TCN" else number - 12]
        found.append(Unit(f"{kind} {width}", kind, width, layers, rate, STEPS, random_mix(rng), (STEPS,)))
    return found


def small_models() -> list[Unit]:
    """Two small models for each of the ten mixes."""
    return [
        Unit(f"{scale}: {name}", "TCN", width, 1, 6e-3, steps, mix, (steps,))
        for scale, (width, steps) in SCALES.items()
        for name, mix in fixed_mixes().items()
    ]


def runs() -> list[Unit]:
    """A run of each kind, measured at steps of equal ratio: eight of them in its first 1/18."""
    steps = [round(RUN_STEPS * 18 ** (-back / PARTS)) for back in reversed(range(2 * PARTS))]
    rng = random.Random(SEED + 1)
    chosen = {"GPT": 1, "GRU": 1, "LSTM": 1, "TCN": 2}
    return [
        Unit(f"run: {kind}", kind, *SIZES[kind][size], RUN_STEPS, _run_mix(rng), tuple(steps))
        for kind, size in chosen.items()
    ]


def _run_mix(rng: random.Random) -> Mix:
    styles = [8.0, 1.0, 1.0]
    rng.shuffle(styles)
    return _mix(rng.uniform(0.2, 0.4), 0.5, [1.0] * 6, tuple(styles), 0.0)


def all_units() -> list[Unit]:
    """The longest first."""
    return [*runs(), *models(), *small_models()]
