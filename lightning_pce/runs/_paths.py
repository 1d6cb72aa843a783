"""Models by the paths of their files: short names for them, and which one a user's name means."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence


def shortest_ends(paths: Collection[str]) -> dict[str, str]:
    """The shortest ends of paths that are different, by path: ``checkpoint-500``."""
    parts = {path: [part for part in re.split(r"[/\\]", path) if part] or [path] for path in paths}
    for length in range(1, max(map(len, parts.values()), default=0) + 1):
        ends = {path: "/".join(part[-length:]) for path, part in parts.items()}
        if len(set(ends.values())) == len(ends):
            return ends
    return {path: path for path in paths}


def meant(name: str, known: Mapping[str, Sequence[str]]) -> list[str]:
    """The labels that a name may mean: this label, or else of this path, or else of the end of that path.

    Example:
        >>> known = {"first": ["out/step-1"], "second": ["out/step-2"]}
        >>> meant("first", known), meant("./out/step-2", known), meant("step-2", known), meant("x", known)
        (['first'], ['second'], ['second'], [])
    """
    if name in known:
        return [name]
    for same in (_same_path, _same_end):
        found = [label for label, paths in known.items() if _any(same, paths, name)]
        if found:
            return found
    return []


def _any(same: Callable[[str, str], bool], paths: Sequence[str], name: str) -> bool:
    return any(same(path, name) for path in paths)


def _same_path(path: str, name: str) -> bool:
    return os.path.normpath(name) == os.path.normpath(path) or os.path.abspath(name) == os.path.abspath(path)


def _same_end(path: str, name: str) -> bool:
    """Whether one path is the end of the other: ``step-1`` of ``out/step-1``, and the other way round."""
    own, parts = _parts(name), _parts(path)
    length = min(len(own), len(parts))
    return bool(length) and own[-length:] == parts[-length:]


def _parts(path: str) -> list[str]:
    return [part for part in path.replace("\\", "/").split("/") if part not in ("", ".")]
