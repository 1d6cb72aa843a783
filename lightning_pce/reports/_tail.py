"""The tail of a page: the tokens of highest cross-entropy in their text."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from lightning_pce.reports._drawing import shown
from lightning_pce.reports._tables import LONGEST_NAME, names_of
from lightning_pce.reports._words import cut, end_of
from lightning_pce.runs._words import number

if TYPE_CHECKING:
    from lightning_pce.runs.comparison import Comparison
    from lightning_pce.runs.tail import TailToken

# So many a page shows; the rest is in the records.
_TOKENS, _TAILS = 20, 3
LONGEST_LABEL, _LONGEST_CONTEXT = 80, 400


class TailWords(NamedTuple):
    """One of the tokens of highest cross-entropy."""

    ce: str
    rank: str
    where: str
    context: str
    label: str
    top: str
    """What the model held for most probable; empty if that is not known."""


class Tail(NamedTuple):
    """The tail of one record, or a line that says why there is none."""

    name: str
    says: str
    tokens: tuple[TailWords, ...] = ()


def tails(comparison: Comparison) -> list[Tail]:
    """Of the shortlist, or of the last record; those that keep none only if no other does."""
    kept = comparison.verdict.shortlist if comparison.verdict is not None else ()
    chosen = [record for record in comparison.records if record.label in kept] or [comparison.records[-1]]
    names = names_of(comparison)
    found = [_tail(names[record.label], record.tail) for record in chosen[-_TAILS:]]
    return [each for each in found if each.tokens] or found[-1:]


def _tail(name: str, tokens: tuple[TailToken, ...]) -> Tail:
    if not tokens:
        return Tail(name, "Not known: the record keeps no tail; lightning-pce evaluate does.")
    says = f"The {len(tokens)} tokens of highest cross-entropy (nats)."
    if len(tokens) > _TOKENS:
        says = f"The first {_TOKENS} of {len(tokens)} tokens of highest cross-entropy (nats)."
    if all(each.context is None for each in tokens):
        says += " Without their text, which was not kept (--no-text)."
    return Tail(name, says, tuple(map(_words, tokens[:_TOKENS])))


def _words(token: TailToken) -> TailWords:
    if token.top_text is not None:
        top = cut(token.top_text, LONGEST_LABEL)
    else:
        top = f"token {token.top}" if token.top >= 0 else ""
    return TailWords(
        ce=number(token.ce),
        rank=f"rank {token.rank:,}" if token.rank >= 1 else "",
        where=f"document {shown(token.document, LONGEST_NAME)}, position {token.position:,}",
        context="" if token.context is None else end_of(token.context, _LONGEST_CONTEXT),
        label=f"token {token.label}" if token.text is None else cut(token.text, LONGEST_LABEL),
        top=top,
    )
