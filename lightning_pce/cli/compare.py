"""``lightning-pce compare``: which record, how sure, and what lies between them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lightning_pce._errors import UserError


def compare(
    records: Annotated[
        list[Path], typer.Argument(metavar="RECORDS", help="Files of records, as evaluate writes them.")
    ],
) -> None:
    """Compare records with error bars: what each statistic picks, and whether mean and bulk agree."""
    raise UserError("compare is not written yet.")
