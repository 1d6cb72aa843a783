"""Digests leave and come back: JSON bit for bit, PyPI's tdigest centroid by centroid."""

import json

import pytest
import torch

from lightning_pce import digest as td
from lightning_pce.digest._exchange import from_dict, from_tdigest, to_dict, to_tdigest


@pytest.fixture
def digest():
    torch.manual_seed(0)
    values = torch.cat([torch.randn(50_000).exp(), torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0])])
    return td.add_invalid(td.from_values(values, compression=256), torch.tensor(2))


def test_json_loses_nothing(digest):
    back = from_dict(json.loads(json.dumps(to_dict(digest))))
    assert back.dtype == torch.float64
    assert torch.equal(back, digest)
    back[0, 0] = 1.0  # and it can be written to
    several = torch.stack([digest, td.empty(256)])
    assert torch.equal(from_dict(json.loads(json.dumps(to_dict(several)))), several)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "other"}, "format"),
        ({"version": 2}, "version"),
        ({"extra": 1}, "keys"),
        ({"shape": [10, 2]}, "shape"),
        ({"shape": [259, 3]}, "shape"),
        ({"shape": "259,2"}, "shape"),
        ({"shape": [300, 2]}, "bytes"),
        ({"data": "?"}, "base64"),
        ({"data": None}, "base64"),
    ],
)
def test_what_is_unknown_or_damaged_is_refused(digest, change, said):
    with pytest.raises(ValueError, match=said):
        from_dict(to_dict(digest) | change)


def test_something_else_is_refused():
    with pytest.raises(ValueError, match="format"):
        from_dict([1, 2])


def test_tdigest_keeps_centroids_both_ways(digest):
    pytest.importorskip("tdigest", reason="needs pip install 'lightning-pce[tdigest]' and a C compiler")
    other = to_tdigest(digest)
    means, weights, _ = td.centroids(digest)
    used = weights > 0
    assert [entry["m"] for entry in other.centroids_to_list()] == means[used].tolist()
    assert [entry["c"] for entry in other.centroids_to_list()] == weights[used].tolist()
    assert other.percentile(50) == pytest.approx(float(td.quantile(digest, 0.5)), rel=2e-3)
    back = from_tdigest(other, compression=256)
    assert torch.equal(td.centroids(back)[0], means)
    assert torch.equal(td.centroids(back)[1], weights)
    assert float(td.quantile(back, 0.5)) == pytest.approx(float(td.quantile(digest, 0.5)), rel=1e-3)
    smaller = from_tdigest(other, compression=64)
    assert smaller.shape == (67, 2)
    assert td.count(smaller) == 50_001
    assert float(td.finite_mean(smaller)) == pytest.approx(float(td.finite_mean(digest)), rel=1e-12)


def test_tdigest_filled_by_its_own_package():
    tdigest = pytest.importorskip(
        "tdigest", reason="needs pip install 'lightning-pce[tdigest]' and a C compiler"
    )
    other = tdigest.TDigest()
    values = torch.randn(2000, generator=torch.Generator().manual_seed(1)).tolist()
    other.batch_update(values)
    digest = from_tdigest(other)
    assert td.count(digest) == 2000
    exact = float(torch.tensor(values).median())
    assert float(td.quantile(digest, 0.5)) == pytest.approx(exact, abs=0.02)
    assert td.count(from_tdigest(tdigest.TDigest())) == 0
    with pytest.raises(ValueError, match="one digest"):
        to_tdigest(torch.stack([digest, digest]))
