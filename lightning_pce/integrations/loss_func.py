"""Objectives as the loss function of transformers' Trainer and of trl."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor

from lightning_pce._checks import warn_once
from lightning_pce._errors import UserError
from lightning_pce.integrations._model_outputs import described, logits_in
from lightning_pce.objectives import DCO, TokenObjective, nll
from lightning_pce.tokens.log_prob import token_log_prob

# (outputs of the model, labels, how many labels a step counts) -> 0-d loss
LossFunc: TypeAlias = Callable[..., Tensor]


def loss_func(objective: TokenObjective | DCO, *, normalizer: float | None = None) -> LossFunc:
    """An objective as ``Trainer(compute_loss_func=...)`` of transformers, and of trl's ``SFTTrainer``.

    The labels are shifted by one, as transformers does for causal language models, and -100 does not count.
    ``num_items_in_batch``, which the Trainer counts over all micro-batches and processes of a step, is what
    the sum is divided by, so that gradient accumulation changes nothing. The Trainer divides by nothing else:
    where that number is missing, or of other things, the gradients of micro-batches add up.

    For logits without a graph, as in an evaluation, the result is plain cross-entropy: ``eval_loss`` can be
    compared between objectives.

    Args:
        objective: such as ``Power(1)``, or ``DCO(8)``, where each row is an answer. DCO is divided by
            answers, which the Trainer does not count: without ``normalizer`` by those of each micro-batch,
            with a warning.
        normalizer: in place of ``num_items_in_batch``, how many tokens, or for DCO answers, a step has over
            all its micro-batches and processes.

    Returns:
        A function of ``(outputs, labels, num_items_in_batch=None)``. It raises a ``UserError`` where the
        outputs have no logits, as under ``loss_type="chunked_nll"`` of trl 1.10, or there are no labels.

    Example:
        >>> from types import SimpleNamespace
        >>> import torch
        >>> from lightning_pce.objectives import Power
        >>> compute_loss = loss_func(Power(1))  # Trainer(..., compute_loss_func=loss_func(Power(1)))
        >>> logits = torch.zeros(1, 3, 4, requires_grad=True)
        >>> compute_loss(SimpleNamespace(logits=logits), torch.tensor([[0, 1, 2]]), num_items_in_batch=4)
        tensor(0.3750, grad_fn=<ToCopyBackward0>)
    """
    if not isinstance(objective, TokenObjective | DCO):
        raise UserError(
            "Expected argument `objective` to be an objective, such as Power(1) or DCO(8), but got "
            f"{objective!r:.80}."
        )
    said: set[str] = set()

    def compute_loss(
        outputs: Any, labels: Tensor | None, num_items_in_batch: Tensor | float | None = None
    ) -> Tensor:
        logits = _logits(outputs, labels)
        assert labels is not None
        scored = token_log_prob(logits, labels.to(logits.device), shift=True)
        counted = None if num_items_in_batch is None else _one_number(num_items_in_batch)
        if not logits.requires_grad:
            return nll(scored, normalizer=counted)
        if normalizer is not None:
            return objective.forward(scored, normalizer=normalizer)
        if isinstance(objective, DCO):
            if counted is not None:
                warn_once(
                    said,
                    "answers",
                    "loss_func(DCO(...)) ignores num_items_in_batch, a number of tokens, and divides by the "
                    "answers of each micro-batch; the Trainer adds these up over gradient_accumulation_steps "
                    "(and processes, with average_tokens_across_devices). Pass normalizer= the number of "
                    "answers in a step.",
                )
            return objective.forward(scored)
        return objective.forward(scored, normalizer=counted)

    return compute_loss


def _logits(outputs: Any, labels: Tensor | None) -> Tensor:
    if labels is None:
        raise UserError("loss_func needs labels but the batch has none: a `labels` column, -100 in prompts.")
    logits = logits_in(outputs, [tuple(labels.shape)])
    if not isinstance(logits, Tensor):
        raise UserError(
            f"loss_func needs logits for labels {tuple(labels.shape)} but got {described(outputs)}: "
            "loss_type='chunked_nll' of trl 1.10 gives none, SFTConfig(loss_type='nll') does; nor do fused "
            "losses such as use_liger_kernel."
        )
    return logits


def _one_number(count: Tensor | float) -> Tensor | float:
    """The Trainer repeats it for each GPU under DataParallel."""
    return count.reshape(-1)[0] if isinstance(count, Tensor) else count
