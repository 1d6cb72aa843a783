"""Of expert solutions in several styles the one that a model finds likeliest."""

from __future__ import annotations

import numpy as np

from lightning_pce._errors import UserError
from lightning_pce.runs._words import listed
from lightning_pce.runs.proxy_table import ProxyTable

EXPERT_CE = "ce_uniform"


def best_style(results: ProxyTable) -> ProxyTable:
    """Of several styles of expert solutions the one that each model finds likeliest, for each task.

    One style of solutions also measures which models have learned to write in it. The likeliest is that of
    the lowest ``ce_uniform``; of equal ones the first by name.

    Args:
        results: with a row for each model, task and style.

    Returns:
        One row for each model and task, in the order of the first rows.

    Raises:
        UserError: if styles are not known, or models of a task have other styles, or tasks other numbers of
            them: the lowest of three is lower than the lowest of two.

    Example:
        >>> styles = ["long", "short"]
        >>> table = ProxyTable(["a"] * 2, ["sums"] * 2, ["ce_uniform"], [[2.0], [1.0]], styles=styles)
        >>> best_style(table).styles
        ('short',)
    """
    ce = results.column(EXPERT_CE)
    rows: dict[tuple[str, str], dict[str, int]] = {}
    for row, (model, task, style) in enumerate(
        zip(results.models, results.tasks, results.styles, strict=True)
    ):
        if style is None:
            raise UserError(f"{model!r} on {task!r} has no style: give save_proxies(style=) for all results.")
        if np.isnan(ce[row]):
            raise UserError(f"The {EXPERT_CE} of {model!r} on {task!r} in style {style!r} is NaN.")
        rows.setdefault((model, task), {})[style] = row
    if not rows:
        raise UserError("The table has no rows: there is no style to choose.")
    first_of_task: dict[str, tuple[str, str]] = {}
    first = next(iter(rows))
    for key, styles in rows.items():
        same = first_of_task.setdefault(key[1], key)
        if set(styles) != set(rows[same]) or len(styles) != len(rows[first]):
            other = same if set(styles) != set(rows[same]) else first
            raise UserError(
                f"{key[0]!r} on {key[1]!r} has styles {listed(sorted(styles))}, and {other[0]!r} on "
                f"{other[1]!r} {listed(sorted(rows[other]))}: the likeliest is compared of equally many, "
                "within a task of the same."
            )
    chosen = [min(styles.items(), key=lambda each: (ce[each[1]], each[0]))[1] for styles in rows.values()]
    found = results.rows(np.array(chosen))
    found.best_of = len(rows[first])
    return found
