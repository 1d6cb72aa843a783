"""Which labels moved the mean cross-entropy between two validations of the same data, and by how much.

All of it takes totals ``[V, 2]``: the tokens of each label, and the sum of their cross-entropies, as
``LabelTotals`` gives them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["LabelMove", "Moved", "label_changes", "moved"]


class LabelMove(NamedTuple):
    """What one label did to the mean."""

    label: int
    """The id of the token."""
    change: float
    """Its part of the change of the mean, in nats."""
    before: float
    """The mean cross-entropy of its tokens in nats, NaN if there were none."""
    after: float
    """The same after."""
    tokens_before: float
    """How many of its tokens counted before."""
    tokens_after: float
    """How many of its tokens counted after."""


class Moved(NamedTuple):
    """A change of the mean, and the labels that moved it most; their changes and ``others`` add up to it."""

    before: float
    """The mean over all tokens before, in nats."""
    after: float
    """The mean over all tokens after, in nats."""
    labels: tuple[LabelMove, ...]
    """The largest change first, of either sign."""
    others: float
    """The changes of all other labels together, in nats."""

    def words(self, decode: Callable[[int], str]) -> str:
        """The change as a table with the text of the labels, to print.

        Args:
            decode: the text of a token id, such as ``tokenizer.decode``.

        Example:
            >>> before, after = torch.tensor([[3.0, 3.0], [1.0, 5.0]]), torch.tensor([[3.0, 1.5], [1.0, 9.0]])
            >>> print(moved(before, after).words(["yes", "no"].__getitem__))
            mean 2.000 -> 2.625 nats, a change of +0.625
            change  label   tokens  mean before  after
            +1.000  'no'    1       5.000        9.000
            -0.375  'yes'   3       1.000        0.500
            +0.000  others
        """
        table = [("change", "label", "tokens", "mean before", "after")]
        for each in self.labels:
            numbers = f"{each.tokens_after:,.10g}"
            if each.tokens_before != each.tokens_after:
                numbers = f"{each.tokens_before:,.10g} -> {numbers}"
            means = f"{each.before:.3f}", f"{each.after:.3f}"
            table.append((f"{each.change:+.3f}", repr(decode(each.label)), numbers, *means))
        table.append((f"{self.others:+.3f}", "others", "", "", ""))
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(map(str.ljust, cells, widths)).rstrip() for cells in table]
        change = self.after - self.before
        return "\n".join(
            [f"mean {self.before:.3f} -> {self.after:.3f} nats, a change of {change:+.3f}", *lines]
        )


def label_changes(before: Tensor, after: Tensor) -> Tensor:
    """The part of each label in the change of the mean: ``[V]`` float64 in nats, which add up to it.

    The mean is the sum over labels of (their cross-entropies / all tokens), and a label's part is the change
    of its term. So a label that became more frequent moves the mean up; compare validations of the same data.

    Args:
        before: totals ``[V, 2]``.
        after: totals ``[V, 2]``.

    Raises:
        ValueError: if the two are not totals of one vocabulary, or one has no tokens.

    Example:
        >>> label_changes(torch.tensor([[3.0, 3.0], [1.0, 5.0]]), torch.tensor([[3.0, 1.5], [1.0, 9.0]]))
        tensor([-0.3750,  1.0000], dtype=torch.float64)
    """
    before, after = _checked(before, after)
    return after[:, 1] / after[:, 0].sum() - before[:, 1] / before[:, 0].sum()


def moved(before: Tensor, after: Tensor, n: int = 10) -> Moved:
    """The ``n`` labels that moved the mean most, either way.

    Args:
        before: totals ``[V, 2]``.
        after: totals ``[V, 2]``, of the same data.
        n: how many labels; all if fewer occur.

    Raises:
        ValueError: if the two are not totals of one vocabulary, one has no tokens, or ``n`` is negative.

    Example:
        >>> moved(torch.tensor([[3.0, 3.0], [1.0, 5.0]]), torch.tensor([[3.0, 1.5], [1.0, 9.0]]), n=1).labels
        (LabelMove(label=1, change=1.0, before=5.0, after=9.0, tokens_before=1.0, tokens_after=1.0),)
    """
    if n < 0:
        raise ValueError(f"Expected argument `n` to be a number of labels >= 0 but got {n}.")
    before, after = _checked(before, after)
    changes = label_changes(before, after)
    # A change that is NaN is from inf to inf.
    order = changes.abs().nan_to_num(nan=torch.inf).argsort(descending=True, stable=True)
    order = order[(before + after)[order].any(1)]  # of the vocabulary only what occurs
    chosen = order[:n]
    means = [(totals[:, 1] / totals[:, 0])[chosen].tolist() for totals in (before, after)]
    tokens = [totals[chosen, 0].tolist() for totals in (before, after)]
    return Moved(
        before=_mean(before),
        after=_mean(after),
        labels=tuple(map(LabelMove, chosen.tolist(), changes[chosen].tolist(), *means, *tokens)),
        others=float(changes[order[n:]].sum()),
    )


def to_plain(totals: Tensor) -> dict[str, Any]:
    """Totals ``[V, 2]`` as plain values, only of labels that have tokens; see :func:`from_plain`.

    Example:
        >>> to_plain(torch.tensor([[0.0, 0.0], [2.0, 1.5], [0.0, 0.0]]))
        {'vocabulary': 3, 'labels': [1], 'tokens': [2.0], 'ce': [1.5]}
    """
    totals = _checked_totals("totals", totals)
    labels = totals[:, 0].nonzero()[:, 0]
    tokens, ce = totals[labels].unbind(-1)
    return {
        "vocabulary": len(totals),
        "labels": labels.tolist(),
        "tokens": tokens.tolist(),
        "ce": ce.tolist(),
    }


def from_plain(stored: Mapping[str, Any]) -> Tensor:
    """Totals ``[V, 2]`` float64 of what :func:`to_plain` made of them.

    Raises:
        ValueError: if ``stored`` is something else.

    Example:
        >>> from_plain({"vocabulary": 3, "labels": [1], "tokens": [2.0], "ce": [1.5]})
        tensor([[0.0000, 0.0000],
                [2.0000, 1.5000],
                [0.0000, 0.0000]], dtype=torch.float64)
    """
    try:
        totals = torch.zeros(stored["vocabulary"], 2, dtype=torch.float64)
        labels = torch.tensor(stored["labels"], dtype=torch.int64)
        rows = torch.tensor([stored["tokens"], stored["ce"]], dtype=torch.float64).T
        if len(labels) != len(rows) or bool(((labels < 0) | (labels >= len(totals))).any()):
            raise ValueError("labels outside of the vocabulary, or not one for each number")
        totals[labels] = rows
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
        raise ValueError(
            "Expected argument `stored` to be a dict that to_plain returned, of vocabulary, labels, tokens "
            f"and ce, but got {stored!r:.80} ({error})."
        ) from error
    return totals


def _mean(totals: Tensor) -> float:
    return float(totals[:, 1].sum() / totals[:, 0].sum())


def _checked(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    before, after = _checked_totals("before", before), _checked_totals("after", after)
    if before.shape != after.shape:
        raise ValueError(
            "Expected arguments `before` and `after` of one vocabulary but got "
            f"{tuple(before.shape)} and {tuple(after.shape)}."
        )
    for name, totals in (("before", before), ("after", after)):
        if not bool(totals[:, 0].sum() > 0):
            raise ValueError(f"Expected argument `{name}` with tokens but it has none.")
    return before, after


def _checked_totals(name: str, totals: Tensor) -> Tensor:
    if not isinstance(totals, Tensor) or totals.ndim != 2 or totals.shape[1] != 2:
        got = tuple(totals.shape) if isinstance(totals, Tensor) else type(totals).__name__
        raise ValueError(f"Expected argument `{name}` to be totals [V, 2] of labels but got {got}.")
    return totals.detach().double().cpu()
