"""RankSVM: a function of a model's proxies that orders models within each task as the truth does.

``f = sum_i a_i k(., x_i)`` over the rows of the training. It is the least of

    |f|^2 / 2 + cost sum max(0, 1 - (f(x_i) - f(x_j)))^2

over the pairs i, j of one task with different truth, each of which counts in both of its orders, i the better
one. With the linear kernel that is scikit-learn's ``LinearSVC(C=cost, loss="squared_hinge",
fit_intercept=False)`` on the differences x_i - x_j and x_j - x_i. A kernel is one of models, never of
differences of models: a classifier of differences with an RBF kernel is no ranker, as it may put a before b,
b before c and c before a.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Kernel = Literal["linear", "rbf"]

_MOST_STEPS = 100  # 6 are usual
_EXACT = 1e-10


def kernel_matrix(kernel: Kernel, x: Floats, y: Floats) -> Floats:
    """``[R, S]`` of rows ``[R, P]`` and ``[S, P]``.

    The width of the RBF kernel is our choice: ``exp(-|x - y|^2 / P)``, which of two models with z-scores is
    exp(-2) on average (scikit-learn's ``gamma="scale"`` for such features).
    """
    products = x @ y.T
    if kernel == "linear":
        return products
    distance = (x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * products
    return np.asarray(np.exp(-np.maximum(distance, 0.0) / max(x.shape[1], 1)))


def factor_of(kernel: Kernel, x: Floats) -> Floats:
    """``[R, D]`` whose products with one another are the kernel of rows ``[R, P]``."""
    if kernel == "linear":
        return x
    values, vectors = np.linalg.eigh(kernel_matrix(kernel, x, x))
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)))


class _Task(NamedTuple):
    """The rows of one task: pairs are within it."""

    rows: NDArray[np.int64]
    factor: Floats
    better: NDArray[np.bool_]
    """``[n, n]`` whether row i is better than row j."""

    def slack(self, w: Floats) -> Floats:
        """``[n, n]`` by how much each pair is short of its margin; 0 where there is no pair."""
        scores = self.factor @ w
        return np.where(self.better, np.maximum(0.0, 1 - scores[:, None] + scores), 0.0)


def rank_svm(factor: Floats, truth: Floats, tasks: NDArray[np.int64], cost: float = 1.0) -> Floats:
    """The coefficients ``[R]`` of the rows by Newton steps, each exact for the pairs within its margin.

    Args:
        factor: ``[R, D]``, of :func:`factor_of`.
        truth: ``[R]``; NaN where it is not known.
        tasks: ``[R]`` the task of each row.
        cost: the weight of a pair in each of its orders.
    """
    blocks = []
    for task in np.unique(tasks):
        rows = np.flatnonzero(tasks == task)
        blocks.append(_Task(rows, factor[rows], truth[rows][:, None] > truth[rows]))
    w = np.zeros(factor.shape[1])
    value = _objective(blocks, w, cost)
    for _ in range(_MOST_STEPS):
        step = _solution(blocks, w, cost) - w
        if np.abs(step).max(initial=0.0) <= _EXACT * max(1.0, np.abs(w).max(initial=0.0)):
            break
        length, new = 1.0, _objective(blocks, w + step, cost)
        while new > value and length > _EXACT:  # the whole step is nearly always down
            length /= 2
            new = _objective(blocks, w + length * step, cost)
        if new > value:
            break  # rounding: there is no way down
        w, value = w + length * step, new
    found = np.zeros(len(factor))
    for block in blocks:  # where the gradient is 0, a row has the weight of what pushes it
        slack = block.slack(w)
        found[block.rows] = 4 * cost * (slack.sum(1) - slack.sum(0))
    return found


def _solution(blocks: list[_Task], w: Floats, cost: float) -> Floats:
    """The least of the objective if the pairs within the margin here were all pairs, and stayed so.

    It solves ``w = 4 cost F'(d - L F w)``, each pair in both orders: d is how often a row is the better one
    of a pair less how often the worse one, L the Laplacian of the pairs.
    """
    system, aim = np.eye(len(w)), np.zeros(len(w))
    for _, factor, better in blocks:
        scores = factor @ w
        inside = better & (scores[:, None] - scores < 1)
        wins, losses = inside.sum(1), inside.sum(0)
        laplacian = np.diag((wins + losses).astype(np.float64)) - inside - inside.T
        system += 4 * cost * factor.T @ (laplacian @ factor)
        aim += 4 * cost * (wins - losses) @ factor
    return np.asarray(np.linalg.solve(system, aim), dtype=np.float64)


def _objective(blocks: list[_Task], w: Floats, cost: float) -> float:
    # Twice: each pair counts in both of its orders.
    return float(w @ w / 2 + 2 * cost * sum((block.slack(w) ** 2).sum() for block in blocks))
