"""Data to score: the documents of a text file, of JSON lines, of parquet, or of a folder of them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_pce._errors import UserError
from lightning_pce.scoring._text_files import blocks, text_of
from lightning_pce.scoring.documents import Document, Part, content_of, plain_name
from lightning_pce.scoring.rows import documents_of, rows_of

__all__ = ["Dataset", "Document", "Part", "read_data"]

_OF_ROWS = (".jsonl", ".ndjson", ".json", ".parquet")
_OTHER_TABLES = (".csv", ".tsv", ".arrow", ".feather")


@dataclass(frozen=True)
class Dataset:
    """The documents of one ``--data``.

    Attributes:
        name: of A-Z, a-z, 0-9, _: the file's own, as a dataloader's.
        path: as the user named it.
        content: 16 hexadecimal digits of ids, units, texts, messages and groups, in any format.
        documents: in the order of the data.
        groups: the names of the groups of tokens; may be empty.
        masking: which tokens are scored.
    """

    name: str
    path: str
    content: str
    documents: tuple[Document, ...]
    groups: tuple[str, ...] = ()
    masking: str = "all tokens"


def read_all(
    paths: Sequence[str | os.PathLike[str]], *, group: str | None = None, protocol: str = "windows"
) -> list[Dataset]:
    """Read several files or folders, see :func:`read_data`; no two of them have one name.

    Names are those of the files without suffix. Where two are alike the folder is put in front, and if
    they are still alike the suffix is kept.

    Raises:
        UserError: if a file cannot be read, holds no documents, or is given twice.
    """
    if not paths:
        raise UserError("No data: name a file of text, .jsonl or .parquet, or a folder of them.")
    named = [Path(os.path.expanduser(path)) for path in paths]
    twice = [str(path) for path, times in Counter(path.resolve() for path in named).items() if times > 1]
    if twice:
        raise UserError(f"{twice[0]} is given twice as data: name it once.")
    names = _distinct_names(named)
    return [
        _read(path, os.fspath(given), name, group, protocol)
        for path, given, name in zip(named, paths, names, strict=True)
    ]


def read_data(
    path: str | os.PathLike[str], *, group: str | None = None, protocol: str = "windows"
) -> Dataset:
    r"""Read documents.

    Args:
        path: a text file, of which each block between blank lines is a document; ``.jsonl``, ``.ndjson``,
            ``.json`` or ``.parquet``, of which each row is one; or a folder, of which each text is one or, if
            all files hold rows, each row. Hidden files are left out. docs/scoring_data.md has the columns.
        group: the column that says of which group all tokens of a row are, instead of prompt and completion.
        protocol: ``"windows"``; or ``"llama.cpp"``, which takes a text file as a single text.

    Returns:
        The documents, with the name and a hash of what they hold.

    Raises:
        UserError: if it cannot be read, has documents that are empty or alike in id, or none.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/facts.txt"
        >>> _ = Path(path).write_text("A cat sat.\n\nA dog\nran.\n", encoding="utf-8")
        >>> data = read_data(path)
        >>> data.name, [(document.id, document.parts[0].text) for document in data.documents]
        ('facts', [('0', 'A cat sat.'), ('1', 'A dog\nran.')])
    """
    return read_all([path], group=group, protocol=protocol)[0]


def _read(path: Path, given: str, name: str, group: str | None, protocol: str) -> Dataset:
    try:
        if path.is_dir():
            documents, groups = _of_folder(path, group, protocol)
        elif path.is_file():
            documents, groups = _of_file(path, group, protocol)
        elif path.exists():
            raise UserError(f"{given} is neither a file nor a folder: write the data into a file.")
        else:
            raise UserError(f"{given}: no such file or folder.")
    except OSError as error:
        what = error.strerror or str(error).partition("\n")[0]  # pyarrow's have no strerror
        raise UserError(f"{given}: {what}.") from error
    _check(documents, given)
    return Dataset(name, given, content_of(documents), documents, groups)


def _of_file(path: Path, group: str | None, protocol: str) -> tuple[tuple[Document, ...], tuple[str, ...]]:
    suffix = path.suffix.lower()
    if suffix in _OTHER_TABLES:
        raise UserError(f"{path}: columns are read from .jsonl and .parquet, not from {suffix}: convert it.")
    if suffix in _OF_ROWS:
        _check_one_text(path, protocol)
        return _of_rows([path], path, group)
    _check_no_columns(path, group)
    text = text_of(path)
    # llama.cpp's tools read a file whole and drop one newline at its end.
    texts = [text.removesuffix("\n")] if protocol == "llama.cpp" else list(blocks(text))
    if not text.strip():
        raise UserError(f"{path} holds no text" + (": it is empty." if not text else ", only whitespace."))
    return tuple(Document(str(i), str(i), (Part(text),)) for i, text in enumerate(texts)), ()


def _of_folder(path: Path, group: str | None, protocol: str) -> tuple[tuple[Document, ...], tuple[str, ...]]:
    _check_one_text(path, protocol)
    files = sorted(_files_in(path), key=lambda file: file.relative_to(path).as_posix())
    odd = [file for file in files if not file.is_file()]
    if odd:
        raise UserError(f"{odd[0]} is not a file (a broken link, a pipe?): remove it.")
    if not files:
        raise UserError(f"{path} holds no files.")
    rows = [file for file in files if file.suffix.lower() in _OF_ROWS]
    if rows and len(rows) < len(files):
        other = next(file for file in files if file not in rows)
        raise UserError(
            f"{path} holds both rows ({rows[0].relative_to(path)}) and text ({other.relative_to(path)}): "
            "name the files, or put one kind into a folder of its own."
        )
    if rows:
        return _of_rows(rows, path, group)
    _check_no_columns(path, group)
    names = [file.relative_to(path).as_posix() for file in files]
    texts = [text_of(file) for file in files]
    return tuple(Document(n, n, (Part(text),)) for n, text in zip(names, texts, strict=True)), ()


def _of_rows(
    files: list[Path], path: Path, group: str | None
) -> tuple[tuple[Document, ...], tuple[str, ...]]:
    return documents_of((row for file in files for row in rows_of(file, group)), path, group)


def _files_in(folder: Path) -> Iterator[Path]:
    """All files below a folder but hidden ones; links to folders are not followed, they may go round."""

    def refuse(error: OSError) -> None:  # or a folder that cannot be read would be an empty one
        raise error

    for root, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(root, name) for name in names if not name.startswith("."))


def _check_one_text(path: Path, protocol: str) -> None:
    if protocol == "llama.cpp":
        raise UserError(f"{path}: the protocol llama.cpp reads one text file as a whole: give it that file.")


def _check_no_columns(path: Path, group: str | None) -> None:
    if group is not None:
        raise UserError(f"{path} is text and has no column {group!r}: groups need .jsonl or .parquet.")


def _check(documents: Sequence[Document], path: str) -> None:
    """No document may be empty: it would have an id and nothing to score."""
    empty = [d.id for d in documents if d.messages is None and not any(part.text.strip() for part in d.parts)]
    if empty:
        raise UserError(
            f"{path}: {len(empty)} of {len(documents)} documents hold no text or only whitespace, the first "
            f"has the id {empty[0]!r}: remove them."
        )


def _distinct_names(paths: Sequence[Path]) -> list[str]:
    """A name for each file that does not depend on the order in which they are given, unless it has to."""
    whole = [path.resolve() for path in paths]
    stems = [path.stem if path.is_file() else path.name for path in whole]
    tries = [
        [plain_name(stem) for stem in stems],
        [plain_name(f"{path.parent.name}_{stem}") for path, stem in zip(whole, stems, strict=True)],
        [plain_name(path.name) for path in whole],
        *([plain_name("_".join(path.parts[-n:])) for path in whole] for n in (2, 3, 4)),
    ]
    chosen = list(tries[0])
    for names in tries[1:]:
        times = Counter(chosen)
        chosen = [name if times[old] > 1 else old for old, name in zip(chosen, names, strict=True)]
    seen: Counter[str] = Counter()
    for i, name in enumerate(chosen):
        while chosen[i] in chosen[:i]:
            seen[name] += 1
            chosen[i] = f"{name}_{seen[name] + 1}"
    return chosen
