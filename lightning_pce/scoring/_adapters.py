"""PEFT adapters: put onto their base, every weight of them and no other."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from lightning_pce._errors import UserError
from lightning_pce.scoring._in_words import first_five, one_line
from lightning_pce.scoring._model_files import adapter_weights
from lightning_pce.scoring._quiet import quiet_loading


def with_adapter(model: Any, folder: Path, name: str) -> Any:
    """The model with the adapter of a folder, not merged: in bfloat16 merging would round it away.

    Raises:
        UserError: if it does not fit, or not all of it. (peft warns of a missing weight and scores the base.)
    """
    from peft import PeftModel, get_peft_model_state_dict

    try:
        # First: it reads no pickle that could run code, whatever peft does.
        saved = _names(adapter_weights(folder, name))
        with quiet_loading():
            adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=False)
    # Of peft, torch and safetensors, for what a stranger's file holds.
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{name}: does not fit the base (is it the model it was trained from?): {one_line(error)}"
        ) from error
    with quiet_loading():
        # Whole embeddings may be saved beside the changes or not, by what is looked up on the hub.
        least, most = (
            set(get_peft_model_state_dict(adapted, save_embedding_layers=embeddings))
            for embeddings in (False, True)
        )
    differing = sorted((least - saved) | (saved - most))
    if differing:
        raise UserError(
            f"{name}: {len(differing)} weights are in the adapter's file or in its model alone: "
            f"{first_five(differing)}"
        )
    return adapted


def _names(weights: Path) -> set[str]:
    if weights.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(str(weights), "pt") as file:
            return set(file.keys())
    import torch

    try:
        found: Any = torch.load(weights, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{weights}: holds more than tensors, and may run code; save it as safetensors"
        ) from error
    return set(found)
