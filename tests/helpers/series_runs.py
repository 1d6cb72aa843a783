"""Trainings whose validations follow a power law, as histories and as scored checkpoints."""

import numpy as np
import torch

from lightning_pce import digest, intervals
from lightning_pce.runs.history import History, write_start, write_validation

STEPS = tuple(int(step) for step in np.geomspace(100, 10_000, 14))


def falling(step):
    """A median that falls to 2."""
    return 2 + 30 * step**-0.5


def rising(step):
    """An accuracy that rises to 0.8."""
    return 0.8 - 4 * step**-0.4


def numbers(curve=falling, steps=STEPS, noise=0.004, seed=0):
    """The curve with noise, by step."""
    generator = np.random.default_rng(seed)
    return {step: float(curve(step) + noise * generator.normal()) for step in steps}


def training(path, values=None, *, run="a", name="val", key="ce_p50", error=0.005, scalars=None, **more):
    """A history of a training, with error bars that are 1.96 errors to each side; what it reads as."""
    values = numbers() if values is None else values
    if not path.exists():
        write_start(path, run=run, step=0, batch=0)
    for step, value in values.items():
        found = {key: value}
        if error is not None:
            found |= {f"{key}_low": value - 1.959964 * error, f"{key}_high": value + 1.959964 * error}
        given = {} if scalars is None else {at: by_step[step] for at, by_step in scalars.items()}
        settings = {"function": "fit", "batch": step, "epoch": 0, "scalars": given, **more}
        write_validation(path, run=run, name=name, step=step, values=found, **settings)
    return History.load(path)


def checkpoints(path, values=None, *, folder="out", name="web", key="ce_p50", model=None, **more):
    """Records as ``lightning-pce evaluate out/checkpoint-*`` writes them, each a run of its own."""
    values = numbers() if values is None else values
    for step, value in values.items():
        saved = f"{folder}/checkpoint-{step}" if model is None else model(step)
        settings = {"function": "score", "checkpoint": saved, "values": {key: value}, "step": step}
        write_validation(path, run=f"key of {saved}", name=name, **settings | more)
    return History.load(path)


def with_digests(path, values, *, run="a", name="val", scalars=None, documents=60, function="fit"):
    """A history of which pages are made: each record has losses around a median of this value."""
    ids = torch.arange(documents).repeat_interleave(20)
    slots = intervals.slots_of(ids)
    spread = torch.distributions.Exponential(1.0).icdf(torch.linspace(0.01, 0.99, 20)).repeat(documents)
    spread = spread + 0.2 * torch.randn(documents, generator=torch.Generator().manual_seed(0))[ids]
    for step, value in values.items():
        losses = value + spread - spread.median()
        found = {"ce_p50": value, "ce_mean": float(losses.mean()), "ce_count": len(losses)}
        contents = {
            "digests": {"ce": {"": digest.from_values(losses)}},
            "documents": {"ce": {"": intervals.add(intervals.empty(), losses, None, slots)}},
        }
        given = {} if scalars is None else {at: by_step[step] for at, by_step in scalars.items()}
        place = {"step": step, "batch": step, "epoch": None, "function": function}
        write_validation(path, run=run, name=name, values=found, scalars=given, **place, **contents)
    return History.load(path)
