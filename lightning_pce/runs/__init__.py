"""What is known after validations: their history, and what follows from it.

``History.load(path)`` reads what :class:`lightning_pce.PercentileHistory` has written; :func:`verdict` says
which checkpoint to keep, and :func:`table`, :func:`ties`, :func:`shortlist` and :func:`reshaping` say why.
:func:`fit_power_law` says where a series is going, :func:`forecast` where a number of a history is. The
module ``runs.capability`` reads a model's first look at its training data; ``runs.ranking`` ranks models
and corpora by proxies of expert solutions.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lightning_pce.runs.history import History, Record

if TYPE_CHECKING:
    from lightning_pce.runs import capability as capability
    from lightning_pce.runs.concordance import reshaping, saturated, shortlist, table, ties, verdict
    from lightning_pce.runs.forecasting import Forecast, fit_power_law
    from lightning_pce.runs.series import forecast

__all__ = [
    "Forecast",
    "History",
    "Record",
    "fit_power_law",
    "forecast",
    "reshaping",
    "saturated",
    "shortlist",
    "table",
    "ties",
    "verdict",
]
_FORECASTING = ("Forecast", "fit_power_law")


def __getattr__(name: str) -> Any:
    # When they are asked for: a history is looked through without torch, which takes seconds to import.
    if name == "capability":  # a module: a function of that name here would hide it, or be hidden by it
        return import_module("lightning_pce.runs.capability")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "forecast":
        from lightning_pce.runs.series import forecast

        return forecast
    if name in _FORECASTING:
        from lightning_pce.runs import forecasting

        return getattr(forecasting, name)
    from lightning_pce.runs import concordance

    return getattr(concordance, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
