"""NumPy arrays and tensors go one way: the same digests, and nothing read on the host."""

import itertools
import warnings

import numpy as np
import pytest
import torch

from lightning_pce import digest as dg
from lightning_pce.digest import _arrays
from lightning_pce.digest._add import add_entries
from lightning_pce.digest._batch import Entries
from lightning_pce.digest._merge import merge_stack
from tests.helpers.digests import (
    DTYPES,
    HARD_TO_CUT,
    INF,
    KINDS,
    NAN,
    arrays,
    assert_same_paths,
    batched,
    numbers_of,
    weights_of,
)
from tests.helpers.distributions import (
    values_of,
)


@pytest.mark.parametrize("kind", ["ones", "weighted", "fractional", "invalid"])
@pytest.mark.parametrize("name", HARD_TO_CUT)
@pytest.mark.parametrize("batch", [700, 6000])
def test_numpy_and_torch_give_the_same_digest(name, kind, batch):
    rng = np.random.default_rng(5)
    a = b = dg.empty(128)
    a = a.numpy()
    for values in values_of(name, 5 * batch).split(batch):
        values[:4] = torch.tensor([NAN, INF, -INF, -0.0])
        entries = Entries(values, weights_of(kind, batch, rng), None, None)
        a = add_entries(a, arrays(*entries))
        b = add_entries(b, entries)
        assert_same_paths(a, b)


@pytest.mark.parametrize("kind", ["unweighted", "masked", "fractional"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numpy_and_torch_give_the_same_digests_of_groups_with_replicates(kind, dtype):
    rng = np.random.default_rng(6)
    b = dg.empty(64, shape=(4,), replicates=2)
    a = b.numpy()
    for values in values_of("ce like", 3000).to(dtype).split(1000):
        values[:4] = torch.tensor([NAN, INF, -INF, -0.0])
        groups = torch.from_numpy(rng.choice([0, 1, 3], 1000))  # group 2 stays empty
        columns = torch.from_numpy(rng.poisson(1, (1000, 2)))
        entries = Entries(values, weights_of(kind, 1000, rng), columns, groups)
        a = add_entries(a, arrays(*entries))
        b = add_entries(b, entries)
        assert_same_paths(a, b)


def test_torch_takes_nan_beside_many_equal_values_as_numpy_does():
    values = torch.tensor([0.0] * 30 + [NAN] * 10)
    digest = dg.empty(8)
    entries = Entries(values, None, None, None)
    assert_same_paths(add_entries(digest.numpy(), arrays(*entries)), add_entries(digest, entries))


def test_numpy_and_torch_merge_to_the_same_digest():
    stack = batched()
    assert_same_paths(merge_stack(stack.numpy(), 128), merge_stack(stack, 128))
    for group in range(stack.shape[1]):
        part = stack[:, group]
        assert_same_paths(merge_stack(part.numpy(), 128), merge_stack(part, 128))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("kind", "number", "replicates"),
    [
        *itertools.product(["masked", "whole", "fractional", "invalid"], [1, 30], [2]),
        *itertools.product(["whole", "fractional", "invalid"], [5], [0]),  # else a CPU has its short cut
    ],
)
def test_numpy_and_torch_give_the_same_digests_of_groups(kind, dtype, number, replicates):
    rng = np.random.default_rng(10)
    b = dg.empty(32, shape=(number,), replicates=replicates)
    a = b.numpy()
    for values in values_of("61 % zeros", 6000).to(dtype).split(1500):
        values[:5] = torch.tensor([NAN, INF, -INF, -0.0, 0.0])
        groups = torch.from_numpy(np.minimum(rng.geometric(0.2, 1500), number) - 1)
        columns = torch.from_numpy(rng.poisson(1, (1500, replicates))) if replicates else None
        entries = Entries(values, weights_of(kind, 1500, rng), columns, groups)
        a = add_entries(a, arrays(*entries))
        b = add_entries(b, entries)
        assert_same_paths(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_numpy_and_torch_give_the_same_replicates_without_groups(kind):
    rng = np.random.default_rng(11)
    b = dg.empty(32, replicates=3)
    a = b.numpy()
    for values in values_of("rounded", 4000).split(1000):
        values[:4] = torch.tensor([NAN, INF, -INF, -0.0])
        entries = Entries(
            values, weights_of(kind, 1000, rng), torch.from_numpy(rng.poisson(1, (1000, 3))), None
        )
        a = add_entries(a, arrays(*entries))
        b = add_entries(b, entries)
        assert_same_paths(a, b)


@pytest.mark.parametrize("kind", ["unweighted", "masked", "fractional"])
def test_masked_rows_of_a_tensor_never_reach_groups_or_replicates(kind):
    rng = np.random.default_rng(12)
    n = 2000
    values, groups = values_of("normal", n), torch.from_numpy(rng.integers(0, 3, n))
    columns = torch.from_numpy(rng.poisson(1, (n, 2)))
    keep = torch.from_numpy(rng.random(n) < 0.5)
    weights = numbers_of(weights_of(kind, n, rng), n)
    weights = keep if kind == "unweighted" else torch.where(keep, weights, 0.0)
    counted = weights > 0
    dirty = Entries(values.where(keep, INF), weights, torch.where(counted[:, None], columns, 0), groups)
    clean = Entries(values, weights, columns, groups).at(counted)
    empty = dg.empty(32, shape=(3,), replicates=2)
    torch.testing.assert_close(add_entries(empty, dirty), add_entries(empty, clean), rtol=1e-12, atol=1e-12)


def ones():
    return torch.ones(5000, 3, dtype=torch.bool)


@pytest.mark.parametrize("kind", ["unweighted", "masked", "fractional"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_groups_and_replicates_on_an_accelerator_read_nothing_on_the_host(kind, dtype):
    # On the meta device there is nothing to read: any .item() or data-dependent shape raises.
    with torch.device("meta"):
        weights = {
            "unweighted": None,
            "masked": torch.empty(5000, dtype=torch.bool),
            "fractional": torch.empty(5000),
        }[kind]
        values, groups = torch.empty(5000, dtype=dtype), torch.empty(5000, dtype=torch.int32)
        digest = dg.add(dg.empty(shape=(7,)), values, weights, groups=groups)
        assert digest.shape == (7, 1027, 2)
        digest = dg.add(dg.empty(shape=(7,), replicates=3), values, weights, groups=groups, replicates=ones())
        replicates = dg.replicate_digests(dg.merge(torch.stack([digest] * 65)))
        assert replicates.shape == (3, 7, 1027, 2)
        assert dg.quantile(replicates, 0.5).shape == (3, 7)
        assert replicates.is_meta


@pytest.mark.parametrize(
    "values",
    {
        "the last group is empty": ([1.0, 2.0, 2.0, 5.0], [0, 0, 1, 1]),
        "the last group holds only -inf": ([1.0, 2.0, 2.0, -INF], [0, 0, 1, 2]),
        "all are -inf": ([-INF, -INF, -INF], [0, 1, 2]),
        "all are inf or NaN": ([INF, NAN, INF], [2, 1, 0]),
        "the first groups are empty": ([3.0, 3.0, 3.0], [2, 2, 2]),
    }.values(),
)
def test_groups_without_a_finite_value_are_the_same_in_both_libraries(values):
    x, groups = torch.tensor(values[0]), torch.tensor(values[1])
    digest = dg.empty(8, shape=(3,))
    entries = Entries(x, None, None, groups)
    want = add_entries(digest.numpy(), Entries(x.numpy(), None, None, groups.numpy()))
    got = add_entries(digest, entries)
    torch.testing.assert_close(got, torch.from_numpy(want))
    for group in range(3):
        own = x[(groups == group) & ~x.isnan()]
        assert dg.count(got[group]) == len(own)


def test_minus_infinities_alone_are_counted_once_as_tensors_too():
    got = add_entries(dg.empty(8), Entries(torch.full((4,), -INF), None, None, None))
    assert dg.count(got) == 4
    assert dg.nonfinite(got) == 4
    assert dg.finite_mean(got).isnan()


@pytest.mark.parametrize("lead", [(), (3,), (2, 2)])
@pytest.mark.parametrize(
    "sizes",
    [
        [*range(1, 9), 63, 64, 65, 127, 128, 129, 300, 4095, 4096, 4097, 5000],
        pytest.param(range(9, 301), marks=pytest.mark.slow),
    ],
    ids=["some", "all"],
)
def test_a_blockwise_sum_is_a_cumulative_sum(lead, sizes):
    generator = torch.Generator().manual_seed(0)
    for size in sizes:
        whole = torch.randint(-1000, 1000, (*lead, size), generator=generator).double()
        assert torch.equal(_arrays.blockwise_sum(whole), whole.cumsum(-1)), size
        some = torch.rand(*lead, size, generator=generator, dtype=torch.float64)
        torch.testing.assert_close(_arrays.blockwise_sum(some), some.cumsum(-1), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("block", [2, 7])
def test_a_blockwise_sum_has_as_many_levels_as_it_needs(block):
    values = torch.arange(1000.0, dtype=torch.float64).reshape(2, 500)
    assert torch.equal(_arrays.blockwise_sum(values, block), values.cumsum(-1))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_just_above_the_largest_number_lies_infinity(dtype):
    largest = np.array([np.finfo(dtype).max, 1.0], dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        above = _arrays.just_above(largest)
    assert above[0] == INF
    assert 1 < above[1] < 1.000001
    np.testing.assert_array_equal(_arrays.just_above(torch.from_numpy(largest)).numpy(), above)


@pytest.mark.parametrize("dtype", [np.int64, np.float64])
@pytest.mark.parametrize("width", [(), (3,)])
def test_sums_of_groups_are_those_of_each_alone(dtype, width):
    rng = np.random.default_rng(28)
    data, groups = rng.integers(0, 9, (500, *width)).astype(dtype), rng.choice([0, 2, 4], 500)
    want = np.stack([data[groups == group].sum(0) for group in range(5)])
    tensors = _arrays.sum_of_groups(torch.from_numpy(data), torch.from_numpy(groups), 5)
    np.testing.assert_array_equal(tensors.numpy(), want)
    np.testing.assert_array_equal(_arrays.sum_of_groups(data, None, None), data.sum(0))
