"""Log-probabilities of labels from hidden states, with a graph: logits exist a piece at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_pce._checks import plain_tensors
from lightning_pce._compiling import not_compiled
from lightning_pce.tokens._linear_log_prob_operator import scored_labels
from lightning_pce.tokens._operators import refuse_transformed
from lightning_pce.tokens.from_hidden_states import (
    check_scale,
    check_weights,
    checked_module,
    warn_of_a_missing_scale,
)
from lightning_pce.tokens.kernels.eager import SCRATCH_BYTES
from lightning_pce.tokens.labels import NONE_IGNORED, check_ignored, check_logits_and_labels, targets
from lightning_pce.tokens.log_prob import TokenLogProb, token_log_prob

__all__ = ["linear_token_log_prob"]


def linear_token_log_prob(
    hidden: Tensor,
    head: Tensor | Callable[[Tensor], Tensor],
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    ignore_index: int | None = -100,
    shift: bool = False,
    max_logits_bytes: int = 64 << 20,
) -> TokenLogProb:
    """What :func:`token_log_prob` says of the logits of an output layer, without ever holding all of them.

    The logits are ``x = (hidden @ head.T + bias) * scale``, then ``softcap * tanh(x / softcap)``, rounded to
    the dtype of the hidden states. :func:`lightning_pce.integrations.output_layer.output_layer` finds out
    what a model of transformers has.

    The forward pass makes logits for a chunk of tokens at a time, the backward pass makes them once more for
    a slice of the vocabulary at a time, and writes each row of the head's gradient once. Tokens that do not
    count are not multiplied, and those whose gradient is exactly 0 (below a threshold) not in the backward
    pass. A head or hidden states that need no gradient cost none.

    Works in ``torch.compile(fullgraph=True)``, under autocast (where the head is copied to its dtype, as in
    ``F.linear``) and gradient checkpointing. It has no double backward and does not go through torch.func.

    Args:
        hidden: ``[..., H]``, the last hidden states, float32, bfloat16, float16 or float64.
        head: ``[V, H]``, the weight of the output layer, in the dtype of the hidden states. Or the layer
            itself: a plain ``nn.Linear`` is taken as its weight and bias. Any other (with LoRA, hooks ...) is
            called on chunks ``[n, H]`` in the forward pass and again in the backward pass, and before that on
            one row of zeros, for V; a gradient of the size of its weights is then made for every chunk.
        labels: ``[...]`` integers in ``[0, V)`` or ``ignore_index``.
        bias: ``[V]``, of the output layer, if ``head`` is its weight.
        scale: logits are multiplied by it: Cohere's ``logit_scale``, 1 / Granite's ``logits_scaling``.
        softcap: then they are limited to it in both directions: Gemma 2's ``final_logit_softcapping``.
        ignore_index: the label of tokens that do not count; None: all do.
        shift: the labels are the inputs: position t is scored against label t + 1.
        max_logits_bytes: memory for logits and what is made of them, at least 1,024 of them or a row. Beyond
            it are gradients, the matrix library's buffers, the hidden states of tokens that count unless all
            do and, in the backward pass of 16-bit hidden states, their gradient in float32.

    Returns:
        A :class:`TokenLogProb`, in the shape of the labels.

    Raises:
        ValueError: as :func:`token_log_prob`, or if hidden states, head and bias do not fit each other, or
            scale or softcap are impossible.

    Example:
        >>> hidden, head = torch.eye(3), torch.eye(3)[:2].requires_grad_()
        >>> scored = linear_token_log_prob(hidden, head, torch.tensor([0, 0, -100]))
        >>> scored.log_prob
        tensor([-0.3133, -1.3133,  0.0000], grad_fn=<ToCopyBackward0>)
        >>> (-scored.log_prob[scored.valid]).mean().backward()
        >>> head.grad
        tensor([[-0.1345, -0.3655,  0.0000],
                [ 0.1345,  0.3655,  0.0000]])
    """
    check_scale(scale, softcap)
    if bias is None and type(head) is nn.Linear and _is_plain(head):
        layer = head
        head, bias = layer.weight, layer.bias
    compiling = torch.compiler.is_compiling()  # then the operator checks
    if not compiling:
        instead = "-F.cross_entropy(F.linear(hidden, head), labels, reduction='none')"
        refuse_transformed("linear_token_log_prob", instead, hidden, head, labels, bias)
        hidden, head, labels, bias = _plain(hidden, head, labels, bias)
        check_ignored("linear_token_log_prob", labels, ignore_index)
    if not isinstance(head, Tensor) and callable(head):
        settings = (scale, softcap, ignore_index, shift, max_logits_bytes)
        return _of_module(hidden, head, bias, labels, *settings)
    hidden, head, bias = _as_autocast(hidden, head, bias)
    if not compiling:
        check_weights(hidden, head, bias)
        check_logits_and_labels(hidden.new_empty(()).expand(*hidden.shape[:-1], len(head)), labels)
    ignored = NONE_IGNORED if ignore_index is None else ignore_index
    log_prob, logsumexp, valid, _, _ = scored_labels(
        hidden, head, bias, labels, ignored, shift, scale, softcap, max_logits_bytes
    )
    if scale == 1 and softcap is None and log_prob.device.type == "cpu" and not compiling:
        warn_of_a_missing_scale(-log_prob.detach(), valid.reshape(-1).nonzero()[:, 0], len(head))
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    return TokenLogProb(log_prob.to(dtype), logsumexp.to(dtype), valid)


def _is_plain(head: nn.Linear) -> bool:
    """Whether this layer does nothing but multiply by its weight and add its bias."""
    hooks = (head._forward_pre_hooks, head._forward_hooks, head._backward_hooks, head._backward_pre_hooks)
    # accelerate puts another forward in place; weight_norm and pruning other parameters.
    return not any(hooks) and "forward" not in vars(head) and set(head._parameters) == {"weight", "bias"}


def _as_autocast(hidden: Tensor, head: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """What autocast makes of the arguments of ``F.linear``."""
    kind = hidden.device.type if isinstance(hidden, Tensor) else "cpu"  # what is wrong is said later
    if not torch.is_autocast_enabled(kind):
        return hidden, head, bias
    dtype = torch.get_autocast_dtype(kind)

    def cast(value: Any) -> Any:
        narrow = isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
        return value.to(dtype) if narrow else value

    return cast(hidden), cast(head), cast(bias)


@not_compiled
def _of_module(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    bias: Tensor | None,
    labels: Tensor,
    scale: float,
    softcap: float | None,
    ignore_index: int | None,
    shift: bool,
    max_logits_bytes: int,
) -> TokenLogProb:
    """The same of a layer of which only its results are known, called again in the backward pass."""
    logits_of, vocabulary, dtype = checked_module(hidden, head, bias)
    check_logits_and_labels(hidden.new_empty((), dtype=dtype).expand(*hidden.shape[:-1], vocabulary), labels)
    target = targets(labels, vocabulary, ignore_index=ignore_index, shift=shift)
    states, flat = hidden.reshape(-1, hidden.shape[-1]), target.labels.reshape(-1)

    def scored(states: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = logits_of(states)
        if scale != 1:
            logits = logits * scale
        if softcap is not None:
            logits = (logits / softcap).tanh() * softcap
        log_prob, logsumexp, _ = token_log_prob(logits, labels)
        return log_prob, logsumexp

    counted = (flat >= 0).nonzero()[:, 0]
    # Logits, what scale and softcap make of them, and the gradients of two of these.
    copies = 2 + 2 * (scale != 1) + 3 * (softcap is not None)
    limit = max(max_logits_bytes - SCRATCH_BYTES, max_logits_bytes // 2)
    step = max(1, limit // (copies * (vocabulary + hidden.shape[-1]) * dtype.itemsize))
    parts: list[tuple[Tensor, Tensor]] = [
        checkpoint(scored, states[some], flat[some], use_reentrant=False)
        for some in torch.split(counted, step)
        if len(some)
    ]
    if not parts:  # a gradient of zeros, whatever is in the hidden states
        nothing = torch.cat([states[:0], states.new_zeros(1, states.shape[1])])
        log_prob, logsumexp = scored(nothing, flat.new_full((1,), -100))
        parts = [(log_prob[:0], logsumexp[:0])]

    def spread(values: Tensor) -> Tensor:
        return values.new_zeros(len(flat)).index_copy(0, counted, values).view(labels.shape)

    log_prob, logsumexp = (spread(torch.cat(values)) for values in zip(*parts, strict=True))
    return TokenLogProb(log_prob, logsumexp, target.valid)


@plain_tensors
def _plain(
    hidden: Tensor, head: Tensor | Callable[[Tensor], Tensor], labels: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | Callable[[Tensor], Tensor], Tensor, Tensor | None]:
    return hidden, head, labels, bias
