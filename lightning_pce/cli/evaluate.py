"""The subcommand ``evaluate``: not written yet."""

from __future__ import annotations

from lightning_pce._errors import UserError


def evaluate() -> None:
    """Not written yet."""
    raise UserError("evaluate is not written yet.")
