"""Counts by slot and bin: where a value enters, and that states add up."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_pce.intervals import BINS, SLOTS, add, empty, slots_of
from lightning_pce.intervals._counts import bins_of, edges

INF, NAN = math.inf, math.nan
EDGES = [1e-7 * 10 ** (10 * j / 96) for j in range(1, 96)]


def by_hand(values, weights, slots):
    """Counts of finite values that are not at an edge, one after the other."""
    counts = [[0.0] * (BINS + 1) for _ in range(SLOTS)]
    for value, weight, slot in zip(values, weights, slots, strict=True):
        if weight and value == value:
            counts[slot][sum(value >= edge for edge in EDGES)] += weight
            counts[slot][BINS] += value * weight
    return torch.tensor(counts, dtype=torch.float64)


def batch(seed, n, documents=40):
    """Losses ``[n]`` float32 of which some are 0 or NaN, flags, and slots."""
    random = torch.Generator().manual_seed(seed)
    losses = (4 * torch.randn(n, generator=random) - 3).exp()
    kind = torch.rand(n, generator=random)
    losses = torch.where(kind < 0.05, 0.0, torch.where(kind > 0.97, NAN, losses))
    counted = torch.rand(n, generator=random) < 0.8
    return losses, counted, slots_of(torch.randint(0, documents, (n,), generator=random))


def test_an_empty_state_is_zeros():
    assert empty().shape == (SLOTS, BINS + 1)
    assert empty((2, 3)).shape == (2, 3, 128, 97)
    assert empty().dtype == torch.float64
    assert not empty().any()
    assert empty(device="meta").is_meta


def test_edges_are_even_in_the_logarithm():
    torch.testing.assert_close(edges().double(), torch.tensor(EDGES, dtype=torch.float64), rtol=6e-8, atol=0)


def test_no_edge_would_be_rounded_otherwise_by_another_power():
    exact = 10.0 ** (torch.arange(1, 96, dtype=torch.float64) * (10 / 96) - 7)
    for other in (exact * (1 + 1e-14), exact * (1 - 1e-14)):
        assert torch.equal(other.float(), edges())


def test_a_value_at_an_edge_enters_the_upper_bin_in_both_dtypes():
    at = edges()
    below, above = (torch.nextafter(at, torch.full_like(at, end)) for end in (-INF, INF))
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(bins_of(at.to(dtype)), torch.arange(1, 96))
        assert torch.equal(bins_of(below.to(dtype)), torch.arange(95))
        assert torch.equal(bins_of(above.to(dtype)), torch.arange(1, 96))
    just_below = torch.nextafter(at.double(), torch.zeros(95, dtype=torch.float64))  # rounds to the edge
    assert torch.equal(bins_of(just_below), torch.arange(95))


def test_bins_by_first_bits_are_those_of_a_binary_search():
    values = batch(0, 20_000)[0].nan_to_num(1.0)
    values = torch.cat([values, -values, torch.tensor([0.0, -0.0, INF, -INF, 1e-45, 3e38])])
    assert torch.equal(bins_of(values), torch.bucketize(values, edges(), right=True))
    huge = torch.tensor([1e300, -1e300, 1e-320], dtype=torch.float64)
    assert bins_of(huge).tolist() == [95, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_counts_are_those_by_hand(dtype):
    losses, counted, slots = batch(1, 500)
    losses = losses.to(dtype)
    counts = add(empty(), losses, counted, slots)
    expected = by_hand(losses.tolist(), counted.tolist(), slots.tolist())
    assert torch.equal(counts[:, :-1], expected[:, :-1])
    torch.testing.assert_close(counts[:, -1], expected[:, -1], rtol=1e-12, atol=0)


def test_weights_are_repetition():
    losses, _, slots = batch(2, 300)
    times = torch.arange(300) % 4
    counts = add(empty(), losses, times, slots)
    repeated = add(empty(), losses.repeat_interleave(times), None, slots.repeat_interleave(times))
    assert torch.equal(counts[:, :-1], repeated[:, :-1])
    torch.testing.assert_close(counts[:, -1], repeated[:, -1], rtol=1e-12, atol=0)


def test_what_is_no_weight_leaves_out():
    weights = torch.tensor([-1.0, NAN, INF, 0.0, 0.5])
    losses = torch.tensor([1.0, 1.0, 1.0, INF, 1.0])
    counts = add(empty(), losses, weights, torch.zeros(5, dtype=torch.uint8))
    assert counts[:, :-1].sum() == 0.5
    assert counts[0, -1] == 0.5


def test_the_ends_hold_what_lies_outside_and_infinity():
    values = torch.tensor([0.0, 1e-9, -2.0, 5e3, INF, NAN])
    slots = torch.tensor([0, 0, 0, 1, 2, 3], dtype=torch.uint8)
    counts = add(empty(), values, None, slots)
    assert counts[:4, 0].tolist() == [3, 0, 0, 0]
    assert counts[:4, 95].tolist() == [0, 1, 1, 0]
    assert counts[:4, 96].tolist() == [pytest.approx(-2.0), 5e3, INF, 0]
    assert counts.sum() == INF
    assert add(empty(), values[4:5], torch.tensor([False]), slots[:1]).sum() == 0


@settings(max_examples=40)
@given(st.integers(0, 1000), st.lists(st.integers(0, 300), max_size=4), st.randoms(use_true_random=False))
def test_counts_add_up_over_any_split_and_order(seed, cuts, random):
    losses, counted, slots = batch(seed, 300)
    whole = add(empty(), losses, counted, slots)
    order = list(range(300))
    random.shuffle(order)
    ends = [0, *sorted(cuts), 300]
    parts, stream = [], empty()
    for start, stop in itertools.pairwise(ends):
        of = order[start:stop]
        parts.append(add(empty(), losses[of], counted[of], slots[of]))
        stream = add(stream, losses[of].double(), counted[of], slots[of])
    for other in (sum(parts, empty()), stream):
        assert torch.equal(other[:, :-1], whole[:, :-1])
        torch.testing.assert_close(other[:, -1], whole[:, -1], rtol=1e-12, atol=1e-300)


def test_groups_are_states_of_their_own():
    losses, counted, slots = batch(3, 600)
    groups = torch.arange(600) % 3
    counts = add(empty((3,)), losses, counted, slots, groups=groups)
    for group in range(3):
        mine = groups == group
        alone = add(empty(), losses[mine], counted[mine], slots[mine])
        assert torch.equal(counts[group, :, :-1], alone[:, :-1])
        torch.testing.assert_close(counts[group, :, -1], alone[:, -1], rtol=1e-12, atol=0)


def test_any_shape_is_taken_and_the_argument_is_left_as_it_was():
    losses, counted, slots = (each.reshape(4, 5, 30).transpose(0, 2) for each in batch(4, 600))
    before = add(empty(), losses, counted, slots)
    kept = before.clone()
    after = add(before, losses, counted, slots)
    assert torch.equal(before, kept)
    assert torch.equal(after[:, :-1], 2 * before[:, :-1])
    none = add(before, torch.empty(0), None, torch.empty(0, dtype=torch.uint8))
    assert torch.equal(none, before)
    assert none.data_ptr() != before.data_ptr()


def test_gradients_do_not_enter():
    losses = torch.ones(3, requires_grad=True)
    assert not add(empty(), losses, None, torch.zeros(3, dtype=torch.uint8)).requires_grad


@pytest.mark.parametrize("grouped", [False, True])
def test_nothing_is_read_from_a_device(grouped):
    # On the meta device any read of a value raises.
    losses, weights = torch.empty(9, device="meta"), torch.empty(9, device="meta")
    slots = slots_of(torch.empty(9, dtype=torch.long, device="meta"))
    groups = torch.empty(9, dtype=torch.long, device="meta") if grouped else None
    counts = add(empty((2,) if grouped else (), device="meta"), losses, weights, slots, groups=groups)
    assert counts.is_meta
    assert counts.shape == ((2, 128, 97) if grouped else (128, 97))


ONES, SLOT = torch.ones(2), torch.zeros(2, dtype=torch.uint8)
WRONG = {
    "counts of another shape": (
        (torch.zeros(128, 96).double(), ONES, None, SLOT),
        {},
        r"float64 \[128, 97\]",
    ),
    "float32 counts": ((empty().float(), ONES, None, SLOT), {}, "torch.float32"),
    "no counts": ((None, ONES, None, SLOT), {}, "`counts` to be a tensor"),
    "groups without": ((empty(), ONES, None, SLOT), {"groups": SLOT}, r"\[G, 128, 97\]"),
    "integer values": ((empty(), ONES.long(), None, SLOT), {}, "floating point tensor but got torch.int64"),
    "ids for slots": ((empty(), ONES, None, SLOT.long()), {}, r"slots_of\(ids\)"),
    "no slots": ((empty(), ONES, None, None), {}, "`slots` to be a tensor but got NoneType"),
    "fewer slots": ((empty(), ONES, None, SLOT[:1]), {}, r"shape of the values, \(2,\), but got \(1,\)"),
    "other weights": ((empty(), ONES, ONES[:, None], SLOT), {}, "`weights` to have the shape"),
    "complex weights": ((empty(), ONES, ONES * 1j, SLOT), {}, "real numbers"),
    "float groups": ((empty((2,)), ONES, None, SLOT), {"groups": ONES}, "`groups` to hold integers"),
    "another device": ((empty(), ONES.to("meta"), None, SLOT), {}, "device of the counts, cpu"),
    "no such slot": ((empty(), ONES, None, SLOT + 128), {}, r"\[0, 128\) but got 128"),
    "no such group": ((empty((2,)), ONES, None, SLOT), {"groups": SLOT + 2}, r"\[0, 2\) but got 2"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused(case):
    arguments, keywords, words = WRONG[case]
    with pytest.raises(ValueError, match=words):
        add(*arguments, **keywords)


def test_slots_and_groups_of_what_does_not_count_may_be_anything():
    flags, slots = torch.tensor([True, False]), torch.tensor([3, 200], dtype=torch.uint8)
    counts = add(empty((2,)), ONES, flags, slots, groups=torch.tensor([1, -100]))
    assert counts.sum() == 2  # one token and its loss of 1
    assert counts[1, 3].sum() == 2
