"""What callbacks and schedulers monitor, compared with what will be logged, when a fit starts."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from lightning_pce.integrations.lightning.trainer_internals import (
    logged_by_the_sanity_check,
    monitors,
    saves_an_earlier_epoch,
    saves_unvalidated,
)
from lightning_pce.integrations.settings import KNOWN_STATISTICS
from lightning_pce.integrations.stages import StageMetrics

_AT_MOST = 24  # names in a message
# A percentile of one of our statistics, also with a typing error behind its first digit.
_PERCENTILE = re.compile(rf"(?:train|val|test)_(?:\w+_)?(?:{'|'.join(KNOWN_STATISTICS)})_(?:\w+_)?p\d.*")


def check_monitors(
    stages: StageMetrics,
    trainer: Any,
    *,
    train: Sequence[str],
    loaders: int | None,
    train_every_n_steps: int | None = None,
) -> None:
    """Warn of names that look like ours and are not logged, and of checkpoints that would bear old values.

    Lightning finds out when the first value is asked for, after an epoch, and the second never.

    Args:
        stages: what is measured.
        trainer: when training starts.
        train: the names that training may log.
        loaders: how many dataloaders of validation are told apart, None where nobody knows yet.
        train_every_n_steps: the steps of training between its values; None: they are of epochs.
    """
    if trainer.fast_dev_run:
        return
    val = _validation_names(stages, loaders)
    for who, name, callback in monitors(trainer):
        if name in val or name in train:
            message = _of_another_step(who, name, callback, trainer, name in val, train_every_n_steps)
        elif _looks_like_ours(name, stages) and name not in logged_by_the_sanity_check(trainer):
            # If it is not known how many dataloaders there are, one is named.
            logged = val if loaders is not None else stages.names("val", 1)
            message = _not_logged(who, name, [*logged, *train])
        else:
            continue
        if message is not None:
            _warn_on_all_ranks(message, trainer)


def _validation_names(stages: StageMetrics, loaders: int | None) -> list[str]:
    if loaders is not None:
        return stages.names("val", loaders) if loaders else []
    named = stages.settings.loader_names
    return [*stages.names("val", 1), *stages.names("val", 16 if named is None else max(len(named), 2))]


def _looks_like_ours(name: str, stages: StageMetrics) -> bool:
    """Whether a name is a percentile, or one that is logged with another stage or dataloader."""
    if _PERCENTILE.fullmatch(name):
        return True
    loaders = "|".join(stages.settings.loader_names or ())
    results = "|".join(stages.settings.results)
    return re.fullmatch(rf"(?:train|val|test)_(?:(?:dl\d+|{loaders})_)?(?:{results})", name) is not None


def _not_logged(who: str, name: str, logged: Sequence[str]) -> str:
    said = f"{who} monitors {name!r}, which is not logged in this fit, unless your module logs it itself. "
    if name.startswith("test_"):
        return said + "Results of the test stage are those of trainer.test()."
    if not logged:
        return said + "Percentile CE logs nothing here: there is no validation that it measures."
    close = get_close_matches(name, logged, n=_AT_MOST, cutoff=0)
    names = logged if len(logged) <= _AT_MOST else [each for each in logged if each in close]
    more = f" and {len(logged) - len(names)} more" if len(names) < len(logged) else ""
    return f"{said}Percentile CE logs {', '.join(names)}{more}."


def _of_another_step(
    who: str, name: str, callback: Any, trainer: Any, of_validation: bool, train_every_n_steps: int | None
) -> str | None:
    """What is wrong with when a ModelCheckpoint saves, None if nothing is."""
    if not any(base.__name__ == "ModelCheckpoint" for base in type(callback).__mro__):
        return None
    said = f"{who}(monitor={name!r}) may save a model under the value of an earlier one: "
    if of_validation:
        why = saves_unvalidated(callback, trainer)
        how = (
            "Use percentile_checkpoints(), or save right after each validation, with "
            "save_on_train_epoch_end=False and without every_n_train_steps and train_time_interval. To save "
            "at other steps validate at them, Trainer(val_check_interval=...)."
        )
        return None if why is None else f"{said}{why}. {how}"
    if train_every_n_steps is None:
        if not saves_an_earlier_epoch(callback, trainer):
            return None
        return (
            f"{said}this name is logged when an epoch of training ends. Save then, with "
            "save_on_train_epoch_end=True and without every_n_train_steps and train_time_interval."
        )
    every = callback._every_n_train_steps
    if not every or every % train_every_n_steps == 0:
        return None
    return (
        f"{said}this name is logged every {train_every_n_steps} steps. Let every_n_train_steps={every} be a "
        "multiple of it."
    )


def _warn_on_all_ranks(message: str, trainer: Any) -> None:
    """Show a warning on rank 0; where a filter makes errors of warnings, all ranks raise and none waits."""
    if trainer.is_global_zero:
        warnings.warn(message, stacklevel=2)
        return
    with warnings.catch_warnings():
        warnings.showwarning = lambda *_, **__: None
        warnings.warn(message, stacklevel=2)
