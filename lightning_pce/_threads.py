"""One intra-op thread for a while, and work in several threads of one intra-op thread each.

A small operation that torch splits over its pool of threads waits for the slowest of them. Where other
processes keep the cores busy, such as the workers of a dataloader, one thread is often off its core and each
operation waits for the scheduler: many small parallel operations then take several times as long as the same
ones in one thread.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

_Piece = TypeVar("_Piece")
_P = ParamSpec("_P")
_R = TypeVar("_R")


class single_threaded:  # noqa: N801 - it is called like a function
    """Run torch's operations in the calling thread alone, then set the caller's thread count again.

    ``with single_threaded():`` for a block, ``@single_threaded()`` for a function. Setting the count and
    setting it back takes less than a microsecond. ``torch.set_num_threads`` also decides what threads that
    are started later begin with, so the caller's count is set again even if something raises.

    Example:
        >>> before = torch.get_num_threads()
        >>> with single_threaded():
        ...     torch.get_num_threads()
        1
        >>> torch.get_num_threads() == before
        True
    """

    # A generator with contextlib's decorator would take a microsecond more, a tenth of a small update.
    __slots__ = ("_number",)

    def __enter__(self) -> None:
        self._number = torch.get_num_threads()
        if self._number != 1:
            torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        if self._number != 1:
            torch.set_num_threads(self._number)

    def __call__(self, function: Callable[_P, _R]) -> Callable[_P, _R]:
        @wraps(function)
        def alone(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            with single_threaded():  # another for each call, which may be in another thread
                return function(*args, **kwargs)

        return alone


def in_streams(stream: Callable[[Iterator[_Piece]], None], pieces: Iterable[_Piece], streams: int) -> None:
    """Share pieces of work among new threads, and wait for them.

    The intra-op threads of the caller are shared out as well: with as many streams as threads each runs its
    operations single-threaded. One stream runs in the caller's thread, single-threaded too. Whether gradients
    are recorded and inference mode hold inside as in the caller; autocast and other modes that torch keeps
    for each thread do not.

    Args:
        stream: is called once in each thread with an iterator over the pieces that are left when it asks.
        pieces: what to work on; the order in which they are begun.
        streams: how many threads.

    Raises:
        BaseException: the first that was raised in any thread; the others end before their next piece.

    Example:
        >>> squares = [0] * 5
        >>> def square(numbers):
        ...     for number in numbers:
        ...         squares[number] = number**2
        >>> in_streams(square, range(5), 2)
        >>> squares
        [0, 1, 4, 9, 16]
    """
    left = deque(pieces)
    streams = min(streams, len(left))
    if streams > 1:
        _in_threads(stream, left, streams)
    elif left:
        with single_threaded():
            stream(_remaining(left))


def _in_threads(stream: Callable[[Iterator[_Piece]], None], left: deque[_Piece], streams: int) -> None:
    number = torch.get_num_threads()
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    ready, errors = threading.Semaphore(0), list[BaseException]()

    def run(share: int) -> None:
        torch.get_num_threads()  # a new thread takes the global count when it first asks, not when it starts
        torch.set_num_threads(share)
        ready.release()
        try:
            with torch.inference_mode(inference), torch.set_grad_enabled(grad):
                stream(_remaining(left))
        except BaseException as error:
            left.clear()
            errors.append(error)
        finally:
            torch.set_num_threads(number)  # for threads of others that start from now on

    started: list[threading.Thread] = []
    try:
        for index in range(streams):
            thread = threading.Thread(target=run, args=(max(1, (number + index) // streams),))
            try:
                thread.start()
            except RuntimeError:  # no more threads: a limit of the system, or the interpreter is ending
                break
            started.append(thread)
        for _ in started:
            ready.acquire()
        # Threads of others that start now begin with the caller's count: which is why it does no work itself.
        torch.set_num_threads(number)
        for thread in started:
            thread.join()
        if not started:
            with single_threaded():
                stream(_remaining(left))
    finally:
        left.clear()  # at an interrupt the threads end with the pieces that they have begun
        for thread in started:
            thread.join()
    if errors:
        try:
            raise errors[0]
        finally:
            errors.clear()  # else its traceback would keep alive whatever the streams held


def _remaining(left: deque[_Piece]) -> Iterator[_Piece]:
    """Pieces from the left end, each for one of the threads."""
    while True:
        try:
            piece = left.popleft()
        except IndexError:
            return
        yield piece
