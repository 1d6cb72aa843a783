"""What a model is by the content of its files, so that a changed one never gets old numbers."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path

from lightning_pce.scoring import _hub
from lightning_pce.scoring._model_sources import ModelSource, checked_files

_CHUNK = 1 << 22
# A file system may give two writes this near to each other the same time (FAT: 2 s).
_TOO_NEW_NS = 3 * 10**9
_MOST = 10_000  # entries of the cache

_Known = dict[str, list[int | str]]


def content_key(source: ModelSource) -> str:
    """16 hexadecimal digits of the SHA-256 of a model's weights, config, tokenizer and base.

    Hashes of large files are kept in the user's cache folder by path, size and times. Files of the hub's
    cache that are named by their SHA-256 need no reading. Missing weights of the hub are downloaded first.

    Raises:
        UserError: if a file is missing or torn.
    """
    return _key(source)[:16]


def _key(source: ModelSource) -> str:
    if source.of_hub is not None:
        _hub.fetch_weights(source.of_hub, source.path)
    hashes = [(path.name, hash_of(path)) for path in checked_files(source)]
    if source.kind == "gguf":
        hashes = [("gguf", digest) for _, digest in hashes]
    if source.kind == "ckpt":
        hashes = [("ckpt", digest) for _, digest in hashes]
    parts = [*(f"{name} {digest}" for name, digest in sorted(hashes))]
    if source.base is not None:
        parts.append(f"base {_key(source.base)}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def hash_of(path: Path) -> str:
    """The SHA-256 of a file, from the cache if the file is as it was."""
    real = path.resolve()
    if re.fullmatch(r"[0-9a-f]{64}", real.name) and real.parent.name == "blobs":
        return real.name  # the hub's cache names large files so
    stat = real.stat()
    # The time of the last change of anything, as a copy may keep the time of the last writing.
    state: list[int | str] = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    cache = _cache_file()
    known = _read(cache).get(str(real), [])
    if known[:-1] == state:
        return str(known[-1])
    digest = hashlib.sha256()
    with open(real, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    found = digest.hexdigest()
    changed = real.stat()
    if [changed.st_size, changed.st_mtime_ns, changed.st_ctime_ns] == state and max(
        stat.st_mtime_ns, stat.st_ctime_ns
    ) < time.time_ns() - _TOO_NEW_NS:
        _write(cache, str(real), [*state, found])
    return found


def _cache_file() -> Path | None:
    """Where hashes are kept, None if there is no home."""
    if os.environ.get("XDG_CACHE_HOME"):
        folder = Path(os.environ["XDG_CACHE_HOME"])
    elif sys.platform == "win32" and os.environ.get("LOCALAPPDATA"):
        folder = Path(os.environ["LOCALAPPDATA"])
    else:
        try:
            folder = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
        except RuntimeError:
            return None
    return folder / "lightning-pce" / "sha256.json"


def _read(cache: Path | None) -> _Known:
    try:
        found = json.loads(cache.read_text(encoding="utf-8")) if cache else {}
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {
        path: entry
        for path, entry in found.items()
        if isinstance(entry, list) and len(entry) == 4 and re.fullmatch(r"[0-9a-f]{64}", str(entry[3]))
    }


def _write(cache: Path | None, path: str, entry: list[int | str]) -> None:
    """Add an entry; of two processes at once one may be lost, and is found again by reading the file."""
    if cache is None:
        return
    entries = {**_read(cache), path: entry}
    if len(entries) > _MOST:
        entries = {known: each for known, each in entries.items() if os.path.exists(known)}
    unfinished = None
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=cache.parent, suffix=".part", delete=False, encoding="utf-8"
        ) as file:
            unfinished = file.name
            json.dump(entries, file)
        os.replace(unfinished, cache)
    except OSError:  # a full or read-only disk: the next time takes as long again
        if unfinished is not None:
            Path(unfinished).unlink(missing_ok=True)
