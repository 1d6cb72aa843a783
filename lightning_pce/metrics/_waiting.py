"""Values that wait until it is worth sorting them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_pce import digest as td
from lightning_pce import intervals
from lightning_pce._threads import single_threaded

# Values wait until there are this many, or this many updates. Counted together they cost a quarter of what
# they would in batches of 32,768, in batches of 512 a 25th. An accelerator sorts a million in the time it
# takes to start the 300 kernels of an update.
_ENOUGH_VALUES = {"cpu": 1 << 19}
_ENOUGH_ELSEWHERE = 1 << 20
_ENOUGH_UPDATES = 1 << 10


class WaitingBatch(NamedTuple):
    """Copies of what an update brought, on the device of the digest."""

    values: Tensor  # [n] float32 or float64
    weights: Tensor | None  # [n] bool or numbers
    groups: Tensor | None  # [n] int32
    invalid: Tensor | None  # [n] bool
    slots: Tensor | None  # [n] uint8, of documents


class Waiting(NamedTuple):
    """A digest, or one of each group, and the batches that are to enter it. It is never changed in place."""

    digest: Tensor  # [K + 3, 2] or [G, K + 3, 2]
    documents: Tensor | None = None  # [128, 97] or [G, 128, 97]
    batches: tuple[WaitingBatch, ...] = ()
    number: int = 0  # of values

    def with_batch(
        self,
        values: Tensor,
        weights: Tensor | None,
        groups: Tensor | None,
        invalid: Tensor | None,
        slots: Tensor | None,
    ) -> Waiting:
        """The same and a batch of tensors of one shape, in copies: their owner may write over them."""
        device = self.digest.device
        # Two dtypes cannot always be joined: float8 with none.
        values = values if values.dtype in (torch.float32, torch.float64) else values.float()
        batch = WaitingBatch(
            _copied(values, device),
            None if weights is None else _copied(weights, device),
            # Far outside stays outside.
            None if groups is None else _copied(groups.clamp(-1, 1 << 30).int(), device),
            None if invalid is None else _copied(invalid, device),
            None if slots is None else _copied(slots, device),
        )
        batches = self.batches + (batch,)  # noqa: RUF005 - that would copy all of them twice
        return Waiting(self.digest, self.documents, batches, self.number + values.numel())

    @property
    def is_enough(self) -> bool:
        """Whether there is nothing to be gained by waiting longer."""
        enough = _ENOUGH_VALUES.get(self.digest.device.type, _ENOUGH_ELSEWHERE)
        return self.number >= enough or len(self.batches) >= _ENOUGH_UPDATES

    @single_threaded()
    def entered(self) -> tuple[Tensor, Tensor | None]:
        """The digest and the document counts with all batches in them."""
        values = torch.cat([batch.values for batch in self.batches])
        weights = _joined_weights(self.batches)
        groups = None if self.batches[0].groups is None else _joined([batch.groups for batch in self.batches])
        digest = td.add(self.digest, values, weights, groups=groups)
        if any(batch.invalid is not None for batch in self.batches):
            invalid = _joined([_or_none_of(batch.invalid, batch.values) for batch in self.batches])
            digest = td.add_invalid(digest, _number_in(invalid, groups, digest))
        if self.documents is None:
            return digest, None
        slots = _joined([batch.slots for batch in self.batches])
        return digest, intervals.add(self.documents, values, weights, slots, groups=groups)


def _copied(tensor: Tensor, device: torch.device) -> Tensor:
    flat = tensor.detach()
    if flat.ndim != 1 or flat.layout != torch.strided:  # reshape refuses what is sparse
        flat = flat.reshape(-1)
    return flat.clone() if flat.device == device else flat.to(device)


def _joined(parts: Sequence[Tensor | None]) -> Tensor:
    return torch.cat([part for part in parts if part is not None])


def _joined_weights(batches: Sequence[WaitingBatch]) -> Tensor | None:
    """Bool if all are, numbers if some are, None if there are none."""
    if all(batch.weights is None for batch in batches):
        return None
    weights = [_or_all_of(batch.weights, batch.values) for batch in batches]
    numbers = any(each.dtype != torch.bool for each in weights)
    return torch.cat([each.double() if numbers else each for each in weights])


def _or_all_of(flags: Tensor | None, like: Tensor) -> Tensor:
    return torch.ones_like(like, dtype=torch.bool) if flags is None else flags


def _or_none_of(flags: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like, dtype=torch.bool) if flags is None else flags


def _number_in(flags: Tensor, groups: Tensor | None, digest: Tensor) -> Tensor:
    """How many are flagged: 0-d, or ``[G]`` of a digest of groups."""
    if groups is None:
        return flags.sum()
    number = len(digest)
    return digest.new_zeros(number).index_add_(0, groups.long().clamp(0, number - 1), flags.double())
