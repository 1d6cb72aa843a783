"""The tokens of a validation with the highest cross-entropy, and what the model said in their place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from lightning_pce._checks import plain_tensors
from lightning_pce._threads import single_threaded
from lightning_pce.metrics._base import StateMetric, not_compiled
from lightning_pce.metrics._totals import host_numbers, may_look
from lightning_pce.tokens.batch import ScoredTokens, score_tokens
from lightning_pce.tokens.labels import GroupIds, Logits, checked_ignore_index, never_ignored
from lightning_pce.tokens.top_tokens import top_and_rank

_UNKNOWN = -1
# A row of the state: CE, document by its upper and lower 32 bits, position, label, top token, rank. float64
# is exact to 2**53 only, and ids of documents may be any int64, such as hashes.
_UNUSED = (-torch.inf, -1.0, float((1 << 32) - 1), -1.0, -1.0, -1.0, -1.0)


class Tail(NamedTuple):
    """The tokens of highest cross-entropy, the highest first: one tensor ``[n]`` for each property.

    Of equal ones the lower document leads, then the lower position, then the lower label. Rows at the end for
    which there was no token have a cross-entropy of NaN and -1 elsewhere.
    """

    ce: Tensor
    """float64, the cross-entropy in nats."""
    document: Tensor
    """int64, the id of the document."""
    position: Tensor
    """int64, where in its row of labels the label stands, from 0."""
    label: Tensor
    """int64, the token that was to be predicted."""
    top: Tensor
    """int64, the most probable token, of equal ones the first; -1 where only losses were given."""
    rank: Tensor
    """int64, the rank of the label from 1, as in ``token_statistics``; -1 where only losses were given."""

    def words(self, decode: Callable[[int], str], rows: int = 20) -> str:
        """The first rows as a table with the text of their tokens, to print.

        Args:
            decode: the text of a token id, such as ``tokenizer.decode``.
            rows: how many at most.

        Example:
            >>> metric = TailTokens(n=2)
            >>> metric.update(torch.tensor([[[4.0, 0.0], [0.0, 0.0]]]), torch.tensor([[1, 0]]), document=7)
            >>> print(metric.compute().words(["yes", "no"].__getitem__))
            CE     document  position  label  top    rank
            4.018  7         0         'no'   'yes'  2
            0.693  7         1         'yes'  'yes'  1
        """
        table = [("CE", "document", "position", "label", "top", "rank")]
        # reshape: torchmetrics makes of a single number a 0-d tensor.
        for ce, document, position, label, top, rank in zip(
            *(column.reshape(-1)[:rows].tolist() for column in self), strict=True
        ):
            if ce == ce:
                text, guess = (repr(decode(token)) if token >= 0 else "?" for token in (label, top))
                ranked = str(rank) if rank >= 0 else "?"
                table.append((f"{ce:.3f}", str(document), str(position), text, guess, ranked))
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ("  ".join(map(str.ljust, cells, widths)).rstrip() for cells in table)
        return "\n".join(lines)


class TailTokens(StateMetric):
    """The ``n`` tokens of highest cross-entropy over all batches and ranks: where a high mean comes from.

    As input to ``update`` and ``forward``, what :class:`PercentileCrossEntropy` takes: ``logits``:
    ``[..., V]``, or a list of chunks ``[..., t, V]`` of that along the sequence, and ``labels``: ``[...]``
    integers; or ``losses``: ``[...]`` in nats, and the ``labels`` beside them, of which top token and rank
    are not known. With both optionally ``document``: an integer for each token or each sequence, negative and
    large ones too. Left out, each row of ``[..., T]`` labels is a document, and its id a hash of them.

    As output of ``compute`` and ``forward``, a :class:`Tail`. The same tokens give the same rows, whatever
    the batches and ranks, if document, position and label tell them apart. (A sampler that gives a sequence
    to two ranks, to fill up the last batch, gives its tokens twice.) +inf comes first; NaN is left out.

    Args:
        n: how many tokens; the state has ``56 * (n + 1)`` bytes.
        ignore_index: the label of tokens that do not count; None: all do.
        shift: the labels are the inputs, as Hugging Face has them: position t is scored against label t + 1,
            and t + 1 is the position in the result.
        metric_kwargs: see :class:`torchmetrics.Metric`; ``process_group`` may also be a function that returns
            the group when it is needed.

    Raises:
        ValueError: if ``n`` is no whole number >= 1.

    Example:
        >>> metric = TailTokens(n=2)
        >>> logits = torch.tensor([[[4.0, 0.0], [0.0, 0.0], [0.0, 9.0]]])
        >>> metric.update(logits, torch.tensor([[1, 0, 1]]), document=torch.tensor([7]))
        >>> tail = metric.compute()
        >>> tail.position, tail.label, tail.top, tail.rank
        (tensor([0, 1]), tensor([1, 0]), tensor([0, 0]), tensor([2, 1]))
    """

    def __init__(
        self, n: int = 100, *, ignore_index: int | None = -100, shift: bool = False, **metric_kwargs: Any
    ) -> None:
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ValueError(f"Expected argument `n` to be a whole number >= 1 but got {n!r}.")
        self.n = n
        self.ignore_index = checked_ignore_index(ignore_index)
        self.shift = bool(shift)
        super().__init__(
            "tail",
            {"n": n, "ignore_index": ignore_index, "shift": self.shift},
            merge_tails,
            defaults={"n": 100, "ignore_index": -100, "shift": False},
            old_settings=(),
            **metric_kwargs,
        )

    def _empty(self, device: torch.device | None = None) -> Tensor:
        rows = torch.tensor(_UNUSED, dtype=torch.float64, device=device).repeat(self.n, 1)
        return torch.cat([rows, torch.zeros_like(rows[:1])])  # last what was left out: NaN, invalid labels

    @not_compiled
    @plain_tensors
    def update(
        self,
        logits: Logits | None = None,
        labels: Tensor | None = None,
        *,
        losses: Tensor | None = None,
        document: GroupIds | None = None,
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
                document=document,
                by_document=True,
                ignore_index=self.ignore_index,
                shift=self.shift,
            )
        self._say_once("unsigned", never_ignored(labels, self.ignore_index))
        self._add(scored, logits)

    def add(self, scored: ScoredTokens, logits: Logits | None = None) -> None:
        """:meth:`update` with a batch that was scored by documents, so that it need not be scored again.

        Args:
            scored: by :meth:`PercentileCrossEntropy.score_batch` of a metric with ``error_bars``, with the
                same ``shift`` and ``ignore_index``.
            logits: which were scored. Left out, top token and rank are not known.
        """
        self._add(scored, logits)
        self._note_update()

    def _add(self, scored: ScoredTokens, logits: Logits | None) -> None:
        tokens, empty = _checked(scored), cast(Tensor, self._defaults[self._state_name])
        with single_threaded(), torch.no_grad():
            for part, chunk in _pieces(tokens, logits):
                rows = _rows_of(part, chunk, self._state, empty)
                if rows is not None:
                    with self._lock:
                        self._state = merge_tails(torch.stack([self._state, rows]))

    def compute(self) -> Tail:
        """The tokens of highest cross-entropy seen on all ranks; see the class."""
        nan, invalid = host_numbers(self._state[-1, :2])
        self._warn_once("nan", nan, "tokens had a cross-entropy that is NaN. They are left out.")
        self._warn_once("invalid", invalid, "tokens were left out because their label was impossible.")
        tail = unpacked(self._state[:-1])
        return tail._replace(ce=torch.where(tail.ce > -torch.inf, tail.ce, torch.nan))


def merge_tails(states: Tensor) -> Tensor:
    """One state ``[n + 1, 7]`` of several ``[N, n + 1, 7]``: the first rows of all, the last ones added."""
    tail = unpacked(states[:, :-1].flatten(0, 1))
    order = _order(-tail.ce, tail.document, _pair(tail.position, tail.label), _pair(tail.rank, tail.top))
    rows = states[:, :-1].flatten(0, 1)[order[: states.shape[1] - 1]]
    return torch.cat([rows, states[:, -1].sum(0, keepdim=True)])


class _Tokens(NamedTuple):
    """Tokens of one shape, on any device."""

    ce: Tensor
    counted: Tensor  # bool
    document: Tensor
    position: Tensor
    label: Tensor
    invalid: Tensor  # bool, left out because of the label


def _checked(scored: ScoredTokens) -> _Tokens:
    """The tokens of a batch, or a ``ValueError`` that names what is missing."""
    labels, positions, documents = scored.known_labels(), scored.positions, scored.documents
    assert positions is not None  # where labels are
    if documents is None:
        raise ValueError(
            "Expected a batch that was scored by documents: by a metric with error_bars=True, or with "
            "`document`."
        )
    given = scored.weights > 0
    unknown = given & (labels < 0)
    if may_look(labels) and bool(unknown.any()):
        raise ValueError(
            f"Expected argument `labels` to hold token ids >= 0 but got {int(labels[unknown].min())} for a "
            "token that counts."
        )
    invalid = unknown if scored.invalid is None else unknown | scored.invalid
    return _Tokens(scored.ce, given & ~unknown, documents, positions, labels, invalid)


def _pieces(tokens: _Tokens, logits: Logits | None) -> Iterator[tuple[_Tokens, Tensor | None]]:
    """Tokens and their logits; of chunks ``[..., t, V]`` each with its own ``[..., t]``."""
    if logits is None or isinstance(logits, Tensor):
        yield tokens, logits
        return
    lengths = [chunk.shape[-2] for chunk in logits]
    parts = zip(*(torch.split(each, lengths, dim=-1) for each in tokens), strict=True)
    yield from zip((_Tokens(*part) for part in parts), logits, strict=True)


def _rows_of(tokens: _Tokens, logits: Tensor | None, state: Tensor, empty: Tensor) -> Tensor | None:
    """The state ``[n + 1, 7]`` of some tokens; None if they would not change the one that there is.

    Args:
        tokens: of one shape.
        logits: ``[..., V]`` of these tokens, if they are known.
        state: what there is.
        empty: the state of nothing. (Made anew, an accelerator would wait for its numbers.)
    """
    n = len(state) - 1
    ce, counted, document, position, label, invalid = (
        each.detach().reshape(-1).to(state.device) for each in tokens
    )
    nan = counted & ~(ce > -torch.inf)
    key = torch.where(counted & ~nan, ce.double(), -torch.inf)
    left_out = torch.stack([nan.sum(), invalid.sum()]).double()
    if may_look(key):
        chosen = _candidates(key, state[:-1, 0].min(), n)
        if not len(chosen) and not bool(left_out.any()):
            return None
    else:
        chosen = torch.arange(len(key), device=key.device)
    key, document, position, label = (each[chosen] for each in (key, document, position, label))
    order = _order(-key, document, _pair(position, label))[:n]
    label = label[order]
    unknown = torch.full_like(label, _UNKNOWN)
    top, rank = (unknown, unknown) if logits is None else top_and_rank(logits, chosen[order], label)
    tail = Tail(key[order], document[order], position[order], label, top.to(label), rank.to(label))
    rows = empty.to(state.device).clone()
    used = tail.ce > -torch.inf
    rows[: len(order)] = torch.where(used[:, None], _packed(tail), rows[: len(order)])
    rows[-1, :2] = left_out
    return rows


def _candidates(ce: Tensor, least: Tensor, n: int) -> Tensor:
    """Indices of all that may be among the highest ``n``: few, because the host may look."""
    worth = (ce >= least) & (ce > -torch.inf)
    if int(worth.sum()) > n:
        worth &= ce >= ce.topk(n).values[-1]
    return worth.nonzero()[:, 0]


def _order(*keys: Tensor) -> Tensor:
    """The indices that sort by the first key, equal ones by the second, and so on."""
    order = keys[-1].argsort(stable=True)
    for key in keys[-2::-1]:
        order = order[key[order].argsort(stable=True)]
    return order


def _pair(first: Tensor, second: Tensor) -> Tensor:
    """Two int64 as one that sorts as they do, if the second is from -1 to 2**32 - 2."""
    return (first << 32) + second + 1


def _packed(tail: Tail) -> Tensor:
    """Rows ``[n, 7]`` of the state."""
    high, low = tail.document >> 32, tail.document & 0xFFFFFFFF
    return torch.stack(
        [each.double() for each in (tail.ce, high, low, tail.position, tail.label, tail.top, tail.rank)], -1
    )


def unpacked(rows: Tensor) -> Tail:
    """What :func:`_packed` has packed."""
    ce, high, low, *others = rows.unbind(-1)
    document = (high.long() << 32) | low.long()
    position, label, top, rank = (each.long() for each in others)
    return Tail(ce.clone(), document, position, label, top, rank)
