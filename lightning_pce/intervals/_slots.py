"""Documents are hashed to slots, and draws of resamples too: both by splitmix64, which every machine has."""

from __future__ import annotations

import torch
from torch import Tensor

SLOTS = 128
"""How many slots documents are hashed to: the rows of counts."""
_MASK = (1 << 64) - 1


def slots_of(documents: Tensor) -> Tensor:
    """The slot of each document, ``splitmix64(id) mod 128``.

    Documents of one slot count as one; 128 slots give the error bars of 128 documents or more.

    Args:
        documents: integer ids ``[...]`` of any dtype; negative ones are fine. Equal ids are one document.

    Returns:
        uint8 ``[...]`` on the same device.

    Raises:
        ValueError: if the ids are no integers.

    Example:
        >>> from lightning_pce.intervals import slots_of
        >>> slots_of(torch.tensor([0, 1, 2, 0, -1]))
        tensor([47, 65, 78, 47, 32], dtype=torch.uint8)
    """
    if not isinstance(documents, Tensor):
        raise ValueError(f"Expected argument `documents` to be a tensor but got {type(documents).__name__}.")
    if documents.is_floating_point() or documents.is_complex() or documents.dtype == torch.bool:
        raise ValueError(
            f"Expected argument `documents` to hold integer ids but got {documents.dtype} of shape "
            f"{tuple(documents.shape)}."
        )
    ids = documents.view(torch.int64) if documents.dtype == torch.uint64 else documents.long()
    return (splitmix64(ids) & (SLOTS - 1)).to(torch.uint8)


def splitmix64(x: Tensor) -> Tensor:
    """Sixty-four well mixed bits of each whole number (Steele, Lea, Flood 2014), int64 as two's complement.

    Products and sums wrap around as unsigned ones do.
    """
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shifted(x, 31)


def _signed(bits: int) -> int:
    return bits - (1 << 64) if bits >> 63 else bits


def _shifted(x: Tensor, by: int) -> Tensor:
    """A right shift that brings in zeros: torch's own repeats the sign."""
    return (x >> by) & (_MASK >> by)
