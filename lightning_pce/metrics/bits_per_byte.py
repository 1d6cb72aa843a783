"""Cross-entropy per byte of text, which does not depend on the tokenizer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_pce._checks import plain_tensors
from lightning_pce.metrics._base import not_compiled
from lightning_pce.metrics._totals import TotalsMetric, checked_table, host_numbers, may_look, summed
from lightning_pce.tokens.labels import check_ids, checked_losses

_TOTALS = ("nats", "bytes", "tokens", "nan", "invalid")


class BitsPerByte(TotalsMetric):
    """Bits per byte: the losses of all tokens that count, in bits, over the bytes of their text.

    Models with different tokenizers can be compared by it: it is the size of the text when compressed with
    the model, over its size, times 8.

    A token of 0 bytes, such as an end-of-text token, adds its loss and no bytes: without it the text could
    not be read back, so its bits belong to the message. That is the usual definition (the sum of all scored
    negative log-likelihoods over the bytes of the text). The other one in use, which leaves such tokens out
    of both sums, is ``mask=token_bytes[labels] > 0``; from that one no mask would lead back to this.

    As input to ``update`` and ``forward``:

    * ``losses``: floating point of any shape, one per token, in nats;
    * ``labels``: integers of that shape, the id of the token whose loss it is: already shifted;
    * ``mask``: optionally bool of that shape, true where a token counts. Left out: all do. Where the labels
      hold an ignore_index it is ``labels != -100``.

    As output of ``compute`` and ``forward``, a 0-d float64 tensor: over all tokens of all batches and ranks,
    not a mean of means; NaN before there is a byte. A loss that is NaN is left out with its bytes, and said
    once; an infinite one makes the result infinite.

    Args:
        token_bytes: ``[V]`` integers, the UTF-8 bytes that each token stands for, 0 for special ones.
        metric_kwargs: see :class:`torchmetrics.Metric`; ``process_group`` may also be a function that returns
            the group when it is needed.

    Raises:
        ValueError: if ``token_bytes`` is not one whole number >= 0 per token.

    Example:
        >>> metric = BitsPerByte(token_bytes=[0, 1, 4])  # <end>, "a", " the"
        >>> losses = torch.tensor([[2.0, 1.5, 0.5]])
        >>> metric.update(losses, torch.tensor([[2, 1, 0]]))
        >>> metric.compute()  # 4 nats over 5 bytes
        tensor(1.1542, dtype=torch.float64)
    """

    higher_is_better = False
    plot_lower_bound = 0.0

    def __init__(self, token_bytes: Tensor | Sequence[int], **metric_kwargs: Any) -> None:
        table = checked_table("token_bytes", token_bytes)
        super().__init__((len(_TOTALS),), summed, {}, table, **metric_kwargs)

    @property
    def totals(self) -> dict[str, Tensor]:
        """What this rank has seen: ``nats``, ``bytes`` and ``tokens`` that count, and tokens left out because
        their loss was ``nan`` or their label ``invalid``; 0-d float64.
        """
        return dict(zip(_TOTALS, self._state.clone().unbind(), strict=True))

    @not_compiled
    @plain_tensors
    def update(self, losses: Tensor, labels: Tensor, mask: Tensor | None = None) -> None:
        """Add a batch; see the class for the arguments.

        Raises:
            ValueError: if shapes or dtypes do not fit, or on a CPU the label of a token that counts is
                outside the table; nothing of the batch enters the state then. On an accelerator, where
                looking would make the host wait, such a token is left out and counted as ``invalid``.
        """
        losses, counted = checked_losses(losses, mask)
        _check_labels(labels, losses)
        look = may_look(labels)
        device = self._state.device
        losses, labels, counted = losses.detach().to(device), labels.to(device).long(), counted.to(device)
        sizes, inside = self._looked_up(labels)
        invalid = counted & ~inside
        if look and bool(invalid.any()):
            raise ValueError(self._outside(labels[invalid]))
        nan = counted & inside & losses.isnan()
        counted = counted & inside & ~nan
        totals = (
            torch.where(counted, losses, 0.0).double().sum(),
            torch.where(counted, sizes, 0).sum(),
            counted.sum(),
            nan.sum(),
            invalid.sum(),
        )
        self._add(torch.stack([total.double() for total in totals])[None])

    def compute(self) -> Tensor:
        """Bits per byte of everything seen on all ranks, 0-d float64; see the class."""
        nats, size, *_ = self._state.unbind()
        *_, nan, invalid = host_numbers(self._state)
        self._warn_once("nan", nan, "losses were NaN. Their tokens are left out.")
        self._warn_once("invalid", invalid, "tokens were left out because their label was outside the table.")
        return torch.where(size > 0, nats / math.log(2) / size, torch.nan)

    def _outside(self, wrong: Tensor) -> str:
        assert self._table is not None
        return (
            f"Expected argument `labels` to hold token ids in [0, {len(self._table)}), the length of "
            f"`token_bytes`, but got {wrong.numel()} others, from {int(wrong.min())} to {int(wrong.max())}. "
            "Leave ignored tokens out with mask=labels != ignore_index; added and padded tokens need an "
            "entry too, 0 if they stand for no text."
        )


def _check_labels(labels: Tensor, losses: Tensor) -> None:
    check_ids(labels)
    if labels.shape != losses.shape:
        raise ValueError(
            "Expected argument `labels` to hold the token id of each loss, in the shape of the losses, "
            f"{tuple(losses.shape)}, but got {tuple(labels.shape)}."
        )
