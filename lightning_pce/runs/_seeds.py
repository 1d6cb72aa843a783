"""The seed of random draws, checked."""

from __future__ import annotations

import operator

from lightning_pce._errors import UserError


def checked_seed(seed: object) -> int:
    """A whole number from 0 on.

    Raises:
        UserError: if it is anything else.
    """
    try:
        number = operator.index(seed)  # type: ignore[arg-type]  # what it does not take is refused below
    except TypeError:
        number = -1
    if number < 0:
        raise UserError(f"Expected argument `seed` to be a whole number from 0 on but got {seed!r}.")
    return number
