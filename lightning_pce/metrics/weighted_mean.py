"""The weighted mean of values of tokens, such as which of them were predicted right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_pce._checks import plain_tensors
from lightning_pce._names import checked_names
from lightning_pce.metrics._base import not_compiled
from lightning_pce.metrics._totals import TotalsMetric, summed
from lightning_pce.metrics._views import ViewedMetric
from lightning_pce.tokens.labels import GroupIds, checked_groups, checked_weights


class WeightedMean(ViewedMetric, TotalsMetric):
    """The weighted mean of a stream of values over all ranks, and that of each group, from exact sums.

    As input to ``update``, ``values``: floating point of any shape, and optionally ``weights``: bool or
    numbers >= 0 of that shape, and with ``groups`` the number of each value's ``group``. NaN is left out.

    As output of ``compute``, 0-d float64 tensors: ``mean``, NaN where nothing counted, and ``count``, the
    weight of what did; then the same of each group, with its name in front: ``prompt_mean``.

    Args:
        groups: names of kinds of values that are kept apart, of A-Z, a-z, 0-9, _.
        metric_kwargs: see :class:`torchmetrics.Metric`; ``process_group`` may also be a function that returns
            the group when it is needed.

    Raises:
        ValueError: if a group's name is impossible.

    Example:
        >>> metric = WeightedMean(groups=("prompt", "completion"))
        >>> metric.update(torch.tensor([1.0, 0.0, 1.0, 1.0]), group=torch.tensor([0, 0, 1, 1]))
        >>> metric.compute()["mean"], metric.compute()["prompt_mean"]
        (tensor(0.7500, dtype=torch.float64), tensor(0.5000, dtype=torch.float64))
    """

    def __init__(self, *, groups: Sequence[str] | None = None, **metric_kwargs: Any) -> None:
        self.groups = None if groups is None else checked_names("groups", groups)
        if self.groups == ():
            raise ValueError("Expected argument `groups` to be one or several names but got none.")
        super().__init__((len(self.groups or ("all",)), 2), summed, {"groups": self.groups}, **metric_kwargs)

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of ``compute()``, in order."""
        keys = ("mean", "count")
        return (*keys, *(f"{group}_{key}" for group in self.groups or () for key in keys))

    @not_compiled
    @plain_tensors
    def update(self, values: Tensor, weights: Tensor | None = None, *, group: GroupIds | None = None) -> None:
        """Add values.

        Raises:
            ValueError: if shapes do not fit, or on a CPU a weight or a group is impossible; nothing enters
                the state then.
        """
        if not isinstance(values, Tensor) or not values.is_floating_point():
            what = values.dtype if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(f"Expected argument `values` to be a floating point tensor but got {what}.")
        weights = checked_weights(weights, values, "values")
        self._add_sums(values, weights, checked_groups(group, self.groups, values, weights))

    def add_values(self, values: Tensor, weights: Tensor | None, groups: Tensor | None = None) -> None:
        """:meth:`update` with tensors of one shape that have been checked."""
        self._note_update()
        self._add_sums(values, weights, groups)

    def _add_sums(self, values: Tensor, weights: Tensor | None, groups: Tensor | None) -> None:
        values = values.detach().to(self._state.device).double().reshape(-1)
        share = torch.ones_like(values) if weights is None else weights.to(values).reshape(-1)
        # On an accelerator the weights were not looked at.
        share = torch.where((share > 0) & (share < torch.inf) & ~values.isnan(), share, 0.0)
        sums = torch.stack([torch.where(share > 0, values, 0.0) * share, share], dim=-1)
        if groups is None:
            self._add(sums.sum(0)[None, None])
            return
        number = len(self._state)
        ids = groups.to(values.device).reshape(-1)
        known = (ids >= 0) & (ids < number)  # on an accelerator they were not looked at
        sums = torch.where(known[:, None], sums, 0.0)
        self._add(self._empty(values.device).index_add_(0, torch.where(known, ids, 0), sums)[None])

    def compute(self) -> dict[str, Tensor]:
        """The means of everything seen on all ranks, 0-d float64; see the class."""
        overall = self._state.sum(0, keepdim=True)
        sums = overall if self.groups is None else torch.cat([overall, self._state])
        results = torch.stack([sums[:, 0] / sums[:, 1], sums[:, 1]], dim=-1)
        return dict(zip(self.keys, results.flatten().unbind(), strict=True))
