"""The file that llama.cpp's ``llama-perplexity --kl-divergence-base FILE`` writes.

``_logits_``, then n_ctx (uint32), n_vocab and n_chunk (int32), then the int32 tokens of all chunks. Then of
each chunk a row for every token after the first half of the window: two float32, step and lowest
log-probability, and a uint16 q for each token of the vocabulary: its log-probability is step * q + lowest.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_pce._errors import UserError
from lightning_pce.scoring.imports._documents import Numbers, ScoredDocument
from lightning_pce.scoring.imports._options import Options, Source

MAGIC = b"_logits_"
_HEADER = 8 + 3 * 4
_LEVELS = 65535
_CUT = 16.0  # nats below the most probable token
# Numbers of a block of rows, 16 MiB as float32: 5,000 rows of 49,152 tokens a second,
# with 2 MiB 3,300.
_BLOCK = 1 << 22
# How far the probabilities of a row may be from 1 in sum: those that are cut count as e**-16 of the largest,
# in the largest vocabularies 0.03 together.
_SLACK = 0.1


class _Header(NamedTuple):
    context: int
    vocabulary: int
    chunks: int

    @property
    def rows(self) -> int:
        """In each chunk."""
        return self.context - 1 - self.context // 2

    @property
    def row(self) -> int:
        """uint16 numbers in a row."""
        return 2 * ((self.vocabulary + 1) // 2) + 4

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return _HEADER + self.chunks * (4 * self.context + 2 * self.rows * self.row)


def documents(path: Path, options: Options, source: Source) -> Iterator[ScoredDocument]:
    """The second half of each window, a document each; what is in memory at once is a block of rows.

    Raises:
        UserError: if the file is no such file, too short or too long, or damaged.
    """
    header = _header_of(path)
    source.how |= {"protocol": "llama.cpp", "context": header.context, "stride": None}
    tokens = np.memmap(path, "<i4", "r", _HEADER, (header.chunks, header.context))
    start = _HEADER + 4 * header.chunks * header.context
    rows = np.memmap(path, "<u2", "r", start, (header.chunks, header.rows, header.row))
    if ((tokens < 0) | (tokens >= header.vocabulary)).any():
        raise UserError(
            f"{path} has ids of tokens outside its vocabulary of {header.vocabulary}: it is damaged."
        )
    cut, first = 0, header.context // 2 + 1
    for chunk in range(header.chunks):
        ids = np.asarray(tokens[chunk, first:], dtype=np.int64)
        where, step = f"{path}, chunk {chunk + 1}", max(1, _BLOCK // header.row)
        blocks = [
            _scored(rows[chunk, at : at + step], ids[at : at + step], header.vocabulary, where)
            for at in range(0, header.rows, step)
        ]
        cut += sum(block.cut for block in blocks)
        yield ScoredDocument(
            None,
            np.concatenate([block.ce for block in blocks]),
            where,
            first=first,
            ids=ids,
            ranks=np.concatenate([block.rank for block in blocks]),
            entropy=np.concatenate([block.entropy for block in blocks]),
            tops=np.concatenate([block.top for block in blocks]),
        )
    source.note("only the second half of each window is scored, and each window counts as a document")
    source.note(
        f"log-probabilities are cut at {_CUT:g} nats below the most probable token: {cut} of "
        f"{header.chunks * header.rows} tokens lie there, with a cross-entropy of at least what is told"
    )


def _header_of(path: Path) -> _Header:
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(8) != MAGIC:
            raise UserError(
                f"{path} is no file of llama-perplexity --kl-divergence-base: it begins otherwise."
            )
        numbers = file.read(_HEADER - len(MAGIC))
    if size < _HEADER:
        raise UserError(f"{path} is cut short, it ends in its header: let llama-perplexity write it again.")
    header = _Header(*struct.unpack("<Iii", numbers))
    if header.context < 4 or header.vocabulary < 1 or header.chunks < 1:
        raise UserError(
            f"{path} tells of {header.chunks} chunks of {header.context} tokens with a vocabulary of "
            f"{header.vocabulary}: it is damaged, or of another kind of machine."
        )
    if size != header.size:
        raise UserError(
            f"{path} is {'cut short' if size < header.size else 'too long'}: it has {size} bytes, and "
            f"{header.chunks} chunks of {header.context} tokens and a vocabulary of {header.vocabulary} take "
            f"{header.size}; let llama-perplexity write it again."
        )
    return header


class _Scored(NamedTuple):
    ce: Numbers
    entropy: Numbers
    rank: Numbers
    top: NDArray[np.int64]
    cut: int  # how many tokens lie at the cut


def _scored(rows: NDArray[np.uint16], ids: NDArray[np.int64], vocabulary: int, where: str) -> _Scored:
    """What rows of a file say of the tokens that came."""
    rows = np.ascontiguousarray(rows)
    step, lowest = rows[:, :4].view("<f4").T
    q = rows[:, 4 : 4 + vocabulary]
    with np.errstate(over="ignore", invalid="ignore"):
        log_p = q * step[:, None] + lowest[:, None]
        p = np.exp(log_p)
        total = p.sum(1).astype(np.float64)
        entropy = -np.multiply(p, log_p, out=log_p).sum(1).astype(np.float64)
    if not ((np.abs(total - 1) < _SLACK) & (step >= 0)).all():
        raise UserError(f"{where} is damaged: the probabilities of a token have a sum other than 1.")
    step, lowest = step.astype(np.float64), lowest.astype(np.float64)
    # What is cut has a probability between 0 and that at the cut: what the others leave over is its sum.
    is_cut = step * _LEVELS > _CUT * (1 - 1e-3)
    at_cut = np.where(is_cut, (q == 0).sum(1), 0) * np.exp(lowest)
    left_over = np.where(is_cut, np.clip(1 - (total - at_cut), 0, None), 0)
    entropy -= (left_over - at_cut) * lowest
    levels = q[np.arange(len(ids)), ids]
    # Stable, as everywhere here: of equal ones the first leads.
    before = [int((row[:own] == level).sum()) for row, own, level in zip(q, ids, levels, strict=True)]
    return _Scored(
        ce=np.maximum(-(step * levels + lowest), 0.0),
        entropy=entropy,
        rank=(1 + (q > levels[:, None]).sum(1) + before).astype(np.float64),
        top=q.argmax(1).astype(np.int64),
        cut=int((is_cut & (levels == 0)).sum()),
    )
