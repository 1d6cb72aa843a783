"""How the records of a page were made: what they share, and in what they differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from lightning_pce.reports._drawing import shown
from lightning_pce.reports._tables import LONGEST_NAME, Cell, Grid, names_of, rows_of
from lightning_pce.reports._words import cut

if TYPE_CHECKING:
    from lightning_pce.runs._records import Record
    from lightning_pce.runs.comparison import Comparison

# What `how` holds, in words; first what must be equal to be compared.
_HOW = {
    "data": "data",
    "protocol": "protocol",
    "context": "context",
    "stride": "stride",
    "bos": "token in front",
    "masking": "scored",
    "tokenizer": "tokenizer",
    "token_ids": "token ids",
    "dtype": "dtype",
    "quantisation": "quantisation",
    "device": "device",
    "model": "content of the model",
    "source": "source",
    "halved": "chunks halved for memory",
    "notes": "notes",
}
_LONGEST_PATH, _LONGEST_VALUE, _MOST_NOTED = 160, 300, 12


class Measured(NamedTuple):
    """What is the same for all records, and a table of what is not; None: nothing."""

    says: str
    shared: Grid
    other: Grid | None


def measured(comparison: Comparison) -> Measured:
    """The fingerprint of each record."""
    names, (records, not_all) = names_of(comparison), rows_of(comparison)
    every = [_fields(record) for record in comparison.records]
    keys = list(dict.fromkeys(key for fields in every for key in fields))
    same = [key for key in keys if len({fields.get(key) for fields in every}) == 1]
    shared = [(Cell(key), Cell(every[0][key])) for key in same]
    other = [key for key in keys if key not in same]
    rows = []
    for record in records:
        fields = _fields(record)
        rows.append((Cell(names[record.label]), *(Cell(fields.get(key, "not known")) for key in other)))
    says = not_all.strip()
    if not any(record.how for record in comparison.records):
        says = f"Not by lightning-pce evaluate: of data and protocol only what is listed is known. {says}"
    grid = Grid(("", *other), tuple(rows)) if other else None
    return Measured(says, Grid(("", ""), tuple(shared)), grid)


def _fields(record: Record) -> dict[str, str]:
    """What is known of one record, in words."""
    fields = {"made by": record.function, "data set": shown(record.name, LONGEST_NAME)}
    if record.saved:
        fields["model or checkpoint"] = shown(record.saved[0].path, _LONGEST_PATH)
    fields |= {title: _in_words(record.how[key]) for key, title in _HOW.items() if key in record.how}
    fields |= {shown(key): _in_words(value) for key, value in record.how.items() if key not in _HOW}
    if record.fingerprint is not None:
        fields["fingerprint"] = record.fingerprint
    if "ce_count" in record.values:
        fields["tokens"] = f"{record.values['ce_count']:,.10g}"
    fields["run"] = shown(record.run, LONGEST_NAME)
    for key, value in list(record.metadata.items())[:_MOST_NOTED]:
        fields[f"noted: {shown(key, LONGEST_NAME)}"] = _in_words(value)
    return fields


def _in_words(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return cut("; ".join(map(str, value)) or "none", _LONGEST_VALUE)
    return cut(str(value), _LONGEST_VALUE)
