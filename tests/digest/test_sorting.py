"""Whoever sorts, the order is the same."""

import numpy as np
import pytest
import torch

from lightning_pce import digest as dg
from lightning_pce.digest import _sorting
from tests.helpers.digests import (
    INF,
    NAN,
)


def hard_floats(n, rng, *, nan):
    x = rng.standard_normal(n).astype(np.float32)
    x[::7], x[1::7] = 0.0, -0.0
    x[2::50], x[3::50] = 1e-45, -3e-42
    x[4::100], x[5::100] = INF, -INF
    x[6::100] = np.finfo(np.float32).max
    if nan:
        x[8::100] = NAN
        x[9::100] = np.array([0xFFC00001], np.uint32).view(np.float32)  # NaN with its sign set
    return x


@pytest.mark.parametrize("numpy_is_fast", [True, False])
@pytest.mark.parametrize("n", [1000, 1 << 15, 50_001])
@pytest.mark.parametrize("nan", [True, False])
@pytest.mark.parametrize("sign", ["both", "positive", "negative"])
def test_floats_are_sorted_as_numpy_sorts_them_whoever_sorts(monkeypatch, numpy_is_fast, n, nan, sign):
    monkeypatch.setattr(_sorting, "numpy_sorts_fast", lambda: numpy_is_fast)
    x = hard_floats(n, np.random.default_rng(24), nan=nan)
    if sign != "both":
        x = np.copysign(x, 1 if sign == "positive" else -1)
    before = x.copy()
    got = _sorting.sort(x)
    np.testing.assert_array_equal(got, np.sort(x))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(x.view(np.int32), before.view(np.int32))


@pytest.mark.parametrize("numpy_is_fast", [True, False])
def test_doubles_and_rows_are_sorted_as_numpy_sorts_them(monkeypatch, numpy_is_fast):
    monkeypatch.setattr(_sorting, "numpy_sorts_fast", lambda: numpy_is_fast)
    x = hard_floats(80_000, np.random.default_rng(25), nan=True)
    for shaped in (x.astype(np.float64), x.reshape(2, -1)):
        np.testing.assert_array_equal(_sorting.sort(shaped), np.sort(shaped))


INTEGERS = {
    "int32 with ties": lambda n, rng: rng.integers(-50, 50, n, dtype=np.int32),
    "int32 of the whole range": lambda n, rng: rng.integers(-(2**31), 2**31 - 1, n, dtype=np.int32),
    "groups and floats": lambda n, rng: (
        (rng.integers(0, 5, n) << 32) + rng.choice([-(2**31), -1, 0, 2**31 - 1], n)
    ),
    "int64 just short enough": lambda n, rng: rng.integers(-3, 4, n) * (1 << (62 - n.bit_length() - 2)),
    "int64 of the whole range": lambda n, rng: rng.choice([-(2**63), -1, 0, 1, 2**63 - 1], n),
    "already in order": lambda n, rng: np.arange(n) // 3,
}


@pytest.mark.parametrize("numpy_is_fast", [True, False])
@pytest.mark.parametrize("n", [1000, 1 << 15, 50_001])
@pytest.mark.parametrize("name", INTEGERS)
def test_integers_keep_the_order_of_equal_ones_whoever_sorts(monkeypatch, numpy_is_fast, n, name):
    monkeypatch.setattr(_sorting, "numpy_sorts_fast", lambda: numpy_is_fast)
    x = INTEGERS[name](n, np.random.default_rng(26))
    before = x.copy()
    np.testing.assert_array_equal(_sorting.stable_order(x), np.argsort(x, kind="stable"))
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("numpy_is_fast", [True, False])
def test_a_digest_has_the_same_bits_whoever_sorts(monkeypatch, numpy_is_fast):
    values = torch.from_numpy(hard_floats(100_000, np.random.default_rng(27), nan=True))
    groups = torch.arange(100_000) % 3
    want, grouped = dg.from_values(values), dg.add(dg.empty(shape=(3,)), values, groups=groups)
    monkeypatch.setattr(_sorting, "numpy_sorts_fast", lambda: numpy_is_fast)
    assert torch.equal(dg.from_values(values), want)
    assert torch.equal(dg.add(dg.empty(shape=(3,)), values, groups=groups), grouped)


def test_the_faster_sort_is_measured_once():
    _sorting.numpy_sorts_fast.cache_clear()
    first = _sorting.numpy_sorts_fast()
    assert isinstance(first, bool)
    assert _sorting.numpy_sorts_fast() is first
    assert _sorting.numpy_sorts_fast.cache_info().misses == 1
