"""The tail of a page: the tokens of highest cross-entropy in their text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from lightning_pce.reports._drawing import shown
from lightning_pce.reports._tables import LONGEST_NAME, names_of
from lightning_pce.reports._words import cut, end_of
from lightning_pce.runs._words import number

if TYPE_CHECKING:
    from lightning_pce.runs.comparison import Comparison
    from lightning_pce.runs.tail import TailToken

# So many a page shows; the rest is in the records.
_TOKENS, _OF_ONE_LABEL, _TAILS = 20, 3, 3
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
    chosen = _chosen(tokens)
    says = f"The {len(tokens)} tokens of highest cross-entropy, in nats."
    if len(chosen) < len(tokens):
        says = f"{len(chosen)} of {says[4:-1]}; of one label {_OF_ONE_LABEL} at most."
    if all(each.context is None for each in tokens):
        says += " Without their text, which was not kept (--no-text)."
    often = Counter(each.label for each in tokens if each.label >= 0)
    return Tail(name, says, tuple(_words(each, often.pop(each.label, 0)) for each in chosen))


def _chosen(tokens: Sequence[TailToken]) -> list[TailToken]:
    """The first few of each label: 100 tokens of a real tail were 10 labels."""
    seen: Counter[int] = Counter()
    chosen: list[TailToken] = []
    for token in tokens:
        seen[token.label] += 1
        few = seen[token.label] <= _OF_ONE_LABEL or token.label < 0  # a label that is not known
        if few and len(chosen) < _TOKENS:
            chosen.append(token)
    return chosen


def _words(token: TailToken, often: int) -> TailWords:
    """A token in words; ``often``: how many tokens of the tail have its label, 0: said already."""
    if token.top_text is not None:
        top = cut(token.top_text, LONGEST_LABEL)
    else:
        top = f"token {token.top}" if token.top >= 0 else ""
    where = f"document {shown(token.document, LONGEST_NAME)}, position {token.position:,}"
    where += f" · {often} of these tokens have this label" if often > _OF_ONE_LABEL else ""
    return TailWords(
        ce=number(token.ce),
        rank=f"rank {token.rank:,}" if token.rank >= 1 else "",
        where=where,
        context="" if token.context is None else end_of(token.context, _LONGEST_CONTEXT),
        label=f"token {token.label}" if token.text is None else cut(token.text, LONGEST_LABEL),
        top=top,
    )
