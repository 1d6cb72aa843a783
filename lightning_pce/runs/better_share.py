"""How much of the distribution is better than at the best mean so far, for logging in training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_pce import digest as td
from lightning_pce.digest._format import check_state

POINTS = 199


def better_share(before: Tensor, after: Tensor) -> Tensor:
    """The share of 199 even percentiles that are lower in one digest than in another.

    Args:
        before: a digest ``[K + 3, 2]``.
        after: another one, on any device.

    Returns:
        0-d float64 in [0, 1] on the device of ``after``, NaN if one of them is empty. Nothing waits for the
        device.

    Example:
        >>> from lightning_pce.digest import from_values
        >>> before, after = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([1.0, 2.0, 3.0, 3.5])
        >>> better_share(from_values(before), from_values(after))
        tensor(0.3317, dtype=torch.float64)
    """
    u = torch.arange(1, POINTS + 1, dtype=torch.float64) / (POINTS + 1)
    old, new = (td.quantile(digest.to(after.device), u.to(after.device)) for digest in (before, after))
    share = (new < old).to(torch.float64).mean()
    return torch.where((old.isnan() | new.isnan()).any(), math.nan, share)


class BestSoFar:
    """Of each dataloader the digest whose mean is the lowest so far."""

    def __init__(self) -> None:
        self._best: dict[str, tuple[float, Tensor]] = {}

    def share(self, name: str, digest: Tensor) -> Tensor:
        """:func:`better_share` of a digest beside the best one; NaN if there is none yet."""
        if name not in self._best:
            return torch.full((), math.nan, dtype=torch.float64, device=digest.device)
        return better_share(self._best[name][1], digest)

    def take(self, name: str, digest: Tensor) -> None:
        """Remember a digest if its mean is the lowest."""
        mean = float(td.mean(digest))
        if not math.isnan(mean) and (name not in self._best or mean < self._best[name][0]):
            self._best[name] = mean, digest.detach().cpu()

    def clear(self) -> None:
        """Forget all, for another run."""
        self._best.clear()

    def state_dict(self) -> dict[str, Tensor]:
        """The digests by name."""
        return {name: digest for name, (_, digest) in self._best.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take what :meth:`state_dict` gave.

        Raises:
            ValueError: if one is no digest; nothing is changed then.
        """
        for name, digest in state.items():
            check_state(digest)
            if digest.ndim != 2 or not isinstance(name, str):
                raise ValueError(f"Expected a digest [K + 3, 2] by name but got {tuple(digest.shape)}.")
        self.clear()
        for name, digest in state.items():
            self.take(name, digest)
