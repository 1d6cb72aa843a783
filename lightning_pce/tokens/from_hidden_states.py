"""Per-token statistics from hidden states: logits exist a chunk at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_pce._checks import plain_tensors
from lightning_pce._compiling import not_compiled
from lightning_pce.tokens.kernels import choose, joined
from lightning_pce.tokens.kernels.eager import SCRATCH_BYTES
from lightning_pce.tokens.kernels.row_sums import RowSums
from lightning_pce.tokens.kernels.scratch import scratch
from lightning_pce.tokens.labels import check_logits_and_labels, targets
from lightning_pce.tokens.statistics import STATISTICS, TokenStatistics, check_statistics, finished


@not_compiled
@plain_tensors
@torch.no_grad()
def linear_token_statistics(
    hidden: Tensor,
    head: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    statistics: Sequence[str] = STATISTICS,
    ignore_index: int | None = -100,
    shift: bool = False,
    backend: str = "auto",
    max_logits_bytes: int = 64 << 20,
) -> TokenStatistics:
    """What :func:`token_statistics` says of ``hidden @ head.T + bias``, without ever holding those logits.

    Tokens that do not count are left out before the product: most of a batch of instruction data. Their
    number has to be known for that, so on an accelerator this waits for the labels once. Logits are rounded
    to the dtype of the hidden states, as the model would round them, whatever autocast says.

    Args:
        hidden: ``[..., H]``, the last hidden states, float32, bfloat16, float16 or float64.
        head: ``[V, H]``, the weight of the output layer, in the dtype of the hidden states.
        labels: ``[...]`` integers in ``[0, V)`` or ``ignore_index``.
        bias: ``[V]``, of the output layer.
        statistics: which, see :func:`token_statistics`.
        ignore_index: the label of tokens that do not count; None: all do.
        shift: the labels are the inputs: position t is scored against label t + 1.
        backend: see :func:`token_statistics`.
        max_logits_bytes: memory for a chunk of logits and all that is made of it, at least a row. Beyond it
            are the arguments, the results and the matrix library's buffers (MKL: 3 MiB at H = 64, 10 at 512).

    Returns:
        A :class:`TokenStatistics`; its ``ce`` and ``valid`` are what a metric's update takes as
        ``losses`` and ``mask``.

    Raises:
        ValueError: as :func:`token_statistics`, or if hidden states, head and bias do not fit each other.

    Example:
        >>> hidden, head = torch.eye(3), torch.eye(3)[:2]
        >>> linear_token_statistics(hidden, head, torch.tensor([0, 0, -100])).ce
        tensor([0.3133, 1.3133, 0.0000])
    """
    check_statistics(statistics)
    _check_layer(hidden, head, bias)
    vocabulary, width = head.shape
    # What the logits would look like, for the checks and messages of logits.
    check_logits_and_labels(hidden.new_empty(()).expand(*hidden.shape[:-1], vocabulary), labels)
    target = targets(labels, vocabulary, ignore_index=ignore_index, shift=shift)
    flat = target.labels.reshape(-1)
    everything = "entropy" in statistics or "rank" in statistics
    counted = (flat >= 0).nonzero()[:, 0]
    step = max(1, min(len(counted), _rows_in(max_logits_bytes, vocabulary, width, hidden.element_size())))
    logits = scratch(step, vocabulary, dtype=hidden.dtype, device=hidden.device)
    kernel = choose(backend, logits) if len(counted) else choose("eager", logits)
    hidden = hidden if hidden.ndim > 1 else hidden[None]
    parts = []
    for start in range(0, max(1, len(counted)), step):
        some = counted[start : start + step]
        states, chunk = hidden[torch.unravel_index(some, hidden.shape[:-1])], logits[: len(some)]
        if bias is None:
            torch.mm(states, head.T, out=chunk)
        else:
            torch.addmm(bias, states, head.T, out=chunk)
        parts.append(kernel(chunk, flat[some], everything))
    sums = _scattered(joined(parts), counted, len(flat))
    return finished(sums, statistics, target, vocabulary)


def _scattered(sums: RowSums, index: Tensor, count: int) -> RowSums:
    """The sums as those of rows ``index`` among ``count`` rows, with 0 for the others."""

    def spread(part: Tensor) -> Tensor:
        return part.new_zeros(count).index_copy_(0, index, part)

    top, own, others, dot, ahead = sums
    some_dot, some_ahead = (None if part is None else spread(part) for part in (dot, ahead))
    return RowSums(spread(top), spread(own), spread(others), some_dot, some_ahead)


def _rows_in(limit: int, vocabulary: int, width: int, size: int) -> int:
    """How many rows of logits fit the limit, with their hidden states and what the eager kernel needs."""
    row, wide = (vocabulary + width) * size, vocabulary * max(size, 4)
    limit -= wide  # positions in the vocabulary
    return max(limit // (row + 2 * wide), (limit - 2 * SCRATCH_BYTES) // row)


def _check_layer(hidden: Tensor, head: Tensor, bias: Tensor | None) -> None:
    given = {"hidden": hidden, "head": head} | ({} if bias is None else {"bias": bias})
    for name, value in given.items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"Expected argument `{name}` to be a tensor but got {type(value).__name__}."
                + (" Pass its weight, and its bias if it has one." if hasattr(value, "weight") else "")
            )
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
