"""Two digests or hundreds become one, and no answer changes."""

import numpy as np
import pytest
import torch

from lightning_pce import digest as dg
from tests.helpers.digests import (
    COARSE,
    INF,
    NAN,
    Q,
    assert_footers_and_means,
    batched,
    f64,
    large,
    limit,
    sharded,
    shards,
    streamed,
    worst,
)
from tests.helpers.distributions import (
    bound,
    exact_quantile,
    values_of,
    worst_rank_error,
)


def test_merging_with_empty_digests_changes_nothing_up_to_k_values():
    digest = dg.from_values(torch.cat([values_of("normal", 1000), f64(NAN, INF, -INF).float()]))
    nothing = dg.empty()
    assert torch.equal(dg.merge(torch.stack([digest, nothing])), digest)
    assert torch.equal(dg.merge(torch.stack([nothing, nothing, digest, nothing])), digest)
    assert torch.equal(dg.merge(torch.stack([nothing, nothing])), nothing)
    assert torch.equal(dg.merge(digest[None]), digest)


def test_merging_with_empty_digests_keeps_the_accuracy_above_k_values():
    values = values_of("normal", 100_000)
    digest = streamed(values, 10_000)
    for _ in range(100):
        digest = dg.merge(torch.stack([dg.empty(), digest, dg.empty()]))
    assert dg.count(digest) == 100_000
    assert worst(values, digest) <= bound(100_000)
    assert dg.mean(digest) == pytest.approx(values.double().mean().item(), abs=1e-12)


def test_merging_the_same_stack_twice_gives_the_same_bits():
    for name in ("ce like", "cauchy"):
        stack = torch.stack([streamed(part, 1000) for part in values_of(name, 50_000).chunk(8)])
        assert torch.equal(dg.merge(stack), dg.merge(stack.clone()))
        values = values_of(name, 50_000)
        assert torch.equal(streamed(values, 777), streamed(values.clone(), 777))


def test_a_merge_with_leading_dimensions_is_that_of_each_alone():
    stack = batched()
    groups = stack.shape[1]
    merged = dg.merge(stack)
    assert merged.shape == stack.shape[1:]
    alone = torch.stack([dg.merge(stack[:, group]) for group in range(groups)])
    torch.testing.assert_close(merged, alone, rtol=1e-12, atol=1e-12)
    folded = dg.merge(stack[:, : groups - groups % 2].unflatten(1, (-1, 2)))
    torch.testing.assert_close(folded.flatten(0, 1), alone[: groups - groups % 2], rtol=1e-12, atol=1e-12)


def test_a_merge_shares_no_memory_with_what_was_merged():
    stack = torch.stack([dg.from_values(values_of("normal", n)) for n in (10, 5000)])
    for digests in (stack, stack[:1]):
        merged, copy = dg.merge(digests), digests.clone()
        merged.fill_(7)
        assert torch.equal(digests, copy)


@pytest.mark.parametrize("name", ["normal", "ce like", "uniform"])
def test_64_shards_of_smooth_data_keep_the_promise(name):
    values, digests = large(name)
    merged = dg.merge(digests)
    assert_footers_and_means(merged, values, None)
    assert worst_rank_error(values, dg.quantile(merged, Q)) <= bound(len(values))


@pytest.mark.parametrize("name", ["normal", "ce like"])
@pytest.mark.parametrize("number", [2, 4, 8, 15])
def test_a_few_digests_of_many_values_keep_the_promise(name, number):
    values = values_of(name, 2_000_000)
    q = np.linspace(0.001, 0.999, 1997)
    assert worst(values, sharded(values, number, 32_768), q) <= bound(len(values))


@pytest.mark.parametrize("replicates", [0, 2])
@pytest.mark.parametrize("number", [2, 20])
def test_whole_weights_of_few_digests_and_of_replicates_stay_whole(number, replicates):
    values = values_of("ce like", 60_000)
    columns = torch.arange(120_000).reshape(60_000, 2)[:, :replicates] % 5
    parts = [
        dg.add(dg.empty(64, replicates=replicates), some, replicates=column if replicates else None)
        for some, column in zip(values.chunk(number), columns.chunk(number), strict=True)
    ]
    merged = dg.merge(torch.stack(parts))
    assert dg.count(merged) == 60_000
    assert dg.mean(merged).item() == pytest.approx(values.double().mean().item(), rel=1e-12)
    torch.testing.assert_close(dg.centroids(merged)[1], dg.centroids(merged)[1].round(), rtol=0, atol=0)
    torch.testing.assert_close(merged[:-3, 2:].sum(0), columns.double().sum(0))


@pytest.mark.parametrize("name", ["normal", "ce like"])
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
    assert (dg.quantile(merged, COARSE).diff() >= 0).all()


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
    torch.testing.assert_close(
        dg.quantile(merged, COARSE), exact_quantile(values, COARSE), rtol=1e-12, atol=0
    )


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
    digest = streamed(values, 20_000, weights=torch.ones(200_000), compression=4096)
    assert worst_rank_error(values, dg.quantile(digest, Q)) <= limit(4096, len(values)) + 5e-4
