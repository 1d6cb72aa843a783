"""Which labels a token has, of up to K and one more: checked, and each in a slot of its own."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_pce._errors import UserError
from lightning_pce._threads import single_threaded
from lightning_pce.tokens.labels import check_ids, check_logits_and_labels


class Slots(NamedTuple):
    """The labels of each row: K of them, then the one of the NLL if it is read with them."""

    label: Tensor
    """``[N, S]`` int64 in ``[0, V)``; where there is none, another of the row."""
    present: Tensor
    """``[N, S]`` bool."""
    source: Tensor
    """``[N, S]``, the slot whose label it is."""


@single_threaded()
def slots_of(index: Tensor, label: Tensor | None, vocabulary: int) -> Slots:
    """Slots of index ``[N, K]`` and label ``[N]``, negative where there is none.

    On an accelerator, where looking would make the host wait, an index outside the vocabulary is none, and
    one that comes again counts once. A label among the K has no slot of its own.
    """
    present = (index >= 0) & (index < vocabulary) & ~_repeated(index)
    if label is not None:
        extra = (label >= 0) & ~(index == label[:, None]).any(-1)
        index, present = torch.cat([index, label[:, None]], -1), torch.cat([present, extra[:, None]], -1)
    here = torch.arange(index.shape[-1], device=index.device).expand(index.shape)
    source = torch.where(present, here, present.int().argmax(-1, keepdim=True))
    return Slots(index.gather(-1, source).clamp(0, vocabulary - 1), present, source)


def _repeated(index: Tensor) -> Tensor:
    """Which of index ``[N, K]`` have come before in their row; negative ones never."""
    ordered, order = index.sort(dim=-1, stable=True)
    again = torch.zeros_like(index, dtype=torch.bool)
    again[:, 1:] = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    return torch.zeros_like(again).scatter_(-1, order, again)


def check_topk(name: str, logits: Tensor, index: Tensor) -> None:
    """Raise a ``ValueError`` if index is no ``[..., K]`` integers for logits ``[..., V]``."""
    try:
        check_ids(index)
    except ValueError as error:
        raise UserError(str(error).replace("`labels`", f"`{name}`")) from error
    if index.ndim == 0 or index.shape[-1] == 0:
        raise UserError(f"Expected argument `{name}` [..., K] with K >= 1 but got {tuple(index.shape)}.")
    if isinstance(logits, Tensor) and logits.ndim and index.shape[:-1] != logits.shape[:-1]:
        raise UserError(
            f"Expected argument `{name}` to have the shape of the logits but for the last dimension, "
            f"{tuple(logits.shape[:-1])}, but got {tuple(index.shape)} for logits {tuple(logits.shape)}."
        )
    check_logits_and_labels(logits, index[..., 0])
    if index.shape[-1] > logits.shape[-1]:
        raise UserError(
            f"Expected argument `{name}` with at most {logits.shape[-1]} token ids a token, the vocabulary, "
            f"but got {tuple(index.shape)}."
        )


@single_threaded()
def check_values(index: Tensor, vocabulary: int) -> None:
    """Raise a ``ValueError`` if on a CPU an index ``[N, K]`` is outside the vocabulary or comes twice."""
    if index.device.type != "cpu":
        return
    if bool((index >= vocabulary).any()):
        raise UserError(
            f"Expected argument `index` to hold token ids in [0, {vocabulary}), for {vocabulary} logits a "
            f"token, or -1 for none, but got {int(index.max())}. Usual causes: a teacher with another "
            "vocabulary, or one padded further: cut its logits before storing."
        )
    again = _repeated(index)
    if bool(again.any()):
        row = int(again.any(-1).int().argmax())
        raise UserError(
            "Expected argument `index` to hold different token ids for each token but got "
            f"{int(index[row][again[row]][0])} twice for token {row} (flattened). Use -1 where there are "
            "fewer than K."
        )


@single_threaded()
def place_of(label: Tensor, index: Tensor) -> Tensor:
    """The slot of each label ``[N]``: among those of index ``[N, K]``, or K."""
    same = (index == label[:, None]) & (index >= 0)
    return torch.where(same.any(-1), same.int().argmax(-1), index.shape[-1])
