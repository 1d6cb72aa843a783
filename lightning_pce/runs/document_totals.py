"""What each document of a validation has cost: the way to compare models whose tokens differ."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["DocumentTotals"]


class DocumentTotals(NamedTuple):
    """A row for each document, in the order of the data; what is not known is NaN."""

    ids: Tensor
    """int64 ``[D]``, a hash of the document's id, the same for all models."""
    tokens: Tensor
    """float64 ``[D]``, how many of its tokens were scored."""
    nats: Tensor
    """float64 ``[D]``, the sum of their cross-entropies in nats."""
    bytes: Tensor
    """float64 ``[D]``, the UTF-8 bytes of the text that they stand for."""
    first_byte: Tensor
    """float64 ``[D]``, at which byte of the document the first scored token begins: without a token in front
    of the text the first one of the text cannot be scored."""
    ends: Tensor
    """float64 ``[D, E, 2]``, of the first E scored tokens: at which byte of the document the token ends (NaN
    inside of a character), and the nats until there. So two models can be compared over the bytes that both
    have scored. E is 0 if all documents are scored from their beginning."""

    @property
    def bits_per_byte(self) -> Tensor:
        """float64 ``[D]`` of each document, NaN where its bytes are not known or none.

        Example:
            >>> one = torch.ones(1, dtype=torch.float64)
            >>> ends = torch.zeros(1, 0, 2, dtype=torch.float64)
            >>> DocumentTotals(torch.tensor([7]), 3 * one, 4 * one, 8 * one, 0 * one, ends).bits_per_byte
            tensor([0.7213], dtype=torch.float64)
        """
        bits = self.nats / torch.log(torch.tensor(2.0, dtype=torch.float64))
        return torch.where(self.bytes > 0, bits / self.bytes, torch.nan)
