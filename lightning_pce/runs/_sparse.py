"""One proxy, or three with weights, chosen among all of them in closed form."""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Of the correlations of three proxies, the determinant: below, one is nearly a sum of the others, and weights
# would be rounding. Another triple then fits as well.
_COLLINEAR = 1e-6


class Triples:
    """All triples of columns, of the products X'X of which as much is computed as knows no truth.

    Of fewer columns, or where any three are collinear, two are chosen, or one.

    Args:
        products: ``[P, P]`` of columns with one another, X'X.
    """

    def __init__(self, products: Floats) -> None:
        size = np.sqrt(np.diag(products))
        self.columns = np.flatnonzero(size > 0)
        self.scale = size[self.columns]
        self.gram = products[np.ix_(self.columns, self.columns)] / np.outer(self.scale, self.scale)
        for number in (3, 2, 1):
            places, cells = _subsets(len(self.columns), number)
            forms, determinant = _FORMS[number](self.gram.ravel()[cells])
            sound = determinant > _COLLINEAR
            if sound.any():
                break
        # The inverses by their cofactors: 82,160 solutions of 80 columns in milliseconds.
        self.forms = forms / np.where(sound, determinant, 1.0)
        self.places, self.cells, self.sound = places, cells, sound

    def best(self, with_truth: Floats) -> tuple[Ints, Floats]:
        """The three whose least squares fit a truth best: their places, ascending, and weights.

        Args:
            with_truth: ``[P]`` products of columns with the truth, X'y.
        """
        if not self.sound.any():
            return np.zeros(0, dtype=np.int64), np.zeros(0)
        aim = with_truth[self.columns] / self.scale
        products = np.outer(aim, aim).ravel()
        explained = sum(form * products[cell] for form, cell in zip(self.forms, self.cells, strict=True))
        chosen = self.places[int(np.argmax(np.where(self.sound, explained, -np.inf)))]
        weights = np.linalg.solve(self.gram[np.ix_(chosen, chosen)], aim[chosen]) / self.scale[chosen]
        return self.columns[chosen], weights


@lru_cache(maxsize=8)
def _subsets(columns: int, number: int) -> tuple[Ints, Ints]:
    """The places of each subset, and its cells of a flat ``[P, P]`` matrix: 00, 01, 02, 11, 12, 22."""
    places = np.array(list(combinations(range(columns), number)), dtype=np.int64).reshape(-1, number)
    pairs = [(i, j) for i in range(number) for j in range(i, number)]
    return places, np.stack([places[:, i] * columns + places[:, j] for i, j in pairs])


def _of_one(gram: Floats) -> tuple[Floats, Floats]:
    return np.ones_like(gram), np.ones_like(gram[0])


def _of_two(gram: Floats) -> tuple[Floats, Floats]:
    _, r, _ = gram
    one = np.ones_like(r)
    return np.stack([one, -2 * r, one]), 1 - r**2


def _of_three(gram: Floats) -> tuple[Floats, Floats]:
    """The quadratic form c' adj(G) c of each subset by cells, those beside the diagonal doubled; det G."""
    _, r, s, _, t, _ = gram
    forms = (1 - t**2, 2 * (s * t - r), 2 * (r * t - s), 1 - s**2, 2 * (r * s - t), 1 - r**2)
    return np.stack(forms), 1 + 2 * r * s * t - r**2 - s**2 - t**2


_FORMS = {1: _of_one, 2: _of_two, 3: _of_three}
