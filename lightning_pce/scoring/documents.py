"""A document: what is scored by itself, before any tokenizer has seen it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ROLES = ("prompt", "completion")


@dataclass(frozen=True)
class Part:
    """A stretch of a document's text and the group of its tokens."""

    text: str
    group: str | None = None


@dataclass(frozen=True)
class Document:
    """What is scored by itself.

    Attributes:
        id: its name in the data, which no other document there has.
        unit: what it counts as in error bars, by default the id: rows drawn together share one.
        parts: its text; of a chat there are none before a tokenizer's template has rendered the messages.
        messages: of a chat, ``role``, ``content`` and what else is plain in each.
        completion_from: the message with which a chat's completion begins; None: every assistant's turn is.
        group: the group of all tokens of a chat that has one.
    """

    id: str
    unit: str
    parts: tuple[Part, ...] = ()
    messages: tuple[Mapping[str, Any], ...] | None = None
    completion_from: int | None = None
    group: str | None = None


def content_of(documents: Sequence[Document]) -> str:
    """16 hexadecimal digits of what documents hold, whatever file they were in."""
    digest = hashlib.sha256()
    for each in documents:
        parts = [[part.text, part.group] for part in each.parts]
        messages = None if each.messages is None else list(each.messages)
        fields = [each.id, each.unit, parts, messages, each.completion_from, each.group]
        digest.update(json.dumps(fields, ensure_ascii=False, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()[:16]


def plain_name(text: str) -> str:
    """A text as a name of A-Z, a-z, 0-9, _; ``"data"`` where nothing of it is left.

    Example:
        >>> plain_name("wiki-test.v2"), plain_name("数据")
        ('wiki_test_v2', 'data')
    """
    return re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_") or "data"
