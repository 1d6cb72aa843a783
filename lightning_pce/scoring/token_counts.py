"""How often each token occurs in a corpus: a table of numbers, or the corpus itself."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_pce._errors import UserError
from lightning_pce.scoring.data import Dataset, read_data
from lightning_pce.scoring.models import ModelSource, load_tokenizer, tokenizer_key
from lightning_pce.scoring.tokenizing import tokens_of

_MOST = float(2**53)  # tokens: more than any corpus has, and sums of them are exact


class TokenCounts:
    """The counts of ``--token-counts``.

    A corpus is counted with the tokenizer of each model, so that models of several tokenizers have weights
    from the same text. A table belongs to one tokenizer.

    Args:
        path: as the user named it.
        table: int64, a number for each id; None of a corpus.
        corpus: None of a table.
    """

    def __init__(self, path: str, table: NDArray[np.int64] | None, corpus: Dataset | None) -> None:
        self.path, self.table, self._corpus = path, table, corpus
        self._counted: dict[tuple[str, int], NDArray[np.int64]] = {}

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> TokenCounts:
        """Read a ``.npy`` of whole numbers, or data as :func:`~lightning_pce.scoring.data.read_data` does.

        Raises:
            UserError: if it is neither.
        """
        if Path(path).suffix.lower() == ".npy":
            return cls(os.fspath(path), _table(path), None)
        return cls(os.fspath(path), None, read_data(path))

    @property
    def key(self) -> str:
        """What the counts are, in a word and 16 hexadecimal digits of their content."""
        if self._corpus is not None:
            return f"corpus {self._corpus.content}"
        assert self.table is not None
        # Zeros at the end are ids that a padded vocabulary has more.
        content = np.trim_zeros(self.table, "b").astype("<i8").tobytes()
        return f"table {hashlib.sha256(content).hexdigest()[:16]}"

    def key_with(self, tokenizer: Any) -> str:
        """:attr:`key`; of a table also whose ids these are, since the same ids are other tokens elsewhere."""
        return self.key if self.table is None else f"{self.key}, tokenizer {tokenizer_key(tokenizer)}"

    def check_models(self, models: Sequence[ModelSource], *, trust: bool) -> None:
        """Refuse a table for models of several tokenizers: another may have as many ids of other tokens.

        Raises:
            UserError: with two of the models.
        """
        if self.table is None:
            return
        known: dict[str, str] = {}
        for model in models:
            known.setdefault(tokenizer_key(load_tokenizer(model, trust=trust)), model.name)
        if len(known) > 1:
            one, other = list(known.values())[:2]
            raise UserError(
                f"--token-counts {self.path} counts the tokens of one tokenizer, but {one} and {other} have "
                "different ones: give a text, which is counted with each, or score them apart."
            )

    def of(self, tokenizer: Any, vocabulary: int, model: str) -> NDArray[np.int64]:
        """The counts ``[V]`` of a model's tokens, 0 for ids that its tokenizer does not have.

        Args:
            tokenizer: of the model.
            vocabulary: V, how many logits it has.
            model: its name, for people.

        Raises:
            UserError: if a table is shorter or longer than the vocabulary, or a corpus has other tokens.
        """
        if self.table is not None:
            return self._fitted(len(tokenizer), vocabulary, model)
        key = tokenizer_key(tokenizer), vocabulary
        if key not in self._counted:
            self._counted[key] = self._count(tokenizer, vocabulary, model)
        return self._counted[key]

    def _fitted(self, tokens: int, vocabulary: int, model: str) -> NDArray[np.int64]:
        assert self.table is not None
        least, most = sorted((tokens, vocabulary))
        beyond = vocabulary + np.flatnonzero(self.table[vocabulary:])
        if least <= len(self.table) <= most and len(beyond):
            raise UserError(
                f"--token-counts {self.path} counts the token {beyond[0]}, but {model} has {vocabulary}: "
                "count with its own tokenizer."
            )
        if not least <= len(self.table) <= most:
            ids = str(least) if least == most else f"{least} to {most}"
            raise UserError(
                f"--token-counts {self.path} has {len(self.table)} numbers, but {model} has {ids} tokens: "
                "count with its own tokenizer, numpy.bincount(ids, minlength=len(tokenizer)), or give a text."
            )
        found = np.zeros(vocabulary, np.int64)
        found[: len(self.table)] = self.table[:vocabulary]
        return found

    def _count(self, tokenizer: Any, vocabulary: int, model: str) -> NDArray[np.int64]:
        assert self._corpus is not None
        found = np.zeros(vocabulary, np.int64)
        for ids in tokens_of(self._corpus, tokenizer):
            largest = int(ids.max(initial=0))
            if largest >= vocabulary:
                raise UserError(
                    f"--token-counts {self.path} has the token {largest}, but {model} has {vocabulary}: its "
                    "tokenizer is another model's."
                )
            found += np.bincount(ids, minlength=vocabulary)
        return found


def _table(path: str | os.PathLike[str]) -> NDArray[np.int64]:
    where = f"--token-counts {os.fspath(path)}"
    try:
        with Path(os.path.expanduser(path)).open("rb") as file:
            found: Any = np.lib.format.read_array(file, allow_pickle=False)
    except OSError as error:
        raise UserError(f"{where}: {error.strerror or error}.") from error
    except ValueError as error:  # of another format, torn, of objects
        said = str(error).partition("\n")[0]
        raise UserError(
            f"{where} can't be read as .npy ({said}): write it by numpy.save(path, counts)."
        ) from error
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise UserError(
            f"{where} holds {found.dtype} of shape {found.shape}, not a whole number for each id: write "
            "counts.astype('int64'), [V]."
        )
    total = float(found.sum(dtype=np.float64))
    if len(found) and int(found.min()) < 0:
        raise UserError(f"{where} has {found.min()} for id {found.argmin()}: counts are 0 or more.")
    if not 0 < total < _MOST:
        raise UserError(f"{where} counts {total:.0f} tokens in all: take those of a corpus.")
    table: NDArray[np.int64] = found.astype(np.int64)
    return table
