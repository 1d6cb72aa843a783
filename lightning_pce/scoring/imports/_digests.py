"""Digests and document counts of tokens that were scored elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_pce import digest as td
from lightning_pce import intervals
from lightning_pce.scoring.imports._documents import Numbers
from lightning_pce.scoring.summaries import summary


class Digests:
    """By statistic and group, ``""`` of all tokens."""

    def __init__(self) -> None:
        self.digests: dict[str, dict[str, Tensor]] = {}
        self.documents: dict[str, dict[str, Tensor]] = {}

    def add(self, statistic: str, group: str, values: Numbers, documents: np.ndarray[Any, Any]) -> None:
        """Tokens of one statistic: values ``[n]``, and the number of each one's document ``[n]``."""
        tokens = torch.from_numpy(values)
        slots = intervals.slots_of(torch.from_numpy(documents))
        digests = self.digests.setdefault(statistic, {})
        counts = self.documents.setdefault(statistic, {})
        digests[group] = td.add(digests.get(group, td.empty(1024)), tokens)
        counts[group] = intervals.add(counts.get(group, intervals.empty()), tokens, None, slots)

    def leave_out(self, statistics: Iterable[str]) -> None:
        """Forget statistics that are not known of all tokens."""
        for statistic in statistics:
            self.digests.pop(statistic, None)
            self.documents.pop(statistic, None)

    def values(self) -> dict[str, float]:
        """What a record says of them in plain numbers."""
        values: dict[str, float] = {}
        for statistic, groups in self.digests.items():
            for group, digest in groups.items():
                name = f"{statistic}_{group}" if group else statistic
                values |= summary(name, digest, self.documents[statistic][group])
        return values
