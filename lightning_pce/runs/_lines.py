"""What a line of a history holds beside its header: digests, counts, totals, as bytes and as tensors."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_pce.digest._format import FOOTER_ROWS, compression_of, footer_of, signed_weights_of
from lightning_pce.runs._headers import BEFORE_PAYLOAD, DOCUMENT_TOTALS, LABEL_TOTALS, SCHEMA, TAIL, plain
from lightning_pce.runs.document_totals import DocumentTotals
from lightning_pce.runs.tail import TailToken, tail_item

# By statistic and group, "" of all tokens.
Tensors = Mapping[str, Mapping[str, Tensor]]
_NOTHING: Mapping[Any, Any] = {}


class Contents(NamedTuple):
    """What a line has beside its header."""

    digests: Tensors = _NOTHING
    documents: Tensors = _NOTHING
    label_totals: Mapping[str, Tensor] = _NOTHING
    label_texts: Mapping[int, str] = _NOTHING
    document_totals: DocumentTotals | None = None
    tail: Sequence[TailToken] = ()


def encoded(kind: str, header: Mapping[str, Any], contents: Contents) -> bytes:
    """A line, with its end; keys stay in their order.

    Raises:
        ValueError: if there is something in the header that JSON has no word for.
    """
    small = json.dumps({"kind": kind, "schema": SCHEMA, **header}, separators=(",", ":"), allow_nan=False)
    payload: dict[str, Any] = {
        statistic: {
            group: _item(digest, contents.documents.get(statistic, {}).get(group))
            for group, digest in groups.items()
        }
        for statistic, groups in contents.digests.items()
    }
    if contents.label_totals:
        payload[LABEL_TOTALS] = {
            name: _sparse(totals, contents.label_texts) for name, totals in contents.label_totals.items()
        }
    if contents.document_totals is not None:
        payload[DOCUMENT_TOTALS] = {"": _document_totals(contents.document_totals)}
    if contents.tail:
        item = tail_item(contents.tail)
        payload[TAIL] = {"ce": item | {"ce": [plain(ce) for ce in item["ce"]]}}
    if not payload:
        return small.encode() + b"\n"
    large = json.dumps(payload, separators=(",", ":")).encode()
    return small[:-1].encode() + BEFORE_PAYLOAD + large + b"}\n"


def _item(digest: Tensor, documents: Tensor | None) -> dict[str, Any]:
    array = digest.detach().cpu().numpy()
    used = int(np.count_nonzero(signed_weights_of(array)))
    rows = np.concatenate([array[:used], footer_of(array)])
    item: dict[str, Any] = {"compression": compression_of(array), "digest": _text(rows)}
    if documents is not None:
        item |= {"slots": len(documents), "documents": _text(documents.detach().cpu().numpy())}
    return item


def _sparse(totals: Tensor, texts: Mapping[int, str]) -> dict[str, Any]:
    """Totals ``[V, 2]``, of the labels that have tokens, and their texts."""
    array = totals.detach().cpu().double().numpy()
    labels = np.flatnonzero(array[:, 0])
    item = {"vocabulary": len(array), "totals": _text(np.column_stack([labels, array[labels]]))}
    if texts:
        known = json.dumps([texts.get(int(label)) for label in labels], separators=(",", ":"))
        item["texts"] = base64.b64encode(zlib.compress(known.encode())).decode()
    return item


def label_texts_in(item: Mapping[str, Any]) -> dict[int, str]:
    """The texts of the labels of an item; none if they were left out.

    Raises:
        ValueError: if they are damaged.
    """
    if "texts" not in item:
        return {}
    labels = _numbers(item["totals"]).reshape(-1, 3)[:, 0].astype(np.int64).tolist()
    texts = json.loads(_bytes(item["texts"]))
    return {label: text for label, text in zip(labels, texts, strict=True) if text is not None}


def _document_totals(totals: DocumentTotals) -> dict[str, Any]:
    numbers = torch.stack([each.double() for each in totals[1:5]], dim=1)
    return {
        "ids": _text(totals.ids.cpu().numpy(), "<i8"),
        "totals": _text(numbers.cpu().numpy()),
        "ends": _text(totals.ends.cpu().numpy()),
        "number_of_ends": totals.ends.shape[1],
    }


def document_totals_in(item: Mapping[str, Any]) -> DocumentTotals:
    """The rows of an item.

    Raises:
        ValueError: if they are damaged.
    """
    ids = torch.from_numpy(_numbers(item["ids"], "<i8"))
    numbers = torch.from_numpy(_numbers(item["totals"]).reshape(len(ids), 4))
    ends = torch.from_numpy(_numbers(item["ends"]).reshape(len(ids), item["number_of_ends"], 2))
    tokens, nats, size, first = numbers.T.contiguous()
    return DocumentTotals(ids, tokens, nats, size, first, ends)


def label_totals_in(item: Mapping[str, Any]) -> Tensor:
    """The totals ``[V, 2]`` of an item.

    Raises:
        ValueError: if they are damaged.
    """
    rows = _numbers(item["totals"]).reshape(-1, 3)
    labels, vocabulary = rows[:, 0].astype(np.int64), item["vocabulary"]
    if not isinstance(vocabulary, int) or bool(((labels < 0) | (labels >= vocabulary)).any()):
        raise ValueError(f"Expected labels in [0, {vocabulary}): the record is damaged.")
    totals = np.zeros((vocabulary, 2))
    totals[labels] = rows[:, 1:]
    return torch.from_numpy(totals)


def digest_in(item: Mapping[str, Any]) -> Tensor:
    """The digest ``[K + 3, 2]`` of an item.

    Raises:
        ValueError: if it is damaged.
    """
    rows = _numbers(item["digest"]).reshape(-1, 2)
    compression, used = item["compression"], len(rows) - FOOTER_ROWS
    if not isinstance(compression, int) or not 0 <= used <= compression:
        raise ValueError(f"Expected at most {compression} centroids but got {used}: the record is damaged.")
    digest = np.zeros((compression + FOOTER_ROWS, 2))
    digest[:used], digest[compression:] = rows[:used], rows[used:]
    return torch.from_numpy(digest)


def documents_in(item: Mapping[str, Any]) -> Tensor | None:
    """The counts by document ``[slots, bins + 1]`` of an item, None if none were kept.

    Raises:
        ValueError: if they are damaged.
    """
    if "documents" not in item:
        return None
    return torch.from_numpy(_numbers(item["documents"]).reshape(item["slots"], -1))


def _text(array: np.ndarray[Any, Any], dtype: str = "<f8") -> str:
    data = np.ascontiguousarray(array, dtype=dtype).tobytes()
    return base64.b64encode(zlib.compress(data)).decode()


def _numbers(text: str, dtype: str = "<f8") -> np.ndarray[Any, Any]:
    data = _bytes(text)
    try:
        numbers = np.frombuffer(data, dtype=dtype)
    except ValueError as error:
        raise ValueError(f"The payload of a record is damaged ({error}).") from error
    return numbers.astype(numbers.dtype.newbyteorder("="))


def _bytes(text: str) -> bytes:
    try:
        return zlib.decompress(base64.b64decode(text, validate=True))
    except (ValueError, zlib.error) as error:
        raise ValueError(f"The payload of a record is damaged ({error}).") from error
