"""Which checkpoints a Trainer has saved since somebody last looked, of which it tells nobody."""

from __future__ import annotations

import os
from typing import Any

from lightning_pce.integrations.lightning.trainer_internals import saved_models


class SavedCheckpoints:
    """The files that the ModelCheckpoints of a Trainer keep, looked at in every hook."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str | None, Any]] | None = None  # training has not begun
        self._modified: dict[str, int | None] = {}

    def begin(self, trainer: Any) -> None:
        """What there is by now is not new."""
        self._known = saved_models(trainer)
        self._modified = {path: _time_of(path) for path in self._known}

    def known(self) -> dict[str, str | None]:
        """The paths that are known, and by what each was chosen."""
        return {path: monitor for path, (monitor, _) in (self._known or {}).items()}

    def new(self, trainer: Any) -> dict[str, str | None]:
        """The paths that were written since the last look, and by what each was chosen."""
        known, found = self._known, {}
        if known is None:
            return {}
        self._known = saved_models(trainer)
        for path, (monitor, value) in self._known.items():
            if path in known and known[path][1] is value:
                continue
            # Some versions of Lightning change the value where last.ckpt alone was saved.
            modified = _time_of(path)
            if path not in known or modified is None or modified != self._modified.get(path):
                found[path] = monitor
            self._modified[path] = modified
        return found


def _time_of(path: str) -> int | None:
    """When a file or a folder was written, None if nobody knows."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return None
