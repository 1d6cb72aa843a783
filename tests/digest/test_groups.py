"""Groups share one call and one sort; each has exactly its own values."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_pce import digest as dg
from tests.helpers.digests import (
    COARSE,
    DTYPES,
    INF,
    KINDS,
    NAN,
    Q,
    assert_footers_and_means,
    assert_same_answers,
    numbers_of,
    part,
    streamed,
    weighted_rank_error,
    weights_of,
)
from tests.helpers.distributions import (
    bound,
    ce_like,
    exact_quantile,
    values_of,
    worst_rank_error,
)


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
        values, batch, weights=weights if weighted else None, compression=48, groups=groups, number=4
    )
    assert digest.shape == (4, 51, 2)
    for group in range(4):
        own = values[groups == group].repeat_interleave(weights[groups == group])
        assert dg.count(digest[group]) == len(own)
        if len(own):
            scale = own.abs().max().item()
            want = exact_quantile(own, COARSE)
            torch.testing.assert_close(dg.quantile(digest[group], COARSE), want, rtol=0, atol=1e-12 * scale)
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
    digest = streamed(values, weights=weights, batch=250, groups=groups, number=4)
    alone = [
        streamed(values[groups == g], 100, weights=part(weights, groups == g)) if g != 2 else dg.empty()
        for g in range(4)
    ]
    assert_same_answers(digest, torch.stack(alone))


SOME_PAIRS = list(zip(KINDS, [*DTYPES, torch.float32], strict=True))


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        pytest.param(*pair, marks=[] if pair in SOME_PAIRS else pytest.mark.slow)
        for pair in itertools.product(KINDS, DTYPES)
    ],
)
def test_groups_of_many_values_keep_the_promise_each(kind, dtype):
    rng = np.random.default_rng(2)
    n = 60_000
    values = torch.from_numpy(ce_like(n, rng)).to(dtype)
    groups = torch.from_numpy(rng.choice(3, n, p=[0.7, 0.2, 0.1]))
    values = torch.where(groups == 1, -5 * values, values)  # a value does not tell its group
    weights = weights_of(kind, n, rng)
    digest = streamed(values, weights=weights, groups=groups, number=3)
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
    digest = streamed(values, weights=weights, groups=groups, number=4)
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
    digest = streamed(values, weights=weights, groups=torch.zeros(9000, dtype=torch.long), number=1)
    assert_same_answers(digest[0], streamed(values, weights=weights))


@pytest.mark.parametrize("kind", ["unweighted", "fractional"])
def test_three_hundred_groups_are_told_apart(kind):
    rng = np.random.default_rng(5)
    n = 30_000
    groups = torch.from_numpy(np.minimum(rng.geometric(0.02, n), 300) - 1)
    values = values_of("normal", n) + 10 * groups
    weights = weights_of(kind, n, rng)
    digest = streamed(values, weights=weights, compression=64, batch=7000, groups=groups, number=300)
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
