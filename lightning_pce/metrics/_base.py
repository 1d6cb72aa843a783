"""The torchmetrics Metric of float64 states, which no cast touches and one collective merges each."""

from __future__ import annotations

import threading
import zlib
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import Metric

from lightning_pce._checks import warn_once
from lightning_pce._compiling import not_compiled as not_compiled
from lightning_pce.metrics._process_group import lazy_group, live_group


class StateMetric(Metric):
    """A Metric whose states are float64 tensors, which threads may update beside each other.

    Most have one. A further one is added by :meth:`_add_state`, and given by :meth:`_empty_states`.

    Args:
        kind: what the state's name begins with.
        settings: all that makes two metrics of this class count differently, by its name.
        defaults: the settings that differ from these are part of the state's name.
        old_settings: the settings, in order, whose values older checkpoints have in the state's name even if
            they are defaults.
        merge: states ``[N, ...]`` to one; a function of a module, so that it can be pickled. A state that
            :func:`added_up` merges is added over ranks by one ``all_reduce``, any other is gathered.
        metric_kwargs: see :class:`torchmetrics.Metric`. ``process_group``, the ranks whose states are merged,
            may also be a function without arguments that returns it; it is called before each collective.
    """

    is_differentiable = False
    full_state_update = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # torch.jit.script of a module that holds a metric would compile properties, used or not.
        found = {
            name for base in cls.__mro__ for name, value in vars(base).items() if isinstance(value, property)
        }
        cls.__jit_unused_properties__ = sorted(found)

    def __init__(
        self,
        kind: str,
        settings: dict[str, Any],
        merge: Callable[[Tensor], Tensor],
        *,
        defaults: dict[str, Any],
        old_settings: tuple[str, ...],
        **metric_kwargs: Any,
    ) -> None:
        # A cached rank would never enter the collective that the others wait in.
        metric_kwargs.setdefault("compute_with_cache", False)
        metric_kwargs.setdefault("dist_sync_fn", gather_states)
        # A ProcessGroup in the metric itself could be neither copied nor pickled.
        metric_kwargs["process_group"] = lazy_group(metric_kwargs.get("process_group"))
        super().__init__(**metric_kwargs)
        self._kind, self._settings = kind, settings
        # MetricCollection merges metrics whose states have the same names and, after the first batch, the
        # same values. Settings are part of the name, so that metrics which differ in one are never merged.
        # Defaults are not: a setting that is added later must not rename the states of checkpoints.
        changed = {name: value for name, value in settings.items() if value != defaults.get(name)}
        self._state_name = self._named_by(sorted(changed.items()))
        self._old_state_name = self._named_by(settings[name] for name in old_settings if name in settings)
        self._said: set[str] = set()
        self._lock = threading.RLock()
        self._add_state(self._state_name, merge)

    def _add_state(self, name: str, merge: Callable[[Tensor], Tensor]) -> None:
        """One more state, as :meth:`_empty_states` gives it."""
        self.add_state(name, self._empty_states()[name], dist_reduce_fx=merge)

    def _empty_states(self, device: torch.device | None = None) -> dict[str, Tensor]:
        """The states of nothing by name, in the order in which ranks merge them."""
        return {self._state_name: self._empty(device)}

    def _states(self) -> dict[str, Tensor]:
        """The states by name."""
        return {name: getattr(self, name) for name in self._defaults}

    def _own_states(self) -> dict[str, Tensor]:
        """The states of this rank by name, also while the metric holds those of all."""
        return cast("dict[str, Tensor]", self._cache) if self._is_synced and self._cache else self._states()

    def _set_states(self, states: Mapping[str, Tensor]) -> None:
        # Never in place: after trainer.validate they may be inference tensors.
        for name, state in states.items():
            setattr(self, name, state)

    def _named_by(self, what: Iterable[Any]) -> str:
        return f"{self._kind}_{zlib.crc32(repr((type(self).__qualname__, *what)).encode()):08x}"

    @abstractmethod
    def _empty(self, device: torch.device | None = None) -> Tensor:
        """The first state of nothing."""

    @property
    def _state(self) -> Tensor:
        return cast(Tensor, getattr(self, self._state_name))

    @_state.setter
    def _state(self, state: Tensor) -> None:
        # Never in place: after trainer.validate it may be an inference tensor.
        setattr(self, self._state_name, state)

    def __getstate__(self) -> dict[str, Any]:
        # Without the lock, which can be neither copied nor sent to another process.
        with self._lock:
            return {name: value for name, value in super().__getstate__().items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__["_lock"] = threading.RLock()
        super().__setstate__(state)

    def __hash__(self) -> int:
        # Not of the state, as torchmetrics': modules are hashed by parameters(), train() and many more.
        return hash((type(self).__name__, id(self)))

    def _warn_once(self, what: str, number: float, message: str) -> None:
        """Say that a number of entries were odd, if any were, the first time."""
        if number:
            self._say_once(what, f"{number:.0f} {message}")

    def _say_once(self, what: str, message: str | None) -> None:
        """Warn the first time that there is something to say."""
        if message is not None:
            warn_once(self._said, what, f"{type(self).__name__}: {message}")

    def _note_update(self) -> None:
        """Count an update that torchmetrics does not see, because it did not come through ``update``."""
        self._computed = None
        self._update_count += 1

    def named_settings(self) -> str:
        """The settings in words; metrics can be merged if these are equal."""
        return ", ".join(f"{name}={value!r}" for name, value in self._settings.items())

    @torch.jit.unused  # as torchmetrics' own, so that a module that holds a metric can be scripted
    @not_compiled
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Add a batch and return its own result; a refused batch leaves the state as it was."""
        with self._lock:
            return self._forward(*args, **kwargs)

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        if self._is_synced:
            return super().forward(*args, **kwargs)  # which says that this can't be
        states, count = self._states(), self._update_count
        try:
            return super().forward(*args, **kwargs)
        except BaseException:
            # torchmetrics empties the states before it looks at the batch.
            self._set_states(states)
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
        """Merge the states of all ranks; by this metric's own collectives also when called by hand."""
        super().sync(dist_sync_fn or self.dist_sync_fn, process_group, should_sync, distributed_available)

    @contextmanager
    def sync_context(
        self,
        dist_sync_fn: Callable[..., Any] | None = None,
        process_group: Any | None = None,
        should_sync: bool = True,
        should_unsync: bool = True,
        distributed_available: Callable[..., Any] | None = None,
    ) -> Iterator[None]:
        """:meth:`sync`, and back also after an error, such as a warning that is made one.

        torchmetrics would keep the state of all ranks as that of this rank, and count it again.
        """
        with self._lock:
            self.sync(dist_sync_fn, process_group, should_sync, distributed_available)
            try:
                yield
            finally:
                self.unsync(should_unsync=self._is_synced and should_unsync)

    def _sync_dist(
        self, dist_sync_fn: Callable[..., Any] | None = None, process_group: Any | None = None
    ) -> None:
        """One collective for each state; torchmetrics would hand on a group that is yet to be found."""
        group = live_group(self.process_group if process_group is None else process_group)
        self._set_states(self._over_ranks(dist_sync_fn or gather_states, group))

    def _over_ranks(self, gather: Callable[..., Any], group: Any) -> dict[str, Tensor]:
        """The states of all ranks, by name."""
        return {
            name: sum_over_ranks(state, group)
            if gather is gather_states and self._is_summed(name)
            else self._merge_ranks(name, gather(state, group=group))
            for name, state in self._states().items()
        }

    def _is_summed(self, name: str) -> bool:
        """Whether a state is a plain sum, which ranks add up without gathering it."""
        return self._reductions[name] is added_up

    def _merge_ranks(self, name: str, states: Sequence[Tensor]) -> Tensor:
        """A state of several ranks as one."""
        merge = cast(Callable[[Tensor], Tensor], self._reductions[name])
        return merge(torch.stack(list(states)))

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add what another metric of the same settings has seen, or its ``metric_state``.

        Raises:
            ValueError: if it is something else, or its settings differ.
        """
        updates = 1
        if isinstance(incoming_state, StateMetric):
            updates = incoming_state.update_count
            if incoming_state._state_name != self._state_name:
                raise ValueError(
                    f"Expected a {type(self).__name__} with the same settings, {self.named_settings()}, but "
                    f"got a {type(incoming_state).__name__} with {incoming_state.named_settings()}."
                )
        if isinstance(incoming_state, dict):
            incoming_state = self._renamed(incoming_state)
            for name, own in self._states().items():
                state = incoming_state.get(name)
                if not isinstance(state, Tensor) or state.shape != own.shape:
                    raise ValueError(
                        f"Expected a state `{name}` of shape {tuple(own.shape)} but got "
                        f"{list(incoming_state)}"
                        + (f" of shape {tuple(state.shape)}." if isinstance(state, Tensor) else ".")
                    )
                self._check_state(name, state.to(torch.float64))
        with self._lock:
            super().merge_state(incoming_state)
            self._computed = None
            self._update_count += updates

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot one result or several, see :meth:`torchmetrics.Metric.plot`."""
        return self._plot(val, ax)

    def _apply(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> StateMetric:
        """Move with the module, but never change the dtype of a state: bfloat16 stops counting at 256."""
        with self._lock:
            super()._apply(fn, exclude_state=tuple(self._defaults))
            self._computed = None
            device = torch.device("cpu") if self.device.type == "mps" else self.device  # MPS has no float64
            empty = self._empty_states(device)
            moved = {
                name: empty[name] if state.is_meta and device.type != "meta" else state.to(device)
                for name, state in self._states().items()
            }
            self._defaults.update(self._empty_states(device))
            self._set_states(moved)
        return self

    def _check_state(self, name: str, state: Tensor) -> None:
        """Raise a ``ValueError`` if numbers from outside, of the right shape, can be no such state."""
        if not state.is_meta and bool(state.isnan().any()):
            raise ValueError("Expected a state without NaN.")

    def _renamed(self, state_dict: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        """A state dict with the state under its present name, if it is there under the old one."""
        old, new = prefix + self._old_state_name, prefix + self._state_name
        if old not in state_dict or new in state_dict:
            return state_dict
        return {new if name == old else name: value for name, value in state_dict.items()}

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        old, first = prefix + self._old_state_name, prefix + self._state_name
        if first not in state_dict and old in state_dict:
            state_dict[first] = state_dict.pop(old)  # in place: load_state_dict looks for keys that are left
        own = self._states()
        stored = {name: state_dict[prefix + name] for name in own if prefix + name in state_dict}
        others = [key for key in state_dict if key.startswith(f"{prefix}{self._kind}_")]
        if others and len(stored) < len(own):
            missing = next(name for name in own if name not in stored)
            raise ValueError(
                f"Expected the state of a {type(self).__name__} with the same settings, "
                f"{self.named_settings()}, of shape {tuple(own[missing].shape)} under "
                f"`{prefix}{missing}` but got `{others[0]}` of shape {tuple(state_dict[others[0]].shape)}."
            )
        for name, state in stored.items():
            self._check_stored(name, state, prefix + name)
        if len(stored) == len(own):
            taken = {name: state.to(own[name]) for name, state in stored.items()}
            self._set_states(taken)
            state_dict.update({prefix + name: state for name, state in taken.items()})
            self._computed = None
            self._update_count = max(self._update_count, 1)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _check_stored(self, name: str, state: Any, key: str) -> None:
        """Raise a ``ValueError`` if what a checkpoint has under a key can be no state of that name."""
        shape = tuple(getattr(self, name).shape)
        if not isinstance(state, Tensor) or state.shape != shape:
            got = tuple(state.shape) if isinstance(state, Tensor) else type(state).__name__
            raise ValueError(
                f"Expected a state of shape {shape} in the checkpoint under `{key}` but got {got}."
            )
        try:
            self._check_state(name, state.to(torch.float64))
        except ValueError as error:
            raise ValueError(f"The state in the checkpoint under `{key}` is damaged. {error}") from error


def added_up(states: Tensor) -> Tensor:
    """States ``[N, ...]`` of plain sums as one. Ranks add theirs up by an ``all_reduce``."""
    return states.sum(0)


def sum_over_ranks(state: Tensor, group: Any | None = None) -> Tensor:
    """The sum of the states of all ranks, by one ``all_reduce``."""
    total = _where_gathered(state, group).clone()
    dist.all_reduce(total, group=group)
    return total.to(state.device)


def gather_states(state: Tensor, group: Any | None = None) -> list[Tensor]:
    """The states of all ranks by one ``all_gather``; torchmetrics' own way takes a barrier and two."""
    device = state.device
    state = _where_gathered(state, group)
    everyone = state.new_empty((dist.get_world_size(group), *state.shape))
    parts = list(everyone.unbind())
    dist.all_gather(parts, state.contiguous(), group=group)
    return [part.to(device) for part in parts]


def _where_gathered(state: Tensor, group: Any | None) -> Tensor:
    """A state on a device whose tensors the group can exchange."""
    backend = str(dist.get_backend(group))
    if state.device.type == "cpu" and "nccl" in backend and "gloo" not in backend:
        return state.to(torch.device("cuda", torch.cuda.current_device()))
    return state
