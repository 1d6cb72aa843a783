"""Short cuts for a batch without weights are as good as the definition."""

import numpy as np
import pytest
import torch

from lightning_pce import digest as dg
from lightning_pce.digest._add import add_entries
from lightning_pce.digest._batch import Entries
from lightning_pce.digest._cpu.counting import counted
from tests.helpers.digests import (
    HARD_TO_CUT,
    INF,
    NAN,
    weights_of,
    worst,
)
from tests.helpers.distributions import (
    ATOMS,
    HARD,
    PROMISED_Q,
    SMOOTH,
    bound,
    ce_like,
    values_of,
    worst_rank_error,
)

N = 1 << 17


@pytest.mark.parametrize("kind", ["unweighted", "masked"])
@pytest.mark.parametrize("name", HARD_TO_CUT)
@pytest.mark.parametrize(
    ("batch", "n"),
    [(30, 300), (700, 7000), (40_000, 120_000), pytest.param(40_000, 400_000, marks=pytest.mark.slow)],
)
def test_the_short_cut_of_a_cpu_is_as_good_as_the_long_way(name, kind, batch, n):
    rng = np.random.default_rng(5)
    seen, short, long = [], dg.empty(128), dg.empty(128)
    for values in values_of(name, n).split(batch):
        values[:3] = torch.tensor([NAN, INF, -INF])
        weights = weights_of(kind, batch, rng)
        short = dg.add(short, values, weights)
        long = add_entries(long, Entries(values, weights, None, None))
        seen.append(values if weights is None else values[weights])
        torch.testing.assert_close(short[-3:], long[-3:])
        assert dg.count(short) == dg.count(long)
        torch.testing.assert_close(dg.finite_mean(short), dg.finite_mean(long), rtol=1e-12, atol=1e-15)
        assert (dg.centroids(short)[0].diff()[dg.centroids(short)[1][1:] > 0] >= 0).all()
    seen = torch.cat(seen)
    seen = seen[~seen.isnan()]
    # The same data fall between other cuts: one may be luckier at a q.
    assert worst(seen, short) <= 1.5 * worst(seen, long) + 2e-3


@pytest.mark.parametrize("name", [*SMOOTH, *ATOMS, *HARD])
def test_a_large_batch_is_as_good_counted_as_sorted(monkeypatch, name):
    values = values_of(name, 3 * N)
    answers = []
    for many in (1, 1 << 30):
        monkeypatch.setattr("lightning_pce.digest._cpu.adding._MANY", many)
        digest = dg.empty()
        for part in values.split(N):
            digest = dg.add(digest, part)
        assert dg.count(digest) == len(values)
        answers.append(worst_rank_error(values, dg.quantile(digest, torch.from_numpy(PROMISED_Q))))
        assert dg.mean(digest).item() == pytest.approx(values.double().mean().item(), rel=1e-12, abs=1e-12)
        assert dg.minimum(digest) == values.min()
        assert dg.maximum(digest) == values.max()
    assert answers[0] <= max(1.5 * answers[1], bound(len(values)))


@pytest.mark.parametrize("many", [1, 1 << 30])
@pytest.mark.parametrize("value", [0.25, 7.0, 0.0])
def test_an_atom_that_appears_late_is_one(monkeypatch, many, value):
    monkeypatch.setattr("lightning_pce.digest._cpu.adding._MANY", many)
    rng = np.random.default_rng(9)
    late = rng.permutation(np.concatenate([rng.normal(0, 1, 60_000), np.full(40_000, value), [20.0]]))
    digest = dg.add(dg.from_values(torch.from_numpy(rng.normal(0, 1, 50_000))), torch.from_numpy(late))
    means, weights, blend = dg.centroids(digest)
    (found,) = torch.nonzero((means == value) & (weights > 0), as_tuple=True)
    assert weights[found].item() == 40_000
    assert not blend[found].item()


def test_masked_and_grouped_batches_are_counted_too(monkeypatch):
    asked = []

    def spied(x, compression):
        asked.append(len(x))
        return counted(x, compression)

    monkeypatch.setattr("lightning_pce.digest._cpu.adding.counted", spied)
    values = torch.from_numpy(ce_like(3 * N, np.random.default_rng(10)))
    mask = torch.rand(len(values), generator=torch.Generator().manual_seed(1)) < 0.7
    group = torch.arange(len(values)) % 2
    masked = dg.from_values(values, mask)
    grouped = dg.add(dg.empty(shape=(2,)), values, mask, groups=group)
    chosen = [values[mask], *(values[mask & (group == g)] for g in (0, 1))]
    assert asked == [len(part) for part in chosen]
    for digest, part in zip([masked, *grouped], chosen, strict=True):
        assert dg.count(digest) == len(part)
        assert worst_rank_error(part, dg.quantile(digest, torch.from_numpy(PROMISED_Q))) <= bound(len(part))
