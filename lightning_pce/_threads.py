"""One intra-op thread for a while.

A small operation that torch splits over its pool of threads waits for the slowest of them. Where other
processes keep the cores busy, such as the workers of a dataloader, one thread is often off its core and each
operation waits for the scheduler: many small parallel operations then take several times as long as the same
ones in one thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def single_threaded() -> Iterator[None]:
    """Run torch's operations in the calling thread alone, then set the caller's thread count again.

    Setting the count and setting it back takes less than a microsecond. ``torch.set_num_threads`` also
    decides what threads that are started later begin with, so the caller's count is set again even if
    something raises.

    Example:
        >>> before = torch.get_num_threads()
        >>> with single_threaded():
        ...     torch.get_num_threads()
        1
        >>> torch.get_num_threads() == before
        True
    """
    number = torch.get_num_threads()
    if number == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(number)
