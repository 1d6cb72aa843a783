"""What is known after validations: their history, and what follows from it.

``History.load(path)`` reads what :class:`lightning_pce.PercentileHistory` has written; :func:`verdict` says
which checkpoint to keep, and :func:`table`, :func:`ties`, :func:`shortlist` and :func:`reshaping` say why.
"""

from typing import TYPE_CHECKING, Any

from lightning_pce.runs.history import History, Record

if TYPE_CHECKING:
    from lightning_pce.runs.concordance import reshaping, saturated, shortlist, table, ties, verdict

__all__ = ["History", "Record", "reshaping", "saturated", "shortlist", "table", "ties", "verdict"]


def __getattr__(name: str) -> Any:
    # When they are asked for: a history is looked through without torch, which takes seconds to import.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lightning_pce.runs import concordance

    return getattr(concordance, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
