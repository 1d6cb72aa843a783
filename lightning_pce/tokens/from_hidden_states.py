"""Per-token statistics from hidden states: logits exist a chunk at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lightning_pce._checks import plain_tensors, warn_once
from lightning_pce._compiling import not_compiled
from lightning_pce.tokens.kernels import choose, joined
from lightning_pce.tokens.kernels.eager import SCRATCH_BYTES
from lightning_pce.tokens.kernels.row_sums import RowSums
from lightning_pce.tokens.kernels.scratch import scratch
from lightning_pce.tokens.labels import check_logits_and_labels, targets
from lightning_pce.tokens.statistics import STATISTICS, TokenStatistics, check_statistics, finished

__all__ = ["linear_token_statistics"]

# (hidden states [n, H], where their logits [n, V] go) -> nothing
_Fill: TypeAlias = Callable[[Tensor, Tensor], Any]

# No mean of so many tokens is so many nats above ln V. SmolLM2's is 2.5 above on random tokens; on English 5
# with logits 8 times as large, as Granite's are if they are not divided, and 20 with 16 times, as Cohere's.
_WORSE_THAN_GUESSING, _ENOUGH_TOKENS = 4.0, 32
_said: set[str] = set()


@not_compiled
@plain_tensors
@torch.no_grad()
def linear_token_statistics(
    hidden: Tensor,
    head: Tensor | Callable[[Tensor], Tensor],
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    statistics: Sequence[str] = STATISTICS,
    ignore_index: int | None = -100,
    shift: bool = False,
    backend: str = "auto",
    max_logits_bytes: int = 64 << 20,
) -> TokenStatistics:
    """What :func:`token_statistics` says of the logits of an output layer, without ever holding all of them.

    The logits are ``x = (hidden @ head.T + bias) * scale``, then ``softcap * tanh(x / softcap)``.
    :func:`lightning_pce.integrations.output_layer.output_layer` finds out what a model of transformers has.

    Tokens that do not count are left out before the product: most of a batch of instruction data. Their
    number has to be known for that, so on an accelerator this waits for the labels once. Logits are rounded
    to the dtype of the hidden states, as the model would round them, whatever autocast says; those of a
    module are what it returns.

    Args:
        hidden: ``[..., H]``, the last hidden states, float32, bfloat16, float16 or float64.
        head: ``[V, H]``, the weight of the output layer, in the dtype of the hidden states. Or the layer
            itself, with its bias, LoRA and whatever else it does: it is called on chunks ``[n, H]`` and
            returns logits ``[n, V]``, and before that on one row of zeros, for V.
        labels: ``[...]`` integers in ``[0, V)`` or ``ignore_index``.
        bias: ``[V]``, of the output layer, if ``head`` is its weight.
        scale: logits are multiplied by it: Cohere's ``logit_scale``, 1 / Granite's ``logits_scaling``.
        softcap: then they are limited to it in both directions: Gemma 2's ``final_logit_softcapping``.
        statistics: which, see :func:`token_statistics`.
        ignore_index: the label of tokens that do not count; None: all do.
        shift: the labels are the inputs: position t is scored against label t + 1.
        backend: see :func:`token_statistics`.
        max_logits_bytes: memory for a chunk of logits and all that is made of it, at least a row. Beyond it
            are the arguments, the results and the matrix library's buffers (MKL: 3 MiB at H = 64, 10 at 512).

    Returns:
        A :class:`TokenStatistics`; its ``ce`` and ``valid`` are what a metric's update takes as
        ``losses`` and ``mask``.

    On a CPU a mean far above ln V without scale and softcap is warned of once: they may be missing.

    Raises:
        ValueError: as :func:`token_statistics`, or if hidden states, head and bias do not fit each other, or
            scale or softcap are impossible.

    Example:
        >>> hidden, head = torch.eye(3), torch.eye(3)[:2]
        >>> linear_token_statistics(hidden, head, torch.tensor([0, 0, -100])).ce
        tensor([0.3133, 1.3133, 0.0000])
    """
    check_statistics(statistics)
    check_scale(scale, softcap)
    fill, vocabulary, dtype = _layer(hidden, head, bias)
    # What the logits would look like, for the checks and messages of logits.
    check_logits_and_labels(hidden.new_empty((), dtype=dtype).expand(*hidden.shape[:-1], vocabulary), labels)
    target = targets(labels, vocabulary, ignore_index=ignore_index, shift=shift)
    flat = target.labels.reshape(-1)
    everything = "entropy" in statistics or "rank" in statistics
    counted = (flat >= 0).nonzero()[:, 0]
    width = hidden.shape[-1] + (0 if isinstance(head, Tensor) else vocabulary)  # a module's own logits
    step = max(1, min(len(counted), rows_in(max_logits_bytes, vocabulary, width, dtype.itemsize)))
    logits = scratch(step, vocabulary, dtype=dtype, device=hidden.device)
    kernel = choose(backend, logits) if len(counted) else choose("eager", logits)
    hidden = hidden if hidden.ndim > 1 else hidden[None]
    parts = []
    for start in range(0, max(1, len(counted)), step):
        some = counted[start : start + step]
        chunk = logits[: len(some)]
        fill(hidden[torch.unravel_index(some, hidden.shape[:-1])], chunk)
        scale_and_cap(chunk, scale, softcap)
        parts.append(kernel(chunk, flat[some], everything))
    sums = _scattered(joined(parts), counted, len(flat))
    found = finished(sums, statistics, target, vocabulary)
    if isinstance(head, Tensor) and scale == 1 and softcap is None:
        warn_of_a_missing_scale(found.ce, counted, vocabulary)
    return found


def warn_of_a_missing_scale(ce: Tensor | None, counted: Tensor, vocabulary: int) -> None:
    """A weight alone does not say what its model does to the logits. Only on a CPU, where looking is free."""
    if ce is None or ce.device.type != "cpu" or len(counted) < _ENOUGH_TOKENS:
        return
    mean, guessing = ce.reshape(-1)[counted].double().mean().item(), math.log(vocabulary)
    if guessing + _WORSE_THAN_GUESSING < mean < math.inf:
        warn_once(
            _said,
            "scale",
            f"The mean cross-entropy, {mean:.1f} nats, is far above ln V = {guessing:.1f}, that of guessing. "
            "Does the model scale or cap its logits? Then pass `scale` and `softcap` too, or in place of the "
            "weight all that `lightning_pce.integrations.output_layer.output_layer(model)` finds.",
        )


def scale_and_cap(logits: Tensor, scale: float, softcap: float | None) -> None:
    """In place what a model does to its logits, rounded after each operation as there."""
    if scale != 1:
        logits.mul_(scale)
    if softcap is not None:
        logits.div_(softcap).tanh_().mul_(softcap)


def _layer(
    hidden: Tensor, head: Tensor | Callable[[Tensor], Tensor], bias: Tensor | None
) -> tuple[_Fill, int, torch.dtype]:
    """How logits are made, how many there are for a token, and their dtype."""
    if not isinstance(head, Tensor) and callable(head):
        return _module(hidden, head, bias)
    check_weights(hidden, head, bias)
    if bias is None:
        return (lambda states, out: torch.mm(states, head.T, out=out)), len(head), hidden.dtype
    return (lambda states, out: torch.addmm(bias, states, head.T, out=out)), len(head), hidden.dtype


def _module(
    hidden: Tensor, head: Callable[[Tensor], Tensor], bias: Tensor | None
) -> tuple[_Fill, int, torch.dtype]:
    logits_of, vocabulary, dtype = checked_module(hidden, head, bias)

    def fill(states: Tensor, out: Tensor) -> None:
        if len(states):
            with _nothing_cached(states.device.type):
                logits = logits_of(states)
            if logits.shape != out.shape:
                raise ValueError(
                    f"Expected argument `head` to return {tuple(out.shape)} logits but got "
                    f"{tuple(logits.shape)}."
                )
            out.copy_(logits)

    return fill, vocabulary, dtype


def checked_module(
    hidden: Tensor, head: Callable[[Tensor], Tensor], bias: Tensor | None
) -> tuple[Callable[[Tensor], Tensor], int, torch.dtype]:
    """An output layer whose results are checked, how many logits it makes of a token, and their dtype.

    For that it is called on a row of zeros, without a gradient.
    """
    if bias is not None:
        raise ValueError("Expected no argument `bias` beside a `head` that is called: it adds its own.")
    if not isinstance(hidden, Tensor) or hidden.ndim == 0 or not hidden.is_floating_point():
        raise ValueError(
            "Expected argument `hidden` to be floating point [..., H] but got "
            + (f"{hidden.dtype} {tuple(hidden.shape)}." if isinstance(hidden, Tensor) else f"{hidden!r:.80}.")
        )
    width = hidden.shape[-1]

    def logits_of(states: Tensor) -> Tensor:
        logits = head(states)
        rows = len(logits) if isinstance(logits, Tensor) and logits.ndim == 2 else None
        if rows != len(states) or not logits.is_floating_point():
            got = f"{logits.dtype} {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"{logits!r:.80}"
            raise ValueError(
                "Expected argument `head` to return floating point logits [n, V] of hidden states "
                f"{tuple(states.shape)} but got {got}."
            )
        return _plain_logits(logits)

    try:
        with torch.no_grad(), _nothing_cached(hidden.device.type):
            one = logits_of(hidden.new_zeros(1, width))
    except RuntimeError as error:
        raise ValueError(
            f"Expected argument `head` to take hidden states [n, {width}] in {hidden.dtype} but it raised: "
            f"{str(error).strip()}"
        ) from error
    return logits_of, one.shape[1], one.dtype


def _nothing_cached(device: str) -> AbstractContextManager[Any]:
    """Keep autocast from remembering weights that were cast where no gradients are recorded.

    In torch 2.4 a layer that is called again in the same autocast region would take them, and its
    weight would get no gradient.
    """
    if not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, torch.get_autocast_dtype(device), cache_enabled=False)


@plain_tensors
def _plain_logits(logits: Tensor) -> Tensor:
    return logits


def check_scale(scale: float, softcap: float | None) -> None:
    """Raise a ``ValueError`` if nothing can be scaled or capped so."""
    if not math.isfinite(scale) or scale == 0:
        raise ValueError(f"Expected argument `scale` to be a finite number other than 0 but got {scale}.")
    if softcap is not None and not 0 < softcap < math.inf:
        raise ValueError(
            f"Expected argument `softcap` to be a finite number above 0 or None but got {softcap}."
        )


def _scattered(sums: RowSums, index: Tensor, count: int) -> RowSums:
    """The sums as those of rows ``index`` among ``count`` rows, with 0 for the others."""

    def spread(part: Tensor) -> Tensor:
        return part.new_zeros(count).index_copy_(0, index, part)

    top, own, others, dot, ahead = sums
    some_dot, some_ahead = (None if part is None else spread(part) for part in (dot, ahead))
    return RowSums(spread(top), spread(own), spread(others), some_dot, some_ahead)


def rows_in(limit: int, vocabulary: int, width: int, size: int) -> int:
    """How many rows of logits fit the limit, with their hidden states and what the eager kernel needs."""
    row, wide = (vocabulary + width) * size, vocabulary * max(size, 4)
    limit -= wide  # positions in the vocabulary
    return max(limit // (row + 2 * wide), (limit - SCRATCH_BYTES) // row)


def check_weights(hidden: Tensor, head: Tensor, bias: Tensor | None) -> None:
    """Raise a ``ValueError`` with what was seen if these do not fit each other."""
    given = {"hidden": hidden, "head": head} | ({} if bias is None else {"bias": bias})
    for name, value in given.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"Expected argument `{name}` to be a tensor but got {type(value).__name__}.")
    dtypes = {name: value.dtype for name, value in given.items()}
    if not hidden.is_floating_point() or len(set(dtypes.values())) > 1:
        raise ValueError(
            "Expected arguments to be floating point and of one dtype but got "
            f"{', '.join(f'{name} {dtype}' for name, dtype in dtypes.items())}. Convert the hidden "
            "states to the head's, for exact logits, or the head to theirs, for those of autocast."
        )
    shapes = {name: tuple(value.shape) for name, value in given.items()}
    if (
        hidden.ndim == 0
        or head.ndim != 2
        or hidden.shape[-1] != head.shape[1]
        or (bias is not None and bias.shape != head.shape[:1])
    ):
        raise ValueError(
            "Expected arguments `hidden` [..., H], `head` [V, H] and `bias` [V] but got "
            f"{', '.join(f'{name} {shape}' for name, shape in shapes.items())}."
            + (" Pass head.T." if head.ndim == 2 and shapes["hidden"][-1:] == shapes["head"][:1] else "")
        )
