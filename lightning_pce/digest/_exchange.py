"""Digests for other programs: JSON without loss, and the ``tdigest`` package of PyPI."""

from __future__ import annotations

import base64
import binascii
import json
import math
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lightning_pce.digest._format import (
    FOOTER_ROWS,
    LEAST_COMPRESSION,
    Items,
    check_compression,
    check_state,
    empty,
    new_footer,
    packed,
    replicates_of,
    unpacked,
)
from lightning_pce.digest._merge import merge

if TYPE_CHECKING:
    from tdigest import TDigest

_FORMAT, _VERSION = "lightning-pce/t-digest", 2
_KEYS = {1: {"format", "version", "shape", "data"}, 2: {"format", "version", "shape", "data", "crc32"}}


def to_dict(digest: Tensor) -> dict[str, Any]:
    """A digest, or several in one tensor, as something ``json.dumps`` takes; loses nothing.

    Args:
        digest: ``[..., K + 3, 2]``.

    Returns:
        ``format``, ``version``, ``shape``, ``data``: base64 of the little-endian float64 numbers in row
        order, and ``crc32``: the checksum of the shape as JSON and of these numbers.

    Raises:
        ValueError: if it is no digest, or has columns of replicates.

    Example:
        >>> from lightning_pce.digest import count, from_values
        >>> stored = to_dict(from_values(torch.tensor([1.0, 2.0]), compression=8))
        >>> stored["format"], stored["version"], stored["shape"]
        ('lightning-pce/t-digest', 2, [11, 2])
        >>> count(from_dict(stored))
        tensor(2., dtype=torch.float64)
    """
    check_state(digest)
    if replicates_of(digest):
        raise ValueError(f"Expected a digest without replicates but got shape {tuple(digest.shape)}.")
    numbers = digest.detach().cpu().numpy().astype("<f8").tobytes()
    shape, data = list(digest.shape), base64.b64encode(numbers).decode("ascii")
    crc = _checksum(shape, numbers)
    return {"format": _FORMAT, "version": _VERSION, "shape": shape, "data": data, "crc32": crc}


def from_dict(stored: dict[str, Any]) -> Tensor:
    """The digest that :func:`to_dict` stored, bit for bit; version 1, which has no checksum, is read too.

    Args:
        stored: what :func:`to_dict` gave, perhaps by way of JSON.

    Returns:
        ``[..., K + 3, 2]`` float64, on the CPU.

    Raises:
        ValueError: if it is of another format or version, or damaged.

    Example:
        >>> from lightning_pce.digest import from_values
        >>> digest = from_values(torch.tensor([1.0, 2.0]))
        >>> torch.equal(from_dict(json.loads(json.dumps(to_dict(digest)))), digest)
        True
    """
    if not isinstance(stored, dict) or stored.get("format") != _FORMAT:
        raise ValueError(f"Expected a dict of format {_FORMAT!r} but got {_shown(stored)}.")
    version = stored.get("version")
    if type(version) is not int or version not in _KEYS:
        raise ValueError(f"Expected version 1 or {_VERSION} of {_FORMAT!r} but got {version!r}.")
    if set(stored) != _KEYS[version]:
        raise ValueError(f"Expected the keys {sorted(_KEYS[version])} but got {sorted(map(str, stored))}.")
    shape, data = stored["shape"], stored["data"]
    whole = isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)
    if not whole or len(shape) < 2 or shape[-1] != 2 or shape[-2] < LEAST_COMPRESSION + FOOTER_ROWS:
        raise ValueError(
            f"Expected a `shape` [..., K + {FOOTER_ROWS}, 2] with K at least {LEAST_COMPRESSION} but got "
            f"{_shown(shape)}."
        )
    try:
        numbers = base64.b64decode(data, validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise ValueError(f"Expected base64 text under `data` but got {_shown(data)}.") from error
    if len(numbers) != 8 * math.prod(shape):
        raise ValueError(
            f"Expected {8 * math.prod(shape)} bytes of data for shape {_shown(shape)} but got {len(numbers)}."
        )
    if version > 1 and stored["crc32"] != _checksum(shape, numbers):
        raise ValueError(
            f"Expected data and shape with checksum {_shown(stored['crc32'])} but got others: the digest is "
            "damaged."
        )
    try:
        digest = torch.from_numpy(np.frombuffer(numbers, dtype="<f8").astype(np.float64).reshape(shape))
    except (ValueError, OverflowError) as error:  # of no numbers the shape may be anything
        raise ValueError(f"Expected a `shape` that an array can have but got {_shown(shape)}.") from error
    check_state(digest)
    return digest


def _checksum(shape: list[int], numbers: bytes) -> int:
    return zlib.crc32(numbers, zlib.crc32(json.dumps(shape).encode("ascii")))


def to_tdigest(digest: Tensor) -> TDigest:
    """A ``tdigest.TDigest`` with the finite centroids of one digest (extra ``tdigest``).

    Their means and weights are kept as they are. What that package has no place for is lost: the extremes,
    NaN, infinities, and which centroids are atoms.

    Args:
        digest: ``[K + 3, 2]``.

    Returns:
        Theirs, with ``delta = 1 / K``.

    Raises:
        ValueError: if there are several digests in the tensor.
    """
    from tdigest import TDigest
    from tdigest.tdigest import Centroid

    if digest.ndim != 2:
        raise ValueError(f"Expected one digest [K + {FOOTER_ROWS}, 2] but got shape {tuple(digest.shape)}.")
    means, weights, _, _ = unpacked(digest)
    other = TDigest(delta=1 / len(means))
    for mean, weight in zip(means.tolist(), weights.tolist(), strict=True):
        if weight > 0:
            # Not other.update(): it would spread the weight over centroids that it finds too light.
            other.C.insert(mean, Centroid(mean, weight))
            other.n += weight
    return other


def from_tdigest(other: TDigest, *, compression: int = 1024) -> Tensor:
    """A digest with the centroids of a ``tdigest.TDigest``.

    A centroid of weight 1 is taken for an atom, any other for a blend. The extremes are those of the means,
    because that package does not keep them.

    Args:
        other: theirs.
        compression: K, the number of centroids; if the other has more they are merged.

    Returns:
        ``[compression + 3, 2]`` float64, on the CPU.

    Raises:
        ValueError: if K is no whole number of 8 or more, or the other's centroids are damaged.
    """
    check_compression(compression)
    found = [(entry["m"], entry["c"]) for entry in other.centroids_to_list()]
    if not found:
        return empty(compression)
    size = max(compression, len(found))
    rows = torch.zeros(size, 2, dtype=torch.float64)
    rows[: len(found)] = torch.tensor(found, dtype=torch.float64)
    means, weights = rows.unbind(-1)
    blend = (weights != 1) & (weights > 0)
    footer = new_footer(0.0, means[0], means[len(found) - 1], rows.new_zeros(3, 1))
    digest = packed(Items(means, weights, blend, None), footer)
    check_state(digest)
    return digest if size == compression else merge(digest[None], compression=compression)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
