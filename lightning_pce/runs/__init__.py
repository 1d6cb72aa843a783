"""What is known after validations: their history, and what follows from it.

``History.load(path)`` reads what :class:`lightning_pce.PercentileHistory` has written; :func:`verdict` says
which checkpoint to keep, and :func:`table`, :func:`ties`, :func:`shortlist` and :func:`reshaping` say why.
"""

from lightning_pce.runs.concordance import reshaping, saturated, shortlist, table, ties, verdict
from lightning_pce.runs.history import History, Record

__all__ = ["History", "Record", "reshaping", "saturated", "shortlist", "table", "ties", "verdict"]
