"""Do the statistics of a loss agree on a checkpoint, and if not, what has changed?

The face of these functions; each takes a :class:`~lightning_pce.runs.history.History` or a list of (name,
digest, documents or None). Definitions are ours: arXiv 2605.24667 speaks of concordance among percentiles
without a formula that we could read.
"""

from lightning_pce.runs._candidates import TOLERANCE
from lightning_pce.runs._reshaping import Areas, Reshaping, reshaping
from lightning_pce.runs._table import Row, Table, signal_to_noise, table
from lightning_pce.runs._ties import Ties, common_tie, saturated, shortlist, ties
from lightning_pce.runs._verdict import Verdict, verdict

__all__ = [
    "TOLERANCE",
    "Areas",
    "Reshaping",
    "Row",
    "Table",
    "Ties",
    "Verdict",
    "common_tie",
    "reshaping",
    "saturated",
    "shortlist",
    "signal_to_noise",
    "table",
    "ties",
    "verdict",
]
