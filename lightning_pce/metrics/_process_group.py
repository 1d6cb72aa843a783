"""The ranks a metric is merged over: a process group that is found when it is needed."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch.distributed as dist

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    Group: TypeAlias = ProcessGroup | Callable[[], ProcessGroup | None] | None

_HOW = (
    'a ProcessGroup or a function without arguments that returns one, such as mesh["data_parallel"].get_group'
)


class LazyGroup:
    """A process group, or how to find it; copies of a metric share it.

    Args:
        group: a ProcessGroup, or a function that is called before every collective and returns the same group
            each time, or None for all ranks.

    Raises:
        ValueError: if it is something else, such as a name or a whole mesh.
    """

    def __init__(self, group: ProcessGroup | Callable[[], ProcessGroup | None]) -> None:
        if not callable(group) and not _is_group(group):
            raise ValueError(f"Expected argument `process_group` to be {_HOW}, but got {group!r:.80}.")
        self._group = group

    def __call__(self) -> ProcessGroup | None:
        """The group, None for all ranks.

        Raises:
            RuntimeError: if this rank is not one of it, or the function returned something else.
        """
        group: Any = self._group() if callable(self._group) else self._group
        if group is None:
            return None
        if not _is_group(group):
            raise RuntimeError(
                f"Expected argument `process_group`, {self._group!r:.80}, to return a ProcessGroup or None "
                f"but it returned {group!r:.80}."
            )
        if group == dist.GroupMember.NON_GROUP_MEMBER:
            raise RuntimeError(
                "A metric was to be merged on a rank that is not in its `process_group`: give every rank the "
                "group it is a member of, or let this one not compute."
            )
        return cast("ProcessGroup", group)

    def __deepcopy__(self, memo: dict[int, Any]) -> LazyGroup:
        return self  # a group cannot be copied, and what finds it need not be

    def __reduce__(self) -> tuple[type[LazyGroup], tuple[Any]]:
        if not callable(self._group):
            raise pickle.PicklingError(
                "A metric with a ProcessGroup cannot be pickled, because other processes do not have that "
                "group. Pass as `process_group` a function of a module that returns it there, or "
                'mesh["data_parallel"].get_group.'
            )
        return LazyGroup, (self._group,)


def lazy_group(group: Group) -> LazyGroup | None:
    """What a metric keeps of its argument ``process_group``."""
    return group if group is None or isinstance(group, LazyGroup) else LazyGroup(group)


def live_group(group: Group) -> ProcessGroup | None:
    """The group for a collective that begins now, None for all ranks."""
    found = lazy_group(group)
    return None if found is None else found()


def _is_group(value: Any) -> bool:
    """Whether it is a group, or the number that ``new_group`` returns on ranks outside of it."""
    if not dist.is_available():
        return False
    outside = isinstance(value, int) and value == dist.GroupMember.NON_GROUP_MEMBER
    return outside or isinstance(value, dist.ProcessGroup)
