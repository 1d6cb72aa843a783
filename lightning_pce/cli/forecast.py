"""``lightning-pce forecast``: where a metric of a training goes on to, or why nobody can say."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lightning_pce._errors import UserError

if TYPE_CHECKING:
    from lightning_pce.runs._known_statistics import Bounds

REFUSED = 3


def forecast(
    run: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="The history of a training, or records of its checkpoints."),
    ],
    metric: Annotated[
        str,
        typer.Option(
            "--metric", metavar="NAME", help="As it was logged: val_ce_p50, val_accuracy, ce_web_p95."
        ),
    ],
    at: Annotated[
        list[float] | None,
        typer.Option(
            "--at",
            metavar="STEP",
            help="What to predict; may be given several times. Default: 2 and 4 times the last step.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Only the records of this data, of several in the files.")
    ] = None,
    training: Annotated[
        str | None, typer.Option("--run", metavar="ID", help="Only this training, of several in the files.")
    ] = None,
    level: Annotated[
        float, typer.Option("--level", help="The probability that an interval holds what will be measured.")
    ] = 0.9,
    bounds: Annotated[
        str | None,
        typer.Option(
            "--bounds",
            metavar="LOW,HIGH",
            help="Of the limit: 0,1 or 0, or none. Default: what is known of the metric.",
        ),
    ] = None,
    no_errors: Annotated[
        bool,
        typer.Option(
            "--no-errors", help="Do not use the error bars of the records, as docs/forecasting.md has it."
        ),
    ] = False,
    gain: Annotated[
        float | None,
        typer.Option("--gain", help="Also print the chance that the metric gains less than this until then."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Print the numbers of a refused forecast too.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON; docs/forecasting.md has its keys.")
    ] = False,
) -> None:
    """Forecast a metric of one training by a power law, with intervals, or refuse to.

    Exit status 0: there is a forecast, or --force has printed one. 3: the metric does not say where it goes
    on to, and the reason is printed. 2: there is no such metric, or the files cannot be read.
    """
    steps, limits = _checked_steps(at or []), None if bounds is None else _bounds(bounds)
    from lightning_pce.cli._failures import printable
    from lightning_pce.cli._records import load
    from lightning_pce.runs._forecast_words import ahead_of, plain_of, text_of
    from lightning_pce.runs.forecasting import fit_power_law
    from lightning_pce.runs.series import series

    history = load(run, name)
    found = series(history, metric, run=training, bounds="known" if bounds is None else limits)
    if history.torn:
        torn = f"{history.torn} torn line{'s' * (history.torn > 1)} skipped: a writer was killed."
        found = found._replace(notes=(*found.notes, torn))
    if no_errors:
        found = found._replace(errors=None)
    fitted = fit_power_law(found.steps, found.values, found.errors, found.bounds, found.rising, level)
    if fitted.refused is not None and fitted.errors is not None and fitted.rising is not None:
        found = found._replace(notes=(*found.notes, "The error bars are used: --no-errors leaves them out."))
    try:
        ahead = ahead_of(fitted, steps, gain, force=force)
    except UserError:
        if fitted.refused is None:
            raise
        ahead = []
    if as_json:
        print(json.dumps({"schema": 1, **plain_of(found, fitted, ahead)}, indent=1, allow_nan=False))
    else:
        print(printable(text_of(found, fitted, ahead)))
    if not ahead:
        raise typer.Exit(REFUSED)


def _checked_steps(steps: list[float]) -> list[float]:
    for step in steps:
        if not (math.isfinite(step) and step > 0):
            raise UserError(f"--at {step:g}: expected a step above 0.")
    return steps


def _bounds(text: str) -> Bounds | None:
    if text == "none":
        return None
    low, comma, high = text.partition(",")
    try:
        ends = tuple(float(end) if end.strip() else None for end in (low, high))
    except ValueError:
        ends = ()
    if not comma or len(ends) != 2 or any(end is not None and math.isnan(end) for end in ends):
        raise UserError(f"--bounds {text}: expected LOW,HIGH such as 0,1 or 0, (no upper one), or none.")
    return ends[0], ends[1]
