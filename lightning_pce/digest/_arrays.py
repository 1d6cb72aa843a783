"""One name for what NumPy and torch call differently, so that a digest's arithmetic is written once.

An update of 32,768 values is 60 operations on arrays of a few thousand. On a CPU NumPy's overhead for these
is a third of torch's; on an accelerator the same lines are torch operations that never wait for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, cast

import numpy as np
import torch

# A NumPy array or a tensor. The two have no common type, and a union would need a cast on every line.
Array = Any


def is_numpy(x: Array) -> bool:
    return not isinstance(x, torch.Tensor)  # NumPy's 0-d results are scalars, not arrays


def namespace(x: Array) -> Any:
    return np if is_numpy(x) else torch


def on_arrays(function: Callable[..., Any], *tensors: torch.Tensor | None) -> torch.Tensor:
    """Call a function with NumPy views of tensors on the CPU, elsewhere with the tensors."""
    if tensors[0] is None or tensors[0].device.type != "cpu":
        return cast(torch.Tensor, function(*tensors))
    return torch.from_numpy(function(*(None if tensor is None else tensor.numpy() for tensor in tensors)))


def arange(n: int, like: Array) -> Array:
    if not is_numpy(like):
        return torch.arange(n, device=like.device)
    return _numpy_arange(n) if n <= 1 << 13 else np.arange(n)


@lru_cache(maxsize=32)
def _numpy_arange(n: int) -> Array:
    steps = np.arange(n)
    steps.flags.writeable = False
    return steps


def between(first: Array, x: Array, last: Array) -> Array:
    """``[first, *x, last]`` along the last axis; first and last ``[..., 1]``, in NumPy also numbers."""
    if not is_numpy(x):
        return torch.cat([first, x, last], -1)
    out = np.empty((*x.shape[:-1], x.shape[-1] + 2), x.dtype)
    out[..., :1], out[..., 1:-1], out[..., -1:] = first, x, last
    return out


def after_zero(x: Array) -> Array:
    """``[0, *x]`` along the last axis."""
    if not is_numpy(x):
        return torch.nn.functional.pad(x, (1, 0))
    out = np.empty((*x.shape[:-1], x.shape[-1] + 1), x.dtype)
    out[..., 0], out[..., 1:] = 0, x
    return out


def to_int(x: Array) -> Array:
    return x.astype(np.int64) if is_numpy(x) else x.long()


def to_float(x: Array) -> Array:
    return x.astype(np.float64, copy=False) if is_numpy(x) else x.double()


def at_most(index: Array, limit: int) -> Array:
    return np.minimum(index, limit) if is_numpy(index) else index.clamp(max=limit)


def not_negative(index: Array) -> Array:
    return np.maximum(index, 0) if is_numpy(index) else index.clamp(min=0)


def just_above(x: Array) -> Array:
    """The next number of the same dtype."""
    if x.dtype == torch.int64:
        return x + 1
    if is_numpy(x):
        with np.errstate(over="ignore"):  # above the largest number lies infinity
            return np.nextafter(x, x.dtype.type(math.inf))
    return torch.nextafter(x, torch.full_like(x, math.inf))


def take(x: Array, index: Array) -> Array:
    """Along the last axis; of a flat ``x`` an index of any shape."""
    if x.ndim == 1:
        return x.take(index)
    return np.take_along_axis(x, index, -1) if is_numpy(x) else x.gather(-1, index)


def take_rows(x: Array, index: Array) -> Array:
    """Rows ``[..., index, :]`` of ``x [..., M, R]``, index ``[..., S]``."""
    if is_numpy(x):
        return np.take_along_axis(x, index[..., None], -2)
    return x.gather(-2, index[..., None].expand(*index.shape, x.shape[-1]))


def count(mask: Array) -> Array:
    if not is_numpy(mask):
        return mask.sum(-1)
    # Along an axis NumPy adds the flags up as integers, ten times as slow.
    return np.asarray(np.count_nonzero(mask) if mask.ndim == 1 else np.count_nonzero(mask, axis=-1))


def extremes(x: Array) -> tuple[Array, Array]:
    """The smallest and the largest along the last axis, each ``[..., 1]``."""
    if is_numpy(x):
        return x.min(-1, keepdims=True), x.max(-1, keepdims=True)
    return x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)


def interleave(a: Array, b: Array, axis: int = -1) -> Array:
    """``a[0], b[0], a[1], b[1], ...`` along an axis counted from the end."""
    both = namespace(a).stack([a, b], axis)
    shape = list(a.shape)
    shape[axis] *= 2
    return both.reshape(shape)


def nan_to_inf(x: Array) -> Array:
    # Sorted, NaN comes last for both, but torch's binary search takes it for small.
    return x if is_numpy(x) else torch.where(x.isnan(), math.inf, x)


def search(x: Array, v: Array) -> Array:
    """The first position in sorted ``x [..., M]``, or flat x, that is not below ``v [..., S]``."""
    if not is_numpy(x):
        return torch.searchsorted(x.contiguous(), v.contiguous())
    if x.ndim == 1:
        return np.searchsorted(x, v)
    rows = [
        np.searchsorted(*row)
        for row in zip(x.reshape(-1, x.shape[-1]), v.reshape(-1, v.shape[-1]), strict=True)
    ]
    return np.stack(rows).reshape(*x.shape[:-1], v.shape[-1])


def _segment_sums(data: Array, cut: Array) -> Array:
    """``data[cut[j]:cut[j + 1]].sum(0)`` for each j: data ``[M]`` or ``[M, R]``, cut ``[S + 1]``."""
    if not is_numpy(data):
        return torch.segment_reduce(data, "sum", offsets=cut, unsafe=True)
    # reduceat sums from each index to the next, the last to the end, and gives data[index] where the two are
    # equal.
    sums: Array = np.zeros((len(cut) - 1, *data.shape[1:]))
    begun = len(sums) if cut[-2] < cut[-1] else int(np.searchsorted(cut, cut[-1]))
    if begun:
        np.add.reduceat(data[: cut[-1]], cut[:begun], out=sums[:begun])
        sums[cut[1:] == cut[:-1]] = 0.0
    return sums


def sums_between(data: Array, cut: Array, *, rows: bool = False) -> Array:
    """Sums between cuts ``[..., S + 1]`` of data ``[..., M]`` (or rows ``[..., M, R]``): ``[..., S]``.

    Flat data with cuts that have leading dimensions: all cuts together ascend in the same data.
    """
    lead, width = cut.shape[:-1], data.shape[-1:] if rows else ()
    if not lead:
        return _segment_sums(data, cut)
    if data.ndim > 1 + rows:
        size = data.shape[-1 - rows]
        cut = cut + arange(math.prod(lead), cut).reshape(*lead, 1) * size
        data = data.reshape(-1, *width)
    # The segment between the last cut of one and the first of the next belongs to neither.
    sums = _segment_sums(data, cut.reshape(-1))
    sums = namespace(data).concatenate([sums, sums[:1]]).reshape(*lead, -1, *width)
    return sums[..., :-1, :] if rows else sums[..., :-1]


def sum_of_groups(data: Array, groups: Array | None, number: int | None) -> Array:
    """Sums of ``[n]`` (or ``[n, R]``) over all, or of tensors over each of a number of groups."""
    if groups is None or number is None:
        return data.sum(0)
    return data.new_zeros(number, *data.shape[1:]).index_add_(0, groups, data)


def running_sum(x: Array) -> Array:
    """The cumulative sum along the last axis."""
    if is_numpy(x) or not (x.is_cuda and torch.are_deterministic_algorithms_enabled()):
        return x.cumsum(-1)
    return blockwise_sum(x)


def running_max(x: Array) -> Array:
    """The largest up to each along the last axis."""
    return np.maximum.accumulate(x, -1) if is_numpy(x) else x.cummax(-1).values


def blockwise_sum(x: torch.Tensor, block: int = 64) -> torch.Tensor:
    """The cumulative sum in a fixed order, which torch does not have on CUDA: its own may be refused."""
    size = x.shape[-1]
    if size <= block:
        triangle = torch.ones(size, size, dtype=x.dtype, device=x.device).tril()
        return (x[..., None, :] * triangle).sum(-1)
    blocks = torch.nn.functional.pad(x, (0, -size % block))
    blocks = blocks.reshape(*x.shape[:-1], -1, block)
    inner = blockwise_sum(blocks, block)
    before = blockwise_sum(inner[..., -1], block) - inner[..., -1]
    return (inner + before[..., None]).flatten(-2)[..., :size]
