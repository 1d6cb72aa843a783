"""Digests leave and come back: JSON bit for bit, PyPI's tdigest centroid by centroid."""

import base64
import json

import numpy as np
import pytest
import torch

from lightning_pce import digest as td
from lightning_pce.digest._exchange import from_dict, from_tdigest, to_dict, to_tdigest
from lightning_pce.digest._format import check_state


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
        ({"version": 3}, "version"),
        ({"version": True}, "version"),
        ({"version": 1}, "keys"),
        ({"crc32": 0}, "checksum"),
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


@pytest.mark.filterwarnings("error")
def test_every_flip_of_bytes_is_noticed(digest):
    """Of data and of the shape; what flips back is the same."""
    stored, rng = to_dict(digest), np.random.default_rng(0)
    numbers = np.frombuffer(base64.b64decode(stored["data"]), np.uint8)
    for _ in range(300):
        flipped = numbers.copy()
        at = rng.integers(len(flipped), size=rng.integers(1, 4))
        flipped[at] ^= rng.integers(1, 256, len(at), dtype=np.uint8)
        if not (flipped == numbers).all():
            with pytest.raises(ValueError, match="checksum"):
                from_dict(stored | {"data": base64.b64encode(flipped.tobytes()).decode()})
    several = to_dict(torch.stack([digest] * 6))
    with pytest.raises(ValueError, match="checksum"):
        from_dict(several | {"shape": [2, 3, *several["shape"][1:]]})


def version_1(digest):
    """A digest as the first version stored it, without a checksum."""
    data = base64.b64encode(digest.numpy().astype("<f8").tobytes()).decode()
    return {"format": "lightning-pce/t-digest", "version": 1, "shape": list(digest.shape), "data": data}


def test_the_first_version_is_still_read(digest):
    assert torch.equal(from_dict(version_1(digest)), digest)
    assert torch.equal(from_dict(version_1(digest[None, None])), digest[None, None])


def row(index, column, value):
    return lambda digest: digest.index_put_(
        (torch.tensor(index), torch.tensor(column)), torch.tensor(value).double()
    )


DAMAGES = {
    "a mean of NaN": (row(4, 0, torch.nan), "finite means"),
    "a weight of infinity": (row(4, 1, -torch.inf), "finite weights"),
    "a hole": (lambda d: d[4].zero_(), "at the end"),
    "a mean without weight": (row(4, 1, 0.0), "rows of zeros"),
    "centroids that descend": (lambda d: d[:20].copy_(d[:20].flip(0)), "ascend"),
    "two neighbours exchanged": (lambda d: d[30:32].copy_(d[30:32].flip(0)), "ascend"),
    "an atom twice": (lambda d: d[:2].copy_(torch.tensor([0.0, 1.0])), "ascend"),
    "a minimum above the maximum": (lambda d: d[-2:, 0].copy_(d[-2:, 0].flip(0)), "minimum"),
    "a minimum of NaN": (row(-2, 0, torch.nan), "extremes"),
    "no maximum": (row(-1, 0, -torch.inf), "extremes"),
    "a maximum below the last mean": (row(-1, 0, 1.0), "between"),
    "a negative weight of NaN": (row(-3, 1, -1.0), "counts"),
    "an infinite weight of infinity": (row(-1, 1, torch.inf), "counts"),
    "half an invalid entry": (row(-3, 0, 0.5), "whole"),
    "a negative number of invalid entries": (row(-3, 0, -2.0), "whole"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_numbers_that_are_no_digest_are_refused_in_words(digest, name):
    damage, said = DAMAGES[name]
    damaged = digest.clone()
    damage(damaged)
    with pytest.raises(ValueError, match=f"{said}.* got 1 of 1 "):
        from_dict(version_1(damaged))
    with pytest.raises(ValueError, match=f"{said}.* got 1 of 3 "):
        check_state(torch.stack([digest, damaged, td.empty(256)]))
    with pytest.raises(ValueError, match=said):
        to_dict(damaged)


def test_extremes_without_a_value_are_refused():
    for lowest, highest in ((0.0, 0.0), (1.0, -torch.inf)):
        damaged = td.empty(8)
        damaged[-2:, 0] = torch.tensor([lowest, highest])
        with pytest.raises(ValueError, match="extremes"):
            check_state(damaged)


def test_replicates_are_checked_and_not_stored():
    digest = td.add(td.empty(8, replicates=2), torch.tensor([1.0, 2.0]), replicates=torch.ones(2, 2))
    check_state(digest)
    with pytest.raises(ValueError, match="without replicates"):
        to_dict(digest)
    digest[0, 3] = -1.0
    with pytest.raises(ValueError, match="replicates"):
        check_state(digest)


@pytest.mark.parametrize(
    "state", [[1, 2], torch.zeros(11, 2), torch.zeros(10, 2).double(), torch.zeros(11, 1).double()]
)
def test_a_state_of_another_kind_is_refused(state):
    with pytest.raises(ValueError, match="digest"):
        check_state(state)


def test_what_was_never_seen_and_the_meta_device_pass():
    check_state(td.empty(8, shape=(2, 3)))
    check_state(td.empty(8, shape=(0,)))
    check_state(td.empty(8, device="meta"))
