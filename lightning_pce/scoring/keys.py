"""Names of content: the same tokens, or the same document, have the same one in every record."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import ArrayLike


def document_number(name: str) -> int:
    """A whole number of 64 bits that stands for the id of a document, on every machine the same.

    Example:
        >>> document_number("7")
        -8175672813166198151
    """
    return int.from_bytes(
        hashlib.sha256(name.encode(errors="surrogatepass")).digest()[:8], "little", signed=True
    )


class TokenIds:
    """The key of the ids of scored tokens, given in the order of the documents: ``how["token_ids"]``.

    Example:
        >>> ids = TokenIds()
        >>> ids.add([464, 2068])
        >>> ids.add([7586])
        >>> ids.key
        '8b4affb65a084022'
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, ids: ArrayLike) -> None:
        """The ids of the scored tokens of one document, or of a part of it, in their order."""
        self._hash.update(np.ascontiguousarray(ids, dtype="<i8").tobytes())

    @property
    def key(self) -> str:
        """16 hexadecimal digits."""
        return self._hash.hexdigest()[:16]
