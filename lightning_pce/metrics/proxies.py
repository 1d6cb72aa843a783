"""How a model predicts the tokens of expert solutions: 80 weighted means, each with its standard error.

The ten statistics and eight weightings are those of Patel, Reddy, Mosbach and Bahdanau, "Forecasting
Downstream Performance of LLMs With Proxy Metrics" (arXiv 2605.18607). We know them from descriptions in
words and have not seen the paper's formulas or its code: where `TokenProxies` says "our choice", the paper's
form may be another one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from lightning_pce._checks import plain_tensors
from lightning_pce.metrics._base import not_compiled
from lightning_pce.metrics._totals import TotalsMetric, checked_table, host_numbers, may_look
from lightning_pce.tokens.labels import (
    NONE_IGNORED,
    Logits,
    check_ids,
    check_logits_and_labels,
    checked_ignore_index,
    never_ignored,
    shifted,
    vocabulary_of,
)
from lightning_pce.tokens.statistics import TokenStatistics, token_statistics

STATISTICS = (
    "ce",
    "top1",
    "top2",
    "top3",
    "top5",
    "entropy",
    "rank",
    "reciprocal_rank",
    "margin",
    "wrong_confidence",
)
WEIGHTINGS = (
    "uniform",
    "probability",
    "disagreement",
    "entropy",
    "inverse_entropy",
    "frequency",
    "inverse_frequency",
    "gaussian",
)
Inverse = Literal["reciprocal", "complement"]

_NEEDED = ("ce", "entropy", "target_prob", "max_prob", "rank")
_FLAGS = ("valid", "invalid")
_COUNTERS = ("sequences", "tokens", "nan", "invalid")
# 1 / entropy has no bound. Below a hundredth of the largest entropy (0.1 nats among 50,000 tokens) all tokens
# are equally certain.
_LEAST_ENTROPY = 0.01


def proxy_names() -> tuple[str, ...]:
    """The 80 names ``{statistic}_{weighting}``, in the order of :class:`TokenProxies`' results.

    Example:
        >>> names = proxy_names()
        >>> len(names), names[0], names[14]
        (80, 'ce_uniform', 'top1_inverse_frequency')
    """
    return tuple(f"{statistic}_{weighting}" for statistic in STATISTICS for weighting in WEIGHTINGS)


class TokenProxies(TotalsMetric):
    """80 proxies of downstream performance from expert solutions, after arXiv 2605.18607.

    Of each sequence, one expert solution to one task, the last ``last_n`` scored tokens are looked at. A
    proxy is one statistic of these tokens, averaged with one weighting: ``sum(w * m) / sum(w)``; then the
    plain mean over sequences. (As in the paper, whose ``last_n`` is 1000.)

    Statistics, with p the model's distribution at a position and y the expert's token:

    * ``ce``: -log p(y), in nats;
    * ``top1``, ``top2``, ``top3``, ``top5``: 1 if y is among the k most probable tokens, else 0;
    * ``entropy`` of p, over log V (our choice: the paper says "normalised");
    * ``rank`` of y, from 1, and ``reciprocal_rank``: tokens of equal probability rank in the order of their
      ids (our choice);
    * ``margin``: max p - p(y);
    * ``wrong_confidence``: max p where y is not of rank 1, else 0 (our choice).

    Weightings:

    * ``uniform``; ``probability``: p(y); ``disagreement``: 1 - p(y); ``entropy``: as above;
    * ``inverse_entropy`` and ``inverse_frequency``: 1 / x, the entropy being at least 0.01; or 1 - x with
      ``inverse="complement"`` (our choice);
    * ``frequency``: the share of y among the scored tokens of its sequence, or, with ``token_counts``, its
      share (n + 1) / (N + V) of that corpus (our choice: the paper's corpus is unknown to us);
    * ``gaussian``: exp(-((ce - c) / w)^2 / 2) with c = ``gaussian_center`` and w = ``gaussian_width`` (our
      choice of form and numbers: the paper has a "Gaussian-NLL kernel").

    Where a weighting gives all tokens of a sequence weight 0, they count alike (our choice).

    As input to ``update`` and ``forward``, ``labels``: ``[B, T]`` integers, a whole solution per row, prompt
    and padding being ``ignore_index``; and either ``logits``: ``[B, T, V]``, or ``statistics``: what
    ``token_statistics`` made of them, with the same ``shift`` and ``ignore_index``.

    As output of ``compute`` and ``forward``, a dict of 0-d float64 tensors: for each of :func:`proxy_names`
    ``{name}`` and ``{name}_se``, its standard error ``std / sqrt(n)`` over sequences; then ``sequences``,
    those with a scored token, ``tokens``, ``nan`` and ``invalid``. Without a sequence a proxy is NaN, with
    fewer than two its standard error. Tokens whose statistics are NaN are left out and counted. A target of
    probability 0 makes ``ce`` infinite, except under weightings that give it weight 0.

    Args:
        last_n: how many scored tokens of each sequence count.
        ignore_index: the label of tokens that are not scored; None: all are.
        shift: the labels are the inputs, as Hugging Face has them: position t is scored against label t + 1.
        vocabulary: V in log V; left out, it is that of the logits. ``statistics`` need it.
        token_counts: ``[V]`` integers, how often each token occurs in a corpus.
        inverse: ``"reciprocal"`` or ``"complement"``.
        gaussian_center: the cross-entropy of largest weight, in nats.
        gaussian_width: the standard deviation of the kernel, in nats.
        metric_kwargs: see :class:`torchmetrics.Metric`; ``process_group`` may also be a function that returns
            the group when it is needed.

    Raises:
        ValueError: if an argument is none of these.

    Example:
        >>> proxies = TokenProxies()
        >>> logits = torch.tensor([[[2.0, 0.0, 1.0], [0.0, 3.0, 0.0]], [[0.0, 2.0, 0.0], [1.0, 0.0, 0.0]]])
        >>> proxies.update(logits, torch.tensor([[0, 2], [1, -100]]))
        >>> result = proxies.compute()
        >>> result["top1_uniform"], result["top1_uniform_se"], int(result["sequences"])
        (tensor(0.7500, dtype=torch.float64), tensor(0.2500, dtype=torch.float64), 2)
    """

    def __init__(
        self,
        last_n: int = 1000,
        *,
        ignore_index: int | None = -100,
        shift: bool = False,
        vocabulary: int | None = None,
        token_counts: Tensor | Sequence[int] | None = None,
        inverse: Inverse = "reciprocal",
        gaussian_center: float = 1.0,
        gaussian_width: float = 1.0,
        **metric_kwargs: Any,
    ) -> None:
        _check_whole("last_n", last_n)
        if vocabulary is not None:
            _check_whole("vocabulary", vocabulary)
        if inverse not in get_args(Inverse):
            raise ValueError(
                f"Expected argument `inverse` to be one of {get_args(Inverse)} but got {inverse!r}."
            )
        _check_kernel(gaussian_center, gaussian_width)
        # 2 and 2.0 are one setting, which the state's name spells in one way.
        gaussian_center, gaussian_width = float(gaussian_center), float(gaussian_width)
        table = None if token_counts is None else checked_table("token_counts", token_counts)
        settings = {
            "last_n": last_n,
            "ignore_index": ignore_index,
            "shift": shift,
            "vocabulary": vocabulary,
            "inverse": inverse,
            "gaussian_center": gaussian_center,
            "gaussian_width": gaussian_width,
        }
        super().__init__(
            (len(proxy_names()) + 1, 4),
            merge_proxies,
            settings,
            table,
            defaults={
                "last_n": 1000,
                "ignore_index": -100,
                "shift": False,
                "inverse": "reciprocal",
                "gaussian_center": 1.0,
                "gaussian_width": 1.0,
            },
            **metric_kwargs,
        )
        self.last_n = last_n
        self.ignore_index = checked_ignore_index(ignore_index)
        self._ignored = NONE_IGNORED if ignore_index is None else ignore_index
        self.shift = shift
        self.vocabulary = vocabulary
        self.inverse = inverse
        self.gaussian_center = gaussian_center
        self.gaussian_width = gaussian_width

    @not_compiled
    @plain_tensors
    def update(
        self,
        logits: Logits | None = None,
        labels: Tensor | None = None,
        *,
        statistics: TokenStatistics | None = None,
    ) -> None:
        """Add a batch of whole sequences; see the class for the two forms of arguments.

        Raises:
            ValueError: if arguments are missing or do not fit, or on a CPU a label is impossible; nothing of
                the batch enters the state then. On an accelerator, where looking would make the host wait,
                such a token is left out and counted as ``invalid``.
        """
        if labels is None or (logits is None) == (statistics is None):
            raise ValueError(
                "Expected argument `labels` and one of `logits` and `statistics` but got "
                f"{_given(logits=logits, labels=labels, statistics=statistics)}."
            )
        _check_labels(labels)
        self._say_once("unsigned", never_ignored(labels, self.ignore_index))
        target = shifted(labels.long(), self._ignored) if self.shift else labels.long()
        if logits is not None:
            tokens, vocabulary = self._scored(logits, target)
        else:
            assert statistics is not None
            tokens, vocabulary = self._given_statistics(statistics, target)
        tokens = self._checked_ids(_Tokens(*(each.detach().to(self._state.device) for each in tokens)))
        counted = tokens.valid & ~_any_nan(tokens)
        values = _values(tokens, counted, vocabulary)
        weights = self._weights(tokens, counted, values)
        self._add(_state_of_each_sequence(values, weights, counted, tokens))

    def _scored(self, logits: Logits, target: Tensor) -> tuple[_Tokens, int]:
        """The statistics of the tokens that count, which are all that are computed."""
        check_logits_and_labels(logits, target)
        chosen = _last(target != self._ignored, self.last_n)
        target = torch.where(chosen, target, self._ignored)
        found = token_statistics(logits, target, statistics=_NEEDED, ignore_index=self._ignored)
        return _tokens(found, chosen, target), self.vocabulary or vocabulary_of(logits)

    def _given_statistics(self, statistics: TokenStatistics, target: Tensor) -> tuple[_Tokens, int]:
        _check_statistics(statistics, target)
        if self.vocabulary is None:
            raise ValueError(
                "Expected argument `vocabulary`, TokenProxies(vocabulary=V), for updates with `statistics`: "
                "the entropy is divided by log V, and they do not show how many logits there were."
            )
        target = target.to(statistics.valid.device)
        strange = statistics.valid & (target == self._ignored)
        if may_look(target) and bool(strange.any()):
            raise ValueError(
                "Expected arguments `statistics` and `labels` to be of the same tokens but "
                f"{int(strange.sum())} valid tokens have label ignore_index={self.ignore_index}. Was "
                f"token_statistics called with these labels and with shift={self.shift}, as this metric is?"
            )
        chosen = _last(statistics.valid | statistics.invalid, self.last_n)
        tokens = _tokens(statistics, chosen, target)
        return tokens._replace(valid=tokens.valid & ~strange), self.vocabulary

    def _checked_ids(self, tokens: _Tokens) -> _Tokens:
        """Without tokens that the corpus' table does not know."""
        if self._table is None:
            return tokens
        _, inside = self._looked_up(tokens.target)
        outside = tokens.valid & ~inside
        if may_look(tokens.target) and bool(outside.any()):
            wrong = tokens.target[outside]
            raise ValueError(
                f"Expected argument `labels` to hold token ids in [0, {len(self._table)}), the length of "
                f"`token_counts`, but got {len(wrong)} others, from {int(wrong.min())} to {int(wrong.max())}."
            )
        return tokens._replace(valid=tokens.valid & inside)

    def _weights(self, tokens: _Tokens, counted: Tensor, values: Tensor) -> Tensor:
        """The weights ``[8, B, T]`` of the tokens, 0 where one does not count."""
        ce = tokens.ce.double()
        entropy = values[STATISTICS.index("entropy")]
        frequency = self._frequency(tokens.target, counted)
        weights = (
            torch.ones_like(ce),
            tokens.target_prob.double(),
            -torch.expm1(-ce),  # 1 - p of the float32 p is 0 below 6e-8
            entropy,
            self._inverse(entropy.clamp(min=_LEAST_ENTROPY)),
            frequency,
            self._inverse(frequency),
            torch.exp(-(((ce - self.gaussian_center) / self.gaussian_width) ** 2) / 2),
        )
        return torch.where(counted, torch.stack(weights).clamp(min=0.0), 0.0)

    def _inverse(self, share: Tensor) -> Tensor:
        return 1 / share if self.inverse == "reciprocal" else 1 - share

    def _frequency(self, target: Tensor, counted: Tensor) -> Tensor:
        """How frequent each counted token is, in ``(0, 1]``; anything above 0 elsewhere."""
        if self._table is not None:
            corpus = self._table.to(target.device).sum() + len(self._table)
            return (self._looked_up(target)[0] + 1).double() / corpus
        ids = torch.where(counted, target, -1).contiguous()  # all that do not count are one other token
        ordered = ids.sort(dim=-1).values.contiguous()
        same = torch.searchsorted(ordered, ids, right=True) - torch.searchsorted(ordered, ids)
        return same.double() / counted.sum(-1, keepdim=True).clamp(min=1)

    def compute(self) -> dict[str, Tensor]:
        """The proxies, their standard errors and the counts, over all ranks; see the class."""
        state = self._state
        number, mean, squares, infinite = state[:-1].unbind(-1)
        mean = torch.where(number > 0, mean, torch.nan).masked_fill(infinite > 0, torch.inf)
        error = (squares / (number - 1) / number).sqrt()
        error = torch.where((number > 1) & (infinite == 0), error, torch.nan)
        _, _, nan, invalid = host_numbers(state[-1])
        self._warn_once("nan", nan, "tokens had a statistic that was NaN. They are left out and counted.")
        self._warn_once("invalid", invalid, "tokens were left out because their label was impossible.")
        result = {}
        for name, value, value_error in zip(proxy_names(), mean.unbind(), error.unbind(), strict=True):
            result[name], result[f"{name}_se"] = value, value_error
        return result | dict(zip(_COUNTERS, state[-1].unbind(), strict=True))

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """The proxies as a table of statistics by weightings, with their standard errors.

        The colour is that of the value among those of its row, which share a unit. Needs matplotlib.

        Args:
            val: a result of ``compute`` or ``forward``, or several, of which the last is shown; left out:
                that of :meth:`compute`.
            ax: where to draw; left out: a new figure.

        Returns:
            The figure and the axes.
        """
        result = self.compute() if val is None else val
        result = result if isinstance(result, dict) else result[-1]
        if ax is None:
            from matplotlib.figure import Figure

            ax = Figure(figsize=(12, 5), layout="constrained").add_subplot()
        rows = [[f"{statistic}_{weighting}" for weighting in WEIGHTINGS] for statistic in STATISTICS]
        for y, names in enumerate(rows):
            values = [float(result[name]) for name in names]
            known = [value for value in values if math.isfinite(value)]
            low, span = min(known, default=0.0), max(known, default=0.0) - min(known, default=0.0)
            shades = [(value - low) / span if span and math.isfinite(value) else 0.5 for value in values]
            ax.pcolormesh([-0.5 + x for x in range(9)], [y - 0.5, y + 0.5], [shades], cmap="Blues", vmax=2)
            for x, (name, value) in enumerate(zip(names, values, strict=True)):
                text = f"{value:.3g} ± {float(result[f'{name}_se']):.1g}"
                ax.text(x, y, text, ha="center", va="center", fontsize=8)
        ax.set_xticks(range(len(WEIGHTINGS)), [name.replace("_", " ") for name in WEIGHTINGS])
        ax.set_yticks(range(len(STATISTICS)), [name.replace("_", " ") for name in STATISTICS])
        ax.set_ylim(len(STATISTICS) - 0.5, -0.5)
        ax.set_xlabel("weighting")
        ax.set_title(f"{int(result['sequences'])} sequences, {int(result['tokens'])} tokens", loc="left")
        return ax.figure, ax


def merge_proxies(states: Tensor) -> Tensor:
    """One state ``[81, 4]`` of several ``[N, 81, 4]``.

    A row for each proxy: the number of sequences, the mean of their scores, the sum of squared differences
    from it, and the number of further sequences whose score is infinite. Last the counters. Squares are of
    differences from the common mean, so that nothing cancels (Chan, Golub and LeVeque).
    """
    number, mean, squares, infinite = states[:, :-1].unbind(-1)
    total = number.sum(0)
    center = (number / total.clamp(min=1) * mean).sum(0)
    squares = squares.sum(0) + (number * (mean - center) ** 2).sum(0)
    rows = torch.stack([total, center, squares, infinite.sum(0)], dim=-1)
    return torch.cat([rows, states[:, -1:].sum(0)])


class _Tokens(NamedTuple):
    """Statistics of tokens ``[B, T]``: which were chosen, which of these are valid, and the expert's ids."""

    ce: Tensor
    entropy: Tensor
    target_prob: Tensor
    max_prob: Tensor
    rank: Tensor
    chosen: Tensor
    valid: Tensor
    target: Tensor


def _tokens(statistics: TokenStatistics, chosen: Tensor, target: Tensor) -> _Tokens:
    found = {name: getattr(statistics, name) for name in _NEEDED}
    return _Tokens(**found, chosen=chosen, valid=chosen & statistics.valid, target=target)


def _last(scored: Tensor, number: int) -> Tensor:
    """The last ``number`` of the scored tokens of each sequence; ``[B, T]`` bool both."""
    from_the_end = scored.flip(-1).cumsum(-1).flip(-1)
    return scored & (from_the_end <= number)


def _any_nan(tokens: _Tokens) -> Tensor:
    return tokens.ce.isnan() | tokens.entropy.isnan() | tokens.target_prob.isnan() | tokens.max_prob.isnan()


def _values(tokens: _Tokens, counted: Tensor, vocabulary: int) -> Tensor:
    """The ten statistics ``[10, B, T]`` float64, 0 where a token does not count."""
    rank, max_prob = tokens.rank.double(), tokens.max_prob.double()
    values = (
        tokens.ce.double(),
        *((rank <= k).double() for k in (1, 2, 3, 5)),
        tokens.entropy.double() / math.log(max(vocabulary, 2)),  # of one token it is 0
        rank,
        1 / rank,
        (max_prob - tokens.target_prob.double()).clamp(min=0.0),
        torch.where(rank > 1, max_prob, 0.0),
    )
    return torch.where(counted, torch.stack(values), 0.0)


def _state_of_each_sequence(values: Tensor, weights: Tensor, counted: Tensor, tokens: _Tokens) -> Tensor:
    """States ``[B, 81, 4]`` for :func:`merge_proxies`, of ``[10, B, T]`` values and ``[8, B, T]`` weights."""
    least = torch.finfo(torch.float64).tiny
    weights = torch.where(weights.sum(-1, keepdim=True) >= least, weights, counted.double())
    share = weights / weights.sum(-1, keepdim=True).clamp(min=least)
    endless = values[:1].isinf()  # cross-entropy alone can be
    finite = torch.where(values.isinf(), 0.0, values)  # 0 times infinity is NaN
    score = torch.einsum("sbt,wbt->bsw", finite, share)
    infinite = torch.zeros_like(score)
    infinite[:, 0] = (endless & (share > 0)).any(-1).double().T
    exists = counted.any(-1)
    number = torch.where(exists[:, None, None], 1 - infinite, 0.0)
    rows = torch.stack([number, score * number, torch.zeros_like(score), infinite], dim=-1).flatten(1, 2)
    nan, invalid = tokens.valid & ~counted, tokens.chosen & ~tokens.valid
    counters = torch.stack([exists, counted.sum(-1), nan.sum(-1), invalid.sum(-1)], dim=-1)
    return torch.cat([rows, counters.double()[:, None]], dim=1)


def _check_whole(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"Expected argument `{name}` to be a whole number >= 1 but got {value!r}.")


def _check_kernel(center: float, width: float) -> None:
    if not math.isfinite(center):
        raise ValueError(f"Expected argument `gaussian_center` to be a number but got {center!r}.")
    if not 0 < width < math.inf:
        raise ValueError(f"Expected argument `gaussian_width` to be a number > 0 but got {width!r}.")


def _check_labels(labels: Tensor) -> None:
    check_ids(labels)
    if labels.ndim != 2:
        raise ValueError(
            "Expected argument `labels` of shape [B, T], a sequence in each row, but got "
            f"{tuple(labels.shape)}. A flattened batch does not show where a sequence ends; a single one is "
            "labels[None]."
        )


def _check_statistics(statistics: TokenStatistics, target: Tensor) -> None:
    missing = [
        name for name in (*_NEEDED, *_FLAGS) if not isinstance(getattr(statistics, name, None), Tensor)
    ]
    if missing:
        raise ValueError(
            f"Expected argument `statistics` to be what token_statistics(..., statistics={_NEEDED}) returns "
            f"but got {type(statistics).__name__} without {', '.join(missing)}."
        )
    for name in _FLAGS:
        dtype = getattr(statistics, name).dtype
        if dtype != torch.bool:
            raise ValueError(f"Expected argument `statistics` with bool `{name}` but got {dtype}.")
    for name in (*_NEEDED, *_FLAGS):
        shape = tuple(getattr(statistics, name).shape)
        if shape != tuple(target.shape):
            raise ValueError(
                "Expected argument `statistics` in the shape of the labels, "
                f"{tuple(target.shape)}, but got `{name}` {shape}."
            )


def _given(**arguments: Logits | TokenStatistics | None) -> str:
    return ", ".join(
        f"{name}={'None' if value is None else tuple(value.shape) if isinstance(value, Tensor) else 'given'}"
        for name, value in arguments.items()
    )
