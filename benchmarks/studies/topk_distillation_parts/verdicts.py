"""What came out, in words written after the results; a test asserts each of them on the results."""

from __future__ import annotations

from typing import Any


def verdicts(found: dict[str, Any]) -> str:
    """Sentences on the full results."""
    return ""


def beside_the_paper(found: dict[str, Any]) -> str:
    """What the paper says, as far as we could read it, and what is the same here."""
    return ""
