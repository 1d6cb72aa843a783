"""Which records may be compared, by their headers alone: nothing here needs torch, or a payload.

How a text is cut into windows, masked and begun moves the median by up to 22 %, more than checkpoints differ.
So what is known to be different is refused, with the field and both values.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from lightning_pce._errors import UserError
from lightning_pce.runs._headers import NO_STATISTICS
from lightning_pce.runs._records import SCORED, Record
from lightning_pce.runs._words import listed
from lightning_pce.runs.history import History

__all__ = ["Relation", "relation", "sections"]

# What must be equal, in the order in which it is looked at, and what to do if it is not.
_EQUAL = {
    "data": "score both on the same file",
    "protocol": "score both with the same --protocol",
    "context": "score both with the same --context",
    "stride": "score both with the same --stride",
    "bos": "score both with the same --bos",
    "masking": "score both on data of the same kind",
}
# What is said, and not refused: whether bfloat16 does as well as float32 is a fair question.
_SHOWN = ("bos", "dtype", "quantisation", "device")
# By what records of one training, or of the same data, are one case.
_COMPARED = (*_EQUAL, "tokenizer", "token_ids")
_AS_MANY = {
    "tokens": "their slots of documents hold as many tokens",
    "bytes": "their documents have as many bytes",
    "documents": "their documents have the same ids",
}
_MISSING = object()


class Relation(NamedTuple):
    """How two records may be compared."""

    kind: str
    """``"tokens"``: token by token; ``"bytes"``: they are of other tokenizers, so by bits per byte."""
    notes: tuple[str, ...]
    """What to know of the comparison."""


def relation(a: Record, b: Record) -> Relation:
    """How two records may be compared: by their tokens or by their bytes.

    What the command line has scored says how, and where both know the data, protocol, context, stride, BOS
    and masking these must be equal. Another tokenizer leaves bytes. Records of a training have a fingerprint
    instead. What one side does not know (imports, trainings) the notes say: then the slots of documents must
    hold as many tokens, which is seen when the digests are read.

    Raises:
        UserError: if they may not be compared; it names the first field that differs, both values, and what
            to do.

    Example:
        >>> ours = {"data": "d1", "context": 512, "tokenizer": "t1"}
        >>> first = Record("k1", "score", "web", how=ours, label="small")
        >>> relation(first, Record("k2", "score", "web", how={**ours, "tokenizer": "t2"}, label="large")).kind
        'bytes'
        >>> try:
        ...     relation(first, Record("k2", "score", "web", how={**ours, "context": 256}, label="large"))
        ... except UserError as error:
        ...     print(error)
        'small' and 'large' cannot be compared: context is 512 and 256; score both with the same --context.
    """
    kind = _checked_kind(a, b)
    return Relation(kind, _notes((a, b), kind))


def relation_of_all(records: Sequence[Record]) -> Relation:
    """:func:`relation` of all pairs: by bytes if one pair is.

    Raises:
        UserError: as :func:`relation`, of the first pair that may not be compared.
    """
    kind = _kind_of_all(records)
    return Relation(kind, _notes(records, kind))


def _kind_of_all(records: Sequence[Record]) -> str:
    cases: dict[str, Record] = {}
    for record in records:  # ten thousand validations of a training have one fingerprint, and are one case
        known = [record.how.get(name, _MISSING) for name in _COMPARED]
        cases.setdefault(repr((record.fingerprint, known)), record)
    kinds = {_checked_kind(a, b) for a, b in itertools.combinations(cases.values(), 2)}
    return "bytes" if "bytes" in kinds else "tokens"


def _notes(records: Sequence[Record], by: str) -> tuple[str, ...]:
    return (*_unknown(records, by), *_shown(records))


def sections(history: History) -> list[History]:
    """The records of a history by what was validated: those of one name, of one data or of the same tokens.

    Each is compared by itself. A record that shares its section with none, and whose model is in no other
    section either, joins the first one, as it was meant to be compared: it is said why it cannot be, or it
    is, like an import that knows nothing of its data.

    Example:
        >>> names = [("small", "web"), ("small", "code"), ("large", "web"), ("large", "code")]
        >>> records = [Record(model, "score", name, how={"data": name}, label=model) for model, name in names]
        >>> [[record.name for record in section] for section in sections(History(records))]
        [['web', 'web'], ['code', 'code']]
    """
    parts: list[tuple[set[object], list[Record]]] = []
    for record in history:
        marks, records = _marks(record), [record]
        for part in [part for part in parts if part[0] & marks]:
            marks, records = marks | part[0], part[1] + records
            parts.remove(part)
        parts.append((marks, records))
    places = {id(record): place for place, record in enumerate(history)}
    found = sorted(
        (sorted(records, key=lambda record: places[id(record)]) for _, records in parts),
        key=lambda records: places[id(records[0])],
    )
    models = Counter(model for records in found for model in {_model(record) for record in records})
    alone = [records for records in found if len(records) == 1 and models[_model(records[0])] == 1]
    others = [records for records in found if records not in alone]
    if alone:
        first = others.pop(0) if others else []
        joined = sorted([*first, *itertools.chain(*alone)], key=lambda record: places[id(record)])
        others.insert(0, joined)
    return [History(records, of=history.of, group=history.group, torn=history.torn) for records in others]


def reference_in(records: Sequence[Record], reference: str | int | None) -> Record:
    """The record that the others are compared with: by label, path of the model or place; the first if None.

    Raises:
        UserError: if there is no such record, or several; it lists the labels.
    """
    if reference is None:
        return records[0]
    for matches in (_by_label, _by_path, _by_place):
        found = list(matches(records, reference))
        if len(found) == 1:
            return found[0]
        if found:
            names = listed([each.label for each in found])
            raise UserError(f"The reference {reference!r} is the path of {names}: choose one by its label.")
    names = ", ".join(repr(each.label) for each in records)
    raise UserError(f"There is no record {reference!r} to be the reference: choose one of {names}.")


class Basis(NamedTuple):
    """What a comparison rests on."""

    by: str
    """``"tokens"``, ``"bytes"``, or ``"documents"`` of records that hold nothing but sums of documents."""
    of: str
    """The statistic that is looked at."""
    notes: tuple[str, ...]


def basis_of(history: History) -> Basis:
    """How the records of a section are compared, and by which statistic: cross-entropy if there is a choice.

    Raises:
        UserError: if two may not be compared, or one has no digest of this statistic and group; it says what
            there is.
    """
    by = _kind_of_all(history)
    if by == "tokens":
        of = _statistic_of(history)
        by = "documents" if of is None else by
        return Basis(by, of or "ce", _notes(history, by))
    if history.of not in (None, "ce") or history.group:
        raise UserError(
            "Records of other tokenizers are compared by bits per byte of all tokens: leave out "
            f"{'--group' if history.group else '--of'}."
        )
    return Basis(by, "ce", _notes(history, by))


def _statistic_of(history: History) -> str | None:
    """None if there are no digests, but sums of documents in all records."""
    of, group = history.of, history.group
    digests = [_digests_of(record) for record in history]
    if of is None and not group and not any(digests) and all(record.payload for record in history):
        return None
    for record, there in zip(history, digests, strict=True):
        of = of or ("ce" if "ce" in there or len(there) != 1 else next(iter(there)))
        if group not in there.get(of, ()):
            had = [f"{name} of {each or 'all tokens'}" for name, groups in there.items() for each in groups]
            raise UserError(
                f"Record {record.label!r} has no digest of {of} of {group or 'all tokens'}: "
                f"{f'it has {listed(had)}' if had else 'it was kept without digests'}."
            )
    return of


def _digests_of(record: Record) -> dict[str, list[str]]:
    """The groups of each statistic."""
    items = {} if record.payload is None else record.payload.read()
    return {name: list(groups) for name, groups in items.items() if name not in NO_STATISTICS}


def _checked_kind(a: Record, b: Record) -> str:
    ids, tokenizers = _both(a, b, "token_ids"), _both(a, b, "tokenizer")
    other_tokens = _differ(*ids) or (_differ(*tokenizers) and _MISSING in ids)
    for name, remedy in _EQUAL.items():
        ours, theirs = _both(a, b, name)
        if name == "bos" and other_tokens:
            continue  # each tokenizer has its own
        if _differ(ours, theirs):
            raise _refused(a, b, f"{name} is {_word(ours)} and {_word(theirs)}", remedy)
    known = None not in (a.fingerprint, b.fingerprint) and not (a.how and b.how)
    if known and a.fingerprint != b.fingerprint:
        what = f"the fingerprint of the data is {a.fingerprint} and {b.fingerprint}"
        raise _refused(a, b, what, "compare validations of the same data")
    if not other_tokens:
        return "tokens"
    if _MISSING not in tokenizers and not _differ(*tokenizers):
        what = f"token_ids, of the tokens that were scored, is {_word(ids[0])} and {_word(ids[1])}"
        raise _refused(a, b, what, "score both on the same data")
    if _MISSING in _both(a, b, "data"):
        name, pair = ("tokenizer", tokenizers) if _differ(*tokenizers) else ("token_ids", ids)
        what = f"{name} is {_word(pair[0])} and {_word(pair[1])}, and one does not know its data"
        raise _refused(a, b, what, "score both with evaluate on the same file")
    if "llama.cpp" in _both(a, b, "protocol"):  # its chunks are of so many tokens, and scored in part
        what = "they are of other tokenizers, of which the protocol llama.cpp scores other parts of the text"
        raise _refused(a, b, what, "score both with --protocol windows")
    return "bytes"


def _differ(ours: Any, theirs: Any) -> bool:
    """Whether both are known and not equal."""
    return _MISSING not in (ours, theirs) and bool(ours != theirs)


def _unknown(records: Sequence[Record], by: str) -> Iterator[str]:
    """A note on the fields that some records do not know."""
    if len(records) < 2 or not any(record.how for record in records):
        return
    fields: dict[tuple[str, ...], list[str]] = {}
    for name in _EQUAL:
        labels = tuple(record.label for record in records if name not in record.how)
        if labels:
            fields.setdefault(labels, []).append(name)
    ids = {record.how.get("token_ids", _MISSING) for record in records}
    agreed = "the ids of all tokens agree" if len(ids) == 1 and _MISSING not in ids else _AS_MANY[by]
    for labels, names in fields.items():
        yield (
            f"{listed(names)} {'is' if len(names) == 1 else 'are'} not known of {listed(labels)}, so that "
            f"{'it' if len(labels) == 1 else 'they'} may have been scored in another way; compared because "
            f"{agreed}."
        )


def _shown(records: Sequence[Record]) -> Iterator[str]:
    """Notes on what differs and is not refused, and those of the records themselves."""
    for name in _SHOWN:
        labels: dict[str, list[str]] = {}
        for record in records:
            if name in record.how:
                labels.setdefault(_word(record.how[name]), []).append(record.label)
        if len(labels) > 1:
            yield f"{name} is {', '.join(f'{value} ({listed(of)})' for value, of in labels.items())}."
    notes: dict[str, list[str]] = {}
    for record in records:
        for note in record.how.get("notes", ()):
            notes.setdefault(str(note), []).append(record.label)
    yield from (f"{listed(of)}: {note}" for note, of in notes.items())


def _both(a: Record, b: Record, name: str) -> tuple[Any, Any]:
    return a.how.get(name, _MISSING), b.how.get(name, _MISSING)


def _word(value: Any) -> str:
    return "none" if value is None else str(value)


def _refused(a: Record, b: Record, what: str, remedy: str) -> UserError:
    return UserError(f"{a.label!r} and {b.label!r} cannot be compared: {what}; {remedy}.")


def _marks(record: Record) -> set[object]:
    marks: set[object] = {("name", record.name)}
    for name in ("data", "token_ids"):
        if record.how.get(name) is not None:
            marks.add((name, record.how[name]))
    if record.fingerprint is not None:
        marks.add(("fingerprint", record.fingerprint))
    return marks


def _model(record: Record) -> str:
    return record.saved[0].path if record.saved and record.function in SCORED else record.run


def _by_label(records: Sequence[Record], reference: str | int) -> Iterable[Record]:
    return (record for record in records if record.label == reference)


def _by_path(records: Sequence[Record], reference: str | int) -> Iterable[Record]:
    path = os.path.normpath(str(reference))
    return (record for record in records if path in {os.path.normpath(each.path) for each in record.saved})


def _by_place(records: Sequence[Record], reference: str | int) -> Iterable[Record]:
    try:
        return [records[int(reference)]]
    except (ValueError, IndexError):
        return []
