"""Sorting: values, or the order of keys, by whatever sorts fastest on this CPU.

All of it gives the same result as NumPy's or torch's own sort; only the time differs.
"""

from __future__ import annotations

import time
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from lightning_pce.digest._arrays import Array, is_numpy, take

# From here on torch sorts 32-bit integers by their digits (a radix sort); below it compares.
_RADIX_SORT = 1 << 15

# From here on means are sorted as float32, by their bits: the means of 1024 digests of 1024 centroids take
# 10 ms instead of 300.
_MANY_MEANS = 1 << 14


def sort(x: Array) -> Array:
    """Ascending along the last axis, NaN last."""
    if not is_numpy(x):
        return x.sort().values
    if x.dtype != np.float32 or x.ndim > 1 or x.size < _RADIX_SORT or numpy_sorts_fast():
        return np.sort(x)
    return _sorted_by_digits(x)


def _sorted_by_digits(x: Array) -> Array:
    bits = x.view(np.int32)
    signed = bits.min() < 0
    bits = torch.from_numpy(to_ordered(x)).sort().values.numpy()
    if signed:
        negative = bits[: np.searchsorted(bits, 0)]
        negative ^= 0x7FFFFFFF
    ascending = bits.view(np.float32)
    if ascending[0] == ascending[0] or not signed:
        return ascending
    return _sorted_by_digits(np.abs(x, where=x != x, out=x.copy()))  # a NaN with a sign comes first


def stable_order(x: Array) -> Array:
    """Where each element of the sorted array was, along the last axis; equal ones keep their order."""
    if not is_numpy(x):
        return x.argsort(dim=-1, stable=True)
    if x.dtype.kind != "i" or x.ndim > 1 or x.size < _RADIX_SORT:
        # Items come as a few sorted runs, which NumPy's stable sort only has to merge.
        return np.argsort(x, axis=-1, kind="stable")
    bits = x.size.bit_length()
    if not numpy_sorts_fast() or (x.dtype == np.int64 and np.abs(x).max() >> (62 - bits)):
        return torch.from_numpy(x).sort(stable=True).indices.numpy()
    key = x.astype(np.int64)
    key <<= bits
    key |= np.arange(x.size)
    key.sort()
    key &= (1 << bits) - 1
    return key


def order_of_means(means: Array) -> tuple[Array, Array]:
    """The stable order of means ``[..., M]``, and the means in it."""
    if is_numpy(means) and means.ndim == 1 and means.size >= _MANY_MEANS:
        return _order_of_many(means)
    order = stable_order(means)
    return order, take(means, order)


def _order_of_many(means: Array) -> tuple[Array, Array]:
    """Through float32, whose few ties are put right by swaps."""
    with np.errstate(over="ignore", under="ignore"):
        order = stable_order(to_ordered(means.astype(np.float32)))
    ascending = means.take(order)
    for _ in range(8):
        wrong = np.flatnonzero(ascending[1:] < ascending[:-1])
        if not len(wrong):
            return order, ascending
        low = wrong[np.diff(wrong, prepend=-2) > 1]
        for pair in (order, ascending):
            pair[low], pair[low + 1] = pair[low + 1], pair[low]
    order = stable_order(means)
    return order, means.take(order)


def to_ordered(x: Array) -> Array:
    """float32 as int32 in the same order; -0.0 comes before 0.0."""
    bits = x.view(np.int32) if is_numpy(x) else x.view(torch.int32)
    if is_numpy(x) and bits.min(initial=0) >= 0:
        return bits
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@lru_cache(maxsize=1)
def numpy_sorts_fast() -> bool:
    """Whether NumPy sorts float32 faster than torch sorts int32, measured once: it depends on the CPU.

    NumPy's sort for AVX-512 takes 70 microseconds for 32,768 on a Zen 5 and 600 on a Zen 4, torch's 240 on
    both.
    """
    x = np.random.default_rng(0).random(_RADIX_SORT, dtype=np.float32)
    bits = torch.from_numpy(to_ordered(x))

    def seconds(job: Any) -> float:
        times = []
        for _ in range(4):
            begin = time.perf_counter()
            job()
            times.append(time.perf_counter() - begin)
        return min(times)

    return seconds(lambda: np.sort(x)) < seconds(bits.sort)
