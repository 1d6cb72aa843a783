"""Percentiles of per-token cross-entropy, and of any stream of numbers, as torchmetrics Metrics."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_pce import digest as td
from lightning_pce import intervals
from lightning_pce._checks import plain_tensors
from lightning_pce._names import DEFAULT_PERCENTILES
from lightning_pce.metrics._base import not_compiled
from lightning_pce.metrics._digest_metric import DigestMetric
from lightning_pce.tokens.batch import ScoredTokens, score_tokens
from lightning_pce.tokens.labels import (
    GroupIds,
    Logits,
    checked_documents,
    checked_groups,
    checked_ignore_index,
    checked_weights,
    never_ignored,
)

# With more losses than this exactly 0 and no mask they are probably those of ignored tokens.
_MANY_ZEROS = 0.05


class PercentileCrossEntropy(DigestMetric):
    """Mean and percentiles of per-token cross-entropy, in nats, over all tokens of all ranks.

    The state is a t-digest of fixed size: exact up to ``compression`` tokens, a rank error of at most
    ``max(5e-5, 0.1 / sqrt(N))`` above, whatever the number of batches and ranks.

    As input to ``update`` and ``forward``, either

    * ``logits``: ``[..., V]`` float32, bfloat16 or float16, or a list of chunks ``[..., t, V]`` of that along
      the sequence, and ``labels``: ``[...]`` integers; or
    * ``losses``: per-token losses in nats of any shape, made by another kernel, and ``mask``: bool, true
      where a token counts; or ``labels``, from which the mask is made where losses and labels fit, perhaps
      after a shift by one (without both all tokens count);

    and in both cases optionally ``weights``: numbers >= 0 shaped like the labels (or losses); a whole number
    is repetition, 0 leaves a token out. With ``groups`` also ``group``: for each token, for each sequence or
    for all, the number of its group. With ``shift`` weight and group of a token stand where its label stands.

    As output of ``compute`` and ``forward``, a dict of 0-d tensors: ``mean``, ``p5`` ... ``p99`` (``p99_9``
    for 99.9), ``trimmed_mean`` (of what lies between the 5th and the 95th percentile), ``finite_mean``,
    ``count`` (of tokens that are not NaN), ``nonfinite`` and ``invalid``; then the same of each group, with
    its name in front: ``prompt_p50``. Perplexity is ``exp(mean)``.

    Args:
        percentiles: which, each in [0, 100].
        groups: names of kinds of tokens that are kept apart, of A-Z, a-z, 0-9, _.
        ignore_index: the label of tokens that do not count; None: all do.
        shift: the labels are the inputs, as Hugging Face has them: position t is scored against label t + 1.
        compression: the number of centroids; the state has ``16 * (compression + 3)`` bytes, for each group.
        error_bars: also count tokens by document, in 99 KB more for each group and one ``all_reduce`` more.
        level: the probability that an interval holds the true value.
        metric_kwargs: see :class:`torchmetrics.Metric`; ``process_group`` may also be a function that returns
            the group when it is needed.

    Raises:
        ValueError: if a percentile is outside [0, 100] or given twice, a group's name is impossible, or
            ``level`` is outside (0, 1).

    Example:
        >>> metric = PercentileCrossEntropy(percentiles=(50, 95))
        >>> logits = torch.tensor([[[2.0, 0.0], [0.0, 0.0], [0.0, 3.0]]])
        >>> metric.update(logits, torch.tensor([[0, 1, -100]]))
        >>> metric.compute()["p50"]
        tensor(0.4100, dtype=torch.float64)
        >>> metric = PercentileCrossEntropy(percentiles=(50,), groups=("prompt", "completion"))
        >>> metric.update(losses=torch.tensor([[4.0, 2.0, 1.0, 0.5]]), group=torch.tensor([[0, 0, 1, 1]]))
        >>> metric.compute()["prompt_p50"], metric.compute()["completion_p50"]
        (tensor(3., dtype=torch.float64), tensor(0.7500, dtype=torch.float64))
    """

    higher_is_better = False
    plot_lower_bound = 0.0
    # The mean must fall by this many nats for a warning. For SmolLM2 on plain text it falls by 9.
    _shift_warning_gain: ClassVar[float] = 2.0

    def __init__(
        self,
        percentiles: Sequence[float] = DEFAULT_PERCENTILES,
        *,
        groups: Sequence[str] | None = None,
        ignore_index: int | None = -100,
        shift: bool = False,
        compression: int = 1024,
        error_bars: bool = False,
        level: float = 0.95,
        **metric_kwargs: Any,
    ) -> None:
        super().__init__(
            percentiles,
            groups=groups,
            compression=compression,
            error_bars=error_bars,
            level=level,
            settings={"ignore_index": ignore_index, "shift": bool(shift)},
            defaults={"ignore_index": -100, "shift": False},
            **metric_kwargs,
        )
        self.ignore_index = checked_ignore_index(ignore_index)
        self.shift = bool(shift)
        self._shift_checked = shift
        self._shift_gain: Tensor | None = None
        self._losses_without_mask = False

    @not_compiled
    def update(
        self,
        logits: Logits | None = None,
        labels: Tensor | None = None,
        *,
        losses: Tensor | None = None,
        mask: Tensor | None = None,
        weights: Tensor | None = None,
        group: GroupIds | None = None,
        document: GroupIds | None = None,
    ) -> None:
        """Add a batch; see the class for the two forms of arguments.

        Raises:
            ValueError: if arguments are missing, do not fit or hold impossible values; nothing of the batch
                enters the state then. On accelerators impossible values are counted as ``invalid`` instead,
                because looking would make the host wait.
        """
        scored = self.score_batch(
            logits, labels, losses=losses, mask=mask, weights=weights, group=group, document=document
        )
        self._add(scored.ce, scored.weights, scored.groups, scored.invalid, slots_of(scored))

    @not_compiled
    def update_and_mean(
        self,
        logits: Logits | None = None,
        labels: Tensor | None = None,
        *,
        losses: Tensor | None = None,
        mask: Tensor | None = None,
        weights: Tensor | None = None,
        group: GroupIds | None = None,
        document: GroupIds | None = None,
    ) -> Tensor:
        """:meth:`update`, and the weighted mean loss of the batch: 0-d in the dtype of the losses,
        differentiable, NaN if nothing counts.

        Example:
            >>> metric = PercentileCrossEntropy()
            >>> metric.update_and_mean(torch.zeros(1, 3, 4), torch.tensor([[0, -100, 3]]))
            tensor(1.3863)
        """
        scored = self.score_batch(
            logits, labels, losses=losses, mask=mask, weights=weights, group=group, document=document
        )
        self.add(scored)
        return scored.mean()

    def add(self, scored: ScoredTokens) -> None:
        """:meth:`update` with a batch that :meth:`score_batch` has given, perhaps that of another metric."""
        self.add_values(scored.ce, scored.weights, scored.groups, scored.invalid, slots_of(scored))

    @plain_tensors
    def score_batch(
        self,
        logits: Logits | None = None,
        labels: Tensor | None = None,
        *,
        losses: Tensor | None = None,
        mask: Tensor | None = None,
        weights: Tensor | None = None,
        group: GroupIds | None = None,
        document: GroupIds | None = None,
        statistics: Sequence[str] = ("ce",),
    ) -> ScoredTokens:
        """A batch as this metric counts it, with a warning the first time it looks wrong; adds nothing.

        Args:
            logits: as in :meth:`update`, like the arguments that follow.
            labels: as there.
            losses: as there.
            mask: as there.
            weights: as there.
            group: as there.
            document: as there.
            statistics: what else is to be known of each token, from the same read of the logits.
        """
        scored = score_tokens(
            logits,
            labels,
            losses=losses,
            mask=mask,
            weights=weights,
            group=group,
            groups=self.groups,
            document=document,
            by_document=self.error_bars,
            ignore_index=self.ignore_index,
            shift=self.shift,
            statistics=statistics,
            judge_shift=not self._shift_checked,
        )
        self._losses_without_mask |= not scored.masked
        if self.error_bars and document is None:
            self._say_once(
                "documents",
                "no `document` was given, so each row of the labels is one: error bars are right where rows "
                "are what was drawn independently, and too narrow or too wide where a row packs several "
                "documents or a document has several rows.",
            )
        if losses is not None and losses.dtype in (torch.bfloat16, torch.float16):
            self._say_once(
                "dtype",
                f"the losses are {losses.dtype}, so that percentiles go in steps (in bfloat16 of 0.4 %). "
                "Compute them of logits.float(), or pass the logits, which are read so.",
            )
        self._say_once("unsigned", never_ignored(labels, self.ignore_index))
        if scored.gain_by_shift is not None:
            self._shift_gain, on_cpu = scored.gain_by_shift, scored.ce.device.type == "cpu"
            # A batch of few tokens says nothing. An accelerator is asked in compute, which may wait for it.
            self._shift_checked = not (on_cpu and bool(self._shift_gain.isnan()))
            if on_cpu:
                self._warn_of_shift()
        return scored

    def compute(self) -> dict[str, Tensor]:
        """Summaries of everything seen on all ranks, see the class."""
        self._warn_of_shift()
        result = super().compute()
        if not result["count"].is_meta:
            self._warn_of_odd_losses()
        return result

    def _warn_of_odd_losses(self) -> None:
        """Look at all losses: in an update that would make the host of an accelerator wait."""
        means, weights, _ = td.centroids(self._state)
        if bool((weights * (means < 0)).sum() > 0):
            self._say_once(
                "negative",
                "some losses are negative, which no cross-entropy is. Are these log-probabilities? Pass them "
                "with the other sign.",
            )
        zeros = float((weights * (means == 0)).sum() / weights.sum())
        if self._losses_without_mask and zeros > _MANY_ZEROS:
            self._say_once(
                "zeros",
                f"{zeros:.0%} of the losses are exactly 0, as those of ignored tokens are, and neither mask "
                "nor labels came with them. If these tokens do not count pass mask=labels != ignore_index "
                "(shifted as the losses are), or labels=.",
            )

    def _warn_of_shift(self) -> None:
        gain, self._shift_gain = self._shift_gain, None
        if gain is not None and not gain.is_meta and float(gain) > self._shift_warning_gain:
            warnings.warn(
                "The labels seem not to be shifted: scored one position further on, the mean cross-entropy "
                f"of the first batch is {float(gain):.1f} nats lower. Logits at position t predict token t "
                "+ 1. Pass shift=True if your labels are the inputs, or shift them yourself.",
                stacklevel=2,
            )


class StreamingQuantiles(DigestMetric):
    """Mean and percentiles of any stream of numbers: gradient norms, rewards, lengths, negative values too.

    As input to ``update`` and ``forward``, ``values``: numbers of any shape, and optionally ``weights``:
    numbers >= 0 of the same shape (bool: which values count), with ``groups`` the number of each value's
    ``group``, and with ``error_bars``, which are for values >= 0, the id of the ``document`` it is from.

    As output of ``compute`` and ``forward``, the dict that :class:`PercentileCrossEntropy` gives.

    Args:
        percentiles: which, each in [0, 100].
        groups: names of kinds of values that are kept apart, of A-Z, a-z, 0-9, _.
        compression: the number of centroids; the state has ``16 * (compression + 3)`` bytes, for each group.
        error_bars: as in :class:`PercentileCrossEntropy`.
        level: as there.
        metric_kwargs: see :class:`torchmetrics.Metric`; ``process_group`` may also be a function that returns
            the group when it is needed.

    Raises:
        ValueError: if a percentile is outside [0, 100] or given twice.

    Example:
        >>> metric = StreamingQuantiles(percentiles=(50,))
        >>> metric.update(torch.tensor([-1.0, 0.0, 5.0]))
        >>> metric.compute()["p50"]
        tensor(0., dtype=torch.float64)
    """

    def __init__(
        self,
        percentiles: Sequence[float] = DEFAULT_PERCENTILES,
        *,
        groups: Sequence[str] | None = None,
        compression: int = 1024,
        error_bars: bool = False,
        level: float = 0.95,
        **metric_kwargs: Any,
    ) -> None:
        super().__init__(
            percentiles,
            groups=groups,
            compression=compression,
            error_bars=error_bars,
            level=level,
            **metric_kwargs,
        )

    @not_compiled
    @plain_tensors
    def update(
        self,
        values: Tensor | float | Sequence[float],
        weights: Tensor | None = None,
        *,
        group: GroupIds | None = None,
        document: GroupIds | None = None,
    ) -> None:
        """Add values; with ``error_bars`` negative ones count as 0 in the intervals.

        Raises:
            ValueError: if shapes do not fit or, on a CPU, a weight is negative or not a number; nothing
                enters the state then.
        """
        if not isinstance(values, Tensor):
            try:  # float64, not the default dtype, which Lightning changes
                values = torch.tensor(values, dtype=torch.float64)
            except (TypeError, ValueError, RuntimeError) as error:
                raise ValueError(
                    "Expected argument `values` to be a tensor, a number or numbers but got "
                    f"{repr(values)[:80]}."
                ) from error
        if values.is_complex() or values.dtype == torch.bool:
            raise ValueError(f"Expected argument `values` to hold real numbers but got {values.dtype}.")
        weights = checked_weights(weights, values, "values")
        groups = checked_groups(group, self.groups, values, weights)
        if self.error_bars != (document is not None):
            raise ValueError(
                "Expected argument `document` with the id of each value's document, for error bars."
                if self.error_bars
                else "Expected no argument `document`: the metric was made without `error_bars`."
            )
        slots = None if document is None else intervals.slots_of(checked_documents(document, values))
        values = values if values.is_floating_point() else values.double()
        self._add(values, weights, groups, slots=slots)


def slots_of(scored: ScoredTokens) -> Tensor | None:
    """The slots of the tokens' documents, uint8 in the shape of the tokens; None without documents."""
    return None if scored.documents is None else intervals.slots_of(scored.documents)
