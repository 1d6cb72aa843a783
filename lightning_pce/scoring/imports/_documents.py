"""Documents as every format gives them, and the checks of their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_pce._errors import UserError

Numbers = NDArray[np.float64]

# vLLM and others write this for minus infinity, for which JSON has no word.
MINUS_INFINITY = -9999.0
# Log-probabilities in float32 are above 0 by so much at most.
_ROUNDING = 1e-5
_MOST_IDS = 1 << 31


class ScoredDocument(NamedTuple):
    """The tokens of a document that have a cross-entropy, or a part of them."""

    name: str | None
    """Its id; None: its number in the file."""
    ce: Numbers
    """float64 ``[n]``, nats."""
    where: str
    """Where in the file it stands, for messages."""
    first: int = 0
    """Which token of the document the first one here is."""
    ids: NDArray[np.int64] | None = None
    ranks: Numbers | None = None
    """From 1."""
    entropy: Numbers | None = None
    tops: NDArray[np.int64] | None = None
    """The most probable tokens."""
    texts: Sequence[str] | None = None
    """Of all tokens of the document up to the last one here."""
    group: str | None = None
    again: str = "refused"
    """What another one with the same id is: ``"refused"``, a ``"part"`` of the same document, or a ``"row"``
    of its own that counts as one with it in error bars."""


def losses(numbers: Sequence[Any] | Numbers, where: str, *, kind: str = "logprob") -> Numbers:
    """Cross-entropies in nats of log-probabilities, or of losses.

    Args:
        numbers: of tokens that all have one.
        where: for the message.
        kind: ``"logprob"`` or ``"loss"``.

    Raises:
        UserError: if something is no number, or has the wrong sign.

    Example:
        >>> losses([-0.5, -9999.0], "line 1")
        array([0.5, inf])
    """
    values = _checked(numbers, where)
    if kind == "loss":
        if (values < -_ROUNDING).any():
            raise UserError(
                f"{where}: a loss of {values.min():g} is below 0, as no cross-entropy is: are these "
                "log-probabilities (--kind logprob)?"
            )
        return np.maximum(values, 0.0)
    if (values > _ROUNDING).any():
        raise UserError(
            f"{where}: a log-probability of {values.max():g} is above 0, as none can be: are these losses? "
            "--format columns --kind loss reads those, in nats."
        )
    return np.where(values == MINUS_INFINITY, np.inf, np.maximum(-values, 0.0))


def _checked(numbers: Sequence[Any] | Numbers, where: str) -> Numbers:
    if not isinstance(numbers, np.ndarray):
        odd = next((at for at, each in enumerate(numbers) if type(each) not in (float, int)), None)
        if odd is not None:
            raise UserError(f"{where}: {_no_number(numbers[odd])}.")
    values = np.asarray(numbers, dtype=np.float64)
    if np.isnan(values).any():
        raise UserError(f"{where}: {_no_number(None)}.")
    return values


def _no_number(found: Any) -> str:
    if found is None:
        return (
            "a token other than the first has no number (null or NaN): a server that computed NaN or minus "
            "infinity wrote this; leave the document out, or score it again"
        )
    return f"expected a log-probability but got {str(found)[:40]!r}"


def without_first_null(numbers: Sequence[Any]) -> tuple[int, Sequence[Any]]:
    """Numbers from the first token on that has one: nothing comes before the first token of a text."""
    return (1, numbers[1:]) if len(numbers) and numbers[0] is None else (0, numbers)


def dicts(values: Any, where: str, name: str) -> list[dict[str, Any]]:
    """A list of objects, at least one.

    Raises:
        UserError: if it is something else.
    """
    if not isinstance(values, list) or not values or not all(isinstance(each, dict) for each in values):
        raise UserError(f"{where}: expected a list of objects in {name!r} but got {str(values)[:40]!r}.")
    return values


def token_ids(numbers: Any, where: str) -> NDArray[np.int64]:
    """Ids as whole numbers.

    Raises:
        UserError: if they are none.
    """
    if not isinstance(numbers, list) or not all(
        type(each) is int and abs(each) < _MOST_IDS for each in numbers
    ):
        raise UserError(f"{where}: expected the ids of tokens, whole numbers, but got {str(numbers)[:40]!r}.")
    return np.asarray(numbers, dtype=np.int64)
