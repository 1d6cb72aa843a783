"""Records from log-probabilities that exist: answers of serving engines, files of other tools, columns.

Each format is a file with one function, which gives the documents of a file one after the other. What they
must hold and what is lost is in docs/import.md.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_pce._errors import UserError
from lightning_pce.scoring.imports import columns, completions, llama_cpp, lm_eval, sglang, vllm
from lightning_pce.scoring.imports._collecting import Collected
from lightning_pce.scoring.imports._documents import ScoredDocument
from lightning_pce.scoring.imports._options import Options, Source
from lightning_pce.scoring.records_file import check_records, replace_lines

if TYPE_CHECKING:
    from lightning_pce.runs._lines import Contents

__all__ = ["import_records"]

Reader = Callable[[Path, Options, Source], Iterator[ScoredDocument]]

LM_EVAL = "lm-eval"  # the only one without tokens
# The formats by name; None is LM_EVAL's.
FORMATS: dict[str, Reader | None] = {
    "vllm": vllm.documents,
    "completions": completions.documents,
    "sglang": sglang.documents,
    "llama.cpp": llama_cpp.documents,
    "columns": columns.documents,
    LM_EVAL: None,
}
# What a file is, by its first bytes, where it can't be what was asked for.
_BEGINNINGS = {llama_cpp.MAGIC: "llama.cpp", b"PAR1": "columns"}
_NAME = re.compile(r"[A-Za-z0-9_]+")
_DEFAULT_NAME = "imported"
_MANY_ZEROS = 0.05  # with more of them they are probably those of ignored tokens


def import_records(
    path: str | os.PathLike[str],
    format: str,  # noqa: A002 - the word of the command line
    out: str | os.PathLike[str],
    *,
    name: str | None = None,
    model: str | None = None,
    step: int | None = None,
    column: str | None = None,
    kind: str = "logprob",
    document: str | None = None,
    group: str | None = None,
) -> str:
    """Make a record of log-probabilities that another program has computed.

    Args:
        path: the file that has them.
        format: ``"vllm"``, ``"completions"``, ``"sglang"``, ``"llama.cpp"``, ``"columns"`` or ``"lm-eval"``.
        out: the file of records. Others in it stay; one of the same content is replaced.
        name: what the data is called, of A-Z, a-z, 0-9, _: records to compare have the same one. Left out:
            lm-eval's task, else ``"imported"``.
        model: what the model is called; left out: as the file says, else the file's name.
        step: steps of training.
        column: of format ``"columns"``, the column with a number for each token, or with a list of them for
            each document.
        kind: of format ``"columns"``, ``"logprob"`` (natural logarithms) or ``"loss"`` (nats).
        document: of format ``"columns"``, the column with the id of each row's document. Left out: each list
            is a document.
        group: of format ``"columns"``, the column with the name of the group of each row's tokens.

    Returns:
        The key of the record, 16 hexadecimal digits of the file's content and of how it was read.

    Raises:
        OSError: if the file can't be read.
        UserError: if it is not what the format says, is cut short or holds something impossible, or the
            record can't be written; nothing is written then.

    Example:
        >>> import json, tempfile
        >>> from lightning_pce.runs.history import History
        >>> folder = tempfile.mkdtemp()
        >>> with open(f"{folder}/losses.jsonl", "w", encoding="utf-8") as file:
        ...     for losses in ([2.0, 0.5], [1.0, 1.5, 3.0]):
        ...         print(json.dumps({"loss": losses}), file=file)
        >>> out = f"{folder}/records.jsonl"
        >>> key = import_records(f"{folder}/losses.jsonl", "columns", out, column="loss", kind="loss")
        >>> History.load(out)[0].values["ce_p50"]
        1.5
    """
    options = Options(column, kind, document, group)
    check_import(path, format, out, options, name=name)
    source, collected, file = Source(), Collected(), Path(os.path.expanduser(path))
    reader = FORMATS[format]
    if reader is None:
        contents, values = _of_documents(file, source)
    else:
        for each in reader(file, options, source):
            collected.add(each)
        if format == "columns":
            _note_zeros(collected, source)
        contents, values = _of_tokens(file, collected, source)
    key = _key(file, format, options)
    from lightning_pce.runs._writing import validation_line

    line = validation_line(
        run=key,
        name=name or _clean(source.name or _DEFAULT_NAME),
        step=step,
        function="import",
        checkpoint=model or source.model or file.name,
        values=values,
        how={**source.how, "source": format, "notes": source.notes},
        contents=contents,
    )
    replace_lines(out, [line])
    return key


def check_import(
    path: str | os.PathLike[str],
    format: str,  # noqa: A002 - as above
    out: str | os.PathLike[str],
    options: Options,
    *,
    name: str | None = None,
) -> None:
    """What can be refused before anything is read.

    Raises:
        OSError: if the file can't be read.
        UserError: if something of this can't be.
    """
    _check_options(format, options, name)
    _check_file(path, format)
    if os.path.realpath(os.path.expanduser(path)) == os.path.realpath(os.path.expanduser(out)):
        raise UserError(f"{out} is the file to import: name another file for the records.")
    check_records(out)


def _check_options(format: str, options: Options, name: str | None) -> None:  # noqa: A002 - as above
    if format not in FORMATS:
        raise UserError(f"There is no format {format!r}: choose one of {', '.join(FORMATS)}.")
    if format == "columns" and options.column is None:
        raise UserError("--format columns needs --column NAME: where the numbers are.")
    if format != "columns" and options != Options():
        raise UserError(f"--column, --kind, --document and --group are of --format columns, not of {format}.")
    if options.kind not in ("logprob", "loss"):
        raise UserError(f"There is no --kind {options.kind!r}: choose logprob or loss (in nats).")
    if name is not None and not _NAME.fullmatch(name):
        raise UserError(f"Expected a name of A-Z, a-z, 0-9, _ but got {name!r}.")


def _check_file(path: str | os.PathLike[str], format: str) -> None:  # noqa: A002 - as above
    file = Path(os.path.expanduser(path))
    if file.is_dir():
        raise UserError(f"{path} is a folder: name one file in it.")
    with file.open("rb") as opened:
        beginning = opened.read(8)
    if not beginning:
        raise UserError(f"{path} is empty: there is nothing to import.")
    for begins, meant in _BEGINNINGS.items():
        if beginning.startswith(begins) and format != meant:
            raise UserError(
                f"{path} is no file of {format}, as it begins with {begins!r}: try --format {meant}."
            )


def _of_tokens(path: Path, collected: Collected, source: Source) -> tuple[Contents, dict[str, float]]:
    """What a record holds, and its values, of tokens."""
    if not sum(collected.tokens):
        raise UserError(f"{path} has no token with a log-probability: the first one of a text has none.")
    digests = collected.finished()
    values = digests.values()
    if "log_rank" in digests.digests:
        values["accuracy"] = collected.right / sum(collected.tokens)
    if collected.token_ids is not None:
        source.how["token_ids"] = collected.token_ids
    if collected.infinite:
        source.note(
            f"{collected.infinite} log-probabilities are minus infinity (or -9999, which servers write for "
            "it): their cross-entropy is infinite, and so is the mean"
        )
    from lightning_pce.runs._lines import Contents

    totals = _totals(collected.numbers, collected.tokens, collected.nats, None)
    contents = Contents(digests.digests, digests.documents, document_totals=totals, tail=collected.tail)
    return contents, values


def _note_zeros(collected: Collected, source: Source) -> None:
    tokens = sum(collected.tokens)
    if collected.zeros > _MANY_ZEROS * tokens:
        source.note(
            f"{collected.zeros} of {tokens} numbers are exactly 0, as the losses of ignored tokens are: take "
            "these out of the file if they do not count"
        )


def _of_documents(path: Path, source: Source) -> tuple[Contents, dict[str, float]]:
    """The same of documents whose tokens are not known."""
    from lightning_pce.scoring.keys import document_number

    sums = list(lm_eval.document_sums(path, source))
    from lightning_pce.runs._lines import Contents

    nats, size = [each.nats for each in sums], [each.bytes for each in sums]
    numbers = [document_number(each.name) for each in sums]
    values = {"document_nats_mean": sum(nats) / len(nats), "document_count": float(len(nats))}
    if sum(size):
        values["bits_per_byte"] = sum(nats) / math.log(2) / sum(size)
    return Contents(document_totals=_totals(numbers, None, nats, size)), values


def _totals(numbers: list[int], tokens: list[int] | None, nats: list[float], size: list[int] | None) -> Any:
    import torch

    from lightning_pce.runs.document_totals import DocumentTotals

    unknown = torch.full((len(numbers),), torch.nan, dtype=torch.float64)
    return DocumentTotals(
        ids=torch.tensor(numbers, dtype=torch.int64),
        tokens=unknown if tokens is None else torch.tensor(tokens, dtype=torch.float64),
        nats=torch.tensor(nats, dtype=torch.float64),
        bytes=unknown if size is None else torch.tensor(size, dtype=torch.float64),
        first_byte=unknown,
        ends=torch.zeros(len(numbers), 0, 2, dtype=torch.float64),
    )


def _key(path: Path, format: str, options: Options) -> str:  # noqa: A002 - as above
    """16 hexadecimal digits of a file's content and of what its numbers were taken for."""
    found = hashlib.sha256(repr((format, options)).encode())
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()[:16]


def _clean(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]+", "_", name)
