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

from typing import Literal

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


def rank_svm(gram: Floats, better: NDArray[np.bool_], cost: float = 1.0) -> Floats:
    """The coefficients ``[R]`` of the rows by Newton steps, each exact for the pairs in its margin.

    Args:
        gram: ``[R, R]`` kernel of the rows with themselves.
        better: ``[R, R]`` whether row i is better than row j of its task.
        cost: the weight of a pair in each of its orders.
    """
    found = np.zeros(len(gram))
    value = _objective(gram, better, found, cost)
    for _ in range(_MOST_STEPS):
        step = _solution(gram, better, gram @ found, cost) - found
        if np.abs(step).max(initial=0.0) <= _EXACT * max(1.0, np.abs(found).max(initial=0.0)):
            break
        length, new = 1.0, _objective(gram, better, found + step, cost)
        while new > value and length > _EXACT:  # the whole step is nearly always down
            length /= 2
            new = _objective(gram, better, found + length * step, cost)
        if new > value:
            break  # rounding: there is no way down
        found, value = found + length * step, new
    return found


def _solution(gram: Floats, better: NDArray[np.bool_], scores: Floats, cost: float) -> Floats:
    """The solution if the pairs within the margin of these scores were all pairs, and stayed so.

    It is ``a = 4 cost (d - L gram a)`` with each pair in both orders: d is how often a row is the better one
    of a pair less how often the worse one, L the Laplacian of the pairs.
    """
    inside = better & (scores[:, None] - scores < 1)
    wins, losses = inside.sum(1), inside.sum(0)
    laplacian = np.diag((wins + losses).astype(np.float64)) - inside - inside.T
    system = np.eye(len(gram)) + 4 * cost * laplacian @ gram
    return np.linalg.solve(system, 4 * cost * (wins - losses).astype(np.float64))


def _objective(gram: Floats, better: NDArray[np.bool_], coefficients: Floats, cost: float) -> float:
    scores = gram @ coefficients
    slack = np.maximum(0.0, 1 - (scores[:, None] - scores))
    # Twice: each pair counts in both of its orders.
    return float(coefficients @ scores / 2 + 2 * cost * (slack**2)[better].sum())
