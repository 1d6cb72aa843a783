"""Where a page may be written, and writing it as a whole or not at all."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_pce._errors import UserError

if TYPE_CHECKING:
    from lightning_pce.runs.history import History


def checked_target(path: str | os.PathLike[str], history: History | None = None) -> tuple[Path, Path]:
    """The files of a page and of its JSON, links followed; nothing is written yet.

    Raises:
        UserError: if one is not a file, lies in what is no folder, or holds the records.
    """
    target = Path(os.path.realpath(os.path.expanduser(path)))
    if target.suffix == ".json":
        raise UserError(f"{path}: the JSON beside the page is called so; name the page {target.stem}.html.")
    pair = target, target.with_suffix(".json")
    for file in pair:
        if file.exists() and not file.is_file():
            what = "a folder" if file.is_dir() else "no regular file"
            raise UserError(f"{file} is {what}: a page needs a file such as report.html.")
        parent = next(each for each in file.parents if each.exists())
        if not parent.is_dir():
            raise UserError(f"{parent} is a file and no folder: {file.name} cannot be written there.")
    sources = {os.path.realpath(each.payload.path) for each in history or () if each.payload is not None}
    for file in pair:
        if str(file) in sources:
            raise UserError(f"{file} holds the records themselves: give the page another name.")
    return pair


def check_packages() -> None:
    """Raise a ``UserError`` if an optional package that a page needs is not installed."""
    for module in ("jinja2", "matplotlib"):
        if importlib.util.find_spec(module) is None:
            raise UserError(f"A page needs {module}: pip install {module}.")


def write_both(texts: Mapping[Path, str]) -> None:
    """Write files that take the place of older ones once all are complete.

    Raises:
        UserError: if that is not possible; what was there is as it was.
    """
    waiting = {file: file.with_name(f".{file.name}.{os.getpid()}.tmp") for file in texts}
    try:
        for file, text in texts.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            waiting[file].write_text(text, encoding="utf-8", newline="\n")
        for file, complete in waiting.items():
            os.replace(complete, file)
    except OSError as error:
        names = " and ".join(map(str, texts))
        raise UserError(f"{names} cannot be written: {error.strerror or error}.") from error
    finally:
        for complete in waiting.values():
            with contextlib.suppress(OSError):
                complete.unlink(missing_ok=True)
