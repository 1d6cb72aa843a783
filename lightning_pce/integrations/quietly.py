"""What goes wrong beside a run, in a history or a figure, is said once and does not end it."""

from __future__ import annotations

import logging
import warnings


def said(error: Exception) -> str:
    """An error in words."""
    return f"{type(error).__name__}: {error}"


def warn(message: str, of: str) -> None:
    """Warn, or write to the log of a module where a filter makes errors of warnings.

    That error would be in one process alone, and the others would wait for it.
    """
    try:
        warnings.warn(message, stacklevel=4)
    except Warning:
        logging.getLogger(of).warning(message)
