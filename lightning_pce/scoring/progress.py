"""How far the scoring is, on stderr."""

from __future__ import annotations

import sys
import threading
import time
from typing import TextIO

_OFTEN, _SELDOM = 0.5, 60.0  # seconds between two lines, on a terminal and elsewhere
_WIDTH = 30


class Progress:
    """A bar with tokens a second and time left on a terminal, elsewhere a line a minute.

    Args:
        what: is scored.
        total: tokens that this process is to score.
        processes: how many score as many.
        stream: where to write; None: stderr.
    """

    def __init__(self, what: str, total: int, processes: int = 1, stream: TextIO | None = None) -> None:
        self.what, self.total, self.processes = what, total, processes
        self.stream = sys.stderr if stream is None else stream
        self.terminal = self.stream.isatty()
        self.done = 0
        self._lock = threading.Lock()  # streams of work share it
        self._begin = self._last = time.monotonic()
        self._shown = False

    def add(self, tokens: int) -> None:
        """So many more are scored."""
        with self._lock:
            self.done += tokens
            now = time.monotonic()
            if now - self._last >= (_OFTEN if self.terminal else _SELDOM):
                self._last = now
                self._write(now)

    def end(self) -> None:
        """Leave the line to others."""
        with self._lock:
            if self.terminal and self._shown:
                self.stream.write("\r\x1b[K")
                self.stream.flush()

    def _write(self, now: float) -> None:
        share = min(1.0, self.done / max(1, self.total))
        passed = max(now - self._begin, 1e-9)
        left = passed * (1 - share) / max(share, 1e-9)
        speed = self.done * self.processes / passed
        text = f"{share:4.0%}  {speed:,.0f} tokens/s  {_duration(left)} left  {self.what}"
        if self.terminal:
            bar = "#" * round(_WIDTH * share)
            self.stream.write(f"\r\x1b[K[{bar:.<{_WIDTH}}] {text}"[:160])
        else:
            self.stream.write(text + "\n")
        self.stream.flush()
        self._shown = True


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
