"""Memory that goes back to the system when it is no longer needed."""

from __future__ import annotations

import math
import mmap

import torch
from torch import Tensor


def scratch(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of any content, for use within one call.

    On a CPU pages of its own: pieces of 8 MiB from the heap are not found again by its next aligned request,
    and 32 calls left 256 MiB of holes.
    """
    if device.type != "cpu" or 0 in shape:
        return torch.empty(shape, dtype=dtype, device=device)
    pages = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, access=mmap.ACCESS_COPY)
    return torch.frombuffer(pages, dtype=dtype).view(shape)
