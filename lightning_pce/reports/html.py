"""One page that people send each other: the verdict, the pictures, the tables and the tail in its text.

It is a single file that needs no network and no script. Beside it lies the comparison as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_pce._version import __version__
from lightning_pce.reports import _sections as sections
from lightning_pce.reports._files import check_packages, checked_target, write_both
from lightning_pce.reports._forecasts import Forecasted, forecasts_of, shown_of
from lightning_pce.reports._measured import measured
from lightning_pce.reports._pictures import Picture, pictures_of
from lightning_pce.reports._svg import palette
from lightning_pce.reports._tail import tails
from lightning_pce.reports._words import visible

if TYPE_CHECKING:
    import os

    from lightning_pce.runs._task import TaskLike
    from lightning_pce.runs.comparison import Comparison
    from lightning_pce.runs.history import History
    from lightning_pce.runs.task_values import TaskFile

__all__ = ["report"]

LARGEST = 500_000  # bytes: what goes through any mail


def report(
    history: History,
    path: str | os.PathLike[str],
    *,
    task: TaskLike | TaskFile | None = None,
    reference: str | int | None = None,
    higher_is_better: bool = True,
    text: bool = True,
) -> Path:
    """Write a page about the records of a history, and beside it, ``.json``, what ``compare --json`` prints.

    Of records that are one training the page and the JSON have forecasts too, or why there are none.

    Args:
        history: records of one data; see :func:`lightning_pce.runs.comparison.compare`.
        path: the page, ``report.html`` say; it replaces an older one, and its folder is made.
        task: as for :func:`lightning_pce.runs.comparison.compare`.
        reference: the record that others are compared with: its label, path or place; None: the first.
        higher_is_better: of the task metric.
        text: whether the page may show text of the data: the tail and the labels.

    Returns:
        The path of the page.

    Raises:
        UserError: if records cannot be compared, or the page cannot be written there.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from lightning_pce.digest import from_values
        >>> from lightning_pce.runs.history import History, write_validation
        >>> folder = tempfile.mkdtemp()
        >>> for step in (100, 200):
        ...     digests = {"ce": {"": from_values(torch.rand(500) * 300 / step)}}
        ...     write_validation(folder + "/history.jsonl", run="a", name="val", step=step, digests=digests)
        >>> page = report(History.load(folder + "/history.jsonl"), folder + "/report.html")
        >>> page.name, "error bars: step 200" in page.read_text(encoding="utf-8")
        ('report.html', True)
    """
    target, beside = checked_target(path, history)
    check_packages()
    from lightning_pce.runs.comparable import sections as sections_of
    from lightning_pce.runs.comparison import compare

    found = [
        compare(each, reference=reference, task=task, higher_is_better=higher_is_better)
        for each in sections_of(history) or [history]
    ]
    if not text:
        found = [replace(each, label_texts={}) for each in found]
    forecasts = [forecasts_of(each) for each in found]
    page = page_of(found, forecasts, torn=history.torn, text=text)
    plain = {
        "schema": 1,
        "agree": all(each.agree for each in found),
        "comparisons": [
            each.to_plain() | {"forecasts": [ahead.to_plain() for ahead in of_it]}
            for each, of_it in zip(found, forecasts, strict=True)
        ],
    }
    write_both({target: page, beside: json.dumps(plain, indent=1, allow_nan=False) + "\n"})
    return Path(path)


def page_of(
    comparisons: Sequence[Comparison],
    forecasts: Sequence[Sequence[Forecasted]],
    *,
    torn: int = 0,
    text: bool = True,
) -> str:
    """The page as HTML: one part for each data set, as many of them in full as 500 KB have room for."""
    notes = [f"{torn} torn line{'s' * (torn != 1)} skipped: a writer was killed."] if torn else []
    parts = [in_short_of(each) for each in comparisons]
    page = ""
    for place, each in enumerate(comparisons):
        parts[place] = in_full_of(each, forecasts[place], f"s{place}-", text=text)
        longer = _rendered(parts, notes)
        if len(longer.encode()) > LARGEST:  # of very many records: what the bands show is said in words too
            without = [shown._replace(picture=None) for shown in parts[place]["forecasts"]]
            parts[place] = parts[place] | {"forecasts": without}
            longer = _rendered(parts, notes)
        if place and len(longer.encode()) > LARGEST:
            break
        page = longer
    return page


def _rendered(parts: Sequence[Mapping[str, Any]], notes: Sequence[str]) -> str:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize(),
    )
    template = files("lightning_pce.reports").joinpath("page.html.jinja").read_text(encoding="utf-8")
    colors = palette(each.svg for part in parts for each in _pictures_in(part))
    version = f"lightning-pce {__version__}"
    return environment.from_string(template).render(parts=parts, colors=colors, notes=notes, version=version)


def _pictures_in(part: Mapping[str, Any]) -> list[Picture]:
    return [*part["pictures"], *(each.picture for each in part["forecasts"] if each.picture is not None)]


def in_short_of(comparison: Comparison) -> dict[str, Any]:
    """What the template shows of a data set for whose tables and pictures there is no room."""
    return {
        "headline": sections.headline(comparison),
        "about": sections.about(comparison),
        "sentences": sections.sentences(comparison),
        "pictures": [],
        "forecasts": [],
        "in_full": False,
    }


def in_full_of(
    comparison: Comparison, forecasts: Sequence[Forecasted], prefix: str, *, text: bool
) -> dict[str, Any]:
    """What the template shows of a data set."""
    return in_short_of(comparison) | {
        "pictures": pictures_of(comparison, prefix),
        "no_picture": "" if comparison.by == "tokens" else "There are none of records of other tokenizers.",
        "forecasts": shown_of(forecasts, prefix),
        "values": sections.values(comparison),
        "differences": sections.differences(comparison),
        "picks": sections.picks(comparison),
        "tails": tails(comparison) if text else [],
        "moved": sections.moved(comparison),
        "measured": measured(comparison),
        "notes": sections.notes(comparison),
        "in_full": True,
    }


def _finalize() -> Callable[[Any], Any]:
    """What every expression of the template goes through before it is escaped."""
    from markupsafe import Markup

    return lambda value: value if isinstance(value, Markup) else visible(str(value))
