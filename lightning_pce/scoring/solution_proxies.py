"""The 80 proxies of a dataset of solutions, from what chunks have kept of their tokens.

Each document is a sequence of :class:`lightning_pce.TokenProxies`: its prompt does not count, and of its
completion the last tokens do. A document may be in several chunks.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_pce._threads import single_threaded
from lightning_pce.metrics.proxies import TokenProxies
from lightning_pce.scoring.chunk_totals import Tokens
from lightning_pce.scoring.documents import ROLES
from lightning_pce.scoring.settings import LAST_N, PROXIES
from lightning_pce.scoring.tokenizing import Tokenized
from lightning_pce.tokens.statistics import TokenStatistics

_STATISTICS = ("ce", "entropy", "rank", "target_prob", "max_prob")
_AT_ONCE = 32  # documents of 1,000 tokens, each in 18 rows of float64 and a few copies: 20 MB
_IGNORED = -100

_Ints = NDArray[np.int64]


class Solutions:
    """Which tokens of a dataset count, known before any of them is scored.

    Args:
        data: of the groups prompt and completion.
        counted: the positions of the scored tokens of each document, ascending.
    """

    def __init__(self, data: Tokenized, counted: Sequence[_Ints]) -> None:
        completion = ROLES.index("completion")
        self.data = data
        self.positions = []
        for document, places in zip(data.documents, counted, strict=True):
            assert document.groups is not None, "data without completions are refused"
            self.positions.append(places[document.groups[places] == completion][-LAST_N:])
        self._first = np.array([each[0] if len(each) else np.iinfo(np.int64).max for each in self.positions])

    def kept(self, tokens: Tokens) -> dict[str, NDArray[Any]]:
        """What to keep of a chunk: the tokens that count, in the order of documents and positions."""
        of_completion = tokens.group == ROLES.index("completion")
        rows = np.flatnonzero(of_completion & (tokens.position >= self._first[tokens.document]))
        columns = [getattr(tokens, name)[rows] for name in _STATISTICS]
        return {
            "solution_document": tokens.document[rows],
            "solution_position": tokens.position[rows],
            "solution_statistics": np.stack(columns),
        }


class SolutionProxies:
    """Puts together what was kept of chunks, which are added in their order.

    A document is looked at when its last token is there, and then forgotten. So equal chunks give equal bits.

    Args:
        solutions: which tokens count.
        vocabulary: how many logits there are.
        frequency: where tokens are counted, in words.
        token_counts: ``[V]``, how often each token occurs in a corpus; None: within each document.
    """

    def __init__(
        self, solutions: Solutions, vocabulary: int, frequency: str, token_counts: _Ints | None = None
    ) -> None:
        self._solutions, self._vocabulary, self._frequency = solutions, vocabulary, frequency
        settings: dict[str, Any] = dict(PROXIES)
        table = None if token_counts is None else torch.from_numpy(token_counts)
        # The other processes are not in here: to merge states with theirs would be to wait without end.
        self._metric = TokenProxies(
            **settings, vocabulary=vocabulary, token_counts=table, sync_on_compute=False
        )
        self._open: dict[int, list[tuple[_Ints, NDArray[np.float32]]]] = {}
        self._whole: list[tuple[int, NDArray[np.float32]]] = []

    @property
    def how(self) -> dict[str, Any]:
        """All that decides the values beside what is known of the record."""
        return {**PROXIES, "vocabulary": self._vocabulary, "frequency": self._frequency}

    @property
    def notes(self) -> list[str]:
        """What a reader is to know."""
        empty = sum(not len(each) for each in self._solutions.positions)
        have = "document has" if empty == 1 else "documents have"
        return [f"{empty} {have} no token of a completion, and no proxies"] if empty else []

    def add(self, kept: Mapping[str, NDArray[Any]]) -> None:
        """Add a chunk, as :meth:`Solutions.kept` gave it."""
        documents, columns = kept["solution_document"], kept["solution_statistics"]
        found = np.unique(documents, return_index=True, return_counts=True)
        for document, begin, size in zip(*(each.tolist() for each in found), strict=True):
            rows = slice(begin, begin + size)
            parts = self._open.setdefault(document, [])
            parts.append((kept["solution_position"][rows], columns[:, rows]))
            if sum(len(places) for places, _ in parts) == len(self._solutions.positions[document]):
                del self._open[document]
                order = np.argsort(np.concatenate([places for places, _ in parts]))
                self._whole.append((document, np.concatenate([each for _, each in parts], axis=1)[:, order]))
        while len(self._whole) >= _AT_ONCE:
            self._update(self._whole[:_AT_ONCE])
            del self._whole[:_AT_ONCE]

    def values(self) -> dict[str, float]:
        """``proxy_<name>`` and ``proxy_<name>_se``, and how many sequences and tokens there were.

        ``proxy_nan`` are tokens that were left out, as their logits are no distribution.
        """
        assert not self._open, "a chunk was not added"
        if self._whole:
            self._update(self._whole)
            self._whole = []
        with warnings.catch_warnings(), single_threaded():
            warnings.simplefilter("ignore")  # of NaN, which the record notes
            found = self._metric.compute()
        # On a CPU a label that is impossible has raised.
        return {f"proxy_{name}": float(value) for name, value in found.items() if name != "invalid"}

    @single_threaded()  # with another number of threads sums have other bits
    def _update(self, documents: Sequence[tuple[int, NDArray[np.float32]]]) -> None:
        longest = max(columns.shape[1] for _, columns in documents)
        labels = np.full((len(documents), longest), _IGNORED, np.int64)
        padded = np.zeros((len(_STATISTICS), len(documents), longest), np.float32)
        for row, (document, columns) in enumerate(documents):
            places = self._solutions.positions[document]
            labels[row, : len(places)] = self._solutions.data.documents[document].ids[places]
            padded[:, row, : len(places)] = columns
        target = torch.from_numpy(labels)
        values = dict(zip(_STATISTICS, torch.from_numpy(padded), strict=True))
        values["rank"] = values["rank"].nan_to_num(self._vocabulary + 1).long()
        valid = target != _IGNORED
        statistics = TokenStatistics(**values, valid=valid, invalid=torch.zeros_like(valid))
        self._metric.update(labels=target, statistics=statistics)
