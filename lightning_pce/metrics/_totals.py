"""The torchmetrics Metric whose state is sums and counts, with a table of the vocabulary or none."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_pce.metrics._base import StateMetric


class TotalsMetric(StateMetric):
    """Sums and counts in one tensor, and a table of the vocabulary or none.

    Args:
        shape: of the state, which is all zeros when nothing was seen.
        merge: states ``[N, *shape]`` to one; in a module, so that it can be pickled.
        settings: all that makes two metrics of this class count differently, by its name.
        defaults: the settings that differ from these are part of the state's name.
        table: ``[V]`` int64, a number for each token of the vocabulary; moves with the state.
        metric_kwargs: see :class:`torchmetrics.Metric`.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        merge: Callable[[Tensor], Tensor],
        settings: dict[str, Any],
        table: Tensor | None = None,
        *,
        defaults: dict[str, Any] | None = None,
        **metric_kwargs: Any,
    ) -> None:
        self._shape = shape
        old_settings = (*settings, "table")
        if table is not None:
            content = zlib.crc32(table.cpu().numpy().tobytes())
            settings = {**settings, "table": f"[{len(table)}] {content:08x}"}
        super().__init__(
            "packed", settings, merge, defaults=defaults or {}, old_settings=old_settings, **metric_kwargs
        )
        self._merge = merge
        # No buffer: DDP would send it at every forward of the module.
        self._table = table
        self._move_table()

    def _empty(self, device: torch.device | None = None) -> Tensor:
        return torch.zeros(self._shape, dtype=torch.float64, device=device)

    def _add(self, states: Tensor) -> None:
        """Merge states ``[N, *shape]`` into the state."""
        with self._lock:
            self._state = self._merge(torch.cat([self._state[None], states]))

    def _looked_up(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The table's numbers for ids of any shape, 0 for those outside; and which are inside."""
        assert self._table is not None
        inside = (ids >= 0) & (ids < len(self._table))
        found = self._table.to(ids.device)[torch.where(inside, ids, 0)]
        return torch.where(inside, found, 0), inside

    def _move_table(self) -> None:
        if self._table is not None and not self._state.is_meta:  # from where it could not come back
            self._table = self._table.to(self._state.device)

    def _apply(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> TotalsMetric:
        super()._apply(fn, *args, **kwargs)
        self._move_table()
        return self


def summed(states: Tensor) -> Tensor:
    """States ``[N, ...]`` of plain sums as one."""
    return states.sum(0)


def host_numbers(state: Tensor) -> list[float]:
    """Numbers ``[N]`` for a message; compute may read the host. On the meta device there are none: 0."""
    return [0.0] * len(state) if state.is_meta else [float(number) for number in state.tolist()]


def may_look(tensor: Tensor) -> bool:
    """Whether its values may be looked at in an update; those of an accelerator would make the host wait."""
    return tensor.device.type == "cpu"


def checked_table(name: str, table: Tensor | Sequence[int]) -> Tensor:
    """A table ``[V]`` of whole numbers >= 0 as int64, or a ``ValueError`` that names the argument."""
    try:
        # Said, because a module may be made under torch.device("meta"), where numbers would be lost.
        table = table.detach() if isinstance(table, Tensor) else torch.tensor(table, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"Expected argument `{name}` to hold one whole number per token id but got {repr(table)[:80]}."
        ) from error
    whole = not (table.is_floating_point() or table.is_complex() or table.dtype == torch.bool)
    if not whole or table.ndim != 1 or len(table) == 0 or table.is_meta:
        raise ValueError(
            f"Expected argument `{name}` to hold one whole number per token id, [V], but got {table.dtype} "
            f"of shape {tuple(table.shape)}{' without content, on the meta device' if table.is_meta else ''}."
        )
    if bool((table < 0).any()):
        raise ValueError(
            f"Expected argument `{name}` to hold numbers >= 0 but got {int(table.min())} for token id "
            f"{int(table.argmin())}."
        )
    return table.long().clone()
