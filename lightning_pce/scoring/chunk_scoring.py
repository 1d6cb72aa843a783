"""Chunks are scored side by side in threads, each of which runs its operations alone.

With another number of threads a product of few rows is summed in another order, so that its last bits differ
(SmolLM2, 7 tokens: all logits). With one thread for each product they do not depend on how many threads or
processes there are, and on a CPU that is the faster way too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_pce._errors import UserError
from lightning_pce._threads import in_streams
from lightning_pce.metrics.tail_tokens import TailTokens
from lightning_pce.scoring.chunk_totals import TAIL, ChunkTotals, Tokens, totals_of
from lightning_pce.scoring.forward import Batch, Scorer, Scores, is_out_of_memory
from lightning_pce.scoring.tokenizing import Tokenized, TokenizedDocument
from lightning_pce.scoring.windows import Chunk, Window


class Stopped(Exception):  # noqa: N818 - it is no error
    """The work is no longer wanted."""


@dataclass
class ChunkScorer:
    """Scores chunks of one dataset.

    Attributes:
        scorer: the model.
        data: what is scored.
        at_most: tokens that go through the model together.
        seen: is called with the number of tokens after each batch, from any thread.
    """

    scorer: Scorer
    data: Tokenized
    at_most: int
    seen: Callable[[int], None]

    def score(self, chunk: Chunk, stopped: threading.Event) -> tuple[Tokens, ChunkTotals]:
        """Score a chunk; if memory is not enough, again in halves of its batches, and so on.

        Raises:
            UserError: if a single window is too much.
            Stopped: if that was asked for.
        """
        at_most, halved = self.at_most, 0
        while True:
            # Not in an except clause: the error would keep alive what has filled the memory.
            found = self._try(chunk, at_most, stopped)
            if found is not None:
                tokens, tail = found
                groups = len(self.data.groups)
                vocabulary = self.scorer.vocabulary
                return tokens, totals_of(tokens, tail, groups=groups, vocabulary=vocabulary, halved=halved)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            longest = max(window.end - window.start for batch in chunk.batches for window in batch)
            if all(len(batch) == 1 for batch in _split(chunk, at_most)):
                raise UserError(
                    f"Memory is not enough for a single window of {longest} tokens: give a smaller --context "
                    "or another --dtype."
                )
            at_most, halved = max(1, min(at_most, _largest(chunk)) // 2), halved + 1

    def _try(self, chunk: Chunk, at_most: int, stopped: threading.Event) -> tuple[Tokens, TailTokens] | None:
        """A chunk's tokens and tail; None if memory was not enough."""
        tail, seen = TailTokens(TAIL), 0
        batches: list[Batch] = []
        scores: list[Scores] = []
        try:
            for windows in _split(chunk, at_most):
                if stopped.is_set():
                    raise Stopped
                batches.append(batch_of(windows, self.data.documents))
                scores.append(self.scorer.score(batches[-1], tail))
                self.seen(len(batches[-1].row))
                seen += len(batches[-1].row)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self.seen(-seen)
            return None
        return _tokens(batches, scores, self.data.documents), tail


def run(
    scorer: ChunkScorer,
    chunks: Sequence[Chunk],
    keep: Callable[[Chunk, Tokens, ChunkTotals], None],
    streams: int,
) -> None:
    """Score chunks in so many threads, and keep what each comes to.

    Raises:
        BaseException: the first that is raised in any thread. An interrupt ends the others before their next
            batch.
    """
    stopped, ended, errors = threading.Event(), threading.Event(), list[BaseException]()
    free = [scorer]
    # Its own modules for each thread, see there.
    more = range(min(streams, len(chunks)) - 1)
    free += [replace(scorer, scorer=scorer.scorer.another()) for _ in more]

    def stream(some: Iterator[Chunk]) -> None:
        own = free.pop()
        try:
            for chunk in some:
                keep(chunk, *own.score(chunk, stopped))
        except BaseException:
            stopped.set()  # for the other threads
            raise

    def work() -> None:
        try:
            in_streams(stream, chunks, streams)
        except BaseException as error:
            errors.append(error)
        finally:
            ended.set()

    # Not in this thread: waiting for one without end, it could not be interrupted on Windows. By an event, as
    # a join that is interrupted takes the thread for ended (Python 3.11), and the process would end under it.
    thread = threading.Thread(target=work)
    thread.start()
    try:
        while not ended.wait(0.1):
            pass
    finally:
        stopped.set()
        ended.wait()
    if errors:
        raise errors[0]


def batch_of(windows: Sequence[Window], documents: Sequence[TokenizedDocument]) -> Batch:
    """Windows as a model takes them."""
    positions = [counted_in(window, documents[window.document]) for window in windows]
    sizes = [len(each) for each in positions]
    row = np.repeat(np.arange(len(windows)), sizes)
    position = np.concatenate(positions)
    start = np.array([window.start for window in windows])
    document = np.array([window.document for window in windows])
    return Batch(
        [documents[window.document].ids[window.start : window.end] for window in windows],
        row,
        position - start[row],
        document[row],
        position,
    )


def counted_in(window: Window, document: TokenizedDocument) -> NDArray[np.int64]:
    """The positions of the tokens that a window scores."""
    return window.first + np.flatnonzero(document.scored[window.first : window.end])


def _split(chunk: Chunk, at_most: int) -> Iterator[tuple[Window, ...]]:
    """The batches of a chunk, cut where they hold more tokens."""
    for batch in chunk.batches:
        longest = max(window.end - window.start for window in batch)
        rows = max(1, at_most // longest)
        for start in range(0, len(batch), rows):
            yield batch[start : start + rows]


def _largest(chunk: Chunk) -> int:
    return max(len(batch) * max(window.end - window.start for window in batch) for batch in chunk.batches)


def _tokens(
    batches: Sequence[Batch], scores: Sequence[Scores], documents: Sequence[TokenizedDocument]
) -> Tokens:
    document, position = (
        np.concatenate([getattr(each, name) for each in batches]) for name in ("document", "position")
    )
    order = np.lexsort((position, document))
    document, position = document[order], position[order]
    label, number, group = np.zeros_like(document), np.zeros_like(document), np.full_like(document, -1)
    for which, begin, size in zip(*np.unique(document, return_index=True, return_counts=True), strict=True):
        each, part = documents[which], slice(begin, begin + size)
        label[part], number[part] = each.ids[position[part]], each.number
        if each.groups is not None:
            group[part] = each.groups[position[part]]
    found = {
        name: np.concatenate(parts)[order]
        for name, parts in zip(Scores._fields, zip(*scores, strict=True), strict=True)
        if parts[0] is not None
    }
    return Tokens(document, number, position, label, group, **found)
