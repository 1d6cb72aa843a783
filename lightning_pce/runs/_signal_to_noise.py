"""How far models differ in a proxy, beside how exactly that is measured."""

from __future__ import annotations

import math

import numpy as np

from lightning_pce._errors import UserError
from lightning_pce.runs._population import check_one_row_each
from lightning_pce.runs.proxy_table import ProxyTable


def signal_to_noise(table: ProxyTable, name: str, task: str) -> float:
    """How far two models differ in a proxy on a task, beside the standard error of that difference.

    Both are root mean squares over pairs of models: of the differences, and of their standard errors. So 1 is
    what models without any difference give, and under 2 or so the order is mostly noise. In differences, as
    a proxy may be negative or around 0, where a quotient with its mean says nothing. For one run there is
    :func:`lightning_pce.runs.concordance.signal_to_noise`, over time.

    The standard errors are over sequences and taken as independent of one another. Models answer the same
    sequences, so those of differences are smaller, and the quotient is rather too low. It holds no
    noise of training. To read, and not to choose a proxy by: in our measurements it did not say which proxy
    ranks well (0.19 was its correlation with the size of rho).

    Args:
        table: one row for each model and task.
        name: of the proxy.
        task: of which at least two models have the proxy and its standard error.

    Returns:
        The quotient; NaN if there are no two finite values, infinite without any error.

    Example:
        >>> table = ProxyTable(
        ...     ["a", "b"], ["sums"] * 2, ["ce_uniform"], [[2.0], [1.0]], errors=[[0.1], [0.1]]
        ... )
        >>> round(signal_to_noise(table, "ce_uniform", "sums"), 3)
        7.071
    """
    check_one_row_each(table)
    if task not in table.tasks:
        raise UserError(f"There is no task {task!r}: there are {', '.join(dict.fromkeys(table.tasks))}.")
    own = np.array([each == task for each in table.tasks])
    values, errors = table.column(name)[own], table.errors[own, table.place(name)]
    known = np.isfinite(values) & np.isfinite(errors)
    if known.sum() < 2:
        return math.nan
    signal, noise = float(values[known].std(ddof=1)), float(np.sqrt((errors[known] ** 2).mean()))
    if noise == 0:
        return math.inf if signal > 0 else math.nan
    return signal / noise
