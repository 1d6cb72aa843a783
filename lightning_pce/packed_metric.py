"""The torchmetrics Metric with one small float64 tensor of state, and a table of the vocabulary or none."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.prints import rank_zero_warn

from lightning_pce.digest_metric import gather_digests, not_compiled


class PackedMetric(Metric):
    """Sums and counts in one float64 tensor, which no cast of the module touches and one collective merges.

    Args:
        shape: of the state, which is all zeros when nothing was seen.
        merge: states ``[N, *shape]`` to one; in a module, so that it can be pickled.
        settings: whatever makes two metrics of this class count differently.
        table: ``[V]`` int64, a number for each token of the vocabulary; moves with the state.
        metric_kwargs: see :class:`torchmetrics.Metric`.
    """

    is_differentiable = False
    full_state_update = False

    def __init__(
        self,
        shape: tuple[int, ...],
        merge: Callable[[Tensor], Tensor],
        settings: tuple[Any, ...],
        table: Tensor | None = None,
        **metric_kwargs: Any,
    ) -> None:
        # A cached rank would never enter the collective that the others wait in.
        metric_kwargs.setdefault("compute_with_cache", False)
        metric_kwargs.setdefault("dist_sync_fn", gather_digests)
        super().__init__(**metric_kwargs)
        # MetricCollection merges metrics whose states have the same names and, after the first batch, the
        # same values. With the settings in the name, metrics which differ in one are never merged.
        content = None if table is None else zlib.crc32(table.cpu().numpy().tobytes())
        what = (type(self).__qualname__, *settings, content)
        self._state_name = f"packed_{zlib.crc32(repr(what).encode()):08x}"
        self._merge = merge
        self._warned: set[str] = set()
        self.add_state(self._state_name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx=merge)
        # No buffer: DDP would send it at every forward of the module.
        self._table = table
        self._move_table()

    @property
    def _state(self) -> Tensor:
        return cast(Tensor, getattr(self, self._state_name))

    def _add(self, states: Tensor) -> None:
        """Merge states ``[N, *shape]`` into this one's."""
        # Never in place: after trainer.validate it may be an inference tensor.
        setattr(self, self._state_name, self._merge(torch.cat([self._state[None], states])))

    def _looked_up(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The table's numbers for ids of any shape, 0 for those outside; and which are inside."""
        assert self._table is not None
        inside = (ids >= 0) & (ids < len(self._table))
        found = self._table.to(ids.device)[torch.where(inside, ids, 0)]
        return torch.where(inside, found, 0), inside

    def _move_table(self) -> None:
        if self._table is not None and not self._state.is_meta:  # from where it could not come back
            self._table = self._table.to(self._state.device)

    def _warn_once(self, what: str, number: Tensor, message: str) -> None:
        """Say that ``number`` entries were odd, if any were, the first time; compute may read the host."""
        if number.is_meta or what in self._warned or not bool(number > 0):
            return
        self._warned.add(what)
        rank_zero_warn(f"{type(self).__name__}: {int(number)} {message}")

    @not_compiled
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Add a batch and return its own result; a refused batch leaves the state as it was."""
        state, count = self._state, self._update_count
        try:
            return super().forward(*args, **kwargs)
        except BaseException:
            # torchmetrics empties the state before it looks at the batch.
            setattr(self, self._state_name, state)
            self._update_count, self._computed = count, None
            self._is_synced, self._cache = False, None
            self._should_unsync, self._to_sync, self._enable_grad = True, self.sync_on_compute, False
            raise

    def sync(
        self,
        dist_sync_fn: Callable[..., Any] | None = None,
        process_group: Any | None = None,
        should_sync: bool = True,
        distributed_available: Callable[..., Any] | None = None,
    ) -> None:
        """Merge the states of all ranks; by this metric's one collective also when called by hand."""
        super().sync(dist_sync_fn or self.dist_sync_fn, process_group, should_sync, distributed_available)

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add what another metric of the same settings has seen, or its ``metric_state``.

        Raises:
            ValueError: if it is something else, or its settings differ.
        """
        updates = 1
        if isinstance(incoming_state, PackedMetric):
            updates = incoming_state.update_count
            if incoming_state._state_name != self._state_name:
                raise ValueError(
                    f"Expected a {type(self).__name__} with the same settings but got a "
                    f"{type(incoming_state).__name__} of which one differs."
                )
        if isinstance(incoming_state, dict):
            state = incoming_state.get(self._state_name)
            if state is None or state.shape != self._state.shape:
                raise ValueError(
                    f"Expected a state `{self._state_name}` of shape {tuple(self._state.shape)} but got "
                    f"{list(incoming_state)}{'' if state is None else f' of shape {tuple(state.shape)}'}."
                )
        super().merge_state(incoming_state)
        self._computed = None
        self._update_count += updates

    def _apply(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> PackedMetric:
        """Move with the module, but never change the dtype of the state: bfloat16 stops counting at 256."""
        super()._apply(fn, exclude_state=(self._state_name,))
        self._computed = None
        device = torch.device("cpu") if self.device.type == "mps" else self.device  # MPS has no float64
        state = self._state
        empty = torch.zeros(state.shape, dtype=torch.float64, device=device)
        self._defaults[self._state_name] = empty
        lost = state.is_meta and device.type != "meta"
        setattr(self, self._state_name, empty if lost else state.to(device))
        self._move_table()
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        stored = state_dict.get(prefix + self._state_name)
        others = [key for key in state_dict if key.startswith(f"{prefix}packed_")]
        if stored is None and others:
            raise ValueError(
                f"Expected the state of a {type(self).__name__} with the same settings under "
                f"`{prefix}{self._state_name}` but got `{others[0]}`, of another metric or other settings."
            )
        if stored is not None:
            state_dict[prefix + self._state_name] = stored.to(self._state)
            self._computed = None
            self._update_count = max(self._update_count, 1)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def may_look(tensor: Tensor) -> bool:
    """Whether its values may be looked at in an update; those of an accelerator would make the host wait."""
    return tensor.device.type == "cpu"


def check_ids(labels: Tensor) -> None:
    """Raise a ``ValueError`` with what was seen if labels are no integer tensor."""
    if not isinstance(labels, Tensor):
        raise ValueError(f"Expected argument `labels` to be a tensor but got {type(labels).__name__}.")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(
            f"Expected argument `labels` to hold integer token ids but got {labels.dtype} of shape "
            f"{tuple(labels.shape)}."
        )


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
