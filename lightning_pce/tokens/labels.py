"""Which tokens count, and which label, weight, group and document each has: every rule of that once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias, cast

import torch
from torch import Tensor

# No label is this: nothing is ignored.
NONE_IGNORED = -(1 << 63)
_ODD = 0x5851F42D4C957F2D
GroupIds = Tensor | Sequence[int] | int
# [..., V], or chunks [..., t, V] of that along the sequence, as of litgpt's lm_head_chunk_size and torchtune.
Logits: TypeAlias = Tensor | Sequence[Tensor]


class Targets(NamedTuple):
    """The label that each position is scored against; all of shape ``[...]``, the labels'."""

    labels: Tensor
    """int64 token ids, -100 where a token does not count."""
    valid: Tensor
    """bool, which tokens count."""
    invalid: Tensor
    """bool, where a label was outside the vocabulary (on an accelerator; on a CPU that is an error)."""


def targets(labels: Tensor, vocabulary: int, *, ignore_index: int | None, shift: bool) -> Targets:
    """The targets of checked labels ``[...]``, shifted if asked for; with ``ignore_index=None`` all count.

    Raises:
        ValueError: if on a CPU a label is outside the vocabulary, or there is nothing to shift along.
    """
    labels = labels.long()  # before ignore_index is compared: in uint8 -100 is 156
    if shift and labels.ndim == 0:
        raise ValueError(
            "Expected argument `labels` to have a sequence dimension for shift=True but got a 0-d tensor."
        )
    counted = labels != (NONE_IGNORED if ignore_index is None else ignore_index)
    if shift:
        labels, counted = shifted(labels, -100), shifted(counted, False)
    known = (labels >= 0) & (labels < vocabulary)
    invalid = counted & ~known
    if labels.device.type == "cpu" and bool(invalid.any()):
        raise ValueError(_outside(labels[invalid], vocabulary, ignore_index))
    valid = counted & known
    return Targets(torch.where(valid, labels, -100), valid, invalid)


def checked_ignore_index(ignore_index: int | None) -> int | None:
    """A whole number or None, or a ``ValueError``."""
    if ignore_index is not None and (isinstance(ignore_index, bool) or not isinstance(ignore_index, int)):
        raise ValueError(
            "Expected argument `ignore_index` to be a whole number, or None if no token is ignored, but got "
            f"{ignore_index!r}. Other tokens are left out by weights of 0."
        )
    return ignore_index


def never_ignored(labels: object, ignore_index: int | None) -> str | None:
    """What is wrong with unsigned labels and a negative ignore_index, in words; None if nothing is."""
    unsigned = isinstance(labels, Tensor) and str(labels.dtype).startswith("torch.uint")
    if not unsigned or ignore_index is None or ignore_index >= 0:
        return None
    assert isinstance(labels, Tensor)
    return (
        f"the labels are {labels.dtype}, which cannot hold ignore_index={ignore_index}: no token is ignored, "
        f"and {ignore_index} has become {ignore_index % (1 << 8 * labels.element_size())}. Keep labels in a "
        "signed dtype."
    )


def check_ignored(caller: str, labels: object, ignore_index: int | None) -> None:
    """A ``ValueError`` if that is no label (False would be token 0), a warning if no label can be that."""
    unsigned = never_ignored(labels, checked_ignore_index(ignore_index))
    if unsigned is not None:
        warnings.warn(f"{caller}: {unsigned}", stacklevel=3)


class Pairing(NamedTuple):
    """Which losses count, and where what belongs to their labels stands."""

    mask: Tensor
    """bool ``[...]`` in the shape of the losses."""
    of_losses: Callable[[Tensor], Tensor]
    """From values in the shape of the labels, such as weights, to those of the losses."""


def pair_losses(losses: Tensor, labels: Tensor, *, ignore_index: int | None, shift: bool) -> Pairing | None:
    """Which losses count, as labels beside them say.

    Losses may stand where their labels do, or one position before: a step that shifts by itself returns
    ``[B, T - 1]`` losses beside ``[B, T]`` labels, or ``[B, T]`` with 0 where the shifted label is ignored;
    and any of these flattened. A loss for each sequence is none of these: it needs a mask.

    Args:
        losses: ``[...]``.
        labels: integers.
        ignore_index: the label of tokens that do not count.
        shift: which of the two is meant where ``[B, T]`` losses show neither or, some labels being ignored,
            both. (If none is ignored, a last 0 in each of several rows shows a shift.)

    Returns:
        None if all count: the two do not fit and no label is ignored, so that the labels are of something
        else; or there are just as many losses as tokens that count, so that they were filtered already.

    Raises:
        ValueError: if the two do not fit and labels are ignored.
    """
    labels = labels.to(losses.device).long().reshape(labels.shape or (1,))
    counted = labels != (NONE_IGNORED if ignore_index is None else ignore_index)
    flat = losses.ndim == 1
    if losses.shape == counted.shape or (flat and len(losses) == counted.numel() > 0):
        return _in_place(losses, counted, shift)
    cut = counted[..., 1:]
    if losses.shape == cut.shape and cut.ndim > 1:
        return Pairing(cut, lambda values: values[..., 1:])
    filtered = (counted.sum() == losses.numel()) | (cut.sum() == losses.numel())
    ways: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda values: values[..., 1:].reshape(-1),  # cut and flattened
        lambda values: values.reshape(-1)[1:],  # the other way round
    )
    for of_losses in ways:
        mask = of_losses(counted)
        if flat and len(losses) == len(mask):
            zeros = (mask | (losses.detach() == 0)).all()  # where they would not count
            return Pairing(torch.where(filtered & ~zeros, True, mask), of_losses)
    if bool(counted.all()) or (flat and bool(filtered)):
        return None
    raise ValueError(
        f"Expected arguments `losses` and `labels` to fit, perhaps after a shift by one, but got losses "
        f"{tuple(losses.shape)} and labels {tuple(labels.shape)} in which {int((~counted).sum())} tokens are "
        f"ignored (ignore_index={ignore_index}): which of the losses count cannot be known. Pass "
        "mask=labels != ignore_index, cut and shifted as the losses were."
    )


def _in_place(losses: Tensor, counted: Tensor, shift: bool) -> Pairing:
    """The pairing of as many losses as labels, which stand where these do or one position before.

    Nothing is read on the host: whether losses are 0 where the shifted labels are ignored, or where their own
    are, is a 0-d tensor.
    """
    own, later = (mask.reshape(losses.shape) for mask in (counted, shifted(counted, False)))
    zero = losses.detach() == 0
    fits_own, fits_later = (zero | own | ~later).all(), (zero | later | ~own).all()
    # A last loss may be 0 by itself; those of several rows are not.
    rows = counted.ndim > 1 and counted.shape[-1] > 1 and counted.numel() > counted.shape[-1]
    both = torch.where(own.all(), shift or rows, shift)
    was_shifted = torch.where(fits_own == fits_later, torch.where(fits_own, both, shift), fits_later)

    def of_losses(values: Tensor) -> Tensor:
        return torch.where(was_shifted, shifted(values, 0), values).reshape(losses.shape)

    return Pairing(torch.where(was_shifted, later, own), of_losses)


def vocabulary_of(logits: Logits) -> int:
    """V, of checked logits."""
    return (logits if isinstance(logits, Tensor) else logits[0]).shape[-1]


def shifted(values: Tensor, fill: float) -> Tensor:
    """What belongs to the next token, ``[..., T]``: position t gets the value of t + 1, the last ``fill``."""
    return torch.cat([values[..., 1:], torch.full_like(values[..., :1], fill)], dim=-1)


def check_logits_and_labels(logits: Logits, labels: Tensor) -> None:
    """Raise a ``ValueError`` with what was seen if logits ``[..., V]`` and labels ``[...]`` do not fit."""
    _check_whole(_whole(logits), labels)


def _check_whole(logits: Tensor, labels: Tensor) -> None:
    for name, value in (("logits", logits), ("labels", labels)):
        _check_tensor(name, value)
    if not logits.is_floating_point():
        raise ValueError(
            f"Expected argument `logits` to be floating point scores [..., V] but got {logits.dtype} of "
            f"shape {tuple(logits.shape)}. Are these predicted token ids, or the labels?"
        )
    check_ids(labels)
    _check_devices(logits=logits, labels=labels)
    if logits.ndim == 0 or logits.shape[:-1] != labels.shape:
        raise ValueError(
            "Expected argument `labels` to have the shape of the logits without their last dimension, "
            f"{tuple(logits.shape[:-1])}, but got labels {tuple(labels.shape)} for logits "
            f"{tuple(logits.shape)}."
            + (
                " Pass logits[..., :-1, :] and labels[..., 1:], or shift=True."
                if _off_by_one(logits, labels)
                else ""
            )
        )
    if logits.shape[-1] == 0:
        raise ValueError(
            f"Expected argument `logits` to have a vocabulary but got shape {tuple(logits.shape)}."
        )


def _whole(logits: Logits) -> Tensor:
    """Logits, or a tensor without memory of its own in the shape that chunks of them have together."""
    if not isinstance(logits, list | tuple):
        return cast(Tensor, logits)  # or whatever was passed
    chunks = logits
    for chunk in chunks:
        if isinstance(chunk, Tensor):
            _check_tensor("logits", chunk)
    alike = {
        (chunk.shape[:-2], chunk.shape[-1], chunk.dtype, chunk.device)
        if isinstance(chunk, Tensor) and chunk.ndim > 1
        else None
        for chunk in chunks
    }
    if None in alike or len(alike) != 1:
        seen = ", ".join(
            f"{chunk.dtype} {tuple(chunk.shape)}" if isinstance(chunk, Tensor) else type(chunk).__name__
            for chunk in chunks
        )
        raise ValueError(
            "Expected argument `logits` to be a tensor [..., V] or chunks of it along the sequence, "
            f"[..., t, V] of one dtype and device, but got a {type(chunks).__name__} of {seen or 'nothing'}."
        )
    first, length = chunks[0], sum(chunk.shape[-2] for chunk in chunks)
    element: Tensor = first.new_empty(())
    return element.expand(*first.shape[:-2], length, first.shape[-1])


def check_ids(labels: Tensor) -> None:
    """Raise a ``ValueError`` with what was seen if labels are no integer tensor."""
    _check_tensor("labels", labels)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(
            f"Expected argument `labels` to hold integer token ids but got {labels.dtype} of shape "
            f"{tuple(labels.shape)}."
        )


def checked_losses(losses: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Losses of tokens ``[...]``, and which of them count: bool of that shape, or a ``ValueError``."""
    for name, value in (("losses", losses), ("mask", mask)):
        if value is not None:
            _check_tensor(name, value)
    if not losses.is_floating_point():
        raise ValueError(f"Expected argument `losses` to be floating point but got {losses.dtype}.")
    if losses.ndim == 0:
        raise ValueError(
            "Expected argument `losses` to hold one loss per token but got a single number: ask the loss for "
            "reduction='none'."
        )
    _check_devices(losses=losses, mask=mask)
    if mask is None:
        return losses, torch.ones_like(losses, dtype=torch.bool)
    if mask.dtype != torch.bool or mask.shape != losses.shape:
        raise ValueError(
            f"Expected argument `mask` to be bool of the shape of the losses, {tuple(losses.shape)}, but got "
            f"{mask.dtype} {tuple(mask.shape)}."
            + (" Pass mask.bool()." if mask.dtype != torch.bool and mask.shape == losses.shape else "")
        )
    return losses, mask


def checked_weights(weights: Tensor | None, like: Tensor, name: str) -> Tensor | None:
    """Weights in the shape of ``like``, which the message calls ``name``, or a ``ValueError``.

    On a CPU also the numbers are looked at; bool stays bool.
    """
    if weights is None:
        return None
    weights = torch.as_tensor(weights, device=like.device)
    if weights.is_complex():
        raise ValueError(f"Expected argument `weights` to hold real numbers but got {weights.dtype}.")
    if weights.shape != like.shape:
        raise ValueError(
            f"Expected argument `weights` to have the shape of the {name}, {tuple(like.shape)}, but got "
            f"{tuple(weights.shape)}."
        )
    if weights.device.type == "cpu" and weights.dtype != torch.bool:
        weights = weights.double()  # some dtypes cannot be compared
        wrong = ~((weights >= 0) & (weights < torch.inf))
        if bool(wrong.any()):
            raise ValueError(
                "Expected argument `weights` to hold finite numbers >= 0 but got "
                f"{weights[wrong][0].item():g}."
            )
    return weights


def weights_where(counted: Tensor, weights: Tensor | None) -> Tensor:
    """Weights ``[...]`` with 0 (of bool: False) where a token does not count."""
    if weights is None:
        return counted
    return counted & weights if weights.dtype == torch.bool else torch.where(counted, weights, 0)


def checked_groups(
    group: GroupIds | None,
    names: tuple[str, ...] | None,
    like: Tensor,
    weights: Tensor | None,
    *,
    shift: bool = False,
) -> Tensor | None:
    """The number of each token's group, int64 in the shape of ``like``, or a ``ValueError``.

    Args:
        group: a number for each token, for each sequence or for all.
        names: the groups' names, None if there are no groups.
        like: ``[...]`` losses, or what else the tokens have one of each.
        weights: ``[...]``; on a CPU the groups of tokens with weight are looked at.
        shift: numbers of tokens stand where the labels do, which are shifted.
    """
    if names is None and group is None:
        return None
    if names is None:
        raise ValueError("Expected no argument `group`: the metric was made without `groups`.")
    if group is None:
        raise ValueError(
            f"Expected argument `group`: which of the groups {', '.join(names)} each entry is of."
        )
    ids = _ids_of_tokens("group", group, like, shift)
    if ids.device.type == "cpu":
        counted = torch.ones_like(ids, dtype=torch.bool) if weights is None else weights > 0
        wrong = ids[counted & ((ids < 0) | (ids >= len(names)))]
        if wrong.numel():
            raise ValueError(
                f"Expected argument `group` to hold numbers in [0, {len(names)}), for {', '.join(names)}, "
                f"but got {wrong[0].item()}."
            )
    return ids


def checked_documents(document: GroupIds, like: Tensor, *, shift: bool = False) -> Tensor:
    """The id of each token's document, int64 in the shape of ``like``, or a ``ValueError``.

    Args:
        document: an integer for each token, for each sequence or for all; negative ones are fine.
        like: ``[...]`` losses, or what else the tokens have one of each.
        shift: ids of tokens stand where the labels do, which are shifted.
    """
    return _ids_of_tokens("document", document, like, shift)


def checked_answers(answer: GroupIds, like: Tensor, *, shift: bool = False) -> Tensor:
    """The answer of its row that each token belongs to, int64 in the shape of ``like``, or a ``ValueError``.

    Args:
        answer: an integer for each token, for each sequence or for all; negative: of none. An answer is a
            pair (row, id): packed rows may count theirs from 0 each.
        like: ``[...]`` losses, or what else the tokens have one of each.
        shift: ids of tokens stand where the labels do, which are shifted.
    """
    if isinstance(answer, bool) or (isinstance(answer, Tensor) and answer.dtype == torch.bool):
        raise ValueError(
            "Expected argument `answer` to hold integers, a number for each answer, but got bool. Which "
            "tokens count is for a mask."
        )
    return _ids_of_tokens("answer", answer, like, shift)


def documents_by_content(labels: Tensor) -> Tensor:
    """A hash of the targets that count in each row ``[..., T]``, -100 where none does: int64 ``[...]``.

    Rows of the same tokens in the same order have the same, wherever their padding stands.
    """
    counted = labels != -100
    # Odd, so that no power of it is 0; modulo 2**64, as integers wrap.
    powers = torch.full_like(labels, _ODD).cumprod(-1)
    place = (counted.cumsum(-1) - 1).clamp(min=0)
    power = powers.gather(-1, place)
    return torch.where(counted, (labels + 1) * power, 0).sum(-1)


def _ids_of_tokens(name: str, given: GroupIds, like: Tensor, shift: bool) -> Tensor:
    """Ids of tokens, of sequences or one of all in the shape of ``like``, int64, or a ``ValueError``."""
    ids = _whole_numbers(name, given, like.device)
    per_sequence = ids.ndim < like.ndim and ids.shape == like.shape[:-1]
    if ids.shape != like.shape and not per_sequence and ids.ndim:
        raise ValueError(
            f"Expected argument `{name}` with a number for each token, {tuple(like.shape)}, or for each "
            f"sequence, {tuple(like.shape[:-1])}, but got {tuple(ids.shape)}."
        )
    if per_sequence or not ids.ndim:
        return (ids[..., None] if like.ndim else ids).expand(like.shape)
    return shifted(ids, 0) if shift else ids


def _whole_numbers(name: str, given: GroupIds, device: torch.device) -> Tensor:
    try:
        ids = torch.as_tensor(given, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"Expected argument `{name}` to hold integers but got {given!r:.80}.") from error
    if ids.is_floating_point() or ids.is_complex():
        raise ValueError(f"Expected argument `{name}` to hold integers but got {ids.dtype}.")
    return ids.long()


def _check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(f"Expected argument `{name}` to be a tensor but got {type(value).__name__}.")
    if value.is_nested or value.layout != torch.strided:
        kind = "a nested" if value.is_nested else f"a {value.layout}"
        raise ValueError(
            f"Expected argument `{name}` to be a dense tensor but got {kind} one. Pass "
            + ("each sequence by itself, or a padded tensor." if value.is_nested else f"{name}.to_dense().")
        )


def _check_devices(**tensors: Tensor | None) -> None:
    devices = {name: value.device for name, value in tensors.items() if value is not None}
    if len(set(devices.values())) > 1:
        said = " and ".join(f"{name} on {device}" for name, device in devices.items())
        last = list(devices)[-1]
        raise ValueError(
            f"Expected arguments on one device but got {said}. Pass {last}.to({next(iter(devices))}.device)."
        )


def _off_by_one(logits: Tensor, labels: Tensor) -> bool:
    return logits.ndim == labels.ndim + 1 and abs(logits.shape[-2] - labels.shape[-1]) == 1


def _outside(wrong: Tensor, vocabulary: int, ignore_index: int | None) -> str:
    or_ignored = "" if ignore_index is None else f", or ignore_index={ignore_index}"
    return (
        f"Expected argument `labels` to hold token ids in [0, {vocabulary}), for {vocabulary} logits a "
        f"token{or_ignored}, but got {wrong.numel()} others, from {int(wrong.min())} to "
        f"{int(wrong.max())}. Usual causes: a vocabulary that is padded in the tokenizer but not in the "
        "model, labels that were not shifted or masked as the logits were, another ignore_index, another "
        "tokenizer."
    )
