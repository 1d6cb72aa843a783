"""Documents come one after the other; what a record needs of them is kept, and their tokens are not.

torch is imported when there are enough of them: what is wrong with a small file is said before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_pce._errors import UserError
from lightning_pce.runs.tail import TailToken
from lightning_pce.scoring.imports._documents import Numbers, ScoredDocument
from lightning_pce.scoring.keys import TokenIds, document_number

if TYPE_CHECKING:
    from lightning_pce.scoring.imports._digests import Digests

_ENOUGH = 1 << 18  # tokens that wait to be sorted together
_TAIL = 100  # tokens of highest CE that are kept, as TailTokens does
_CONTEXT = 32  # tokens before each of them, as text
_MOST_GROUPS = 64


class Collected:
    """What is known of all documents so far."""

    def __init__(self) -> None:
        self.numbers: list[int] = []  # of documents, row by row
        self.tokens: list[int] = []
        self.nats: list[float] = []
        self.tail: list[TailToken] = []  # the highest first
        self.infinite = 0
        self.zeros = 0
        self.right = 0  # tokens of rank 1
        self._rows: dict[str, int] = {}
        self._ids: TokenIds | None = TokenIds()
        # By statistic and group: values of tokens that wait, and the numbers of their documents.
        self._waiting: dict[tuple[str, str], list[tuple[Numbers, int]]] = {}
        self._number_waiting = 0
        self._missing: set[str] = set()  # statistics that a document lacks
        self._groups: set[str] = set()
        self._digests: Digests | None = None

    @property
    def token_ids(self) -> str | None:
        """The key of the ids of all tokens; None if some are not known."""
        return None if self._ids is None else self._ids.key

    def add(self, document: ScoredDocument) -> None:
        """Take a document, or a part of one.

        Raises:
            UserError: if its id was there before and may not be, or there are too many groups.
        """
        name, row = self._row(document)
        ce = document.ce
        self.tokens[row] += len(ce)
        self.nats[row] += float(ce.sum())
        self.infinite += int(np.isinf(ce).sum())
        self.zeros += int((ce == 0).sum())
        if len(ce):
            self._ids = self._with_ids(document)
            self._add_tail(document, name)
            self._wait(document, self.numbers[row])
        if self._number_waiting >= _ENOUGH:
            self._enter()

    def finished(self) -> Digests:
        """The digests of all tokens."""
        return self._enter()

    def _row(self, document: ScoredDocument) -> tuple[str, int]:
        name = str(len(self.numbers)) if document.name is None else document.name
        if name in self._rows:
            if document.again == "part":
                return name, self._rows[name]
            if document.again == "refused":
                raise UserError(
                    f"{document.where}: there was another document {name!r} before: ids must differ."
                )
        self._rows[name] = len(self.numbers)
        self.numbers.append(document_number(name))
        self.tokens.append(0)
        self.nats.append(0.0)
        return name, len(self.numbers) - 1

    def _with_ids(self, document: ScoredDocument) -> TokenIds | None:
        if document.ids is None or self._ids is None:
            return None
        self._ids.add(document.ids)
        return self._ids

    def _wait(self, document: ScoredDocument, number: int) -> None:
        values = {"ce": document.ce, "entropy": document.entropy, "log_rank": None}
        if document.ranks is not None:
            values["log_rank"] = np.log(document.ranks)
            self.right += int((document.ranks == 1).sum())
        for statistic, each in values.items():
            if each is None:
                self._missing.add(statistic)
            else:
                self._waiting.setdefault((statistic, ""), []).append((each, number))
        if document.group is not None:
            self._groups.add(document.group)
            if len(self._groups) > _MOST_GROUPS:
                raise UserError(
                    f"{document.where}: there are more than {_MOST_GROUPS} groups, the last one "
                    f"{document.group!r}: is that a column of ids? --group takes kinds of tokens."
                )
            self._waiting.setdefault(("ce", document.group), []).append((document.ce, number))
        self._number_waiting += len(document.ce)

    def _enter(self) -> Digests:
        from lightning_pce.scoring.imports._digests import Digests

        if self._digests is None:
            self._digests = Digests()
        for (statistic, group), parts in self._waiting.items():
            if statistic not in self._missing:
                values = np.concatenate([each for each, _ in parts])
                numbers = np.repeat([number for _, number in parts], [len(each) for each, _ in parts])
                self._digests.add(statistic, group, values, numbers)
        self._waiting, self._number_waiting = {}, 0
        self._digests.leave_out(self._missing)
        return self._digests

    def _add_tail(self, document: ScoredDocument, name: str) -> None:
        ce, kept = document.ce, self.tail
        lowest = kept[-1].ce if len(kept) == _TAIL else -math.inf
        (found,) = np.nonzero(ce > lowest)
        if len(found):
            found = found[np.argsort(-ce[found], kind="stable")[:_TAIL]]
            new = [_tail_token(document, name, int(at)) for at in found]
            # A stable sort: of equal ones the earlier document leads.
            self.tail = sorted(kept + new, key=lambda token: -token.ce)[:_TAIL]


def _tail_token(document: ScoredDocument, name: str, at: int) -> TailToken:
    position = document.first + at
    texts = document.texts
    return TailToken(
        document=name,
        position=position,
        ce=float(document.ce[at]),
        rank=_at(document.ranks, at),
        label=_at(document.ids, at),
        top=_at(document.tops, at),
        text=None if texts is None else texts[position],
        context=None if texts is None else "".join(texts[max(0, position - _CONTEXT) : position]),
    )


def _at(numbers: Sequence[Any] | np.ndarray[Any, Any] | None, at: int) -> int:
    return -1 if numbers is None else int(numbers[at])
