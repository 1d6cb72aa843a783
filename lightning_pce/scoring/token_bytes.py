"""How many UTF-8 bytes of a text each token stands for, counted once where a character is split over tokens.

What a tokenizer's ``decode`` or its offsets say counts such a character in each of its tokens: 32 bytes for a
text of 26. Its pieces say it exactly where they are spelled in an alphabet of bytes.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_SPACE = "\u2581"  # a space in pieces of SentencePiece
_SPACES = (
    _SPACE,
    "\u0120",
)  # and in those of bytes: what a tokenizer puts in front of a text begins with one


def token_bytes(tokenizer: Any) -> NDArray[np.int32] | None:
    """The bytes that each token stands for, by the spelling of its piece.

    A piece of a byte-level tokenizer has a character for each byte; a piece of SentencePiece has U+2581 for a
    space, and ``<0x0A>`` is one byte if all 256 are there. Special tokens stand for none.

    Args:
        tokenizer: a fast tokenizer of transformers.

    Returns:
        int32 ``[V]``; None if pieces are spelled otherwise (WordPiece), so that only offsets can tell.
    """
    spelled = _spelled(tokenizer)
    return None if spelled is None else np.where(_special(tokenizer), 0, spelled).astype(np.int32)


def _spelled(tokenizer: Any) -> NDArray[np.int32] | None:
    """The bytes of each piece, special or not, by its spelling; None if that is not known."""
    parts = _parts_of(tokenizer)
    byte_level = '"ByteLevel"' in parts
    if not byte_level and _SPACE not in parts and '"Metaspace"' not in parts:
        return None
    pieces: dict[str, int] = tokenizer.get_vocab()
    single = {f"<0x{byte:02X}>" for byte in range(256)}
    if byte_level or not single <= pieces.keys():
        single = set()
    table = np.zeros(_size(tokenizer), np.int32)
    for piece, number in pieces.items():
        if byte_level:
            table[number] = sum(1 if c in _BYTES else len(c.encode()) for c in piece)
        else:
            table[number] = len(piece.replace(_SPACE, " ").encode())
    for number, token in tokenizer.added_tokens_decoder.items():
        table[number] = len(token.content.encode())  # as it stands in a text
    table[[pieces[piece] for piece in single]] = 1  # which may be added tokens
    return table


def _special(tokenizer: Any) -> NDArray[np.bool_]:
    """Which tokens stand for nothing in a text. One for what is not known stands for something."""
    special = np.zeros(_size(tokenizer), bool)
    for number, token in tokenizer.added_tokens_decoder.items():
        is_byte = re.fullmatch(r"<0x[0-9A-F]{2}>", token.content)
        special[number] = token.special and number != tokenizer.unk_token_id and not is_byte
    return special


def _size(tokenizer: Any) -> int:
    ids: list[int] = [*tokenizer.get_vocab().values(), *tokenizer.added_tokens_decoder]
    return max(ids) + 1


def _parts_of(tokenizer: Any) -> str:
    """How a tokenizer spells pieces, as JSON: all of it but the vocabulary, which may have 20 MB."""
    backend = tokenizer.backend_tokenizer
    parts = (backend.normalizer, backend.pre_tokenizer, backend.decoder)
    states = [json.loads(part.__getstate__()) for part in parts if part is not None]
    return json.dumps(states, ensure_ascii=False)


def _byte_alphabet() -> frozenset[str]:
    """GPT-2's 256 characters for bytes: themselves if they can be seen, else others from U+0100 on."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return frozenset(map(chr, seen + [0x100 + i for i in range(256 - len(seen))]))


_BYTES = _byte_alphabet()


class Places(NamedTuple):
    """Where the tokens of a text stand in its UTF-8 bytes.

    Attributes:
        starts: int64 ``[T]``, the byte at which each token begins.
        ends: int64 ``[T]``, where it ends; each begins where the one before ends, the last one ends the text.
        bytes: int32 ``[T]``, ends minus starts; 0 for special tokens of a chat, whatever their spelling.
        exact: whether they are the tokenizer's own bytes, or those of the text by offsets.
    """

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    bytes: NDArray[np.int32]
    exact: bool


class ByteCounter:
    """Counts bytes with one tokenizer.

    Args:
        tokenizer: a fast tokenizer of transformers.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._spelled = _spelled(tokenizer)
        self._special = _special(tokenizer)
        self._added, self._spaced = np.zeros_like(self._special), np.zeros_like(self._special)
        self._added[list(tokenizer.added_tokens_decoder)] = True
        for piece, number in tokenizer.get_vocab().items():
            self._spaced[number] = piece.startswith(_SPACES)

    def places(
        self, text: str, ids: NDArray[np.int32], spans: NDArray[np.int64], *, special: bool = False
    ) -> Places:
        """Where tokens stand.

        Args:
            text: what was tokenised.
            ids: int32 ``[T]``.
            spans: int64 ``[T, 2]``, the characters at which each token begins and ends, by the tokenizer.
            special: whether special tokens stand for no bytes, as in a chat. In a text there are none, but a
                Unigram model may read its name as one.

        If the bytes of its pieces do not fit the text, as when case or NFKC changed it, offsets tell: each
        token has the bytes from the end of the one before to its own, and of those that share a character the
        last has it.
        """
        before = _bytes_before(text)
        spread = before[spans]
        widths = self._by_pieces(text, ids, spans, spread)
        exact = widths is not None
        if widths is None:
            widths = _by_offsets(spread, int(before[-1]))
        ends = np.cumsum(widths)
        counted = np.where(self._special[ids], 0, widths) if special else widths
        return Places(ends - widths, ends, counted.astype(np.int32), exact)

    def _by_pieces(
        self, text: str, ids: NDArray[np.int32], spans: NDArray[np.int64], spread: NDArray[np.int64]
    ) -> NDArray[np.int64] | None:
        """The bytes of each token by its piece, special ones as they stand, if they make up the text."""
        if self._spelled is None:
            return None
        widths = np.where(self._special[ids], spread[:, 1] - spread[:, 0], self._spelled[ids])
        # A tokenizer may put a space in front of a text, or after each added token: none of the text's.
        begins = np.ones(len(ids), bool)
        begins[1:] = self._added[ids[:-1]]
        spaced = begins & self._spaced[ids]
        unseen = spaced & np.array([text[start : start + 1] != " " for start in spans[:, 0]], bool)
        length = len(text.encode())
        for less in (np.zeros_like(spaced), unseen, spaced):
            tried = widths - less
            ends = np.cumsum(tried)
            # Each token must also touch the characters from which the tokenizer says that it comes. It may
            # leave out whitespace there.
            touches = (ends - tried <= spread[:, 1]) & (ends + 1 >= spread[:, 0])
            if tried.sum() == length and touches.all():
                return tried
        return None


def _by_offsets(spread: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """The bytes from the token before to each one's end, or to where the next begins if that is earlier."""
    begins = np.append(np.maximum.accumulate(spread[:, 0]), length)[1:]
    ends = np.minimum(np.maximum.accumulate(spread[:, 1]), begins)
    ends[-1:] = length
    widths: NDArray[np.int64] = np.diff(ends, prepend=0)
    return widths


def _bytes_before(text: str) -> NDArray[np.int64]:
    """``[characters + 1]``: how many bytes of UTF-8 stand before each character, and before the end."""
    if text.isascii():
        return np.arange(len(text) + 1)
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    sizes = 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000)
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
