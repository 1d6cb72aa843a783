"""What a teacher is known to say of each token, and how far a student is from it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_pce._checks import warn_once
from lightning_pce._errors import UserError
from lightning_pce._threads import single_threaded
from lightning_pce.tokens._operators import operator
from lightning_pce.tokens.labels import NONE_IGNORED, shifted

# Rounding to float16 makes sums of probabilities 1.005 at most, rounding to bfloat16 1.04.
_MOST = 1.1
_said: set[str] = set()


@single_threaded()
def _teacher_shares(log_prob: Tensor, valid: Tensor, rest: str) -> tuple[Tensor, Tensor]:
    """What each of K tokens ``[..., K]`` and all others together ``[...]`` are to have, by ``rest``."""
    shares = probabilities(log_prob, valid)
    total = shares.sum(-1)
    if total.device.type == "cpu" and bool((total > _MOST).any()):
        raise UserError(
            "Expected argument `teacher_log_prob` to hold log-probabilities in nats but got a token whose K "
            f"probabilities add up to {float(total.max()):.6g}. Are these logits? Then store_topk(logits, k)."
        )
    if rest == "renormalise":
        return shares / total.clamp(min=torch.finfo(total.dtype).tiny)[..., None], torch.zeros_like(total)
    if rest == "drop":
        return shares, torch.zeros_like(total)
    remainder, negative = remainder_of(shares, valid)
    if total.device.type == "cpu" and int(negative):
        warn_once(
            _said,
            "negative",
            f"topk_distillation: the teacher's K probabilities add up to more than 1 at {int(negative)} of "
            f"{total.numel()} tokens, by {float(total.max()) - 1:.2g} at most: the rest is taken as 0 there. "
            "Stored precision does that; teacher_rest counts it.",
        )
    return shares, remainder


def _fake_teacher_shares(log_prob: Tensor, valid: Tensor, rest: str) -> tuple[Tensor, Tensor]:
    exact = exact_type(log_prob)
    return (
        log_prob.new_empty(valid.shape, dtype=exact),
        log_prob.new_empty(valid.shape[:-1], dtype=exact),
    )


def exact_type(values: Tensor) -> torch.dtype:
    """float64, which MPS has not."""
    return torch.float32 if values.device.type == "mps" else torch.float64


def probabilities(log_prob: Tensor, valid: Tensor) -> Tensor:
    """Of log-probabilities ``[..., K]``, 0 where there is none."""
    return torch.where(valid, log_prob.to(exact_type(log_prob)).exp(), 0.0)


def remainder_of(shares: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """1 - the sum of shares ``[..., K]``, at least 0, and at how many tokens it was less."""
    rest, some = 1.0 - shares.sum(-1), valid.any(-1)
    return torch.where(some, rest.clamp(min=0.0), 0.0), ((rest < 0) & some).sum()


def counted_targets(
    labels: Tensor | None, mask: Tensor | None, like: Tensor, ignore_index: int | None, shift: bool
) -> tuple[Tensor, Tensor | None, int]:
    """Which tokens count, bool in the shape ``[...]`` of ``like``; their labels, and what the others have."""
    counted = torch.ones_like(like, dtype=torch.bool)
    if mask is not None:
        if mask.dtype != torch.bool or mask.shape != like.shape:
            raise UserError(
                f"Expected argument `mask` to be bool of the shape of the tokens, {tuple(like.shape)}, but "
                f"got {mask.dtype} {tuple(mask.shape)}."
            )
        counted = counted & mask
    ignored = NONE_IGNORED if ignore_index is None else ignore_index
    if labels is None:
        return counted, None, ignored
    target = labels.long()
    own = target != ignored
    if shift:
        target, own = shifted(target, ignored), shifted(own, False)
    counted = counted & own
    return counted, torch.where(counted, target, ignored), ignored


@single_threaded()
def _divergence(shares: Tensor, remainder: Tensor, log_prob: Tensor, log_rest: Tensor) -> Tensor:
    """The sum of q log(q / p) over K tokens and the rest, ``[...]`` nats; where q is 0 it adds nothing."""
    own = torch.xlogy(shares, shares) - shares * torch.where(shares > 0, log_prob, 0.0)
    rest = torch.xlogy(remainder, remainder) - remainder * torch.where(remainder > 0, log_rest, 0.0)
    return own.sum(-1) + rest


def _fake_divergence(shares: Tensor, remainder: Tensor, log_prob: Tensor, log_rest: Tensor) -> Tensor:
    return torch.empty_like(remainder)


def _remember(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _backward(ctx: Any, by: Tensor) -> tuple[Tensor | None, ...]:
    shares, remainder = ctx.saved_tensors
    return None, None, -(shares * by[..., None]), -(remainder * by)


# Operators: numbers are looked at on a CPU, and N x K numbers are too few for several threads, which wait
# for each other where other processes keep the cores busy.
teacher_shares: Any = operator(
    "teacher_shares(Tensor log_prob, Tensor valid, str rest) -> (Tensor shares, Tensor remainder)",
    _teacher_shares,
    _fake_teacher_shares,
)

divergence_of: Any = operator(
    "divergence_over_k(Tensor shares, Tensor remainder, Tensor log_prob, Tensor log_rest) -> Tensor",
    _divergence,
    _fake_divergence,
    _backward,
    _remember,
)
