"""Tokens and cross-entropy of each label, from which a comparison says which labels moved the mean."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_pce._checks import plain_tensors
from lightning_pce._threads import single_threaded
from lightning_pce.metrics._base import added_up, not_compiled
from lightning_pce.metrics._totals import TotalsMetric, host_numbers, may_look
from lightning_pce.tokens.batch import ScoredTokens, score_tokens
from lightning_pce.tokens.labels import Logits, checked_ignore_index, never_ignored

# Cross-entropies are added in whole multiples of this, in nats. Such sums are exact up to 8 million nats of a
# label, so that neither batches nor ranks nor the order of additions on an accelerator change them by a bit.
_UNIT = 2.0**-30


class LabelTotals(TotalsMetric):
    """The number of tokens and the sum of their cross-entropies, for each label of the vocabulary.

    Two results of the same data show which labels moved the mean: ``runs.what_moved.moved(before, after)``.

    As input to ``update`` and ``forward``, what :class:`PercentileCrossEntropy` takes: ``logits``:
    ``[..., V]``, or a list of chunks ``[..., t, V]`` of that along the sequence, and ``labels``: ``[...]``
    integers; or ``losses``: ``[...]`` in nats, and the ``labels`` beside them. With both optionally
    ``weights``: numbers >= 0, which multiply tokens and cross-entropies.

    As output of ``compute`` and ``forward``, ``[vocabulary, 2]`` float64 over all batches and ranks: the
    tokens of each label, and the sum of their cross-entropies in nats, each rounded to 1e-9. The mean is
    ``totals[:, 1].sum() / totals[:, 0].sum()``. NaN is left out; +inf makes the sum of its label infinite.

    Args:
        vocabulary: the number of labels; the state has ``16 * (vocabulary + 1)`` bytes.
        ignore_index: the label of tokens that do not count; None: all do.
        shift: the labels are the inputs, as Hugging Face has them: position t is scored against label t + 1.
        metric_kwargs: see :class:`torchmetrics.Metric`; ``process_group`` may also be a function that returns
            the group when it is needed.

    Raises:
        ValueError: if ``vocabulary`` is no whole number >= 1.

    Example:
        >>> metric = LabelTotals(vocabulary=3)
        >>> metric.update(torch.zeros(1, 3, 2), torch.tensor([[0, 1, 1]]))
        >>> metric.compute()
        tensor([[1.0000, 0.6931],
                [2.0000, 1.3863],
                [0.0000, 0.0000]], dtype=torch.float64)
    """

    last_result: Tensor | None = None
    """What ``compute`` has given last over all ranks, also after a reset: a history reads it."""

    def __init__(
        self, vocabulary: int, *, ignore_index: int | None = -100, shift: bool = False, **metric_kwargs: Any
    ) -> None:
        if isinstance(vocabulary, bool) or not isinstance(vocabulary, int) or vocabulary < 1:
            raise ValueError(
                f"Expected argument `vocabulary` to be a whole number >= 1 but got {vocabulary!r}."
            )
        self.vocabulary = vocabulary
        self.ignore_index = checked_ignore_index(ignore_index)
        self.shift = bool(shift)
        super().__init__(
            (vocabulary + 1, 2),  # last what was left out: NaN, invalid labels
            added_up,
            {"vocabulary": vocabulary, "ignore_index": ignore_index, "shift": self.shift},
            defaults={"ignore_index": -100, "shift": False},
            **metric_kwargs,
        )

    @not_compiled
    @plain_tensors
    def update(
        self,
        logits: Logits | None = None,
        labels: Tensor | None = None,
        *,
        losses: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> None:
        """Add a batch; see the class for the two forms of arguments.

        Raises:
            ValueError: if arguments are missing, do not fit or hold impossible values; nothing of the batch
                enters the state then. On accelerators tokens with an impossible label are left out and
                counted instead, because looking would make the host wait.
        """
        with torch.no_grad():
            scored = score_tokens(
                logits,
                labels,
                losses=losses,
                weights=weights,
                ignore_index=self.ignore_index,
                shift=self.shift,
            )
        self._say_once("unsigned", never_ignored(labels, self.ignore_index))
        self._add_scored(scored)

    def add(self, scored: ScoredTokens) -> None:
        """:meth:`update` with a batch that :meth:`PercentileCrossEntropy.score_batch` has given."""
        self._add_scored(scored)
        self._note_update()

    @single_threaded()
    def _add_scored(self, scored: ScoredTokens) -> None:
        labels = scored.known_labels()
        device = self._state.device
        labels, ce, share = (
            each.detach().reshape(-1).to(device) for each in (labels, scored.ce, scored.weights)
        )
        ce, share = ce.double(), share.double()
        given = (share > 0) & (share < torch.inf)  # on an accelerator weights were not looked at
        known = (labels >= 0) & (labels < self.vocabulary)
        self._check_known(labels, given & ~known)
        invalid = given & ~known
        if scored.invalid is not None:
            invalid = invalid | scored.invalid.reshape(-1).to(device)
        nan = given & known & ce.isnan()
        counted = given & known & ~nan
        share = torch.where(counted, share, 0.0)
        sums = torch.where(counted, (ce * share / _UNIT).round() * _UNIT, 0.0)
        place = 2 * torch.where(counted, labels, self.vocabulary)
        with self._lock:
            # One dimension: of two, index_add on a CPU adds one row after the other.
            flat = self._state.flatten().index_add(0, place, share).index_add(0, place + 1, sums)
            left_out = torch.stack([nan.sum(), invalid.sum()]).double()
            flat[-2:] += left_out
            self._state = flat.view_as(self._state)

    def _check_known(self, labels: Tensor, unknown: Tensor) -> None:
        if may_look(labels) and bool(unknown.any()):
            wrong = labels[unknown]
            raise ValueError(
                f"Expected argument `labels` to hold token ids in [0, {self.vocabulary}), for "
                f"vocabulary={self.vocabulary}, but got {len(wrong)} others, from {int(wrong.min())} to "
                f"{int(wrong.max())}."
            )

    def compute(self) -> Tensor:
        """Tokens and sums of cross-entropy of everything seen on all ranks, ``[vocabulary, 2]``."""
        nan, invalid = host_numbers(self._state[-1])
        self._warn_once("nan", nan, "tokens had a cross-entropy that is NaN. They are left out.")
        self._warn_once("invalid", invalid, "tokens were left out because their label was impossible.")
        self.last_result = self._state[:-1].clone()
        return self.last_result.clone()

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        before = self.last_result
        try:
            return super()._forward(*args, **kwargs)
        finally:
            self.last_result = before  # not that of one batch
