"""The expected pass@N of answers whose probabilities are known, without sampling one."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_pce._checks import plain_tensors
from lightning_pce.metrics._base import not_compiled
from lightning_pce.metrics._totals import TotalsMetric, host_numbers, may_look
from lightning_pce.metrics._views import ViewedMetric
from lightning_pce.tokens.labels import GroupIds, checked_answers, checked_losses

# Of the sum over an answer's tokens, in nats: a probability of 1.0001 is rounding and counts as 1.
_ROUNDING = 1e-4
# Squares of what is smaller do not fit in float64; it counts as log 0.
_FLOOR = -1e150


class ExpectedPassAtN(ViewedMetric, TotalsMetric):
    """How often at least one of N samples is the answer: the mean of 1 - (1 - p)^N over answers.

    p is the chance of sampling *this* answer, token for token, at temperature 1 and without top-p or top-k.
    Where other answers are right too it is a lower bound of pass@N. (p of several right answers of a problem
    add up: ``torch.logsumexp`` of their log-probabilities, fed as one.) Nothing is sampled: one forward pass
    over the answers gives it for every N. Computed in float64 from log p, within 1e-12 also where p itself
    is 0 in any float.

    As input to ``update`` and ``forward``, either

    * ``log_prob``: floating point of any shape, one an answer: the sum of its tokens' log-probabilities, in
      nats;

    or what is known of each token:

    * ``losses``: floating point ``[..., T]``, cross-entropies in nats, 0 to inf. Each row is an answer;
    * ``answer``: optionally integers ``[..., T]``, or one for each row or for all: which answer of its row a
      token belongs to, negative if to none. Ids may begin anew in every row and every batch: an answer lies
      within one row of one batch;

    and with both optionally

    * ``mask``: bool of the shape of ``log_prob`` or ``losses``, true where it counts. Left out: all do. An
      answer without a token that counts is none. *Padded and prompt tokens need it.*

    As output of ``compute`` and ``forward``, 0-d float64 tensors over all answers of all batches and ranks:
    ``pass_at_1``, ``pass_at_8`` ... and ``mean_log_prob``, the mean of log p in nats; of each a standard
    error, ``pass_at_1_se`` ...; and ``count``, the number of answers. NaN where there are none, and standard
    errors of a single one. An error bar is over *problems*, one answer each: answers that resemble each
    other make it too small. An answer that is NaN is left out, and said once; one of probability 0 makes
    ``mean_log_prob`` -inf.

    Args:
        n: numbers of samples, whole numbers from 1.
        metric_kwargs: see :class:`torchmetrics.Metric`; ``process_group`` may also be a function that returns
            the group when it is needed.

    Raises:
        ValueError: if ``n`` holds something else or twice the same.

    Example:
        >>> metric = ExpectedPassAtN(n=(1, 8))
        >>> metric.update(torch.tensor([0.5, 0.1]).log())
        >>> {key: round(value.item(), 3) for key, value in metric.compute().items() if key[-2:] != "se"}
        {'pass_at_1': 0.3, 'pass_at_8': 0.783, 'mean_log_prob': -1.498, 'count': 2.0}
        >>> best = metric.view("pass_at_8")  # for self.log("val_pass_at_8", best)
        >>> best.compute()
        tensor(0.7828, dtype=torch.float64)
    """

    higher_is_better = True

    def __init__(self, n: Sequence[int] = (1, 8, 64), **metric_kwargs: Any) -> None:
        self.n = _checked_numbers(n)
        # Rows of moments: each n, then log p; and a row of what was left out: NaN, above 0.
        shape = (len(self.n) + 2, 3)
        super().__init__(shape, _pooled, {"n": self.n}, defaults={"n": (1, 8, 64)}, **metric_kwargs)

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of ``compute()``, in order."""
        values = (*(f"pass_at_{number}" for number in self.n), "mean_log_prob")
        return (*(key for value in values for key in (value, f"{value}_se")), "count")

    @not_compiled
    @plain_tensors
    def update(
        self,
        log_prob: Tensor | None = None,
        *,
        losses: Tensor | None = None,
        answer: GroupIds | None = None,
        mask: Tensor | None = None,
    ) -> None:
        """Add answers; see the class for the arguments.

        Raises:
            ValueError: if shapes or dtypes do not fit, or on a CPU the log-probability of an answer is above
                0; nothing of the batch enters the state then. On an accelerator, where looking would make
                the host wait, such an answer is left out and counted.
        """
        log_prob, counted = _answers(log_prob, losses, answer, mask)
        look = may_look(log_prob)
        log_prob, counted = log_prob.to(self._state.device), counted.to(self._state.device)
        above = counted & (log_prob > _ROUNDING)
        if look and bool(above.any()):
            raise ValueError(_above_zero(log_prob[above], losses is not None))
        nan = counted & log_prob.isnan()
        counted = counted & ~above & ~nan
        log_prob = torch.where(counted, log_prob, -1.0).clamp(max=0.0)
        moments = [_moments(expected_pass(log_prob, number), counted) for number in self.n]
        moments.append(_moments(log_prob, counted & (log_prob > _FLOOR)))
        left_out = torch.stack([nan.sum(), above.sum(), torch.zeros_like(nan.sum())]).double()
        self._add(torch.stack([*moments, left_out])[None])

    def compute(self) -> dict[str, Tensor]:
        """The means of everything seen on all ranks, 0-d float64, under :attr:`keys`; see the class."""
        count, mean, deviations = self._state[:-1].unbind(-1)
        nan, above, _ = host_numbers(self._state[-1])
        self._warn_once("nan", nan, "answers had a log-probability that is NaN. They are left out.")
        self._warn_once("above", above, "answers had a log-probability above 0. They are left out.")
        everything = count[0]
        mean = torch.where(count > 0, mean, torch.nan)
        error = torch.where(count > 1, (deviations / (count - 1) / count).sqrt(), torch.nan)
        zero = count < everything  # of log p alone: answers of probability 0 are in no mean
        mean, error = torch.where(zero, -torch.inf, mean), torch.where(zero, torch.nan, error)
        results = torch.stack([mean, error], dim=-1).flatten()
        return dict(zip(self.keys, torch.cat([results, everything[None]]).unbind(), strict=True))


def expected_pass(log_prob: Tensor, n: int) -> Tensor:
    """1 - (1 - p)^n of log p ``[...]``, at most 0, in float64."""
    # log1p(-p) of p = 1 is -inf, and -expm1 of that 1.
    return -torch.expm1(n * torch.log1p(-log_prob.double().exp()))


def _moments(values: Tensor, counted: Tensor) -> Tensor:
    """Number, mean and sum of squared deviations ``[3]`` of those of values ``[A]`` that count."""
    number = counted.sum().double()
    mean = torch.where(counted, values, 0.0).sum() / number.clamp(min=1.0)
    return torch.stack([number, mean, torch.where(counted, values - mean, 0.0).square().sum()])


def _pooled(states: Tensor) -> Tensor:
    """States ``[N, rows, 3]`` as one.

    Squares are of deviations from the mean, never of the values: nearly equal answers have a variance that
    the difference of two large sums would lose.
    """
    count, mean, deviations = states[:, :-1].unbind(-1)
    total = count.sum(0)
    # From the largest part's mean: that of one part alone, and of equal parts, stays as it was to the bit.
    first = mean.gather(0, count.argmax(0, keepdim=True))
    pooled = first[0] + (count * (mean - first)).sum(0) / total.clamp(min=1.0)
    deviations = (deviations + count * (mean - pooled).square()).sum(0)
    moments = torch.stack([total, torch.where(total > 0, pooled, 0.0), deviations], dim=-1)
    return torch.cat([moments, states[:, -1].sum(0)[None]])


def _answers(
    log_prob: Tensor | None, losses: Tensor | None, answer: GroupIds | None, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The log-probability of each answer ``[A]``, float64, and which of them are answers at all."""
    if (log_prob is None) == (losses is None):
        raise ValueError(
            "Expected either argument `log_prob`, one number an answer, or `losses`, one a token, but got "
            f"{'neither' if losses is None else 'both'}."
        )
    if losses is None:
        assert log_prob is not None
        if answer is not None:
            raise ValueError(
                "Expected no argument `answer` beside `log_prob`, which is one number an answer: the answers "
                "of tokens go with `losses`."
            )
        return _checked_log_prob(log_prob, mask)
    losses, counted = checked_losses(losses, mask)
    if losses.ndim == 1 and answer is None:
        raise ValueError(
            "Expected argument `losses` to be [..., T], whose rows are answers, but got "
            f"{tuple(losses.shape)} without `answer`. Pass the answer that each token belongs to, answer=0 "
            "if it is one, or log_prob=-losses if each is an answer."
        )
    losses = losses.detach().double()
    if answer is None:
        return -torch.where(counted, losses, 0.0).sum(-1).reshape(-1), counted.any(-1).reshape(-1)
    ids = checked_answers(answer, losses)
    return _summed_by_answer(losses, ids, counted & (ids >= 0))


def _checked_log_prob(log_prob: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    if not isinstance(log_prob, Tensor) or not log_prob.is_floating_point():
        what = log_prob.dtype if isinstance(log_prob, Tensor) else type(log_prob).__name__
        raise ValueError(f"Expected argument `log_prob` to be a floating point tensor but got {what}.")
    flat = log_prob.detach().double().reshape(-1)
    if mask is not None and isinstance(mask, Tensor) and mask.shape == log_prob.shape:
        mask = mask.reshape(-1)
    return checked_losses(flat, mask)


def _summed_by_answer(losses: Tensor, ids: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Minus the sum of losses ``[..., T]`` over each answer of each row, ``[A]``, and which have a token.

    A is the number of tokens, which nobody has to look at.
    """
    rows = losses.shape[:-1].numel(), losses.shape[-1]
    ids, order = torch.where(counted, ids, -1).reshape(rows).sort(dim=-1)
    begins = torch.ones_like(ids)
    begins[:, 1:] = ids[:, 1:] != ids[:, :-1]
    place = begins.flatten().cumsum(0) - 1
    values = torch.where(counted, losses, 0.0).reshape(rows).gather(-1, order).flatten()
    sums = torch.zeros_like(values).index_add_(0, place, values)
    tokens = torch.zeros_like(values).index_add_(0, place, (ids >= 0).flatten().double())
    return -sums, tokens > 0


def _checked_numbers(n: Sequence[int]) -> tuple[int, ...]:
    try:
        if any(isinstance(number, bool) for number in n):
            raise TypeError
        checked = tuple(operator.index(number) for number in n)
    except TypeError as error:
        raise ValueError(
            f"Expected argument `n` to hold numbers of samples, such as (1, 8, 64), but got {n!r}."
        ) from error
    if not checked or min(checked) < 1 or len(set(checked)) < len(checked):
        raise ValueError(
            f"Expected argument `n` to hold different whole numbers from 1, such as (1, 8, 64), but got "
            f"{n!r}."
        )
    return checked


def _above_zero(wrong: Tensor, from_losses: bool) -> str:
    what = (
        "Expected argument `losses` to be cross-entropies in nats, whose sum over an answer is at least 0, "
        f"but got a sum of {-float(wrong.max()):g}"
        if from_losses
        else "Expected argument `log_prob` to hold log-probabilities of answers, at most 0, but got "
        f"{float(wrong.max()):g}"
    )
    cause = "log-probabilities" if from_losses else "losses"
    return f"{what} ({wrong.numel()} answers). Are these {cause}? Then pass minus them."
