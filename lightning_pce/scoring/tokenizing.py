"""Documents as tokens: what is scored, of which group it is, and for which bytes of the text it stands."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_pce._errors import UserError
from lightning_pce.scoring.chat import render
from lightning_pce.scoring.data import Dataset
from lightning_pce.scoring.documents import ROLES, Document, Part
from lightning_pce.scoring.keys import TokenIds, document_number
from lightning_pce.scoring.token_bytes import ByteCounter
from lightning_pce.scoring.windows import windows

_AT_ONCE = 256  # documents: the tokenizer's offsets are tuples, 100 bytes a token


@dataclass(frozen=True, eq=False)
class TokenizedDocument:
    """The tokens of a document.

    Attributes:
        id: the document's.
        unit: the document's, what it counts as in error bars.
        number: int64 of the unit, for slots.
        text: what was tokenised; of a chat, as rendered. ``starts`` refer to it.
        ids: int32 ``[T]``, with BOS in front if there is one.
        scored: bool ``[T]``, whether a token is to be predicted: all but the first.
        groups: int8 ``[T]``, the place of each token's group in the names, -1 for BOS; None without groups.
        bytes: int32 ``[T]``, the UTF-8 bytes of the text that each stands for; 0 for special ones.
        starts: int64 ``[T]``, the byte of the text at which each begins.
        on_character: bool ``[T]``, whether each ends between two characters of the text, not within one.
    """

    id: str
    unit: str
    number: int
    text: str
    ids: NDArray[np.int32]
    scored: NDArray[np.bool_]
    groups: NDArray[np.int8] | None
    bytes: NDArray[np.int32]
    starts: NDArray[np.int64]
    on_character: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Tokenized:
    """A dataset as one tokenizer sees it.

    Attributes:
        documents: in the order of the data; by the protocol llama.cpp its chunks.
        groups: names of groups.
        bos: the token in front of each document, None if there is none.
        masking: which tokens are scored, in words; of chats also a hash of the texts that the template made.
        token_ids: 16 hexadecimal digits of the ids of scored tokens.
        notes: what a reader is to know.
    """

    documents: tuple[TokenizedDocument, ...]
    groups: tuple[str, ...]
    bos: int | None
    masking: str
    token_ids: str
    notes: tuple[str, ...] = ()


def tokenize(
    dataset: Dataset,
    tokenizer: Any,
    *,
    bos: int | None = None,
    protocol: str = "windows",
    context: int | None = None,
) -> Tokenized:
    """The tokens of all documents of a dataset.

    Each is tokenised as a whole, by itself. Names of special tokens are text in a text, and those tokens in a
    chat. BOS comes in front once, EOS not at all. A token is of the group in which it ends.

    Args:
        dataset: from :func:`~lightning_pce.scoring.data.read_data`, with the same protocol.
        tokenizer: a fast tokenizer of transformers.
        bos: a token to put in front of every document instead of the tokenizer's own.
        protocol: ``"windows"`` or ``"llama.cpp"``.
        context: the length of the chunks of llama.cpp.

    Raises:
        UserError: if the tokenizer cannot say where tokens come from or refuses a chat, or nothing is left to
            score.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            f"{type(tokenizer).__name__} does not say where tokens stand in a text: take a model with a "
            "tokenizer.json."
        )
    front = bos_of(tokenizer, bos)
    counter = ByteCounter(tokenizer)
    documents: list[TokenizedDocument] = []
    chats, inexact = hashlib.sha256(), 0
    for begin in range(0, len(dataset.documents), _AT_ONCE):
        for encoded in _encoded(dataset.documents[begin : begin + _AT_ONCE], tokenizer):
            document, exact = _document(encoded, dataset.groups, counter, front)
            documents.append(document)
            inexact += not exact
            chats.update(json.dumps([(part.text, part.group) for part in encoded.parts]).encode())
    masking = dataset.masking
    if any(each.messages is not None for each in dataset.documents):
        masking += f", chats rendered as {chats.hexdigest()[:8]}"
    notes = (
        [f"the tokenizer changes the text: bytes of {inexact} documents are by offsets"] if inexact else []
    )
    if protocol == "llama.cpp":
        assert context is not None, "the length of the chunks"
        (whole,) = documents
        documents = _llama_cpp_chunks(whole, context, front, dataset.path)
    _check_scored(documents, dataset)
    ids = TokenIds()
    for each in documents:
        ids.add(each.ids[each.scored])
    return Tokenized(tuple(documents), dataset.groups, front, masking, ids.key, tuple(notes))


def tokens_of(dataset: Dataset, tokenizer: Any) -> Iterator[NDArray[np.int32]]:
    """The ids of each document's text, without a BOS in front.

    Raises:
        UserError: if the tokenizer refuses a chat.
    """
    for begin in range(0, len(dataset.documents), _AT_ONCE):
        for each in _encoded(dataset.documents[begin : begin + _AT_ONCE], tokenizer):
            yield each.ids


def bos_of(tokenizer: Any, bos: int | None = None) -> int | None:
    """The token that stands in front of every document.

    Args:
        tokenizer: a tokenizer of transformers.
        bos: one that was asked for.

    Returns:
        ``bos``, or what the tokenizer itself puts in front of a text, or None: that a tokenizer has a
        ``bos_token`` does not mean that its model was trained with it.

    Raises:
        UserError: if there is no such token, or the tokenizer puts several in front.
    """
    if bos is not None:
        if not 0 <= bos < len(tokenizer):
            raise UserError(f"There is no token {bos} to begin with: ids are in [0, {len(tokenizer)}).")
        return bos
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a", add_special_tokens=True)["input_ids"]
    places = [i for i in range(len(whole)) if plain and whole[i : i + len(plain)] == plain]
    if not places or places[0] > 1:
        raise UserError(f"The tokenizer puts several tokens in front of a text, {whole}: name one by --bos.")
    return int(whole[0]) if places[0] else None


class _Encoded(NamedTuple):
    """A document with its text and tokens."""

    document: Document
    parts: tuple[Part, ...]
    text: str
    ids: NDArray[np.int32]  # [T]
    spans: NDArray[np.int64]  # [T, 2], in characters


def _encoded(documents: Sequence[Document], tokenizer: Any) -> Iterator[_Encoded]:
    """Documents with their tokens; names of special tokens are read as such in chats only."""
    parts = [each.parts if each.messages is None else render(each, tokenizer) for each in documents]
    texts = ["".join(part.text for part in each) for each in parts]
    found: dict[int, tuple[NDArray[np.int32], NDArray[np.int64]]] = {}
    for split in (True, False):
        places = [i for i, each in enumerate(documents) if (each.messages is None) == split]
        if places:
            tokens = _tokens([texts[i] for i in places], tokenizer, split)
            found |= dict(zip(places, tokens, strict=True))
    for i, document in enumerate(documents):
        yield _Encoded(document, parts[i], texts[i], *found[i])


def _tokens(
    texts: list[str], tokenizer: Any, split: bool
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int64]]]:
    encoded = tokenizer(
        texts,
        add_special_tokens=False,
        split_special_tokens=split,
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        padding=False,
        truncation=False,
        verbose=False,
    )
    for ids, spans in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        yield np.array(ids, np.int32), np.array(spans, np.int64).reshape(-1, 2)


def _document(
    encoded: _Encoded, names: tuple[str, ...], counter: ByteCounter, bos: int | None
) -> tuple[TokenizedDocument, bool]:
    """A document's tokens, and whether their bytes are the tokenizer's own."""
    document, parts, text, ids, spans = encoded
    starts, ends, sizes, exact = counter.places(text, ids, spans, special=document.messages is not None)
    raw = np.frombuffer(text.encode() + b"\0", np.uint8)  # a byte more, so that the end is one too
    # At no second or later byte of a character, and not a token that shares one or stands for nothing.
    on_character = ((raw[ends] & 0xC0) != 0x80) & (ends > starts)
    groups = None
    if names:
        last = np.minimum(np.maximum(ends - 1, starts), len(raw) - 2)
        part = np.searchsorted(np.cumsum([len(each.text.encode()) for each in parts]), last, side="right")
        groups = np.array([names.index(each.group) for each in parts], np.int8)[part]
    if bos is not None and ids[:1].tolist() != [bos]:  # a chat's template may have written it
        ids, starts = np.append(np.int32(bos), ids), np.append(np.int64(0), starts)
        sizes, on_character = np.append(np.int32(0), sizes), np.append(True, on_character)
        groups = None if groups is None else np.append(np.int8(-1), groups)
    scored = np.arange(len(ids)) > 0
    number = document_number(document.unit)
    found = TokenizedDocument(
        document.id, document.unit, number, text, ids, scored, groups, sizes, starts, on_character
    )
    return found, exact


def _llama_cpp_chunks(
    whole: TokenizedDocument, context: int, bos: int | None, path: str
) -> list[TokenizedDocument]:
    """The chunks that llama.cpp's perplexity makes of a text: in each BOS takes the place of a token."""
    length = len(whole.ids)
    if length < 2 * context:
        raise UserError(
            f"{path} has {length} tokens but the protocol llama.cpp needs two contexts, {2 * context}: take "
            "a smaller context or more text."
        )
    chunks = []
    for number, (start, end, first) in enumerate(windows(length, context, protocol="llama.cpp")):
        ids, here = whole.ids[start:end].copy(), slice(start, end)
        if bos is not None:
            ids[0] = bos
        chunks.append(
            replace(
                whole,
                id=str(number),
                unit=str(number),
                number=document_number(str(number)),
                ids=ids,
                scored=np.arange(start, end) >= first,
                bytes=whole.bytes[here],
                starts=whole.starts[here],
                on_character=whole.on_character[here],
            )
        )
    return chunks


def _check_scored(documents: Sequence[TokenizedDocument], dataset: Dataset) -> None:
    if not any(each.scored.any() for each in documents):
        raise UserError(
            f"{dataset.path} has no token to score: each document is one token, with none before it."
        )
    if dataset.groups == ROLES and not any(
        (each.groups[each.scored] == ROLES.index("completion")).any()
        for each in documents
        if each.groups is not None
    ):
        raise UserError(
            f"{dataset.path} has no token of a completion: it needs a completion or an assistant's turn."
        )
