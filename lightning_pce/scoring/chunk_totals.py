"""What a chunk of scored tokens comes to, and how chunks are put together in their order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_pce import digest as td
from lightning_pce import intervals
from lightning_pce.metrics._base import StateMetric
from lightning_pce.metrics.label_totals import LabelTotals
from lightning_pce.metrics.tail_tokens import TailTokens, merge_tails
from lightning_pce.tokens.batch import ScoredTokens

STATISTICS = ("ce", "entropy", "log_rank")  # in the order of the rows of `digests`
COMPRESSION = 1024
TAIL = 100
# Of so many scored tokens of a document the cross-entropy is kept: two tokenizers whose first tokens differ
# are compared from a place on that both have.
HEADS = 8


@dataclass
class Tokens:
    """The scored tokens of a chunk, arrays ``[n]`` in the order of documents and positions."""

    document: NDArray[np.int64]
    """The number of the document in the data."""
    number: NDArray[np.int64]
    """What stands for its unit of error bars in every record."""
    position: NDArray[np.int64]
    label: NDArray[np.int64]
    group: NDArray[np.int64]
    """-1 of a token without a group."""
    ce: NDArray[np.float32]
    entropy: NDArray[np.float32]
    rank: NDArray[np.float32]
    target_prob: NDArray[np.float32] | None = None
    max_prob: NDArray[np.float32] | None = None


@dataclass
class ChunkTotals:
    """What is kept of a chunk. Of G groups ``digests``, ``slots`` and ``counts`` have 1 + G rows: all tokens
    first.
    """

    digests: NDArray[np.float64]
    """``[3, 1 + G, K + 3, 2]``, of each of :data:`STATISTICS`."""
    slots: NDArray[np.float64]
    """``[3, 1 + G, 128, 97]``, the same for error bars."""
    counts: NDArray[np.float64]
    """``[1 + G, 3]``: tokens, those whose label is the first guess, those where it is among the first 5."""
    labels: NDArray[np.int64]
    """``[m]``, which labels there are."""
    label_totals: NDArray[np.float64]
    """``[m, 2]``, as :class:`lightning_pce.LabelTotals` has them."""
    tail: NDArray[np.float64]
    """The state of :class:`lightning_pce.TailTokens`."""
    documents: NDArray[np.int64]
    """``[d]``, ascending: which documents there are."""
    document_totals: NDArray[np.float64]
    """``[d, 2]``: tokens, and nats."""
    heads: NDArray[np.float64]
    """``[d, 8]``: the cross-entropy of the first tokens, NaN where there are no more."""
    halved: NDArray[np.int64]
    """0-d: how often memory was not enough."""

    def plain(self) -> dict[str, NDArray[Any]]:
        """The arrays by name."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]]) -> ChunkTotals:
        """What :meth:`plain` gave."""
        return cls(**{each.name: arrays[each.name] for each in fields(cls)})


def totals_of(tokens: Tokens, tail: TailTokens, *, groups: int, vocabulary: int, halved: int) -> ChunkTotals:
    """What tokens in order come to."""
    ce, entropy, rank = map(torch.from_numpy, (tokens.ce, tokens.entropy, tokens.rank))
    values = {"ce": ce, "entropy": entropy, "log_rank": rank.log()}
    group, slots = torch.from_numpy(tokens.group), intervals.slots_of(torch.from_numpy(tokens.number))
    digests = torch.stack([_digests(values[name], group, groups) for name in STATISTICS])
    counted = torch.stack([_slots(values[name], slots, group, groups) for name in STATISTICS])
    labels, label_totals = _labels(ce, torch.from_numpy(tokens.label), vocabulary)
    documents, first, size = np.unique(tokens.document, return_index=True, return_counts=True)
    place = np.repeat(np.arange(len(documents)), size)
    nats = np.bincount(place, weights=tokens.ce.astype(np.float64), minlength=len(documents))
    return ChunkTotals(
        digests.numpy(),
        counted.numpy(),
        _counts(tokens, groups),
        labels,
        label_totals,
        _state_of(tail),
        documents,
        np.column_stack([size, nats]).astype(np.float64),
        _heads(tokens.ce, first, size),
        np.array(halved),
    )


def joined(chunks: Iterable[ChunkTotals], vocabulary: int) -> ChunkTotals:
    """Chunks in their order as one, each looked at once; equal chunks give equal bytes."""
    digests, tails, halved = [], [], 0
    slots: NDArray[np.float64] | float = 0.0
    counts: NDArray[np.float64] | float = 0.0
    label_totals = np.zeros((vocabulary, 2))
    parts: dict[int, tuple[NDArray[np.float64], list[float]]] = {}
    for each in chunks:
        digests.append(torch.from_numpy(each.digests))
        tails.append(torch.from_numpy(each.tail))
        halved += int(each.halved)
        slots, counts = slots + each.slots, counts + each.counts
        label_totals[each.labels] += each.label_totals
        for document, totals, heads in zip(
            each.documents.tolist(), each.document_totals, each.heads, strict=True
        ):
            before, first = parts.get(document, (np.zeros(2), []))
            some = heads[: int(min(HEADS, totals[0]))].tolist()
            parts[document] = before + totals, (first + some)[:HEADS]
    labels, documents = np.flatnonzero(label_totals[:, 0]), sorted(parts)
    return ChunkTotals(
        td.merge(torch.stack(digests)).numpy(),
        np.asarray(slots),
        np.asarray(counts),
        labels,
        label_totals[labels],
        merge_tails(torch.stack(tails)).numpy(),
        np.array(documents, np.int64),
        np.array([parts[each][0] for each in documents]),
        np.array([(parts[each][1] + [np.nan] * HEADS)[:HEADS] for each in documents]),
        np.array(halved),
    )


def _digests(values: Tensor, group: Tensor, groups: int) -> Tensor:
    every = td.add(td.empty(COMPRESSION), values)[None]
    if not groups:
        return every
    empty = td.empty(COMPRESSION, shape=(groups,))
    return torch.cat([every, td.add(empty, values, group >= 0, groups=group.clamp(min=0))])


def _slots(values: Tensor, slots: Tensor, group: Tensor, groups: int) -> Tensor:
    every = intervals.add(intervals.empty(), values, None, slots)[None]
    if not groups:
        return every
    empty = intervals.empty((groups,))
    return torch.cat([every, intervals.add(empty, values, group >= 0, slots, groups=group.clamp(min=0))])


def _counts(tokens: Tokens, groups: int) -> NDArray[np.float64]:
    rows = [np.ones(len(tokens.ce), bool), *(tokens.group == group for group in range(groups))]
    known = ~np.isnan(tokens.ce)
    columns = [known, known & (tokens.rank <= 1), known & (tokens.rank <= 5)]
    return np.array([[float((row & column).sum()) for column in columns] for row in rows])


def _labels(ce: Tensor, label: Tensor, vocabulary: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    metric = LabelTotals(vocabulary)
    weights = torch.ones(len(ce), dtype=torch.bool)
    metric.add(ScoredTokens(ce, weights, None, None, {}, label))
    totals = _state_of(metric)[:-1]  # in the last row is what was left out: NaN
    labels = np.flatnonzero(totals[:, 0])
    return labels, totals[labels]


def _heads(ce: NDArray[np.float32], first: NDArray[np.int64], size: NDArray[np.int64]) -> NDArray[np.float64]:
    heads = np.full((len(first), HEADS), np.nan)
    for row, begin, number in zip(heads, first, size, strict=True):
        few = min(HEADS, int(number))
        row[:few] = ce[begin : begin + few]
    return heads


def _state_of(metric: StateMetric) -> NDArray[np.float64]:
    (state,) = metric.metric_state.values()
    assert isinstance(state, Tensor)
    found: NDArray[np.float64] = state.numpy()
    return found
