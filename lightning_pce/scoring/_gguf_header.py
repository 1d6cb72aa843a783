"""The header of a GGUF file: how its tensors are quantised, and whether the file is whole."""

from __future__ import annotations

import mmap
import struct
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from lightning_pce._errors import UserError

# Formats of the values by their number in the file; 8 is a string and 9 an array.
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


class GGUFHeader(NamedTuple):
    """What the header says.

    Attributes:
        architecture: as llama.cpp calls it, for instance ``"llama"``; empty if the file does not say.
        parts: of how many files this is one.
        quantisation: the type of most numbers of its tensors, for instance ``"Q8_0"``.
    """

    architecture: str
    parts: int
    quantisation: str


def read_gguf_header(path: Path) -> GGUFHeader:
    """Read it without the tensors (`gguf.GGUFReader` takes 2 s for a vocabulary of 49,000).

    Raises:
        UserError: if it is no GGUF file, or a part of it is missing.
    """
    if path.stat().st_size < 24:
        raise UserError(f"{path}: no GGUF file, it has {path.stat().st_size} bytes")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:4] != b"GGUF":
            raise UserError(f"{path}: no GGUF file, it begins with {data[:4]!r} and not with b'GGUF'")
        try:
            return _read(_Cursor(data), path)
        except (struct.error, UnicodeDecodeError, KeyError, OverflowError) as error:
            raise UserError(f"{path}: a torn GGUF file, its header cannot be read; copy it again") from error


class _Cursor:
    """Reads one value after the other."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 4

    def number(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize("<" + code)
        return value

    def string(self) -> str:
        length = self.number("Q")
        if length > len(self.data) - self.at:
            raise OverflowError
        self.at += length
        return self.data[self.at - length : self.at].decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        """One value; of an array None, as nothing here asks for one."""
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.number(_FORMATS[kind])
        kind, length = self.number("I"), self.number("Q")
        if length > len(self.data):
            raise OverflowError
        if kind in _FORMATS:
            self.at += length * struct.calcsize("<" + _FORMATS[kind])
        else:
            for _ in range(length):
                self.value(kind)
        return None


def _read(cursor: _Cursor, path: Path) -> GGUFHeader:
    version = cursor.number("I")
    if version not in (2, 3):
        raise UserError(f"{path}: GGUF version {version}, known are 2 and 3; convert the model again")
    tensors, entries = cursor.number("Q"), cursor.number("Q")
    found = {}
    for _ in range(entries):
        key = cursor.string()
        found[key] = cursor.value(cursor.number("I"))
    types: Counter[int] = Counter()
    end = 0
    for _ in range(tensors):
        cursor.string()
        shape = [cursor.number("Q") for _ in range(cursor.number("I"))]
        kind, offset = cursor.number("I"), cursor.number("Q")
        elements = 1
        for size in shape:
            elements *= size
        types[kind] += elements
        end = max(end, offset + _bytes(kind, elements))
    alignment = found.get("general.alignment") or 32
    start = -(-cursor.at // alignment) * alignment
    if not types:
        raise UserError(f"{path}: a GGUF file without tensors (a vocabulary only?); name the model's file")
    if start + end > len(cursor.data):
        raise UserError(
            f"{path}: a torn GGUF file, it has {len(cursor.data)} of {start + end} bytes; copy it again"
        )
    return GGUFHeader(
        str(found.get("general.architecture") or ""),
        int(found.get("split.count") or 1),
        _name(types.most_common(1)[0][0]),
    )


def _bytes(kind: int, elements: int) -> int:
    """How many bytes so many numbers take, 0 if this version of gguf does not know the type."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        return 0
    return elements // block * size


def _name(kind: int) -> str:
    from gguf import GGMLQuantizationType

    try:
        return str(GGMLQuantizationType(kind).name)
    except ValueError:
        return f"type {kind}"
