"""A token that a model has found very unlikely, with its text, as a record keeps it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

__all__ = ["TailToken"]


class TailToken(NamedTuple):
    """One of the tokens of highest cross-entropy; see :class:`lightning_pce.TailTokens`."""

    document: str
    """The id of its document."""
    position: int
    """Which token of the document it is, from 0."""
    ce: float
    """In nats."""
    rank: int
    """The rank of its probability among all tokens, from 1; -1: not known."""
    label: int
    """The id of the token."""
    top: int
    """The id of the most probable token; -1: not known."""
    text: str | None = None
    """What the token stands for; None: not known, or left out."""
    top_text: str | None = None
    """What the most probable token stands for."""
    context: str | None = None
    """The text before it."""


def tail_item(tail: Iterable[TailToken]) -> dict[str, Any]:
    """Tokens as JSON has them: a list for each property."""
    rows = list(tail)
    return {name: [getattr(row, name) for row in rows] for name in TailToken._fields}


def tail_in(item: Mapping[str, Any]) -> tuple[TailToken, ...]:
    """The tokens of what :func:`tail_item` made.

    Raises:
        ValueError: if it is damaged.
    """
    try:
        columns = [item[name] for name in TailToken._fields]
        return tuple(
            TailToken(*row)._replace(ce=float(row[2]))  # an infinite one is a string
            for row in zip(*columns, strict=True)
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"The tail of a record is damaged ({type(error).__name__}: {error}).") from error
