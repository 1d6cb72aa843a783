"""Groups and replicates share one sort, many digests share one merge; none of it may change an answer."""

import functools
import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_pce import digest as dg
from lightning_pce.digest import _arrays, _sorting
from lightning_pce.digest._add import add_entries
from lightning_pce.digest._batch import Entries
from lightning_pce.digest._cpu import merging
from tests.helpers.distributions import (
    PROMISED_Q,
    bound,
    ce_like,
    exact_quantile,
    values_of,
    worst_rank_error,
)

INF, NAN = math.inf, math.nan
Q = torch.as_tensor(PROMISED_Q)
GRID = torch.linspace(0, 1, 97, dtype=torch.float64)
KINDS = ["unweighted", "masked", "whole", "fractional"]
DTYPES = [torch.float32, torch.float64, torch.bfloat16]


def weights_of(kind, n, rng):
    return {
        "unweighted": None,
        "masked": torch.from_numpy(rng.random(n) < 0.6),
        "whole": torch.from_numpy(rng.integers(0, 4, n)),
        "fractional": torch.from_numpy(rng.random(n)),
        "invalid": torch.from_numpy(rng.choice([-1.0, 0.0, 1.0, 2.0, NAN, INF], n)),
    }[kind]


def numbers_of(weights, n):
    return torch.ones(n).double() if weights is None else weights.double()


def part(tensor, index):
    return None if tensor is None else tensor[index]


def streamed(values, weights=None, *, compression=1024, batch=4096, **more):
    """A digest of values in batches; what else goes into each call is cut like the values."""
    groups, number, replicates = more.get("groups"), more.get("number"), more.get("replicates")
    digest = dg.empty(
        compression,
        shape=() if groups is None else (number,),
        replicates=0 if replicates is None else replicates.shape[-1],
    )
    for start in range(0, len(values), batch):
        at = slice(start, start + batch)
        digest = dg.add(
            digest, values[at], part(weights, at), groups=part(groups, at), replicates=part(replicates, at)
        )
    return digest


def assert_same_answers(digest, other, *, rtol=1e-12):
    """All answers of two digests, or of two stacks of them, agree but for rounding."""
    close = {"rtol": rtol, "atol": 1e-12, "equal_nan": True}
    for query in (dg.count, dg.nonfinite, dg.invalid, dg.minimum, dg.maximum):
        torch.testing.assert_close(query(digest), query(other), **close)
    for query in (dg.mean, dg.finite_mean, lambda d: dg.quantile(d, GRID)):
        torch.testing.assert_close(query(digest), query(other), **close)


def assert_footers_and_means(digest, values, weights):
    """Count, extremes, what is not finite and the mean are exact whatever the number of values."""
    w = numbers_of(weights, len(values))
    values, w = values[w > 0].double(), w[w > 0]
    finite = values.isfinite()
    torch.testing.assert_close(dg.count(digest), w[~values.isnan()].sum(), rtol=1e-13, atol=0)
    torch.testing.assert_close(dg.nonfinite(digest), w[~finite].sum(), rtol=1e-13, atol=0)
    mass, total = (values * w)[finite], math.fsum(w[finite].tolist())
    error = dg.finite_mean(digest).item() - math.fsum(mass.tolist()) / total
    assert abs(error) <= 1e-12 * mass.abs().sum().item() / total
    assert digest[-2, 0] == values[finite].min()
    assert digest[-1, 0] == values[finite].max()


def weighted_rank_error(values, weights, estimates):
    """How far q is from the weight below, or up to, its estimate."""
    order = values.argsort()
    values, upto = values[order].double(), torch.nn.functional.pad(weights[order].double().cumsum(0), (1, 0))
    low = upto[torch.searchsorted(values, estimates)] / upto[-1]
    high = upto[torch.searchsorted(values, estimates, right=True)] / upto[-1]
    return torch.maximum(low - Q, Q - high).clamp(min=0).max().item()


def limit(compression, n):
    """A fifth of the widest centroid, or twice what is promised."""
    return max(math.pi / 2 / compression / 5, 2 * bound(n))


# ------------------------------------------------------------------------------------------------------------
# Groups.


@settings(max_examples=60)
@given(
    entries=st.lists(
        st.tuples(st.integers(0, 3), st.floats(-1e6, 1e6, width=32), st.integers(0, 4)),
        min_size=1,
        max_size=48,
    ),
    batch=st.integers(1, 48),
    weighted=st.booleans(),
)
def test_each_group_has_exactly_its_own_values(entries, batch, weighted):
    groups, values, weights = (torch.tensor(column) for column in zip(*entries, strict=True))
    weights = weights if weighted else torch.ones_like(weights)
    digest = streamed(
        values, weights if weighted else None, compression=48, batch=batch, groups=groups, number=4
    )
    assert digest.shape == (4, 51, 2)
    for group in range(4):
        own = values[groups == group].repeat_interleave(weights[groups == group])
        assert dg.count(digest[group]) == len(own)
        if len(own):
            scale = own.abs().max().item()
            want = exact_quantile(own, GRID)
            torch.testing.assert_close(dg.quantile(digest[group], GRID), want, rtol=0, atol=1e-12 * scale)
            assert dg.mean(digest[group]).item() == pytest.approx(
                math.fsum(own.tolist()) / len(own), abs=1e-12 * scale
            )
        else:
            assert torch.equal(digest[group], dg.empty(48))


@pytest.mark.parametrize("kind", [*KINDS, "invalid"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_groups_of_few_values_answer_as_digests_fed_alone(kind, dtype):
    rng = np.random.default_rng(1)
    values, groups = values_of("normal", 900).to(dtype), torch.from_numpy(rng.choice([0, 1, 1, 3], 900))
    values[:8] = torch.tensor([NAN, NAN, INF, -INF, INF, NAN, -0.0, 0.0])
    groups[:8] = torch.tensor([0, 1, 1, 3, 3, 3, 0, 1])
    weights = weights_of(kind, 900, rng)
    digest = streamed(values, weights, batch=250, groups=groups, number=4)
    alone = [
        streamed(values[groups == g], part(weights, groups == g), batch=100) if g != 2 else dg.empty()
        for g in range(4)
    ]
    assert_same_answers(digest, torch.stack(alone))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_groups_of_many_values_keep_the_promise_each(kind, dtype):
    rng = np.random.default_rng(2)
    n = 60_000
    values = torch.from_numpy(ce_like(n, rng)).to(dtype)
    groups = torch.from_numpy(rng.choice(3, n, p=[0.7, 0.2, 0.1]))
    values = torch.where(groups == 1, -5 * values, values)  # a value does not tell its group
    weights = weights_of(kind, n, rng)
    digest = streamed(values, weights, groups=groups, number=3)
    w = numbers_of(weights, n)
    for group in range(3):
        own = groups == group
        assert_footers_and_means(digest[group], values[own], w[own])
        error = weighted_rank_error(values[own], w[own], dg.quantile(digest[group], Q))
        # More than K different values of bfloat16: a light atom costs up to half of itself.
        assert error <= bound(int(own.sum())) + (1e-3 if dtype == torch.bfloat16 else 0)


@pytest.mark.parametrize("kind", KINDS)
def test_nan_and_infinities_are_counted_in_their_own_group(kind):
    rng = np.random.default_rng(3)
    n = 20_000
    values = values_of("normal", n)
    groups = torch.from_numpy(rng.integers(0, 4, n))
    odd = torch.from_numpy(rng.random(n) < 0.05)
    for group, oddity in enumerate([NAN, INF, -INF]):
        values[odd & (groups == group)] = oddity
    weights = weights_of(kind, n, rng)
    digest = streamed(values, weights, groups=groups, number=4)
    w = numbers_of(weights, n)
    for group in range(4):
        assert_footers_and_means(digest[group], values[groups == group], w[groups == group])
    where = [(0, -3), (1, -1), (2, -2)]
    footer = digest[:, -3:, 1]
    for group, row in where:
        want = w[odd & (groups == group)].sum()
        torch.testing.assert_close(digest[group, row, 1], want, rtol=1e-12, atol=0)
        assert want > 0
    assert footer.count_nonzero() == 3


def test_a_group_of_nothing_but_nan_or_one_infinity_stays_beside_full_ones():
    values = torch.tensor([NAN, NAN, INF, 1.0, 2.0, 3.0])
    digest = dg.add(dg.empty(8, shape=(4,)), values, groups=torch.tensor([0, 0, 1, 3, 3, 3]))
    assert dg.count(digest).tolist() == [0, 1, 0, 3]
    assert dg.nonfinite(digest).tolist() == [2, 1, 0, 0]
    assert dg.quantile(digest, 0.5).nan_to_num(-1, posinf=9).tolist() == [-1, 9, -1, 2]
    assert torch.equal(digest[2], dg.empty(8))


@pytest.mark.parametrize("kind", KINDS)
def test_one_group_is_a_digest_with_a_leading_dimension(kind):
    rng = np.random.default_rng(4)
    values, weights = values_of("ce like", 9000), weights_of(kind, 9000, rng)
    digest = streamed(values, weights, groups=torch.zeros(9000, dtype=torch.long), number=1)
    assert_same_answers(digest[0], streamed(values, weights))


@pytest.mark.parametrize("kind", ["unweighted", "fractional"])
def test_three_hundred_groups_are_told_apart(kind):
    rng = np.random.default_rng(5)
    n = 30_000
    groups = torch.from_numpy(np.minimum(rng.geometric(0.02, n), 300) - 1)
    values = values_of("normal", n) + 10 * groups
    weights = weights_of(kind, n, rng)
    digest = streamed(values, weights, compression=64, batch=7000, groups=groups, number=300)
    assert digest.shape == (300, 67, 2)
    w = numbers_of(weights, n)
    sums = torch.zeros(300).double().index_add_(0, groups, w)
    torch.testing.assert_close(dg.count(digest), sums, rtol=1e-12, atol=0)
    assert ((sums == 0) == dg.mean(digest).isnan()).all()
    for group in groups.unique().tolist():
        assert_footers_and_means(digest[group], values[groups == group], w[groups == group])


def test_a_batch_with_groups_larger_than_a_piece_is_counted_to_the_last_value():
    rng = np.random.default_rng(6)
    n = (1 << 20) + 5000
    values = torch.from_numpy(ce_like(n, rng))
    groups = torch.from_numpy(rng.integers(0, 2, n))
    groups[-4000:] = 2
    digest = dg.add(dg.empty(shape=(3,)), values, groups=groups)
    for group in range(3):
        own = values[groups == group]
        assert_footers_and_means(digest[group], own, None)
        assert worst_rank_error(own, dg.quantile(digest[group], Q)) <= bound(len(own))


def test_a_piece_with_replicates_and_groups_is_counted_to_the_last_value():
    rng = np.random.default_rng(7)
    n = 300_000  # 9 columns: several pieces of 190,650
    values, groups = torch.from_numpy(ce_like(n, rng)), torch.from_numpy(rng.integers(0, 2, n))
    columns = torch.from_numpy(rng.poisson(1, (n, 9)))
    digest = dg.add(dg.empty(64, shape=(2,), replicates=9), values, groups=groups, replicates=columns)
    for group in range(2):
        assert_footers_and_means(digest[group, :, :2], values[groups == group], None)
        want = columns[groups == group].sum(0).double()
        torch.testing.assert_close(dg.count(dg.replicate_digests(digest))[:, group], want, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8, torch.int64])
def test_group_numbers_of_every_integer_dtype_and_shape_are_taken(dtype):
    values = torch.arange(24.0).reshape(2, 3, 4)
    groups = (torch.arange(24).reshape(2, 3, 4) % 3).to(dtype)
    digest = dg.add(dg.empty(16, shape=(3,)), values, groups=groups)
    assert dg.count(digest).tolist() == [8, 8, 8]
    assert dg.mean(digest).tolist() == [10.5, 11.5, 12.5]
    strided = dg.add(
        dg.empty(16, shape=(3,)), values.transpose(0, 2)[::2], groups=groups.transpose(0, 2)[::2]
    )
    kept = groups.transpose(0, 2)[::2].flatten()
    assert dg.count(strided).tolist() == [(kept == group).sum() for group in range(3)]


def test_no_value_at_all_leaves_groups_as_they_are():
    digest = dg.add(dg.empty(16, shape=(2,)), torch.arange(9.0), groups=torch.arange(9) % 2)
    nothing = torch.empty(0)
    assert torch.equal(dg.add(digest, nothing, groups=nothing.long()), digest)
    masked = dg.add(
        digest,
        torch.ones(5),
        torch.zeros(5, dtype=torch.bool),
        groups=torch.ones(5, dtype=torch.long),
    )
    assert torch.equal(masked, digest)


def test_groups_values_and_weights_are_not_written_to():
    rng = np.random.default_rng(8)
    n = 5000
    given = {
        "digest": streamed(
            values_of("normal", n), groups=torch.arange(n) % 3, number=3, compression=64, batch=999
        ),
        "values": values_of("normal", n),
        "weights": torch.from_numpy(rng.random(n)),
        "groups": torch.from_numpy(rng.integers(0, 3, n)),
    }
    given["values"][:2] = torch.tensor([NAN, -0.0])
    before = {name: tensor.clone() for name, tensor in given.items()}
    after = dg.add(**given)
    assert not torch.equal(after, given["digest"])
    for name, tensor in given.items():
        assert torch.equal(tensor.nan_to_num(7), before[name].nan_to_num(7)), name


@pytest.mark.parametrize("stack", [5, 70])
def test_a_merge_of_stacks_of_groups_is_that_of_each_group_alone(stack):
    rng = np.random.default_rng(9)
    values = torch.from_numpy(ce_like(stack * 900, rng))
    groups = torch.from_numpy(rng.choice([0, 0, 1, 3], len(values)))
    digests = torch.stack(
        [
            streamed(v, groups=g, number=4, compression=64)
            for v, g in zip(values.split(900), groups.split(900), strict=True)
        ]
    )
    merged = dg.merge(digests)
    assert merged.shape == (4, 67, 2)
    for group in range(4):
        assert torch.equal(merged[group], dg.merge(digests[:, group]))
    for group in (0, 1, 3):
        own = values[groups == group]
        assert_footers_and_means(merged[group], own, None)
        assert worst_rank_error(own, dg.quantile(merged[group], Q)) <= math.pi / 2 / 64
    assert torch.equal(merged[2], dg.empty(64))


# ------------------------------------------------------------------------------------------------------------
# Both paths, and the one that must not look.


def arrays(*tensors):
    return Entries(*(None if tensor is None else tensor.numpy() for tensor in tensors))


def assert_same_paths(got, want):
    assert isinstance(got, np.ndarray)
    assert isinstance(want, torch.Tensor)
    torch.testing.assert_close(torch.from_numpy(got), want, rtol=1e-11, atol=1e-12)


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


def ones():
    return torch.ones(5000, 3, dtype=torch.bool)


# ------------------------------------------------------------------------------------------------------------
# What is refused.


@pytest.mark.parametrize(
    "groups",
    [
        torch.zeros(4, dtype=torch.long),
        torch.zeros(3, 1, dtype=torch.long),
        torch.tensor(0),
        torch.zeros(3),
        torch.zeros(3, dtype=torch.bool),
        torch.tensor([0, 1, 2]),
        torch.tensor([-1, 0, 1]),
    ],
    ids=["too many", "another shape", "a number", "float", "bool", "too large", "negative"],
)
def test_impossible_groups_are_refused_by_name(groups):
    digest = dg.empty(8, shape=(2,))
    with pytest.raises(ValueError, match="`groups`"):
        dg.add(digest, torch.ones(3), groups=groups)
    if groups.shape == (3,) and groups.dtype == torch.long:
        with pytest.raises(ValueError, match=r"`groups`.*\[0, 2\)"):
            dg.add(digest, torch.ones(3), torch.ones(3), groups=groups)


def test_groups_need_a_digest_for_each_and_a_digest_for_each_needs_groups():
    with pytest.raises(ValueError, match="`digest`"):
        dg.add(dg.empty(8), torch.ones(3), groups=torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="`digest`"):
        dg.add(dg.empty(8, shape=(2,)), torch.ones(3))


@pytest.mark.parametrize("weights", [torch.tensor([True, False, False]), torch.tensor([1.5, 0.0, 0.0])])
def test_a_value_that_does_not_count_may_have_any_group(weights):
    values, columns = torch.tensor([4.0, NAN, 5.0]), torch.tensor([[2], [0], [0]])
    empty = dg.empty(8, shape=(2,), replicates=1)
    got = dg.add(empty, values, weights, groups=torch.tensor([1, -100, 7]), replicates=columns)
    want = dg.add(empty, values[:1], weights[:1], groups=torch.tensor([1]), replicates=columns[:1])
    assert torch.equal(got, want)
    assert dg.count(got).tolist() == [0, weights[0]]


@pytest.mark.parametrize(
    ("made", "replicates"),
    [
        (2, None),
        (0, torch.ones(3, 1)),
        (2, torch.ones(3, 3)),
        (2, torch.ones(2, 2)),
        (2, torch.ones(2, 3)),
        (2, torch.ones(6)),
    ],
    ids=["none", "not wanted", "too many", "too few values", "turned", "flat"],
)
def test_replicates_of_another_shape_are_refused_by_name(made, replicates):
    with pytest.raises(ValueError, match="`replicates`"):
        dg.add(dg.empty(8, replicates=made), torch.ones(3), replicates=replicates)


# ------------------------------------------------------------------------------------------------------------
# Replicates.


@pytest.mark.parametrize("n", [50, 900, 30_000])
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.float64, torch.bool, torch.bfloat16])
def test_a_replicate_of_ones_is_the_digest_itself(n, dtype):
    values = values_of("ce like", n)
    values[:3] = torch.tensor([NAN, INF, -INF])
    digest = streamed(values, replicates=torch.ones(n, 2, dtype=dtype))
    main = digest[..., :2].contiguous()
    for replicate in dg.replicate_digests(digest):
        torch.testing.assert_close(replicate, main, rtol=1e-12, atol=0)


def test_replicates_do_not_change_what_the_digest_itself_says():
    rng = np.random.default_rng(13)
    values = values_of("ce like", 20_000)
    digest = streamed(values, replicates=torch.from_numpy(rng.poisson(1, (20_000, 3))))
    assert_footers_and_means(digest[..., :2], values, None)
    assert worst_rank_error(values, dg.quantile(digest[..., :2], Q)) <= bound(20_000)


def test_an_integer_replicate_of_few_values_is_exactly_repetition():
    rng = np.random.default_rng(14)
    values = values_of("normal", 800)
    columns = torch.from_numpy(rng.poisson(1, (800, 5)))
    columns[:, 3] = 0
    columns[17, 3] = 6
    for batch in (800, 90):
        replicates = dg.replicate_digests(streamed(values, batch=batch, replicates=columns))
        for column, replicate in zip(columns.T, replicates, strict=True):
            resampled = values.repeat_interleave(column)
            assert dg.count(replicate) == len(resampled)
            torch.testing.assert_close(
                dg.quantile(replicate, GRID), exact_quantile(resampled, GRID), rtol=0, atol=1e-12
            )
            assert dg.mean(replicate).item() == pytest.approx(resampled.double().mean().item(), rel=1e-12)
            assert dg.minimum(replicate) == resampled.min()
            assert dg.maximum(replicate) == resampled.max()


@pytest.mark.parametrize("kind", KINDS)
def test_means_of_replicates_of_few_values_are_weighted_means(kind):
    rng = np.random.default_rng(15)
    values, weights = values_of("lognormal", 1000), weights_of(kind, 1000, rng)
    columns = numbers_of(weights, 1000)[:, None] * torch.from_numpy(rng.poisson(1, (1000, 6)))
    digest = streamed(values, weights, batch=333, replicates=columns)
    want = (values.double() @ columns) / columns.sum(0)
    torch.testing.assert_close(dg.mean(dg.replicate_digests(digest)), want, rtol=1e-10, atol=0)


@pytest.mark.parametrize("stack", [1, 3, 66, 130])
def test_counts_of_replicates_are_column_sums_through_adds_and_merges(stack):
    rng = np.random.default_rng(16)
    n = 600 * stack
    values, columns = torch.from_numpy(ce_like(n, rng)), torch.from_numpy(rng.poisson(1, (n, 4)))
    values[:4] = torch.tensor([NAN, INF, -INF, INF])
    parts = [
        streamed(v, compression=64, batch=200, replicates=c)
        for v, c in zip(values.split(600), columns.split(600), strict=True)
    ]
    merged = dg.merge(torch.stack(parts))
    assert merged.shape == (67, 6)
    for _ in range(3):
        merged = dg.add(merged, values, replicates=columns)
    replicates = dg.replicate_digests(merged)
    torch.testing.assert_close(
        dg.count(replicates), 4 * columns[1:].sum(0).double(), rtol=1e-12, atol=0
    )  # the first is NaN
    odd = columns[:4].sum(0).double() * 4
    torch.testing.assert_close(dg.nonfinite(replicates), odd, rtol=1e-12, atol=0)
    assert dg.count(merged[..., :2]) == 4 * (n - 1)


def test_columns_with_groups_are_those_of_each_group_alone():
    rng = np.random.default_rng(17)
    n = 1500
    values, groups = values_of("normal", n), torch.from_numpy(rng.choice([0, 2, 2], n))
    columns = torch.from_numpy(rng.poisson(1, (n, 3)))
    digest = streamed(values, batch=400, groups=groups, number=3, replicates=columns)
    replicates = dg.replicate_digests(digest)
    assert replicates.shape == (3, 3, 1027, 2)
    for group in range(3):
        own = groups == group
        for column in range(3):
            resampled = values[own].repeat_interleave(columns[own, column])
            replicate = replicates[column, group]
            assert dg.count(replicate) == len(resampled)
            if len(resampled):
                want = exact_quantile(resampled, GRID)
                torch.testing.assert_close(dg.quantile(replicate, GRID), want, rtol=0, atol=1e-12)
    assert torch.equal(dg.count(replicates[:, 1]), torch.zeros(3).double())


@pytest.mark.parametrize("name", ["normal", "ce like", "61 % zeros"])
def test_quantiles_of_replicates_of_many_values_are_within_a_centroid(name):
    rng = np.random.default_rng(18)
    n = 100_000
    values = values_of(name, n)
    columns = torch.from_numpy(rng.poisson(1, (n, 5)))
    replicates = dg.replicate_digests(streamed(values, batch=8192, replicates=columns))
    for column, replicate in zip(columns.T, replicates, strict=True):
        whole = streamed(values, column, batch=8192)
        assert dg.count(replicate) == pytest.approx(dg.count(whole).item(), rel=1e-12)
        estimates = dg.quantile(replicate, Q)
        assert weighted_rank_error(values, column, estimates) <= math.pi / 2 / 1024
        assert weighted_rank_error(values, column, dg.quantile(whole, Q)) <= bound(n)


def test_a_replicate_that_holds_one_end_only_has_its_own_extremes():
    values = torch.arange(100.0)
    columns = torch.stack([torch.arange(100) < 30, torch.arange(100) >= 70, torch.zeros(100)], -1)
    low, high, none = dg.replicate_digests(
        dg.add(dg.empty(128, replicates=3), values, replicates=columns.long())
    )
    assert [dg.minimum(low), dg.maximum(low), dg.mean(low)] == [0, 29, 14.5]
    assert [dg.minimum(high), dg.maximum(high), dg.mean(high)] == [70, 99, 84.5]
    assert dg.count(none) == 0
    assert dg.quantile(none, 0.5).isnan()


def test_the_spread_of_the_median_over_poisson_replicates_is_that_of_theory():
    rng = np.random.default_rng(19)
    n, replicates = 20_000, 100
    values = torch.from_numpy(rng.standard_normal(n))
    columns = torch.from_numpy(rng.poisson(1, (n, replicates)).astype(np.uint8))
    medians = dg.quantile(dg.replicate_digests(streamed(values, batch=5000, replicates=columns)), 0.5)
    density = 1 / math.sqrt(2 * math.pi)
    assert medians.std().item() == pytest.approx(1 / (2 * density * math.sqrt(n)), rel=0.25)


# ------------------------------------------------------------------------------------------------------------
# Merges of many digests.


def shards(values, number, compression=1024):
    return torch.stack([streamed(v, compression=compression, batch=65_536) for v in values.chunk(number)])


@functools.lru_cache
def large(name):
    """Two and a half million values and the digests of 64 parts of them."""
    values = values_of(name, 2_500_000)
    return values, shards(values, 64)


SMOOTH = ["normal", "ce like", "uniform"]


@pytest.mark.parametrize("name", SMOOTH)
def test_64_shards_of_smooth_data_keep_the_promise(name):
    values, digests = large(name)
    merged = dg.merge(digests)
    assert_footers_and_means(merged, values, None)
    assert worst_rank_error(values, dg.quantile(merged, Q)) <= bound(len(values))


@pytest.mark.parametrize("name", SMOOTH[:2])
def test_the_order_of_a_stack_of_many_changes_not_one_bit(name):
    _, digests = large(name)
    merged = dg.merge(digests)
    for seed in range(3):
        order = torch.randperm(64, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(dg.merge(digests[order]), merged)


@pytest.mark.parametrize("number", [64, 128, 520])
@pytest.mark.parametrize("name", ["atoms in a normal", "61 % zeros"])
def test_many_shards_of_atoms_among_other_values_keep_the_promise(name, number):
    values = values_of(name, 1_500_000)
    merged = dg.merge(shards(values, number))
    assert_footers_and_means(merged, values, None)
    assert worst_rank_error(values, dg.quantile(merged, Q)) <= bound(len(values))


def test_whole_weights_of_many_digests_stay_whole_and_fractional_ones_are_not_rounded():
    digests = large("ce like")[1]
    _, whole, _ = dg.centroids(dg.merge(digests))
    assert torch.equal(whole, whole.round())
    digests = digests.clone()
    digests[:, :-3, 1] *= 2.0**-12
    _, fractional, _ = dg.centroids(dg.merge(digests))
    torch.testing.assert_close(fractional * 2.0**12, whole, rtol=0, atol=1)


@pytest.mark.parametrize("number", [33, 65, 200, 512, 700])
@pytest.mark.parametrize("compression", [64, 256])
def test_any_number_of_shards_counts_exactly_and_stays_close(number, compression):
    values = values_of("normal", 300_000)
    merged = dg.merge(shards(values, number, compression))
    assert_footers_and_means(merged, values, None)
    assert worst_rank_error(values, dg.quantile(merged, Q)) <= limit(compression, len(values))
    assert (dg.quantile(merged, GRID).diff() >= 0).all()


@pytest.mark.parametrize("number", [64, 200])
@pytest.mark.parametrize("compression", [64, 512, 2048])
def test_many_shards_become_a_digest_of_another_size(number, compression):
    values = values_of("ce like", 300_000)
    merged = dg.merge(shards(values, number), compression=compression)
    assert merged.shape == (compression + 3, 2)
    assert_footers_and_means(merged, values, None)
    assert worst_rank_error(values, dg.quantile(merged, Q)) <= limit(compression, len(values))


@pytest.mark.parametrize("number", [64, 130, 200])
@pytest.mark.parametrize("step", [0.25, 0.1])
def test_many_digests_of_atoms_merge_exactly(number, step):
    rng = np.random.default_rng(20)
    values = torch.from_numpy(np.minimum(rng.geometric(0.01, 100_000), 700) * step - 3)
    merged = dg.merge(shards(values, number))
    distinct, counts = values.unique(return_counts=True)
    means, weights, blend = dg.centroids(merged)
    assert not blend.any()
    assert torch.equal(means[: len(distinct)], distinct)
    assert torch.equal(weights[: len(distinct)], counts.double())
    torch.testing.assert_close(dg.quantile(merged, GRID), exact_quantile(values, GRID), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", [*SMOOTH, "61 % zeros", "lognormal", "12 decades", "two humps"])
def test_shards_merge_as_well_by_levels_as_by_order(monkeypatch, name):
    values, by_levels = values_of(name, 640_000), []
    digests = shards(values, 128)
    cut_by_levels = merging._cut_by_levels
    monkeypatch.setattr(merging, "_cut_by_levels", lambda *what: by_levels.append(cut_by_levels(*what)))
    ordered = dg.merge(digests)
    assert by_levels[0] is not None
    monkeypatch.setattr(merging, "_cut_by_order", None)
    monkeypatch.setattr(merging, "_cut_by_levels", cut_by_levels)
    for merged in (ordered, dg.merge(digests)):
        assert_footers_and_means(merged, values, None)
        assert worst_rank_error(values, dg.quantile(merged, Q)) <= bound(len(values))
        means, weights, blend = dg.centroids(merged)
        zeros = (values == 0).sum().item()
        if zeros:
            (at,) = torch.nonzero((means == 0) & (weights > 0), as_tuple=True)
            assert (weights[at].item(), blend[at].item()) == (zeros, False)


def test_a_crowded_first_level_of_blends_is_no_atom():
    cluster = 1.001 + 1e-9 * values_of("uniform", 2_400)
    values = torch.cat([cluster, (1.5 * values_of("normal", 597_600).double() + 6).exp() + 1])
    values = values[torch.randperm(len(values), generator=torch.Generator().manual_seed(3))]
    digests = torch.cat([shards(values, 64), dg.empty(shape=(100,))])
    digests[0, -2, 0] = 1.0  # the smallest value lies inside a blend, and no centroid at it
    q = np.linspace(0.0005, 0.0035, 31)
    assert worst_rank_error(values, dg.quantile(dg.merge(digests), torch.from_numpy(q)), q) <= 2e-4


@pytest.mark.parametrize("number", [64, 200])
def test_heavy_atoms_among_many_shards_keep_their_place(number):
    values = torch.cat([values_of("61 % zeros", 400_000), -values_of("exponential", 80_000)])
    values = values[torch.randperm(len(values), generator=torch.Generator().manual_seed(0))]
    merged = dg.merge(shards(values, number))
    first, last = (values < 0).sum().item(), (values <= 0).sum().item() - 1
    ends = first / (len(values) - 1) + 1e-9, last / (len(values) - 1) - 1e-9
    assert dg.quantile(merged, torch.linspace(*ends, 2001, dtype=torch.float64)).eq(0).all()
    assert_footers_and_means(merged, values, None)


@pytest.mark.parametrize("compression", [64, 1024])
def test_negative_values_in_many_shards_are_the_mirror_of_positive_ones(compression):
    values = values_of("lognormal", 400_000)
    merged = dg.merge(shards(-values, 64, compression))
    assert_footers_and_means(merged, -values, None)
    assert worst_rank_error(-values, dg.quantile(merged, Q)) <= limit(compression, len(values))


@pytest.mark.parametrize("number", [40, 64, 150])
@pytest.mark.parametrize("compression", [64, 1024])
def test_empty_digests_among_many_change_nothing_but_the_stack(number, compression):
    values = values_of("uniform", 300_000)
    full = shards(values, number, compression)
    stack = torch.cat([dg.empty(compression, shape=(30,)), full, dg.empty(compression, shape=(30,))])
    merged = dg.merge(stack)
    assert_footers_and_means(merged, values, None)
    assert worst_rank_error(values, dg.quantile(merged, Q)) <= limit(compression, len(values))
    assert torch.equal(dg.merge(dg.empty(compression, shape=(number,))), dg.empty(compression))


@pytest.mark.parametrize("number", [70, 200])
def test_a_merge_of_many_writes_to_none_of_them(number):
    digests = torch.cat([dg.empty(64, shape=(5,)), shards(values_of("normal", 100_000), number - 5, 64)])
    before = digests.clone()
    dg.merge(digests)
    assert torch.equal(digests, before)


def test_one_digest_of_large_values_among_empty_ones_is_not_lost():
    digest = dg.from_values(torch.arange(1.0, 10_001, dtype=torch.float64) * 1e300, compression=64)
    merged = dg.merge(torch.cat([dg.empty(64, shape=(64,)), digest[None]]))
    assert dg.count(merged) == 10_000
    torch.testing.assert_close(dg.mean(merged), dg.mean(digest), rtol=1e-12, atol=0)


@pytest.mark.parametrize("number", [64, 200])
def test_footers_of_many_shards_add_up(number):
    values = values_of("normal", 200_000)
    values[::100], values[1::1000], values[2::2000] = NAN, INF, -INF
    merged = dg.merge(shards(values, number))
    assert merged[-3:, 1].tolist() == [2000, 100, 200]
    assert_footers_and_means(merged, values, None)
    assert dg.merge(torch.stack([dg.add_invalid(merged, torch.tensor(3))] * number))[-3, 0] == 3 * number


def exact_spike(n, rng):
    """Half the values whole numbers, the others within 1e-6: float32 sees the one, not the other."""
    return np.where(rng.random(n) < 0.5, 500 + 1e-6 * rng.random(n), rng.integers(0, 1001, n))


NARROW = {
    "spike among whole numbers": exact_spike,
    "1e-6 around 500": lambda n, rng: 500 + 1e-6 * rng.random(n),
    "an hour of seconds since 1970": lambda n, rng: 1.7e9 + 3600 * rng.random(n),
    "beyond float32": lambda n, rng: (rng.random(n) - 0.5) * 1e300,
    "below float32": lambda n, rng: (rng.random(n) - 0.5) * 1e-60,
}


@pytest.mark.parametrize(("number", "compression"), [(4, 1024), (8, 1024), (64, 1024), (64, 64), (200, 64)])
@pytest.mark.parametrize("name", NARROW)
def test_float64_values_that_float32_can_not_tell_apart_keep_their_order_in_a_merge(
    name, number, compression
):
    values = torch.from_numpy(NARROW[name](400_000, np.random.default_rng(21)))
    merged = dg.merge(shards(values, number, compression))
    # A gap in the data costs 64 centroids more than the limit, merged or not.
    alone = worst_rank_error(values, dg.quantile(streamed(values, compression=compression), Q))
    error = worst_rank_error(values, dg.quantile(merged, Q))
    assert error <= max(limit(compression, len(values)), 3 * alone)
    assert_footers_and_means(merged, values, None)


def test_float64_values_that_float32_can_not_tell_apart_keep_their_order_beside_empty_digests():
    values = torch.from_numpy(NARROW["beyond float32"](400_000, np.random.default_rng(22)).clip(0, None))
    merged = dg.merge(torch.cat([dg.empty(64, shape=(30,)), shards(values, 40, 64)]))
    assert dg.count(merged) == len(values)
    assert worst_rank_error(values, dg.quantile(merged, Q)) <= 3e-3


def test_float64_values_that_float32_can_not_tell_apart_keep_their_order_in_large_digests():
    rng = np.random.default_rng(23)
    values = torch.from_numpy(exact_spike(200_000, rng))
    digest = streamed(values, torch.ones(200_000), compression=4096, batch=20_000)
    assert worst_rank_error(values, dg.quantile(digest, Q)) <= limit(4096, len(values)) + 5e-4


# ------------------------------------------------------------------------------------------------------------
# The arithmetic under it.


@pytest.mark.parametrize("lead", [(), (3,), (2, 2)])
def test_a_blockwise_sum_is_a_cumulative_sum(lead):
    generator = torch.Generator().manual_seed(0)
    for size in [*range(1, 301), 4095, 4096, 4097, 5000]:
        whole = torch.randint(-1000, 1000, (*lead, size), generator=generator).double()
        assert torch.equal(_arrays.blockwise_sum(whole), whole.cumsum(-1)), size
        some = torch.rand(*lead, size, generator=generator, dtype=torch.float64)
        torch.testing.assert_close(_arrays.blockwise_sum(some), some.cumsum(-1), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("block", [2, 7])
def test_a_blockwise_sum_has_as_many_levels_as_it_needs(block):
    values = torch.arange(1000.0, dtype=torch.float64).reshape(2, 500)
    assert torch.equal(_arrays.blockwise_sum(values, block), values.cumsum(-1))


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


# ------------------------------------------------------------------------------------------------------------
# Groups without a value, stacks of unlike digests, replicates in queries.


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


@pytest.mark.parametrize("small", [0, 200, 3000])
def test_one_large_digest_among_63_small_ones_keeps_its_resolution(small):
    big = values_of("ce like", 300_000)
    rest = values_of("ce like", 63 * max(small, 1), seed=1)[: 63 * small]
    parts = [dg.from_values(big)]
    parts += [dg.from_values(part) for part in rest.split(small)] if small else [dg.empty()] * 63
    merged = dg.merge(torch.stack(parts))
    everything = torch.cat([big, rest])
    q = np.linspace(0.001, 0.999, 999)
    assert dg.count(merged) == len(everything)
    assert worst_rank_error(everything, dg.quantile(merged, torch.from_numpy(q)), q) <= 2.5e-4


def test_an_atom_on_one_of_64_ranks_stays_an_atom():
    parts = list(values_of("normal", 64 * 20_000).split(20_000))
    parts[17] = torch.full((20_000,), 0.5)
    merged = dg.merge(torch.stack([dg.from_values(part) for part in parts]))
    means, weights, blend = dg.centroids(merged)
    (found,) = torch.nonzero(means == 0.5, as_tuple=True)
    assert weights[found].item() == 20_000
    assert not blend[found].item()


def test_every_query_takes_a_digest_with_replicates():
    values = values_of("normal", 500)
    plain = dg.from_values(values, compression=64)
    weights = torch.from_numpy(np.random.default_rng(0).poisson(1, (500, 3)))
    digest = dg.add(dg.empty(64, replicates=3), values, replicates=weights)
    q = torch.tensor([0.0, 0.3, 1.0])
    for query in (
        lambda d: dg.quantile(d, q),
        lambda d: dg.cdf(d, torch.tensor([-1.0, 0.2])),
        lambda d: dg.curve(d, 5)[1],
        dg.minimum,
        dg.maximum,
        dg.mean,
        dg.finite_mean,
        dg.count,
        dg.nonfinite,
        dg.invalid,
        lambda d: dg.trimmed_mean(d, 0.1, 0.9),
        lambda d: dg.tail_mean(d, 0.9),
    ):
        torch.testing.assert_close(query(digest), query(plain), rtol=1e-3, atol=1e-3)
    assert dg.quantile(dg.replicate_digests(digest), q).shape == (3, 3)


def test_what_is_no_weight_counts_for_nothing_in_a_replicate():
    weights = torch.tensor([[-1.0, NAN, INF], [1.0, 1.0, 2.0]])
    digest = dg.add(dg.empty(8, replicates=3), torch.tensor([1.0, 2.0]), replicates=weights)
    assert dg.count(dg.replicate_digests(digest)).tolist() == [1, 1, 2]


def test_no_values_with_replicates_change_nothing():
    digest = dg.empty(8, replicates=2)
    assert torch.equal(dg.add(digest, torch.empty(0), replicates=torch.empty(0, 2)), digest)


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
