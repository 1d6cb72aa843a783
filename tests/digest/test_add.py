"""What counts, what does not, what is refused; no argument is written to."""

import math
import threading
import warnings

import numpy as np
import pytest
import torch

from lightning_pce import digest as dg
from lightning_pce.digest._add import add_entries
from tests.helpers.digests import (
    GRID,
    INF,
    NAN,
    assert_exact,
    f64,
    streamed,
    worst,
)
from tests.helpers.distributions import (
    bound,
    ce_like,
    values_of,
)

N = 1 << 17  # so many are counted instead of sorted


@pytest.mark.parametrize("n", [300, 1500, 5000, 100_000])
@pytest.mark.parametrize("garbage", [0.5, NAN, INF, -INF])
def test_masked_values_change_not_one_bit(n, garbage):
    values = values_of("normal", n)
    keep = torch.rand(n, generator=torch.Generator().manual_seed(0)) < 0.7
    before = dg.from_values(values_of("exponential", 3000))
    want = dg.add(before, values[keep])
    assert torch.equal(dg.add(before, values.where(keep, garbage), keep), want)


@pytest.mark.parametrize("n", [300, 1500, 5000, 100_000])
@pytest.mark.parametrize("garbage", [0.5, NAN, INF, -INF])
def test_values_of_weight_zero_change_not_one_bit(n, garbage):
    values = values_of("normal", n)
    weights = torch.from_numpy(np.random.default_rng(0).integers(0, 3, n))
    keep = weights > 0
    before = dg.from_values(values_of("exponential", 3000))
    want = dg.add(before, values[keep], weights[keep])
    assert torch.equal(dg.add(before, values.where(keep, garbage), weights), want)


def test_a_batch_masked_as_a_whole_leaves_few_values_as_they_are():
    before = dg.from_values(values_of("normal", 500))
    values = f64(1, NAN, INF)
    assert torch.equal(dg.add(before, values, torch.zeros(3, dtype=torch.bool)), before)
    assert torch.equal(dg.add(before, values, torch.zeros(3)), before)
    assert torch.equal(dg.add(before, values[:0]), before)


def test_a_thousand_masked_batches_do_not_wear_a_digest_out():
    values = values_of("normal", 100_000)
    digest = streamed(values, 10_000)
    for _ in range(1000):
        digest = dg.add(digest, torch.zeros(4), torch.zeros(4, dtype=torch.bool))
    assert dg.count(digest) == 100_000
    assert worst(values, digest) <= bound(100_000)


def test_negative_nan_and_infinite_weights_are_left_out_and_counted():
    digest = dg.from_values(f64(1, 2, 3, 4, 5, NAN, INF), f64(1, -1, NAN, INF, 1, -2, -INF))
    assert_exact(digest, f64(1, 5))
    assert dg.invalid(digest) == 5
    assert dg.nonfinite(digest) == 0
    digest = dg.add(digest, f64(9, 7), f64(-1, 0))
    assert dg.invalid(digest) == 6
    assert dg.invalid(dg.merge(torch.stack([digest, digest]))) == 12
    assert dg.invalid(dg.from_values(f64(1, NAN, INF))) == 0


def test_invalid_entries_can_be_reported_from_outside():
    digest = dg.from_values(f64(1, 2), f64(1, -1))
    more = dg.add_invalid(digest, torch.tensor(3))
    assert dg.invalid(more) == 4
    assert dg.invalid(digest) == 1
    assert dg.count(more) == 1


def test_nan_is_counted_and_left_out():
    values = f64(1, NAN, 2, NAN, NAN, 3)
    digest = dg.from_values(values)
    assert_exact(digest, f64(1, 2, 3))
    assert dg.nonfinite(digest) == 3
    digest = dg.add(digest, values, f64(1, 5, 0, 1, 0, 1))
    assert_exact(digest, f64(1, 2, 3, 1, 3))
    assert dg.nonfinite(digest) == 9
    mask = torch.tensor([True, True, False, False, False, True])
    assert dg.nonfinite(dg.from_values(values, mask)) == 1


def test_nothing_but_nan_is_an_empty_digest_that_counts_it():
    digest = dg.from_values(f64(NAN, NAN))
    assert dg.count(digest) == 0
    assert dg.nonfinite(digest) == 2
    assert dg.quantile(digest, 0.5).isnan()


def test_the_shape_of_a_digest_never_changes():
    digest = dg.empty(8)
    for values in (f64(), f64(1), f64(NAN), f64(INF, -INF), torch.zeros(2, 3), torch.randn(5000)):
        digest = dg.add(digest, values)
        assert digest.shape == (11, 2)
        assert digest.dtype == torch.float64
        assert dg.merge(torch.stack([digest] * 3)).shape == (11, 2)
    assert dg.empty(8, shape=(2, 5)).shape == (2, 5, 11, 2)
    assert dg.count(dg.empty(8, shape=(2, 5))).eq(0).all()


@pytest.mark.parametrize("name", ["ce like", "normal", "rounded", "cauchy"])
def test_centroids_ascend_come_first_and_hold_the_count(name):
    digest = streamed(values_of(name, 50_000), 700)
    means, weights, blend = dg.centroids(digest)
    used = weights > 0
    assert means.shape == weights.shape == blend.shape == (1024,)
    assert weights.sum() == 50_000
    assert used.sum() > 500
    assert (means[used].diff() > 0).all()
    assert not (used[1:] & ~used[:-1]).any()
    assert not (blend & ~used).any()
    assert means[~used].eq(0).all()
    atoms = means[~blend & (weights > 1)]
    assert torch.isin(atoms, values_of(name, 50_000).double()).all()


def test_an_atom_is_a_value_and_a_blend_is_not():
    digest = dg.from_values(torch.cat([torch.zeros(5000), 1 + torch.rand(5000)]), compression=16)
    means, weights, blend = dg.centroids(digest)
    assert means[0] == 0
    assert weights[0] == 5000
    assert not blend[0]
    assert blend[1:].sum() >= 4


@pytest.mark.parametrize("n", [100, 5000])
def test_arguments_are_never_modified(n):
    digest, other = streamed(values_of("normal", 5000), 999), dg.from_values(values_of("cauchy", 5000))
    values = values_of("normal", n)
    values[:3] = torch.tensor([NAN, INF, -0.0])
    numbers, mask = torch.rand(n).sub(0.1), torch.rand(n) < 0.5
    stack = torch.stack([digest, other])
    arguments = [digest, values, numbers, mask, stack]
    copies = [argument.clone() for argument in arguments]
    dg.add(digest, values)
    dg.add(digest, values, numbers)
    dg.add(digest, values, mask)
    dg.merge(stack)
    dg.quantile(digest, GRID)
    dg.cdf(stack, GRID)
    dg.trimmed_mean(stack, 0.1, 0.9)
    dg.add_invalid(digest, torch.tensor(1))
    for argument, copy in zip(arguments, copies, strict=True):
        torch.testing.assert_close(argument, copy, rtol=0, atol=0, equal_nan=True)


def test_inputs_need_not_be_contiguous_nor_flat_nor_free_of_gradients():
    values = values_of("normal", 6000).reshape(60, 100)
    weights = torch.arange(6000).reshape(60, 100).remainder(3)
    assert torch.equal(dg.from_values(values.t()[::2]), dg.from_values(values.t()[::2].contiguous()))
    assert torch.equal(
        dg.from_values(values[:, ::3], weights[:, ::3]),
        dg.from_values(values[:, ::3].reshape(-1), weights[:, ::3].reshape(-1)),
    )
    assert_exact(dg.from_values(torch.tensor(2.5).expand(7)), torch.full((7,), 2.5))
    assert_exact(dg.from_values(torch.tensor(2.5)), torch.tensor([2.5]))
    assert torch.equal(dg.from_values(values.clone().requires_grad_()), dg.from_values(values))
    assert not dg.from_values(values.clone().requires_grad_()).requires_grad
    stack = torch.stack([dg.from_values(row) for row in values])
    strided = torch.stack([stack, stack], dim=-1)[..., 0]
    assert not strided.is_contiguous()
    assert torch.equal(dg.merge(strided), dg.merge(stack))
    assert torch.equal(dg.quantile(strided, GRID[::99]), dg.quantile(stack, GRID[::99]))
    q = torch.linspace(0, 1, 20).reshape(4, 5).t()
    assert torch.equal(dg.quantile(stack[0], q), dg.quantile(stack[0], q.contiguous()))


@pytest.mark.parametrize("values", [[], [1.0], [INF], [-INF, 1, INF], [NAN, NAN], [1, NAN, 2], [0, 5e-324]])
@pytest.mark.parametrize("weighted", [False, True])
def test_odd_values_raise_no_warning(values, weighted):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        digest = dg.from_values(f64(*values), torch.ones(len(values)) if weighted else None)
        digest = dg.merge(torch.stack([digest, dg.empty()]))
        dg.quantile(digest, GRID[::1000])
        dg.cdf(digest, GRID[::1000])
        dg.trimmed_mean(digest, 0.1, 0.9)


@pytest.mark.parametrize("compression", [7, 1, 0, -5])
def test_compression_below_8_raises(compression):
    with pytest.raises(ValueError, match="at least 8"):
        dg.empty(compression)
    with pytest.raises(ValueError, match="at least 8"):
        dg.from_values(f64(1), compression=compression)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64])
def test_values_that_are_not_floating_point_raise(dtype):
    with pytest.raises(ValueError, match="floating point"):
        dg.add(dg.empty(8), torch.ones(3, dtype=dtype))


@pytest.mark.parametrize("shape", [(4,), (3, 1), (1,), ()])
def test_weights_of_another_shape_raise(shape):
    with pytest.raises(ValueError, match="shape"):
        dg.add(dg.empty(8), torch.ones(3), torch.ones(shape))


@pytest.mark.parametrize("with_groups", [False, True])
def test_many_of_the_largest_numbers_raise_no_warning(with_groups):
    largest = torch.finfo(torch.float32).max
    values = values_of("normal", 3000)
    values[::3] = largest
    groups = {"groups": torch.arange(3000) % 2} if with_groups else {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        digest = dg.add(dg.empty(64, shape=(2,) if with_groups else ()), values, **groups)
        digest = dg.add(digest, values, torch.rand(3000), **groups)
    assert (dg.maximum(digest) == largest).all()


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: dg.merge(torch.empty(0, 11, 2, dtype=torch.float64)), "`digests`"),
        (lambda: dg.merge(dg.empty(8, shape=(2,)), compression=3), "`compression`"),
        (lambda: dg.add(dg.empty(8, shape=(1,)), torch.ones(1), groups=[0]), "`groups`"),
        (lambda: dg.empty(8, replicates=-1), "`replicates`"),
        (lambda: dg.add(dg.empty(8), torch.ones(1), torch.ones(1, dtype=torch.complex64)), "`weights`"),
    ],
)
def test_impossible_arguments_are_named(call, name):
    with pytest.raises(ValueError, match=name):
        call()


@pytest.mark.parametrize("n", [40_000, N])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_large_batch_of_nan_alone_is_counted(n, sign):
    nan = torch.full((n,), math.nan).copysign(torch.tensor(float(sign)))
    digest = dg.from_values(nan)
    assert dg.nonfinite(digest) == dg.count(digest) + n == n


def test_a_batch_of_nothing_is_a_new_digest():
    digest = dg.from_values(torch.arange(5.0))
    same = dg.add(digest, torch.empty(0))
    same += 1
    assert dg.count(digest) == 5
    groups = dg.empty(shape=(0,))
    none = torch.zeros(3, dtype=torch.bool)
    assert dg.add(groups, torch.ones(3), none, groups=torch.zeros(3, dtype=torch.long)).shape == groups.shape


def test_another_default_device_changes_nothing():
    values = torch.from_numpy(ce_like(N, np.random.default_rng(12)))
    want = dg.from_values(values)
    merged = dg.merge(torch.stack([dg.from_values(part) for part in values.chunk(64)]))
    with torch.device("meta"):
        assert torch.equal(dg.from_values(values), want)
        parts = torch.stack([dg.from_values(part) for part in values.chunk(64)])
        assert torch.equal(dg.merge(parts), merged)


def test_deterministic_mode_changes_nothing():
    values = torch.from_numpy(ce_like(N, np.random.default_rng(13)))
    want = dg.from_values(values)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(dg.from_values(values), want)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("values", [torch.rand(200_000), torch.rand(3000)])
def test_values_enter_in_one_torch_thread_and_the_callers_count_stays(monkeypatch, values):
    inside = []

    def spied(digest, entries):
        inside.append(torch.get_num_threads())
        if entries.x[0] < 0:
            raise RuntimeError
        return add_entries(digest, entries)

    monkeypatch.setattr("lightning_pce.digest._add.add_entries", spied)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        dg.from_values(values)
        with pytest.raises(RuntimeError):
            dg.from_values(-values)
        later = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert (inside, later, torch.get_num_threads()) == ([1, 1], [3], 3)
    finally:
        torch.set_num_threads(before)
