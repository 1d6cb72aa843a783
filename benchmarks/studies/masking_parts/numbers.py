"""What masking prompts does to what each statistic picks, of the runs of part a of the fact study."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.studies.fact_sft_parts.comparisons import paired, picked
from benchmarks.studies.fact_sft_parts.numbers import after_epochs
from benchmarks.studies.fact_sft_parts.numbers import numbers as fact_sft_numbers
from examples.resumable import Unit
from lightning_pce.runs import Record, reshaping

TOKENS = ("all", "completion")
CELLS = tuple((trained_on, scored_on) for trained_on in TOKENS for scored_on in TOKENS)
STATISTICS = ("mean", "p50", "p75", "p95")
GROUPS = ("prompt", "completion")
# Somebody else's run, as they describe it; nobody here has repeated it.
THEIRS = {
    "who": "kovashikawa",
    "model": "Qwen3-1.7B, LoRA, 229 training rows",
    "prompt share of tokens": 0.877,
    "prompt and completion tokens": [134, 19],
    "unmasked": {"pick": 0.372, "best": 0.907},
    "masked": {"pick": 0.868, "best": 0.884},
    "four seeds": [0.767, 0.814, 0.907, 0.884],
}
Run = dict[str, Any]


def numbers(units: Sequence[Unit]) -> dict[str, Any]:
    """What JSON holds of the runs of part a: of each seed one trained on all tokens, one on completions."""
    fact_sft = fact_sft_numbers(units)
    runs = sorted(fact_sft["runs"], key=lambda run: run["seed"])
    by_tokens = {each: [run for run in runs if run["trained_on"] == each] for each in TOKENS}
    paths = {unit.settings["name"]: unit.path for unit in units}
    return {
        **{name: fact_sft[name] for name in ("model", "facts", "precision", "versions")},
        "epochs": len(runs[0]["recall"]) - 1,
        "seeds": [run["seed"] for run in by_tokens["all"]],
        "cells": [_cell(by_tokens[trained_on], trained_on, scored_on) for trained_on, scored_on in CELLS],
        "moves": _moves(by_tokens),
        "beside the mean": [
            each
            for each in fact_sft["choices compared"]
            if each["less"] == "mean" and each["pick"] in STATISTICS
        ],
        "rises": [_rise(run, paths[run["name"]]) for run in runs],
        "curves": [_curves(run, paths[run["name"]]) for run in runs],
        "theirs": THEIRS,
    }


def cell(found: dict[str, Any], trained_on: str, scored_on: str) -> dict[str, Any]:
    """One of the four."""
    for each in found["cells"]:
        if (each["trained_on"], each["scored_on"]) == (trained_on, scored_on):
            return dict(each)
    raise KeyError((trained_on, scored_on))


def _cell(runs: Sequence[Run], trained_on: str, scored_on: str) -> dict[str, Any]:
    chosen = [(run["seed"], run["choices"][scored_on]) for run in runs]
    return {
        "trained_on": trained_on,
        "scored_on": scored_on,
        "missed": {name: sum(each["picks"][name]["missed"] for _, each in chosen) for name in STATISTICS},
        "runs": [
            {
                "seed": seed,
                "best": each["best"],
                "best_task": each["task"][each["best"]],
                "saturated": each["saturated"],
                "picks": {name: each["picks"][name] for name in STATISTICS},
            }
            for seed, each in chosen
        ],
    }


def _moves(runs: dict[str, list[Run]]) -> list[dict[str, Any]]:
    """Recall at the picks of one cell less that at the picks of another, of the same facts.

    Where the runs are trained alike both picks are of the same run.
    """
    unmasked, masked = CELLS[0], CELLS[-1]
    pairs = [((trained_on, "all"), (trained_on, "completion")) for trained_on in TOKENS] + [
        (unmasked, masked)
    ]
    found = []
    for before, after in pairs:
        for name in STATISTICS:
            each = [
                picked(new, after[1], name) - picked(old, before[1], name)  # [facts]
                for old, new in zip(runs[before[0]], runs[after[0]], strict=True)
            ]
            found.append({"from": list(before), "to": list(after), "statistic": name, **paired(each)})
    return found


def _curves(run: Run, path: Path) -> dict[str, Any]:
    """By epoch, from before training on."""
    rows = json.loads(path.read_text(encoding="utf-8"))["epochs"]
    means = {each: [round(row[each]["mean"], 4) for row in rows] for each in ("all", *GROUPS)}
    return {"trained_on": run["trained_on"], "seed": run["seed"], "recall": run["recall"], "means": means}


def _rise(run: Run, path: Path) -> dict[str, Any]:
    """What prompts and completions add to the mean of all tokens from its lowest epoch to the last.

    In nats a token of all tokens, so that the parts add up to the change of the mean. What is gained and
    lost are the areas of :func:`lightning_pce.runs.reshaping`: by how much tokens that become better lower
    the mean, and by how much the others raise it.
    """
    history = after_epochs(path.with_suffix(".jsonl"), "all")
    by_label = {record.label: record for record in history}
    lowest = by_label[run["choices"]["all"]["picks"]["mean"]["label"]]
    parts = {group: _part(lowest, history[-1], group) for group in GROUPS}
    change = history[-1].values["ce_mean"] - lowest.values["ce_mean"]
    assert abs(sum(part["change"] for part in parts.values()) - change) < 1e-6
    return {
        "trained_on": run["trained_on"],
        "seed": run["seed"],
        "lowest": lowest.label,
        "last": history[-1].label,
        "at the lowest": round(lowest.values["ce_mean"], 5),
        "change": round(change, 5),
        **{group: {name: round(value, 5) for name, value in part.items()} for group, part in parts.items()},
    }


def _part(before: Record, after: Record, group: str) -> dict[str, float]:
    share = before.values[f"ce_{group}_count"] / before.values["ce_count"]
    changed = reshaping(
        ("before", before.digest("ce", group), before.documents("ce", group)),
        ("after", after.digest("ce", group), after.documents("ce", group)),
    )
    return {
        "share of tokens": share,
        "change": share * (after.values[f"ce_{group}_mean"] - before.values[f"ce_{group}_mean"]),
        "gained": share * changed.gained.total,
        "lost": share * changed.lost.total,
        "lost in its top 5 %": share * changed.lost.upper,
    }
