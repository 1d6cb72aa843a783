"""transformers, peft and the hub say nothing while we load: what they would warn of we look for ourselves."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

_LOUD = ("transformers", "huggingface_hub", "peft", "accelerate")


@contextmanager
def quiet_loading() -> Iterator[None]:
    """No bars, warnings or log lines inside; everything is as before afterwards.

    Bars are silenced by taking stderr away: those of GGUF files ask no setting of transformers.
    """
    import transformers  # noqa: F401  before stderr is away: its log handler keeps the one that it finds

    loggers = [logging.getLogger(name) for name in _LOUD]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
