"""What a model says in place of a few tokens: its most probable token, and the rank of the label."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_pce.tokens.kernels import read_rows

# Rows of logits that are copied at once.
_ROWS = 128


@torch.no_grad()
def top_and_rank(logits: Tensor, index: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The most probable token, of equal ones the first, and the 1-based rank of the label.

    Args:
        logits: ``[..., V]`` of any strides.
        index: ``[m]`` int64, which of the rows, counted as if their dimensions were one.
        labels: ``[m]`` int64, negative where any result will do.

    Returns:
        Two ``[m]`` int64 on the device of the logits. Nothing is read on the host.

    Example:
        >>> logits = torch.tensor([[[0.0, 1.0], [3.0, 3.0]]])
        >>> top_and_rank(logits, torch.tensor([1, 0]), torch.tensor([1, 1]))
        (tensor([0, 1]), tensor([2, 1]))
    """
    found = [
        _of_rows(_rows(logits, some.to(logits.device)), some_labels.to(logits.device))
        for some, some_labels in zip(torch.split(index, _ROWS), torch.split(labels, _ROWS), strict=True)
    ]
    top, rank = (torch.cat(parts) for parts in zip(*found, strict=True))
    return top, rank


def _rows(logits: Tensor, index: Tensor) -> Tensor:
    """Rows ``[m, V]`` of logits; reshape would copy all of them if it must."""
    if logits.ndim == 1:
        return logits[None].expand(len(index), -1)
    places = []
    for size in reversed(logits.shape[:-1]):
        places.append(index % max(size, 1))
        index = index // max(size, 1)
    return logits.detach()[tuple(reversed(places))]


def _of_rows(rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    sums = read_rows(rows, labels, everything=True)
    assert sums.ahead is not None
    top = (rows if rows.dtype == torch.float64 else rows.float()).argmax(-1)
    return top, sums.ahead.long() + 1
