"""A study that is too small to show anything, in half a minute and without a network: for a test."""

from __future__ import annotations

from proxy_study_parts.population import Unit, fixed_mixes, models, runs, small_models

CORPORA = 6  # the fewest that have an interval
STEPS = 60  # after which some answers are right
CHECKPOINTS = tuple(range(6, STEPS + 1, 6))


def quick_units() -> list[Unit]:
    """Twelve models, six corpora at both scales, and a run of ten checkpoints."""
    few = [*models()[:CORPORA], *models()[10 : 10 + CORPORA]]
    units = [
        _short(unit, STEPS if unit.kind == "TCN" else 8, 24 if unit.kind == "TCN" else 16) for unit in few
    ]
    chosen = tuple(fixed_mixes())[:CORPORA]
    units += [_short(unit, 20, 12) for unit in small_models() if unit.name.partition(": ")[2] in chosen]
    return [_short(runs()[-1], STEPS, 24)._replace(checkpoints=CHECKPOINTS), *units]


def _short(unit: Unit, steps: int, width: int) -> Unit:
    return unit._replace(width=width, rate=1e-2, steps=steps, checkpoints=(steps,))
