"""The share of percentiles that are better than at the best mean so far."""

import math

import pytest
import torch

from lightning_pce import digest as td
from lightning_pce.runs.better_share import BestSoFar, better_share


def digest_of(*values):
    return td.from_values(torch.tensor(values, dtype=torch.float64))


def by_hand(before, after):
    u = torch.arange(1, 200, dtype=torch.float64) / 200
    return float((torch.quantile(after, u) < torch.quantile(before, u)).double().mean())


@pytest.mark.parametrize("seed", range(4))
def test_it_is_counted_on_199_even_percentiles(seed):
    before, after = torch.rand(2, 101, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    share = better_share(td.from_values(before), td.from_values(after))
    assert (share.shape, share.dtype) == ((), torch.float64)
    assert float(share) == by_hand(before, after)
    assert 0 < float(share) < 1


def test_equal_values_are_not_better():
    one = digest_of(1, 2, 3)
    assert float(better_share(one, one)) == 0
    assert float(better_share(one, digest_of(0, 1, 2))) == 1
    assert float(better_share(digest_of(0, 0, 0, 5), digest_of(0, 0, 0, 4))) == by_hand(
        torch.tensor([0.0, 0, 0, 5]).double(), torch.tensor([0.0, 0, 0, 4]).double()
    )


def test_infinite_losses_count_as_the_worst():
    assert float(better_share(digest_of(1, math.inf), digest_of(0, 0))) == 1
    assert float(better_share(digest_of(0, 0), digest_of(1, math.inf))) == 0


def test_without_tokens_nobody_knows():
    for pair in (
        (td.empty(8), digest_of(1)),
        (digest_of(1), td.empty(8)),
        (digest_of(math.nan), digest_of(1)),
    ):
        assert better_share(*pair).isnan()


def test_it_is_compared_with_the_lowest_mean_so_far():
    best, shares = BestSoFar(), []
    for values in ((2, 4), (1, 3), (0, 9), (math.nan,), (0.5, 2.5), (1, 2)):
        shares.append(float(best.share("", digest_of(*values))))
        best.take("", digest_of(*values))
    beside = {2: (1, 3), 4: (1, 3), 5: (0.5, 2.5)}
    assert math.isnan(shares[0])
    assert shares[1] == 1
    assert math.isnan(shares[3])
    for index, values in ((2, (0, 9)), (4, (0.5, 2.5)), (5, (1, 2))):
        assert shares[index] == by_hand(torch.tensor(beside[index]).double(), torch.tensor(values).double())
    assert best.share("dl0", digest_of(1)).isnan()


def test_its_state_goes_on_where_it_was_and_a_damaged_one_changes_nothing():
    best, again = BestSoFar(), BestSoFar()
    best.take("dl0", digest_of(1, 2))
    again.load_state_dict(best.state_dict())
    assert float(again.share("dl0", digest_of(0, 1))) == 1
    damaged = digest_of(1, 2)
    damaged[0, 1] = math.nan
    for state in ({"dl0": damaged}, {"dl0": [1]}, {"dl0": torch.zeros(3)}, {1: digest_of(1)}):
        with pytest.raises(ValueError, match=r"Expected .*digest"):
            again.load_state_dict(state)
    assert list(again.state_dict()) == ["dl0"]
    again.clear()
    assert again.state_dict() == {}
