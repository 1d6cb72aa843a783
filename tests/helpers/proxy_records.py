"""Records as ``evaluate --proxies`` writes them, by hand and without torch."""

import json

from lightning_pce.runs.history import write_validation
from tests.helpers.scored_records import HOW

PROTOCOL = {
    "last_n": 1000,
    "inverse": "reciprocal",
    "gaussian_center": 1.0,
    "gaussian_width": 1.0,
    "vocabulary": 64,
    "frequency": "sequence",
}


def write_record(path, model, task, values, *, proxies=PROTOCOL, how=None, **more):
    """A record of a model; without proxies if ``proxies`` is None, when values are its own."""
    known = {**HOW, "data": f"data of {task}", "token_ids": f"ids of {task}", **(how or {})}
    known |= {} if proxies is None else {"proxies": proxies}
    if proxies is not None:
        names = {f"proxy_{name}": value for name, value in values.items()}
        values = {"ce_mean": 1.0, **names, "proxy_sequences": 20.0, "proxy_tokens": 200.0, "proxy_nan": 0.0}
    settings = {"step": None, "function": "score", "checkpoint": model, **more}
    run = f"{model} {task} {json.dumps(known, sort_keys=True)}"
    write_validation(path, run=run, name=task, values=values, how=known, **settings)
    return path


def with_errors(values):
    """Proxies by name with a standard error beside each."""
    return {
        key: number for name, value in values.items() for key, number in ((name, value), (f"{name}_se", 0.1))
    }
