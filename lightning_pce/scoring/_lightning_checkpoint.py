"""Lightning's .ckpt: the one part of a module's state that is the language model."""

from __future__ import annotations

import pickle
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_pce._errors import UserError
from lightning_pce.scoring._in_words import first_five, one_line

# Buffers that older versions of transformers saved and newer ones compute: they hold nothing learned.
_COMPUTED = re.compile(r"(rotary_emb\.inv_freq|attn\.(masked_)?bias|position_ids)$")


class ModuleState(NamedTuple):
    """What a .ckpt holds.

    Attributes:
        tensors: the module's ``state_dict``, read from the file when they are looked at.
        step: ``global_step``, None if it has none.
        averaged: the weights are an average over steps, made by Lightning's ``WeightAveraging``.
    """

    tensors: Mapping[str, Tensor]
    step: int | None
    averaged: bool


def read_lightning_checkpoint(path: Path, *, trust: bool) -> ModuleState:
    """Open a .ckpt; its tensors stay in the file for now.

    Args:
        path: the file.
        trust: let it run code, as a pickle may.

    Raises:
        UserError: if it cannot be read, or not without ``trust``.
    """
    try:
        # mmap: optimizer states, often two thirds of the file, are never read.
        found = torch.load(path, map_location="cpu", mmap=True, weights_only=not trust)
    except pickle.UnpicklingError as error:
        if trust:
            raise UserError(f"{path}: its pickle cannot be read: {one_line(error)}") from error
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"an object of {named[1]}" if named else "other objects than tensors and numbers"
        raise UserError(
            f"{path}: holds {what}, and reading it may run code; if you trust who made it add --trust"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise UserError(f"{path}: torn or not a file of torch.save: {one_line(error)}") from error
    # With trust the pickle calls what it likes: a class that is not installed, a Path of another system ...
    except Exception as error:
        raise UserError(f"{path}: its pickle cannot be read: {one_line(error)}") from error
    tensors = found.get("state_dict") if isinstance(found, dict) else None
    if not isinstance(tensors, Mapping) or not any(isinstance(each, Tensor) for each in tensors.values()):
        has = f"only {first_five(found)}" if isinstance(found, dict) else f"a {type(found).__name__}"
        raise UserError(f"{path}: not a Lightning checkpoint, it has no `state_dict` of tensors but {has}")
    step = found.get("global_step")
    return ModuleState(
        {str(key): value for key, value in tensors.items() if isinstance(value, Tensor)},
        step if isinstance(step, int) and step >= 0 else None,
        "averaging_state" in found,
    )


def dtype_of(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The dtype of most numbers of a state."""
    sizes: Counter[torch.dtype] = Counter()
    for tensor in tensors.values():
        if tensor.is_floating_point():
            sizes[tensor.dtype] += tensor.numel()
    return sizes.most_common(1)[0][0] if sizes else torch.float32


def put_into(model: nn.Module, state: ModuleState, path: Path, base: str) -> tuple[str, ...]:
    """Load the one part of a module's state that is this model, strictly.

    Args:
        model: of the base; all its entries are replaced.
        state: of the .ckpt.
        path: the file, for messages.
        base: how the user named the base.

    Returns:
        What is to be said of the rest.

    Raises:
        UserError: if no prefix or several have every entry of the base, if there are other layers than the
            base has, other shapes, or an output layer that is tied in the base alone.
    """
    own = dict(model.state_dict())
    prefix = _prefix(own, _tied(own), state.tensors, path, base)
    inside = {key[len(prefix) :]: value for key, value in state.tensors.items() if key.startswith(prefix)}
    given = {name: value for name, value in inside.items() if name in own}
    for name, value in given.items():
        if value.shape != own[name].shape:
            raise UserError(
                f"{path}: {prefix + name} is {tuple(value.shape)} but {tuple(own[name].shape)} in the base "
                f"{base}; is this the model it was trained from?"
            )
    for group in _tied(own):
        present = [name for name in group if name in given]
        if any(not torch.equal(given[present[0]], given[name]) for name in present[1:]):
            raise UserError(
                f"{path}: {prefix + present[0]} and {prefix + present[1]} differ but are one in the base "
                f"{base}; name a base with tie_word_embeddings false"
            )
        given.update(dict.fromkeys(group, given[present[0]]))
    _refuse_more_layers(own, inside, prefix, path, base)
    model.load_state_dict(given, strict=True)
    others = [key for key in state.tensors if not (key.startswith(prefix) and key[len(prefix) :] in own)]
    notes = [f"weights averaged over steps ({path.name})"] if state.averaged else []
    if others:
        notes.append(f"{len(others)} other entries of {path.name} not used: {first_five(others)}")
    return tuple(notes)


def _prefix(
    own: Mapping[str, Tensor], tied: list[list[str]], there: Mapping[str, Tensor], path: Path, base: str
) -> str:
    """The prefix under which every entry of the model is found, of tied ones at least one."""
    copies = {name for group in tied for name in group}
    single = [name for name in own if name not in copies]
    # The name of which there are fewest, so that few prefixes are to be tried.
    rarest = max(single or own, key=len)
    ends = [key[: -len(rarest)] for key in there if key == rarest or key.endswith("." + rarest)]
    full = [
        prefix
        for prefix in ends
        if all(prefix + name in there for name in single)
        and all(any(prefix + name in there for name in group) for group in tied)
    ]
    if len(full) == 1:
        return full[0]
    if not full:
        raise UserError(
            f"{path}: not all {len(own)} entries of the base {base} are there under one prefix (is it the "
            f"model this was trained from?); the file has {first_five(there)}"
        )
    keys = [prefix + rarest for prefix in full]
    raise UserError(
        f"{path}: {len(full)} whole copies of the base {base} (an EMA? a teacher?), and which is meant is "
        f"not known; keep one of {first_five(map(repr, full))}; the file has "
        f"{first_five([*keys, *(key for key in there if key not in keys)])}"
    )


def _tied(own: Mapping[str, Tensor]) -> list[list[str]]:
    """Names of the same tensor, such as those of an embedding that is the output layer too."""
    names: dict[tuple[int, torch.Size, tuple[int, ...]], list[str]] = {}
    for name, tensor in own.items():
        if tensor.numel():
            names.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def _refuse_more_layers(
    own: Mapping[str, Tensor], inside: Mapping[str, Tensor], prefix: str, path: Path, base: str
) -> None:
    """A deeper model has every entry of a shallow one, and a bias or an adapter would be left out unseen."""
    parts = {name.partition(".")[0] for name in own}
    more = [
        prefix + name
        for name in inside
        if name not in own and name.partition(".")[0] in parts and not _COMPUTED.search(name)
    ]
    if more:
        raise UserError(
            f"{path}: {len(more)} entries belong to the model but the base {base} has no such: "
            f"{first_five(more)}"
        )
