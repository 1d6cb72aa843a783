"""The first use of proxies: which of 24 models is better at a task that nobody ran?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightning_pce.runs.ranking import (
    CrossValidation,
    ProxyTable,
    best_style,
    cross_validate,
    save_proxies,
)
from proxy_study_parts.population import SEED, Unit
from proxy_study_parts.tasks import FAMILIES, ITEMS, STYLES

EXPERT = STYLES[0]  # the one style of those who have one
PROTOCOLS = ("tasks", "models_and_tasks")
METHODS = (
    ("best single proxy", "single", "linear"),
    ("three proxies", "sparse", "linear"),
    ("RankSVM, linear", "rank_svm", "linear"),
    ("RankSVM, RBF", "rank_svm", "rbf"),
)
# Proxies by themselves, of the one style; their direction alone is fitted.
ALONE = {"top-1": "top1_uniform", "inverse-frequency top-1": "top1_inverse_frequency"}


def proxy_table(units: Sequence[Unit], found: dict[str, Any], out: Path) -> ProxyTable:
    """One row for each model, task and style, by way of files as one would keep them."""
    for unit in units:
        [measured] = found[unit.name]["checkpoints"]
        for family, by_style in measured["proxies"].items():
            for style, values in by_style.items():
                save_proxies(
                    out / "proxies" / f"{units.index(unit):02}-{family}-{style}.json",
                    model=unit.name,
                    task=family,
                    style=style,
                    result=values,
                    truth=measured["truth"][family],
                    baselines={"text_ce": measured["text_ce"]},
                )
    return ProxyTable.read(out / "proxies" / "*.json").select(models=[unit.name for unit in units])


def ranking(table: ProxyTable) -> dict[str, Any]:
    """Correlations with the truth on tasks held out, of each method and protocol, less text CE."""
    one, likeliest = table.select(styles=EXPERT), best_style(table)
    found: dict[str, Any] = {}
    for protocol in PROTOCOLS:
        rows: dict[str, Any] = {}
        for name, method, kernel in METHODS:
            report = cross_validate(one, method, protocol, kernel, SEED)
            rows[name] = _row(report) | {"null": report.null, "spread": report.spread}
        rows |= {name: _row(_alone(one, proxy, protocol)) for name, proxy in ALONE.items()}
        rows["expert CE"] = _row(_alone(one, "ce_uniform", protocol))
        rows["expert CE, best style"] = _row(_alone(likeliest, "ce_uniform", protocol))
        for name, method, kernel in METHODS[2:]:
            report = cross_validate(likeliest, method, protocol, kernel, SEED)
            rows[f"{name}, best style"] = _row(report) | {"null": report.null, "spread": report.spread}
        for name, known in (("text CE", "text_ce"), ("accuracy on known tasks", "known_tasks")):
            if known in report.baselines:
                rows[name] = {"rho": list(report.baselines[known].rho)}
        found[protocol] = rows
    return found


def by_task(table: ProxyTable) -> dict[str, Any]:
    """Of each task how good the models are, how much of that is sampling, and how each CE orders them."""
    one, likeliest = table.select(styles=EXPERT), best_style(table)
    found = {}
    for family in FAMILIES:
        here, best = one.select(tasks=family), likeliest.select(tasks=family)
        found[family] = {
            "truth": np.quantile(here.truth, [0, 0.5, 1]).tolist(),
            "noise": float(np.mean(here.truth * (1 - here.truth)) / ITEMS / np.var(here.truth))
            if np.ptp(here.truth) > 0
            else None,
            "text CE": spearman(-here.baselines["text_ce"], here.truth),
            "expert CE": spearman(-here.column("ce_uniform"), here.truth),
            "expert CE, best style": spearman(-best.column("ce_uniform"), best.truth),
        }
    return found


def style_effect(table: ProxyTable, units: Sequence[Unit]) -> dict[str, Any]:
    """What one expert's style measures: mean correlations over tasks (and over styles)."""
    share = {unit.name: unit.mix.styles for unit in units}
    speaks = [
        name
        for name, styles in share.items()
        if all(styles[EXPERT] > styles[other] for other in STYLES if other != EXPERT)
    ]
    others = [name for name in share if name not in speaks]

    def rho_of(models: list[str]) -> float:
        rows = [table.select(models, family, EXPERT) for family in FAMILIES]
        return float(np.nanmean([spearman(-each.column("ce_uniform"), each.truth) for each in rows]))

    who_speaks = []
    for style in STYLES:
        for family in FAMILIES:
            rows = table.select(tasks=family, styles=style)
            who_speaks.append(
                spearman(-rows.column("ce_uniform"), np.array([share[model][style] for model in rows.models]))
            )
    likeliest = best_style(table)
    most = [
        share[model][str(style)] == max(share[model].values())
        for model, style in zip(likeliest.models, likeliest.styles, strict=True)
    ]
    return {
        "likeliest is the most trained": float(np.mean(most)),
        "likeliest": {style: likeliest.styles.count(style) / len(likeliest) for style in STYLES},
        "in training": {style: float(np.mean([each[style] for each in share.values()])) for style in STYLES},
        "models of this style": len(speaks),
        "rho among them": rho_of(speaks),
        "rho among others": rho_of(others),
        "rho with the share of a style": float(np.mean(who_speaks)),
    }


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rho; of equal values the mean rank, NaN if all are equal."""
    ranks = [_ranks(np.asarray(each, dtype=np.float64)) for each in (first, second)]
    if any(np.ptp(each) == 0 for each in ranks):
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    return (values[:, None] > values).sum(1) + (values[:, None] == values).sum(1) / 2


def _alone(table: ProxyTable, proxy: str, protocol: Any) -> CrossValidation:
    only = ProxyTable(
        table.models,
        table.tasks,
        [proxy],
        table.column(proxy)[:, None],
        truth=table.truth,
        baselines=table.baselines,
    )
    return cross_validate(only, "single", protocol, seed=SEED)


def _row(report: CrossValidation) -> dict[str, Any]:
    row: dict[str, Any] = {"rho": list(report.rho)}
    for name, known in (("less text CE", "text_ce"), ("less known tasks", "known_tasks")):
        if known in report.baselines:
            row[name] = list(report.baselines[known].difference)
    return row
