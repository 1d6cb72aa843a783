"""Three ways to score models by their proxies, fitted to models whose truth is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from lightning_pce._errors import UserError
from lightning_pce.runs._rank_correlation import Floats, Ints, mean_ranks, z_scored
from lightning_pce.runs._rank_svm import Kernel, factor_of, kernel_matrix, rank_svm
from lightning_pce.runs._sparse import Triples

Method = Literal["rank_svm", "sparse", "single"]

# z-scores [R, P] of models -> [R] scores, higher is better.
Score: TypeAlias = Callable[[Floats], Floats]


class Fit:
    """Rows of a training, prepared so that several truths can be fitted to them.

    Args:
        method: ``"rank_svm"``, ``"sparse"`` or ``"single"``.
        kernel: ``"linear"`` or ``"rbf"``, of ``"rank_svm"``.
        x: ``[R, P]`` z-scores.
        tasks: ``[R]`` the task of each row.
    """

    def __init__(self, method: Method, kernel: Kernel, x: Floats, tasks: Ints) -> None:
        self.method, self.kernel, self.x, self.tasks = method, kernel, x, tasks
        self._factor = factor_of(kernel, x) if method == "rank_svm" else x
        self._known: NDArray[np.bool_] = np.zeros(0, dtype=np.bool_)
        self._choice: _Choice

    def score(self, truth: Floats) -> Score:
        """What is fitted to a truth ``[R]``, NaN where it is not known."""
        if self.method == "rank_svm":
            coefficients = self.coefficients(truth)
            return lambda z: kernel_matrix(self.kernel, z, self.x) @ coefficients
        places, weights = self.weights(truth)
        return lambda z: np.asarray(z[:, places] @ weights)

    def coefficients(self, truth: Floats) -> Floats:
        """Those ``[R]`` of the rows in a RankSVM."""
        return rank_svm(self._factor, truth, self.tasks)

    def weights(self, truth: Floats) -> tuple[Ints, Floats]:
        """Places and weights of the proxies that ``"single"`` and ``"sparse"`` choose."""
        known = np.isfinite(truth)
        if not np.array_equal(known, self._known):
            self._known = known
            kind = _Single if self.method == "single" else _Sparse
            self._choice = kind(self.x[known], self.tasks[known])
        # By its ranks within a task, as what is measured is a correlation of ranks.
        tasks = self.tasks[known]
        return self._choice.weights(z_scored(_ranked(truth[known], tasks), tasks))


class _Single:
    """The proxy with the highest mean of Spearman's correlations over tasks, of either sign."""

    def __init__(self, x: Floats, tasks: Ints) -> None:
        _, codes, sizes = np.unique(tasks, return_inverse=True, return_counts=True)
        # The mean of the products of two z-scores is a correlation.
        self.ranks = z_scored(_ranked(x, tasks), tasks) / sizes[codes][:, None]

    def weights(self, truth: Floats) -> tuple[Ints, Floats]:
        rho = truth @ self.ranks
        best = int(np.abs(rho).argmax())
        return np.array([best]), np.array([np.sign(rho[best])])


class _Sparse:
    """The three proxies whose weighted sum has the least squares to the truth."""

    def __init__(self, x: Floats, tasks: Ints) -> None:
        self.x = x.copy()
        for task in np.unique(tasks):
            self.x[tasks == task] -= self.x[tasks == task].mean(0)
        self.triples = Triples(self.x.T @ self.x)

    def weights(self, truth: Floats) -> tuple[Ints, Floats]:
        return self.triples.best(self.x.T @ truth)


_Choice: TypeAlias = _Single | _Sparse


def check_method(method: str, kernel: str) -> None:
    """Raise a ``UserError`` if there is no such method or kernel."""
    for argument, given, every in (("method", method, Method), ("kernel", kernel, Kernel)):
        if given not in get_args(every):
            choice = ", ".join(map(repr, get_args(every)))
            raise UserError(f"Expected argument `{argument}` to be one of {choice} but got {given!r}.")


def _ranked(values: Floats, tasks: Ints) -> Floats:
    """Ranks within each task."""
    found = np.empty_like(values)
    for task in np.unique(tasks):
        found[tasks == task] = mean_ranks(values[tasks == task])
    return found
