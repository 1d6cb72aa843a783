"""Figures of the distribution of CE, drawn at each validation for whatever loggers a Trainer has."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from lightning.pytorch import Callback
from torch import Tensor

from lightning_pce._names import percentile_key
from lightning_pce.integrations.lightning.figures_state import percentiles_of, records_of, state_of
from lightning_pce.integrations.lightning.history_writer import PercentileHistory
from lightning_pce.integrations.lightning.observers import validated_stages_of
from lightning_pce.integrations.lightning.trainer_internals import (
    callbacks_of,
    evaluated_checkpoint,
    trained_batches,
)
from lightning_pce.integrations.measured import measured
from lightning_pce.integrations.quietly import said, warn
from lightning_pce.reports.plot import fan_chart, new_axes, quantile_curve
from lightning_pce.runs._records import Record, Records

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["PercentileFigures"]

# In every fan chart, whatever percentiles are logged: those may be the median alone.
_BANDS = (5.0, 25.0, 50.0, 75.0, 95.0)
_DPI = 130
_WITHOUT_MATPLOTLIB = (
    " Install it with pip install 'lightning-pce[plot]', or do without: leave PercentileFigures out, give "
    "PercentileCECallback figures=False."
)

# Digests by the name of the group, "" of all tokens.
_Curves = dict[str, Tensor]


class PercentileFigures(Callback):
    """Draws the distribution of per-token CE at the end of each validation, for the loggers of the Trainer.

    TensorBoard, Weights & Biases, MLflow and Comet get, at ``trainer.global_step``,

    * ``val_ce_quantiles``: the quantile curve of this validation, of all tokens and of each group;
    * ``val_ce_fan``: percentile bands and the mean over all validations, from the second on.

    With several dataloaders each has its own, ``val_dl0_ce_fan`` or ``val_web_ce_fan``. Without any of these
    loggers nothing is drawn. What is drawn comes from :class:`lightning_pce.PercentileCEMixin`
    (:class:`lightning_pce.PercentileCECallback` draws by itself); the numbers of the fan chart are kept in
    checkpoints, so that it goes on after a resume. Needs matplotlib (extra ``plot``).

    A figure is not worth a run: what goes wrong becomes one warning (a line in the log where a filter turns
    warnings into errors), and drawing is not tried again. The numbers are kept also where nothing is drawn.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(accelerator="cpu", logger=False, callbacks=[PercentileFigures()])
    """

    def __init__(self) -> None:
        self._records = Records()  # without digests
        self._left_alone: list[Any] = []
        self._given_up = False  # drawing
        self._said_unmeasured = False
        self._damaged = False  # the history of a checkpoint

    @property
    def state_key(self) -> str:
        return "lightning_pce.PercentileFigures"

    def state_dict(self) -> dict[str, Any]:
        """Numbers in plain containers: checkpoints may be read with ``weights_only=True``."""
        return state_of(self._records.all())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what :meth:`state_dict` gave. A damaged history is left out, with a warning."""
        records = records_of(state_dict)
        self._damaged = records is None
        self._keep(records or [])

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        evaluated_checkpoint(trainer)  # which stays loaded after a test, too

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._damaged and trainer.is_global_zero:
            _warn(
                "PercentileFigures begins its fan charts anew: the numbers of earlier validations in the "
                "checkpoint are damaged."
            )
        self._damaged = False
        for callback in callbacks_of(trainer):
            if isinstance(callback, PercentileHistory) and trainer.is_global_zero:
                self.take(callback)
        # Of another run, if there is something.
        self._records.start("", trainer.global_step, trained_batches(trainer))

    def take(self, callback: PercentileHistory) -> None:
        """Go on with the records that were written of this run, if there are some."""
        try:
            history = callback.history
        except (OSError, ValueError):
            return  # writing will say so
        if len(history):
            known = (record for record in history if record.step is not None)
            alike: dict[str, Any] = {
                "run": "",
                "function": "",
                "fingerprint": None,
                "payload": None,
                "saved": (),
            }
            self._keep(replace(record, **alike) for record in known)

    def _keep(self, records: Iterable[Record]) -> None:
        self._records = Records()
        for record in records:
            self._records.add(record)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # By now all ranks have merged their digests. From here on rank 0 is alone: no collective.
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        try:
            measured = self._measured(trainer, pl_module)
        except Exception as error:
            # Perhaps of this module alone: the next validation is tried again.
            if not self._said_unmeasured:
                self._said_unmeasured = True
                _warn(f"PercentileFigures has nothing to draw: {said(error)}")
            return
        loggers = [
            logger
            for logger in trainer.loggers
            if _sender(logger) is not None and not any(logger is other for other in self._left_alone)
        ]
        if self._given_up or not loggers:
            return
        try:
            figures = self._drawn(trainer, measured)
        except Exception as error:
            self._given_up = True
            missing = isinstance(error, ModuleNotFoundError) and str(error.name).startswith("matplotlib")
            _warn(
                f"PercentileFigures draws no figures from here on: {said(error).rstrip('.')}."
                + (_WITHOUT_MATPLOTLIB if missing else "")
            )
            return
        for logger in loggers:
            self._send(logger, figures, trainer.global_step)

    def _measured(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, _Curves]:
        """The digests of each dataloader by what its names begin with; their numbers are kept."""
        stages = validated_stages_of(pl_module)
        found = measured(stages, "val", "val")
        if stages.dataloaders("val") > 1:
            found.pop("val", None)  # all together
        if evaluated_checkpoint(trainer) is None:
            step, batch = trainer.global_step, trained_batches(trainer)
            self._records.start("", step, batch)
            for name, part in found.items():
                values = {key: part.values[key] for key in _drawn_keys(stages.settings.percentiles)}
                self._records.add(Record("", "", name, step=step, batch=batch, values=values))
        return {name: part.digests["ce"] for name, part in found.items()}

    def _drawn(self, trainer: Trainer, curves: dict[str, _Curves]) -> dict[str, Figure]:
        """The figures of this validation by name."""
        known, figures = evaluated_checkpoint(trainer) is None, {}
        for name, digests in curves.items():
            records = [record for record in self._records.all() if record.name == name]
            title = f"{name}, step {trainer.global_step}" if known else name
            figures[f"{name}_ce_quantiles"] = _titled(_curves(digests), title)
            if known and len(records) > 1:
                figures[f"{name}_ce_fan"] = _titled(_fan(records), title)
        return figures

    def _send(self, logger: Any, figures: dict[str, Figure], step: int) -> None:
        send = _sender(logger)
        assert send is not None
        try:
            for name, figure in figures.items():
                send(logger, name, figure, step)
        except Exception as error:
            self._left_alone.append(logger)
            _warn(
                f"{type(logger).__name__} could not take a figure, PercentileFigures sends it no more: "
                f"{said(error)}"
            )


def _drawn_keys(logged: Sequence[float]) -> list[str]:
    """The values of a record that fan charts show."""
    return ["ce_mean", *(f"ce_{percentile_key(p)}" for p in sorted({*_BANDS, *logged}))]


def _curves(digests: _Curves) -> Axes:
    groups = {group: digest for group, digest in digests.items() if group}
    return quantile_curve({"all tokens": digests[""], **groups}, ax=new_axes(dpi=_DPI))


def _fan(records: Sequence[Record]) -> Axes:
    """Of the percentiles of the last validation; others may have been chosen before a resume."""
    series = {
        percentile: [percentiles_of(record).get(percentile, math.nan) for record in records]
        for percentile in sorted(percentiles_of(records[-1]))
    }
    steps, unit = [record.step or 0 for record in records], "global step"
    batches = [record.batch for record in records]
    if len(set(steps)) < len(steps) and None not in batches:  # gradients are accumulated
        steps, unit = [batch or 0 for batch in batches], "batches of training"
    means = [record.values["ce_mean"] for record in records]
    ax = fan_chart(steps, series, means, ax=new_axes(dpi=_DPI))
    ax.locator_params(axis="x", integer=True)
    ax.set_xlabel(unit)
    return ax


def _titled(ax: Axes, title: str) -> Figure:
    ax.set_title(title, loc="left", parse_math=False)  # a name may hold dollars
    return cast("Figure", ax.figure)  # not get_figure(root=True), which came with matplotlib 3.10


def _to_tensorboard(logger: Any, name: str, figure: Figure, step: int) -> None:
    # Not add_figure, which imports pyplot and with it a backend for windows.
    logger.experiment.add_image(name, _pixels(figure), global_step=step, dataformats="HWC")


def _to_wandb(logger: Any, name: str, figure: Figure, step: int) -> None:
    logger.log_image(name, [_pixels(figure)], step=step)


def _to_mlflow(logger: Any, name: str, figure: Figure, step: int) -> None:
    logger.experiment.log_figure(logger.run_id, figure, f"{name}/{step:09d}.png")


def _to_comet(logger: Any, name: str, figure: Figure, step: int) -> None:
    logger.experiment.log_figure(figure_name=name, figure=figure, step=step)


_SENDERS: dict[str, Callable[[Any, str, Figure, int], None]] = {
    "TensorBoardLogger": _to_tensorboard,
    "WandbLogger": _to_wandb,
    "MLFlowLogger": _to_mlflow,
    "CometLogger": _to_comet,
}


def _sender(logger: Any) -> Callable[[Any, str, Figure, int], None] | None:
    """How figures go to a logger, None if they do not."""
    # By the names of its classes: lightning.pytorch and pytorch_lightning each have a class of that name, and
    # hasattr says nothing, because the dummy logger of fast_dev_run answers to every name.
    names = (base.__name__ for base in type(logger).__mro__)
    return next((_SENDERS[name] for name in names if name in _SENDERS), None)


def _pixels(figure: Figure) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """``[height, width, 3]``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)  # which has no types of its own
    canvas.draw()
    return np.array(canvas.buffer_rgba(), dtype=np.uint8)[..., :3]


def _warn(message: str) -> None:
    warn(message, __name__)
