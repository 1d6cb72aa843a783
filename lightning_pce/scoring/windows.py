"""Which tokens a model sees at once, and in which batches: fixed by the data, never by the machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from lightning_pce._errors import UserError

PROTOCOLS = ("windows", "llama.cpp")
_BATCHES_OF_A_CHUNK = 32  # what is lost when a run is killed
_CHUNKS = 32  # at least, if each fills a batch: they are shared by processes


class Window(NamedTuple):
    """Tokens ``ids[start:end]`` of a document are seen at once; those from ``first`` on are to be predicted.

    The row of logits that predicts token ``p`` is ``p - 1 - start``.
    """

    document: int
    start: int
    end: int
    first: int


class HasTokens(Protocol):
    """What is planned: a document of so many tokens, of which some are scored."""

    @property
    def scored(self) -> NDArray[np.bool_]: ...


@dataclass(frozen=True)
class Chunk:
    """Work that is done as a whole or not at all.

    Attributes:
        number: its place among all chunks.
        batches: windows that are seen side by side, the longest first. A document with many windows is in
            several chunks: a book is shared by processes too.
    """

    number: int
    batches: tuple[tuple[Window, ...], ...]


def windows(
    length: int, context: int, stride: int | None = None, protocol: str = "windows"
) -> list[tuple[int, int, int]]:
    """Windows over the tokens of a document, as ``(start, end, first)``.

    ``"windows"``: each begins ``stride`` tokens after the one before, and predicts what that one did not, as
    in the guide to perplexity of transformers. Every token but the first of a document is predicted once; by
    a stride of the whole context the first token of each window has nothing before it and is not.
    ``"llama.cpp"``: windows side by side, each predicts its second half only, the rest at the end is dropped.

    Args:
        length: how many tokens there are.
        context: how many the model sees at most.
        stride: by default half of the context; not for ``"llama.cpp"``.
        protocol: ``"windows"`` or ``"llama.cpp"``.

    Raises:
        UserError: if the context has no room for two tokens or the stride is not in [1, context].

    Example:
        >>> windows(10, context=4)
        [(0, 4, 1), (2, 6, 4), (4, 8, 6), (6, 10, 8)]
        >>> windows(10, context=4, protocol="llama.cpp")
        [(0, 4, 3), (4, 8, 7)]
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"There is no protocol {protocol!r}: take one of {', '.join(PROTOCOLS)}.")
    least = 2 if protocol == "windows" else 3  # the second half of two tokens predicts none
    if context < least:
        raise UserError(f"A context of {context} has no room for a token to predict: take {least} or more.")
    if protocol == "llama.cpp":
        if stride is not None:
            raise UserError("The protocol llama.cpp has windows side by side: leave out the stride.")
        return [
            (start, start + context, start + context // 2 + 1)
            for start in range(0, length - context + 1, context)
        ]
    step = context // 2 if stride is None else stride
    if not 1 <= step <= context:
        raise UserError(
            f"A stride of {step} is not in [1, {context}], the context: tokens would be left out."
        )
    found, done = [], 1  # the first token of all has nothing before it
    for start in range(0, length, step):
        end = min(start + context, length)
        first = max(done, start + 1)
        if first < end:
            found.append((start, end, first))
        done = end
        if end == length:
            break
    return found


def plan(
    documents: Sequence[HasTokens], context: int, *, stride: int | None = None, batch_tokens: int
) -> tuple[Chunk, ...]:
    """A fixed list of chunks, each with its batches.

    Windows go by length, the longest first, so that what does not fit into memory shows at once; those of a
    document stay in their order. It depends on nothing but lengths, scored tokens and these arguments.

    Args:
        documents: with ``scored``, a bool for each token; windows without a scored token are left out.
        context: how many tokens the model sees at most.
        stride: see :func:`windows`.
        batch_tokens: rows times the longest row of a batch are at most so many, unless it is a single row.

    Raises:
        UserError: as :func:`windows`, or if ``batch_tokens`` is not positive.

    Example:
        >>> from types import SimpleNamespace
        >>> lengths = (3, 9, 3)
        >>> documents = [SimpleNamespace(scored=np.arange(length) > 0) for length in lengths]
        >>> for chunk in plan(documents, context=8, batch_tokens=8):
        ...     print([[tuple(window) for window in batch] for batch in chunk.batches])
        [[(1, 0, 8, 1)]]
        [[(1, 4, 9, 8)], [(0, 0, 3, 1), (2, 0, 3, 1)]]
    """
    if batch_tokens < 1:
        raise UserError(f"Batches of {batch_tokens} tokens hold nothing: take 1 or more.")
    found = [
        window
        for number, document in enumerate(documents)
        for window in _scored_windows(number, document.scored, context, stride)
    ]
    fair = -(-sum(window.end - window.start for window in found) // _CHUNKS)
    enough = min(_BATCHES_OF_A_CHUNK * batch_tokens, max(batch_tokens, fair))
    chunks: list[Chunk] = []
    held: list[tuple[Window, ...]] = []
    size = 0
    for batch in _batches(found, batch_tokens):
        held.append(batch)
        size += sum(window.end - window.start for window in batch)
        if size >= enough:
            chunks.append(Chunk(len(chunks), tuple(held)))
            held, size = [], 0
    return (*chunks, Chunk(len(chunks), tuple(held))) if held else tuple(chunks)


def _scored_windows(number: int, scored: NDArray[np.bool_], context: int, stride: int | None) -> list[Window]:
    """The windows of a document that score a token, each from its first scored one on."""
    found = []
    for start, end, first in windows(len(scored), context, stride):
        targets = np.flatnonzero(scored[first:end])
        if len(targets):
            found.append(Window(number, start, end, first + int(targets[0])))
    return found


def _batches(found: list[Window], batch_tokens: int) -> Iterator[tuple[Window, ...]]:
    rows: list[Window] = []
    for window in sorted(found, key=lambda each: each.start - each.end):  # stable: equal ones stay in order
        longest = rows[0].end - rows[0].start if rows else 0
        if rows and (len(rows) + 1) * longest > batch_tokens:
            yield tuple(rows)
            rows = []
        rows.append(window)
    if rows:
        yield tuple(rows)
