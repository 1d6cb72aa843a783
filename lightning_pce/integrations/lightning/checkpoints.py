"""One ModelCheckpoint for each percentile of the validation loss, and one for the mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_pce._names import checked_names, checked_percentiles, percentile_key

__all__ = ["Checkpoints", "percentile_checkpoints"]

# Arguments with which ModelCheckpoint saves a model that was not validated, and when it does.
_UNVALIDATED = {
    "every_n_train_steps": "before the validation of that step",
    "train_time_interval": "between validations",
    "save_on_exception": "what no validation has seen",
}


class Checkpoints(list[Any]):
    """What :func:`percentile_checkpoints` returns.

    ModelCheckpoints in a list that ``Trainer(callbacks=...)`` takes by its type, too.
    """

    # A list[ModelCheckpoint] is no list[Callback], which a Trainer wants, because it puts others into it.
    if TYPE_CHECKING:

        def __iter__(self) -> Iterator[ModelCheckpoint]: ...

        @overload
        def __getitem__(self, index: SupportsIndex, /) -> ModelCheckpoint: ...
        @overload
        def __getitem__(self, index: slice, /) -> Checkpoints: ...
        def __getitem__(self, index: SupportsIndex | slice, /) -> ModelCheckpoint | Checkpoints: ...


class ValidatedCheckpoint(ModelCheckpoint):
    """Saves nothing at the end of an epoch if the last validation was of an earlier step."""

    saves_validated_models_only = True
    _validated_step: int | None = None

    @property
    def state_key(self) -> str:
        return super().state_key.replace(type(self).__qualname__, "ModelCheckpoint", 1)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._validated_step = trainer.global_step
        super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._validated_step == trainer.global_step:
            super().on_train_epoch_end(trainer, pl_module)


def percentile_checkpoints(
    dirpath: str | Path,
    percentiles: Sequence[float] = (50, 95),
    mean: bool = True,
    *,
    prefix: str = "val",
    save_top_k: int = 1,
    **arguments: Any,
) -> Checkpoints:
    """Callbacks that keep the best checkpoint of each percentile, and of the mean, side by side.

    Each has a state of its own in a checkpoint and file names of its own, such as
    ``best-val_ce_p50=1.2345-epoch=3-step=400.ckpt``, so that all may share a folder. A NaN or an infinite
    value is never better than another; if it comes first it is kept until a finite one comes. Give a Trainer
    ``[*callbacks]``: it puts others into the list that it is given.

    A file bears the value of the model that is in it: models are saved right after their validation, or at
    the end of an epoch if nothing was trained since. To save at other steps, validate at them:
    ``Trainer(val_check_interval=...)``.

    They are ``ModelCheckpoint`` of ``lightning.pytorch``. A Trainer of ``pytorch_lightning`` 2.6 runs them as
    callbacks but does not know them as checkpoints: they are not in its ``checkpoint_callbacks``, and it adds
    one of its own. One of 2.5.0 refuses them with a ``TypeError``.

    Args:
        dirpath: the folder of the files.
        percentiles: which, each in [0, 100]; they must be among those that are logged.
        mean: whether to keep the best mean, too.
        prefix: what stands before ``_ce_`` in the logged names: ``"val"``, or ``"val_web"`` for the
            dataloader ``web`` and ``"val_dl0"`` for one without a name. ``"train"`` saves at the end of
            epochs of training, or by ``every_n_train_steps``.
        save_top_k: how many each keeps, -1: all.
        arguments: any other of ``ModelCheckpoint``, the same for all; but ``monitor``, ``mode`` and
            ``filename`` are set here, and those that save models without a validation are refused.
            ``save_last=True`` gives each a file of its own, ``last.ckpt``, ``last-v1.ckpt`` ..., a copy of
            what that one saved last and not of the end of the run.

    Returns:
        The percentiles' in the order given, then the mean's; each with ``mode="min"``.

    Raises:
        ValueError: if a percentile is outside [0, 100] or given twice, if there is nothing to keep, if
            ``prefix`` cannot be part of a logged name, or for ``every_n_train_steps`` (of validations),
            ``train_time_interval`` and ``save_on_exception``, whose files would bear the value of an earlier
            model.

    Example:
        >>> callbacks = percentile_checkpoints("checkpoints", percentiles=(50, 99.9))
        >>> [callback.monitor for callback in callbacks]
        ['val_ce_p50', 'val_ce_p99_9', 'val_ce_mean']
        >>> callbacks[1].filename
        'best-{val_ce_p99_9:.4f}-{epoch}-{step}'
    """
    checked_names("prefix", (prefix,))
    keys = [percentile_key(percentile) for percentile in checked_percentiles(percentiles)]
    if not keys and not mean:
        raise ValueError("Expected argument `percentiles` to hold one or several if `mean` is False.")
    of_training = prefix == "train"
    _check_when(arguments, of_training)
    if of_training:  # else after validations inside epochs, with the value of the epoch before
        arguments = {"save_on_train_epoch_end": True, **arguments}
    names = [f"{prefix}_ce_{key}" for key in (*keys, *(["mean"] if mean else []))]
    return Checkpoints(
        (ModelCheckpoint if of_training else ValidatedCheckpoint)(
            dirpath,
            # With its name: several may be best at the same step.
            f"best-{{{name}:.4f}}-{{epoch}}-{{step}}",
            monitor=name,
            mode="min",
            save_top_k=save_top_k,
            **arguments,
        )
        for name in names
    )


def _check_when(arguments: dict[str, Any], of_training: bool) -> None:
    for name, when in _UNVALIDATED.items():
        allowed = of_training and name == "every_n_train_steps"  # of the callback's train_every_n_steps
        given = arguments.get(name)
        if given is not None and given is not False and given != 0 and not allowed:
            raise ValueError(
                f"Expected argument `{name}` to be left out but got {given!r}: it saves {when}, and the file "
                "would bear the value of an earlier model. Each validation is followed by a save as it is; "
                "to save at other steps validate at them, Trainer(val_check_interval=...), or keep models "
                f"without a value: ModelCheckpoint({name}=...) without `monitor`."
            )
