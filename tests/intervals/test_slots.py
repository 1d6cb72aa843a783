"""Slots of documents: splitmix64 as everybody else has it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_pce.intervals import SLOTS, slots_of
from lightning_pce.intervals._slots import splitmix64
from tests.helpers.intervals_by_hand import MASK, splitmix64_of_one

INT64 = st.integers(-(1 << 63), (1 << 63) - 1)


def test_the_first_outputs_are_the_published_ones():
    # Of the generator seeded with 1234567, whose state grows by the same constant before each output.
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    states = [(1234567 + n * 0x9E3779B97F4A7C15) & MASK for n in range(4)]
    assert [splitmix64_of_one(state) for state in states] == published


@given(st.lists(INT64, min_size=1, max_size=50))
def test_splitmix64_is_that_of_whole_numbers(numbers):
    got = splitmix64(torch.tensor(numbers)).tolist()
    assert [each & MASK for each in got] == [splitmix64_of_one(each & MASK) for each in numbers]


@given(st.lists(INT64, min_size=1, max_size=50))
def test_slots_are_hashes_modulo_128(ids):
    slots = slots_of(torch.tensor(ids))
    assert slots.dtype == torch.uint8
    assert slots.tolist() == [splitmix64_of_one(each & MASK) % 128 for each in ids]


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint32, torch.uint64]
)
def test_every_integer_dtype_is_taken(dtype):
    ids = torch.tensor([0, 1, 100], dtype=torch.int64)
    assert torch.equal(slots_of(ids.to(dtype)), slots_of(ids))


def test_a_large_unsigned_id_is_what_it_is():
    assert slots_of(torch.tensor([-3]).view(torch.uint64)) == splitmix64_of_one(2**64 - 3) % 128


def test_shapes_are_kept():
    ids = torch.arange(24).reshape(2, 3, 4)
    assert torch.equal(slots_of(ids.mT), slots_of(ids).mT)
    assert slots_of(torch.tensor(5)).shape == ()
    assert slots_of(torch.empty(0, dtype=torch.long)).shape == (0,)
    assert slots_of(torch.empty(7, dtype=torch.long, device="meta")).is_meta


def test_documents_are_spread_over_all_slots():
    numbers = slots_of(torch.arange(128_000)).long().bincount(minlength=SLOTS)
    assert len(numbers) == SLOTS
    # Chi-squared of 127 degrees: 90 to 170 in all but a fraction of a percent.
    assert 90 < ((numbers - 1000.0) ** 2 / 1000).sum() < 170


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (torch.tensor([1.0]), "integer ids but got torch.float32 of shape"),
        (torch.tensor([True]), "integer ids but got torch.bool"),
        (torch.tensor([1j]), "integer ids but got torch.complex64"),
        ([1, 2], "to be a tensor but got list"),
    ],
)
def test_what_is_no_id_is_refused(ids, words):
    with pytest.raises(ValueError, match=words):
        slots_of(ids)
