"""Which checkpoint a resumed training of transformers' Trainer takes for the best one.

A run that took greater values for better has written the worst of its checkpoints into its state.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR


class LowestIsBest(TrainerCallback):
    """Mends the state of a resumed training whose best value is not the lowest of those it has logged.

    Args:
        name: of the value that the Trainer chooses by, as it is logged: ``"eval_ce_p50"``.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The state has been loaded, and nothing has been evaluated yet."""
        logged = {int(row["step"]): row[self.name] for row in state.log_history if self.name in row}
        logged = {step: value for step, value in logged.items() if math.isfinite(value)}
        if state.best_metric is None or state.best_metric <= min(logged.values(), default=math.inf):
            return
        # Of the first process: the others may not see its disk, and all must choose alike.
        [found] = broadcast_object_list([_lowest(logged, _folder(args, state))])
        if found is not None and found[1] >= state.best_metric:
            return
        wrong = f"{state.best_metric:g} at {state.best_model_checkpoint}"
        step, value, path = found or (None, None, None)
        state.best_global_step, state.best_metric, state.best_model_checkpoint = step, value, path
        if state.is_world_process_zero:
            right = "none of the lower ones is left" if found is None else f"it is {value:g} at {path}"
            warnings.warn(
                f"The training that is resumed took its worst {self.name} for its best, {wrong}: {right}.",
                stacklevel=2,
            )


def _folder(args: TrainingArguments, state: TrainerState) -> Path:
    best = state.best_model_checkpoint
    return Path(args.output_dir or "") if best is None else Path(best).parent


def _lowest(logged: dict[int, float], folder: Path) -> tuple[int, float, str] | None:
    """Step, value and path of the lowest value whose checkpoint is still there."""
    paths = {step: folder / f"{PREFIX_CHECKPOINT_DIR}-{step}" for step in logged}
    kept = [step for step, path in paths.items() if path.is_dir()]
    if not kept:
        return None
    step = min(kept, key=logged.__getitem__)
    return step, logged[step], str(paths[step])
