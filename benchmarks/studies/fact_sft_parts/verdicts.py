"""What came out, in words written after the results; each is asserted on them in a test."""

from __future__ import annotations

from typing import Any

PAPERS = ""


def verdicts(found: dict[str, Any]) -> str:
    """Sentences on the full results."""
    return ""
