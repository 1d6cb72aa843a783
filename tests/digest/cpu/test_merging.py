"""Many digests merged by whole centroids."""

import pytest
import torch

from lightning_pce import digest as dg
from lightning_pce.digest._cpu import merging
from tests.helpers.digests import (
    Q,
    assert_footers_and_means,
    shards,
)
from tests.helpers.distributions import (
    bound,
    values_of,
    worst_rank_error,
)


@pytest.mark.parametrize(
    "name",
    [
        *["normal", "ce like", "61 % zeros", "12 decades", "two humps"],
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("uniform", "exponential", "lognormal")),
    ],
)
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
