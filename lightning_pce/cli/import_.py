"""The subcommand ``import``: not written yet."""

from __future__ import annotations

from lightning_pce._errors import UserError


def import_() -> None:
    """Not written yet."""
    raise UserError("import is not written yet.")
