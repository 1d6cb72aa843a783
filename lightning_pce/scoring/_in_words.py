"""Errors of others and long lists, short enough for one line."""

from __future__ import annotations

from collections.abc import Iterable


def one_line(error: BaseException, length: int = 300) -> str:
    """An error with its class, whatever lines it has."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:length]


def first_five(names: Iterable[object]) -> str:
    """The first five names, and dots if there are more."""
    listed = [str(name) for name in names]
    return f"{', '.join(listed[:5])}{' ...' if len(listed) > 5 else ''}" or "nothing"
