"""The file of a study's numbers, which is committed: as JSON that a person can read and compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from examples.resumable import whole


def write_numbers(path: Path, content: dict[str, Any]) -> None:
    """What holds no other list or object stands on a line; whole or not at all."""
    plain = json.loads(json.dumps(content, allow_nan=False))  # tuples as lists, keys as texts
    with whole(path) as part:
        part.write_text(_text(plain) + "\n", encoding="utf-8", newline="\n")


def _text(value: Any, indent: int = 0) -> str:
    """As ``json.dumps(value, indent=1)`` but for lists and objects of plain values."""
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    if not any(isinstance(each, dict | list) for each in inner):
        return json.dumps(value, allow_nan=False)
    keys = [f"{json.dumps(key)}: " for key in value] if isinstance(value, dict) else [""] * len(inner)
    space = "\n" + " " * (indent + 1)
    items = f",{space}".join(key + _text(each, indent + 1) for key, each in zip(keys, inner, strict=True))
    begin, end = "{}" if isinstance(value, dict) else "[]"
    return f"{begin}{space}{items}{space[:-1]}{end}"
