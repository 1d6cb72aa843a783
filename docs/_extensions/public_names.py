"""The reference out of what the package exports: ``__all__`` says what is public, docstrings say what it is.

An object is described once, in its own folder and under its shortest import; others of its imports are links.
"""

from __future__ import annotations

import ast
import importlib
from functools import cache
from pathlib import Path
from typing import NamedTuple

PACKAGE = "lightning_pce"
ROOT = Path(__file__).resolve().parents[2]


class Public(NamedTuple):
    """One name of one module's ``__all__``."""

    module: str
    name: str

    @property
    def path(self) -> str:
        """What a reader would write to reach it."""
        return f"{self.module}.{self.name}"

    @property
    def value(self) -> object:
        """The object itself, also where its module loads it when first asked."""
        return getattr(importlib.import_module(self.module), self.name)


@cache
def modules() -> tuple[str, ...]:
    """The public modules, none of which is imported: an ``__all__``, and no underscore in the path."""
    found = []
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if not any(part.startswith("_") for part in parts) and _exports(path):
            found.append(".".join(parts))
    return tuple(found)


def _exports(path: Path) -> bool:
    assigned = (
        each for each in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(each, ast.Assign)
    )
    return any(ast.unparse(target) == "__all__" for each in assigned for target in each.targets)


def names_of(module: str) -> list[Public]:
    """What a module exports, in its own order; not its version."""
    return [
        Public(module, name) for name in importlib.import_module(module).__all__ if not name.startswith("__")
    ]


def home(each: Public) -> str:
    """Where the object was defined, which is the same for all imports of it. A constant does not say."""
    value = each.value
    if hasattr(value, "__qualname__") and hasattr(value, "__module__"):
        return f"{value.__module__}.{value.__qualname__}"
    return f"{each.name} = {value!r}"


class Described(NamedTuple):
    """One object: the shortest import of it, and the module among whose names it is described."""

    path: str
    place: str


@cache
def described() -> dict[str, Described]:
    """Every public object by its home."""
    imports: dict[str, list[Public]] = {}
    for module in modules():
        for each in names_of(module):
            imports.setdefault(home(each), []).append(each)
    return {at: Described(_shortest(found).path, _place(at, found)) for at, found in imports.items()}


def _shortest(found: list[Public]) -> Public:
    return min(found, key=lambda each: (each.path.count("."), len(each.path)))


def _place(at: str, found: list[Public]) -> str:
    """The shortest of its own folder; of a constant, which has none, and of what has no module there the
    longest of any.
    """
    folder = ".".join(at.split(".")[:2])
    within = [each for each in found if each.module.startswith(folder)]
    return _shortest(within).module if within else max(found, key=lambda each: each.path.count(".")).module


@cache
def targets() -> dict[str, str]:
    """For every way to write a public name in a docstring the name under which it is described."""
    found = {}
    for module in modules():
        for each in names_of(module):
            found[each.path] = found[home(each)] = described()[home(each)].path
    return found


@cache
def unique() -> dict[str, str]:
    """The same for bare names that only one public object has."""
    by_name: dict[str, list[str]] = {}
    for path, _ in described().values():
        by_name.setdefault(path.rpartition(".")[2], []).append(path)
    return {name: paths[0] for name, paths in by_name.items() if len(paths) == 1}
