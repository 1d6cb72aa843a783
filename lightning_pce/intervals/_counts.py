"""The state of error bars: tokens by slot and bin, and each slot's sum."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_pce._threads import single_threaded
from lightning_pce.intervals._slots import SLOTS

BINS = 96
"""How many bins of CE counts have; beside them is one column of sums."""
COLUMNS = BINS + 1  # the last holds the sum
_LOWEST, _DECADES = -7, 10  # of the bins, in powers of ten


def empty(shape: tuple[int, ...] = (), *, device: torch.device | str | None = None) -> Tensor:
    """Counts of nothing, float64 zeros ``[*shape, 128, 97]``.

    Args:
        shape: leading dimensions, such as ``(G,)`` for groups.
        device: where they live; the device must have float64.

    Example:
        >>> from lightning_pce.intervals import empty
        >>> empty((2,)).shape
        torch.Size([2, 128, 97])
    """
    return torch.zeros(*shape, SLOTS, COLUMNS, dtype=torch.float64, device=device)


def add(
    counts: Tensor,
    values: Tensor,
    weights: Tensor | None,
    slots: Tensor,
    *,
    groups: Tensor | None = None,
) -> Tensor:
    """New counts that have also seen ``values``.

    Row g holds the tokens of slot g: columns 0 to 95 how many lie in each bin, even in ln CE from 1e-7 to 1e3
    (values outside enter the first or last bin), column 96 the sum of their values. Counts of several ranks,
    groups or parts of the data add up. NaN is left out, an infinite value makes its slot's sum infinite.

    Args:
        counts: float64 ``[128, 97]``, or with ``groups`` ``[G, 128, 97]``.
        values: any shape and floating dtype, on the device of the counts.
        weights: shaped like ``values`` or None. Bool: ``False`` leaves a value out. Otherwise numbers >= 0;
            what is no weight (negative, NaN, infinite) leaves out too, as in :mod:`lightning_pce.digest`.
        slots: uint8, shaped like ``values``: the slot of each value's document, see :func:`slots_of`.
        groups: integers shaped like ``values``: which of the G counts each value enters.

    Returns:
        Counts of the same shape.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit; on a CPU also if a value that counts has a slot
            of 128 or more or a group outside [0, G). On accelerators, where looking would make the host wait,
            such a value is left out.

    Example:
        >>> from lightning_pce.intervals import add, empty, slots_of
        >>> losses, documents = torch.tensor([0.5, 2.0, 0.1]), torch.tensor([7, 7, 8])
        >>> counts = add(empty(), losses, None, slots_of(documents))
        >>> counts[slots_of(documents[0]).long(), -1], counts[:, :-1].sum()
        (tensor(2.5000, dtype=torch.float64), tensor(3., dtype=torch.float64))
    """
    _check_state(counts, grouped=groups is not None)
    _check_beside(counts, values, weights=weights, slots=slots, groups=groups)
    with single_threaded():  # beside busy processes a parallel operation waits for every thread
        values, row = values.detach().reshape(-1), slots.reshape(-1).long()
        if values.dtype not in (torch.float32, torch.float64):
            values = values.float()
        counted, weight = _weights(values, weights)
        known = row < SLOTS
        if groups is not None:
            group = groups.reshape(-1).long()
            known = known & (group >= 0) & (group < len(counts))
            row = row + SLOTS * group
        if values.device.type == "cpu" and not bool((known | ~counted).all()):
            raise ValueError(_unknown(counts, slots, groups, counted & ~known))
        weight = torch.where(known, weight, 0.0)
        place = torch.where(known, row, 0) * COLUMNS
        mass = torch.where(weight > 0, values, 0).double() * weight
        flat = counts.reshape(-1).index_add(0, place + bins_of(values), weight)
        return flat.index_add_(0, place + BINS, mass).reshape(counts.shape)


def check_counts(counts: Tensor) -> None:
    """Raise a ``ValueError`` if numbers ``[..., 128, 97]`` from outside can be no counts."""
    tokens, sums = counts[..., :BINS], counts[..., BINS]
    if not counts.is_meta and not bool(((tokens >= 0) & (tokens < math.inf)).all()):
        raise ValueError("Expected document counts of finite numbers >= 0.")
    if not counts.is_meta and bool(((sums != 0) & (tokens.sum(-1) == 0)).any()):
        raise ValueError("Expected no sum of CE in slots without tokens.")


def bins_of(values: Tensor) -> Tensor:
    """The bin of each value ``[n]``, int64: how many of the 95 inner edges are not above it.

    Values are only compared with edges, which float32 holds exactly: every machine and both dtypes agree.
    """
    if values.device.type != "cpu":
        return torch.bucketize(values, edges(values.device).to(values.dtype), right=True)
    # Without a binary search, whose branches take five times as long: of values with the same first 16 bits,
    # less than 1/128 apart, at most one edge is in question.
    first, edge = _edges_by_first_bits()
    key = values.float().view(torch.int32).numpy() >> 16
    # Of a NaN, which has no weight, the key may be anything.
    bins = first.take(key, mode="clip") + (values.numpy() >= edge.take(key, mode="clip"))
    return torch.from_numpy(bins)


def edges(device: torch.device | None = None) -> Tensor:
    """The 95 edges between bins, float32.

    Made where they are used, as a copy to an accelerator may wait. Powers differ there in their last bits of
    float64, but none lies so near to the middle between two float32 that it would be rounded otherwise.
    """
    step = torch.arange(1, BINS, dtype=torch.float64, device=device)
    return (10.0 ** (step * (_DECADES / BINS) + _LOWEST)).float()


@lru_cache(maxsize=1)
def _edges_by_first_bits() -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """By the first 16 bits of a float32 >= 0: the bin of the smallest such number, and the next edge."""
    smallest = (np.arange(1 << 15, dtype=np.int32) << 16).view(np.float32)
    inner = edges().numpy()
    first = np.searchsorted(inner, np.where(np.isnan(smallest), np.inf, smallest), "right")
    return first, np.append(inner, np.float32(np.nan))[first]  # above the last edge none is reached


def _weights(values: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Which values ``[n]`` count, and how much: bool and float64."""
    counted = ~values.isnan()
    if weights is None:
        return counted, counted.double()
    weights = weights.detach().reshape(-1)
    if weights.dtype != torch.bool:
        weights = weights.double()
        counted = counted & (weights > 0) & (weights < math.inf)
        return counted, torch.where(counted, weights, 0.0)
    counted = counted & weights
    return counted, counted.double()


def _check_state(counts: Tensor, *, grouped: bool) -> None:
    wanted = "[G, 128, 97]" if grouped else "[128, 97]"
    if not isinstance(counts, Tensor):
        raise ValueError(
            f"Expected argument `counts` to be a tensor {wanted} but got {type(counts).__name__}."
        )
    fits = counts.ndim == 2 + grouped and counts.shape[-2:] == (SLOTS, COLUMNS)
    if not fits or counts.dtype != torch.float64:
        raise ValueError(
            f"Expected argument `counts` to be float64 {wanted} but got {counts.dtype} {tuple(counts.shape)}."
        )


def _check_beside(counts: Tensor, values: Tensor, **beside: Tensor | None) -> None:
    if not isinstance(values, Tensor) or not values.is_floating_point():
        got = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"Expected argument `values` to be a floating point tensor but got {got}.")
    for name, given in {"values": values, **beside}.items():
        if given is None and name != "slots":
            continue
        if not isinstance(given, Tensor):
            raise ValueError(f"Expected argument `{name}` to be a tensor but got {type(given).__name__}.")
        if given.shape != values.shape:
            raise ValueError(
                f"Expected argument `{name}` to have the shape of the values, {tuple(values.shape)}, but got "
                f"{tuple(given.shape)}."
            )
        if given.device != counts.device:
            raise ValueError(
                f"Expected argument `{name}` on the device of the counts, {counts.device}, but got "
                f"{given.device}."
            )
        _check_dtype(name, given.dtype)


def _check_dtype(name: str, dtype: torch.dtype) -> None:
    if name == "slots" and dtype != torch.uint8:
        raise ValueError(
            f"Expected argument `slots` to hold uint8, as slots_of(ids) gives them, but got {dtype}."
        )
    if name == "groups" and (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool):
        raise ValueError(f"Expected argument `groups` to hold integers but got {dtype}.")
    if name == "weights" and dtype.is_complex:
        raise ValueError(f"Expected argument `weights` to hold real numbers but got {dtype}.")


def _unknown(counts: Tensor, slots: Tensor, groups: Tensor | None, wrong: Tensor) -> str:
    slot = slots.reshape(-1)[wrong][0]
    if slot >= SLOTS:
        return f"Expected argument `slots` to hold numbers in [0, {SLOTS}) but got {slot}."
    assert groups is not None
    group = groups.reshape(-1)[wrong][0]
    return f"Expected argument `groups` to hold numbers in [0, {len(counts)}) but got {group}."
