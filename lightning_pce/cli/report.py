"""The subcommand ``report``: not written yet."""

from __future__ import annotations

from lightning_pce._errors import UserError


def report() -> None:
    """Not written yet."""
    raise UserError("report is not written yet.")
