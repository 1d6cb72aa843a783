"""Figures of the distribution of CE, drawn at each validation for whatever loggers a Trainer has."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from lightning.pytorch import Callback
from torch import Tensor

from lightning_pce import digest as td
from lightning_pce.integrations.stages import StageMetrics
from lightning_pce.reports.plot import fan_chart, new_axes, quantile_curve

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# In every fan chart, whatever percentiles are logged: those may be the median alone.
_BANDS = (5.0, 25.0, 50.0, 75.0, 95.0)
_DPI = 130
_WITHOUT_MATPLOTLIB = (
    " Install it with pip install 'lightning-pce[plot]', or do without: leave PercentileFigures out, give "
    "PercentileCECallback figures=False."
)

# One validation: the mean, and values by percentile.
_Summary = tuple[float, dict[float, float]]
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
        # Of each dataloader, by what its names begin with, and by step.
        self._history: dict[str, dict[int, _Summary]] = {}
        self._left_alone: list[Any] = []
        self._given_up = False  # drawing
        self._said_unmeasured = False
        self._damaged = False  # the history of a checkpoint

    @property
    def state_key(self) -> str:
        return "lightning_pce.PercentileFigures"

    def state_dict(self) -> dict[str, Any]:
        """Numbers in plain containers: checkpoints may be read with ``weights_only=True``."""
        return {"history": {prefix: dict(summaries) for prefix, summaries in self._history.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what :meth:`state_dict` gave. A damaged history is left out, with a warning."""
        history = _checked_history(state_dict)
        self._damaged = history is None
        self._history = history or {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._damaged and trainer.is_global_zero:
            _warn(
                "PercentileFigures begins its fan charts anew: the numbers of earlier validations in the "
                "checkpoint are damaged."
            )
        self._damaged = False
        self._forget_from(trainer.global_step + 1)  # of another run, if there is something

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
                _warn(f"PercentileFigures has nothing to draw: {_said(error)}")
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
                f"PercentileFigures draws no figures from here on: {_said(error).rstrip('.')}."
                + (_WITHOUT_MATPLOTLIB if missing else "")
            )
            return
        for logger in loggers:
            self._send(logger, figures, trainer.global_step)

    def _measured(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, _Curves]:
        """The digests of each dataloader by what its names begin with; their numbers enter the history."""
        stages = _stages_of(pl_module)
        measured = {
            f"val_{loader}" if loader else "val": digests for loader, digests in stages.digests("val").items()
        }
        if _step_is_known(trainer):
            self._forget_from(trainer.global_step)
            for prefix, digests in measured.items():
                summary = _summary(digests[""], stages.settings.percentiles)
                self._history.setdefault(prefix, {})[trainer.global_step] = summary
        return measured

    def _drawn(self, trainer: Trainer, measured: dict[str, _Curves]) -> dict[str, Figure]:
        """The figures of this validation by name."""
        known, figures = _step_is_known(trainer), {}
        for prefix, digests in measured.items():
            summaries = self._history.get(prefix, {})
            title = f"{prefix}, step {trainer.global_step}" if known else prefix
            figures[f"{prefix}_ce_quantiles"] = _titled(_curves(digests), title)
            if known and len(summaries) > 1:
                figures[f"{prefix}_ce_fan"] = _titled(_fan(summaries), title)
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
                f"{_said(error)}"
            )

    def _forget_from(self, step: int) -> None:
        for prefix, summaries in self._history.items():
            self._history[prefix] = {at: summary for at, summary in summaries.items() if at < step}


def _step_is_known(trainer: Trainer) -> bool:
    """A checkpoint that is validated by itself is of an unknown step."""
    return trainer.state.fn == "fit" or trainer.ckpt_path is None


def _stages_of(module: torch.nn.Module) -> StageMetrics:
    for part in module.modules():
        if isinstance(part, StageMetrics) and part.dataloaders("val"):
            return part
    raise LookupError(
        f"{type(module).__name__} measures no percentile CE in validation. Give it PercentileCEMixin as a "
        "base class, or the Trainer a PercentileCECallback."
    )


def _checked_history(state_dict: Any) -> dict[str, dict[int, _Summary]] | None:
    """The history in a callback's state, None if anything in it is not as ``state_dict`` gives it."""
    try:
        return {
            _checked(prefix, str): {
                _checked(step, int): (
                    float(_checked(mean, int, float)),
                    {
                        float(_checked(p, int, float)): float(_checked(value, int, float))
                        for p, value in values.items()
                    },
                )
                for step, (mean, values) in summaries.items()
            }
            for prefix, summaries in state_dict.get("history", {}).items()
        }
    except (AttributeError, TypeError, ValueError, OverflowError):
        return None


def _checked(value: Any, *types: type) -> Any:
    if not isinstance(value, types) or isinstance(value, bool):
        raise TypeError
    return value


def _summary(digest: Tensor, logged: Sequence[float]) -> _Summary:
    digest = digest.cpu()
    percentiles = sorted({*_BANDS, *logged})
    values = td.quantile(digest, torch.tensor(percentiles, dtype=torch.float64) / 100)
    return float(td.mean(digest)), dict(zip(percentiles, values.tolist(), strict=True))


def _curves(digests: _Curves) -> Axes:
    groups = {group: digest for group, digest in digests.items() if group}
    return quantile_curve({"all tokens": digests[""], **groups}, ax=new_axes(dpi=_DPI))


def _fan(summaries: dict[int, _Summary]) -> Axes:
    """Of the percentiles of the last validation; others may have been chosen before a resume."""
    means = [mean for mean, _ in summaries.values()]
    _, last = summaries[max(summaries)]
    series = {p: [values.get(p, math.nan) for _, values in summaries.values()] for p in last}
    ax = fan_chart(list(summaries), series, means, ax=new_axes(dpi=_DPI))
    ax.locator_params(axis="x", integer=True)
    ax.set_xlabel("global step")
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


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _warn(message: str) -> None:
    try:
        warnings.warn(message, stacklevel=3)
    except Warning:  # a filter makes errors of them: on rank 0 alone, and the others would wait
        logging.getLogger(__name__).warning(message)
