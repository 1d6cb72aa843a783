"""What a forecast is made of, checked: the series in order, its bounds, a level."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_pce._errors import UserError

Array = NDArray[np.float64]
Bounds = tuple[float | None, float | None]

_WIDEST = 1e30  # last step through first: the cube of its inverse is a number still
_LARGEST = 1e150  # of values: their squares are numbers still
# Of the median error. A tenth let accuracies of 0 pull the curves of real models down (Pythia, 512 to 33,000
# steps: rmse at 143,000 0.040 against 0.037), and 1 costs what good errors are worth (0.011 against 0.009).
_LEAST_ERROR = 0.5
_HIGHEST_LEVEL = 0.999  # 4 of 8,192 draws are left on either side; of a higher one the ends were too near


class Points(NamedTuple):
    """A series in ascending steps, and what was done to it."""

    steps: Array
    values: Array
    errors: Array | None
    dropped: int
    notes: tuple[str, ...]


def points(steps: object, values: object, errors: object) -> Points:
    """Check a series, leave out what no curve can go through, and put it in order.

    Raises:
        UserError: if these are no series of one length, a step is there twice, or an error is negative.
    """
    columns = {"steps": _numbers("steps", steps), "values": _numbers("values", values)}
    if errors is not None:
        columns["errors"] = _numbers("errors", errors)
    if len({len(column) for column in columns.values()}) > 1:
        lengths = ", ".join(f"{len(column)} {name}" for name, column in columns.items())
        raise UserError(f"Expected as many values and errors as steps but got {lengths}.")
    table = np.stack(list(columns.values()))
    keep = np.isfinite(table).all(0) & (table[0] > 0)
    table = table[:, keep]
    table = table[:, np.argsort(table[0], kind="stable")]
    _check_steps(table[0])
    if table.size and np.abs(table[1:]).max() > _LARGEST:
        raise UserError(
            f"Expected argument `values` to be below {_LARGEST:g} but got some above: scale them."
        )
    dropped = int((~keep).sum())
    notes = []
    if dropped:
        were = "point was" if dropped == 1 else "points were"
        notes.append(f"{dropped} {were} left out: not finite, or at a step that is not above 0.")
    if errors is None:
        return Points(table[0], table[1], None, dropped, tuple(notes))
    return Points(table[0], table[1], _floored(table[2], notes), dropped, tuple(notes))


def _check_steps(steps: Array) -> None:
    twice = steps[1:][np.diff(steps) == 0]
    if len(twice):
        raise UserError(
            f"Expected argument `steps` to be distinct but got step {twice[0]:g} more than once: give the "
            "mean of its values, or one series a call."
        )
    if len(steps) and steps[-1] > _WIDEST * steps[0]:
        raise UserError(
            f"Expected argument `steps` within a factor of {_WIDEST:g} but got {steps[0]:g} to "
            f"{steps[-1]:g}: leave out the first."
        )


def _floored(errors: Array, notes: list[str]) -> Array | None:
    """Errors as they are used: none is much smaller than the others."""
    if (errors < 0).any():
        raise UserError(f"Expected argument `errors` to be at least 0 but got {errors.min():g}.")
    if not (errors > 0).any():
        if len(errors):
            notes.append("All errors are 0: they are not used.")
        return None
    # An accuracy of 0 of N has an error of 0, and is not known for certain.
    floor = _LEAST_ERROR * float(np.median(errors[errors > 0]))
    small = int((errors < floor).sum())
    if small:
        are = "error is" if small == 1 else "errors are"
        notes.append(f"{small} {are} taken for {floor:.2g}, half the median one.")
    return np.maximum(errors, floor)


def checked_bounds(bounds: object) -> Bounds:
    """A pair of numbers or None.

    Raises:
        UserError: if it is anything else.
    """
    if bounds is None:
        return None, None
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        raise UserError(
            f"Expected argument `bounds` to be a pair such as (0, 1) or (0, None) but got {bounds!r}."
        )
    low, high = (None if bound is None else _number("bounds", bound) for bound in bounds)
    if low == math.inf or high == -math.inf or (low is not None and high is not None and low >= high):
        raise UserError(f"Expected argument `bounds` to be a lower and an upper one but got {bounds!r}.")
    # (0, inf) is what others write for (0, None).
    return (
        None if low is None or math.isinf(low) else low,
        None if high is None or math.isinf(high) else high,
    )


def checked_level(level: object) -> float:
    """A share between 0 and 0.999.

    Raises:
        UserError: if it is anything else.
    """
    number = _number("level", level)
    if not 0 < number <= _HIGHEST_LEVEL:
        raise UserError(
            f"Expected argument `level` to be above 0 and at most {_HIGHEST_LEVEL} but got {level!r}."
        )
    return number


def checked_rising(rising: object) -> bool | None:
    """True, False or None.

    Raises:
        UserError: if it is anything else.
    """
    if rising is None or isinstance(rising, bool | np.bool_):
        return None if rising is None else bool(rising)
    raise UserError(f"Expected argument `rising` to be True, False or None but got {rising!r}.")


def checked_step(step: object) -> float:
    """A step that a prediction can be made for.

    Raises:
        UserError: if it is none.
    """
    number = _number("step", step)
    if not (math.isfinite(number) and number > 0):
        raise UserError(f"Expected argument `step` to be finite and above 0 but got {step!r}.")
    return number


def checked_gain(gain: object) -> float:
    """A finite number.

    Raises:
        UserError: if it is none.
    """
    number = _number("gain", gain)
    if math.isinf(number):
        raise UserError(f"Expected argument `gain` to be finite but got {gain!r}.")
    return number


def checked_steps(steps: object) -> Array:
    """Steps that predictions can be made for.

    Raises:
        UserError: if one is not finite, or not above 0.
    """
    array = _numbers("steps", steps)
    wrong = array[~(np.isfinite(array) & (array > 0))]
    if len(wrong):
        raise UserError(f"Expected argument `steps` to be finite and above 0 but got {wrong[0]:g}.")
    return array


def _numbers(name: str, values: object) -> Array:
    """A list, array or tensor as float64."""
    if hasattr(values, "detach"):  # a tensor: not by its class, which would import torch
        values = values.detach().cpu().double().numpy()
    if isinstance(values, np.ma.MaskedArray):  # asarray would bring back what is masked
        values = np.where(np.ma.getmaskarray(values), np.nan, values.data)
    try:
        array = np.asarray(values)
        if array.dtype == object and all(
            isinstance(each, int | float) and not isinstance(each, bool) for each in array.flat
        ):
            array = array.astype(np.float64)  # whole numbers of more than 64 bits: compute in FLOP
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # ragged lists, lists of tensors
        raise UserError(f"Expected argument `{name}` to be a list of numbers ({error}).") from error
    if array.ndim != 1:
        raise UserError(
            f"Expected argument `{name}` to be a list of numbers but got the shape {array.shape}."
        )
    if array.size and array.dtype.kind not in "fiu":
        what = next(iter(array.tolist()))
        raise UserError(
            f"Expected argument `{name}` to be numbers but got {array.dtype} such as {what!r}: "
            "what is missing is given as nan."
        )
    return array.astype(np.float64)


def _number(name: str, value: object) -> float:
    try:
        if isinstance(value, str | bytes | bool):
            raise TypeError
        number = float(value)  # type: ignore[arg-type]  # what it does not take is refused below
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if math.isnan(number):
        raise UserError(f"Expected argument `{name}` to be a number but got {value!r}.")
    return number
