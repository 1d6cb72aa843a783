"""The folder ``_cpu`` is speed alone: without it the tests of answers pass."""

import subprocess
import sys

import pytest
import torch

from lightning_pce import digest as dg
from lightning_pce.digest import _short_cuts
from tests.digest.test_accuracy import (
    test_a_jump_of_density_costs_ranks_beside_it_and_nowhere_else,
    test_more_than_k_light_atoms_cost_at_most_half_an_atom_more,
    test_the_order_of_a_stream_hardly_matters,
    test_the_promised_rank_error_holds,
)
from tests.digest.test_add import (
    test_masked_values_change_not_one_bit,
    test_nan_is_counted_and_left_out,
    test_odd_values_raise_no_warning,
)
from tests.digest.test_exactness import *  # noqa: F403 - all of its tests run here again
from tests.digest.test_infinities import *  # noqa: F403 - as above
from tests.digest.test_merge import (
    test_heavy_atoms_among_many_shards_keep_their_place,
    test_many_digests_of_atoms_merge_exactly,
    test_many_shards_become_a_digest_of_another_size,
    test_negative_values_in_many_shards_are_the_mirror_of_positive_ones,
)

__all__ = [
    "test_a_jump_of_density_costs_ranks_beside_it_and_nowhere_else",
    "test_heavy_atoms_among_many_shards_keep_their_place",
    "test_many_digests_of_atoms_merge_exactly",
    "test_many_shards_become_a_digest_of_another_size",
    "test_masked_values_change_not_one_bit",
    "test_more_than_k_light_atoms_cost_at_most_half_an_atom_more",
    "test_nan_is_counted_and_left_out",
    "test_negative_values_in_many_shards_are_the_mirror_of_positive_ones",
    "test_odd_values_raise_no_warning",
    "test_the_order_of_a_stream_hardly_matters",
    "test_the_promised_rank_error_holds",
]


@pytest.fixture(autouse=True, scope="module")
def no_short_cut():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_short_cuts, "add_values", lambda digest, x: None)
        patch.setattr(_short_cuts, "merge_many", lambda digests, compression: None)
        yield


def test_these_are_the_short_cuts_that_are_taken(monkeypatch):
    taken = []
    monkeypatch.setattr(_short_cuts, "add_values", lambda digest, x: taken.append(len(x)))
    monkeypatch.setattr(_short_cuts, "merge_many", lambda digests, compression: taken.append(len(digests)))
    dg.from_values(torch.arange(50.0))
    dg.merge(dg.empty(8, shape=(7,)))
    assert taken == [50, 7]


WITHOUT_THE_FOLDER = """
import sys
sys.modules["lightning_pce.digest._cpu"] = None
import torch
from lightning_pce import digest
values = torch.arange(300_000.0)
whole = digest.from_values(values)
parts = digest.merge(torch.stack([digest.from_values(part) for part in values.chunk(40)]))
for one in (whole, parts):
    assert digest.count(one) == 300_000
    assert abs(digest.mean(one) - 149_999.5) < 1e-6
    assert abs(digest.quantile(one, 0.25) - 75_000) < 30
    assert digest.maximum(one) == 299_999
assert not any(name.startswith("lightning_pce.digest._cpu.") for name in sys.modules)
print("right")
"""


def test_answers_are_right_in_a_process_that_has_no_such_folder():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_FOLDER], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout == "right\n", done.stderr
