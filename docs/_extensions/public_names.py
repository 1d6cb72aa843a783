"""The reference out of what the package exports: ``__all__`` says what is public, docstrings say what it is.

An object is described once, in its own folder and under its shortest import; others of its imports are links.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from types import ModuleType
from typing import NamedTuple

PACKAGE = "lightning_pce"


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
    """The public modules: those with an ``__all__`` on a path without a leading underscore."""
    package = importlib.import_module(PACKAGE)
    found = [PACKAGE]
    for each in pkgutil.walk_packages(package.__path__, f"{PACKAGE}.", onerror=lambda name: None):
        if any(part.startswith("_") for part in each.name.split(".")) or f"{PACKAGE}.cli" in each.name:
            continue
        if hasattr(importlib.import_module(each.name), "__all__"):
            found.append(each.name)
    return tuple(found)


def names_of(module: str) -> list[Public]:
    """What a module exports, in its own order; not its version."""
    loaded: ModuleType = importlib.import_module(module)
    return [Public(module, name) for name in loaded.__all__ if not name.startswith("__")]


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
