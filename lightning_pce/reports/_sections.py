"""The parts of a page: what a comparison says, as words and tables without any markup."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lightning_pce.reports._drawing import shown
from lightning_pce.reports._tables import (
    LONGEST_NAME,
    Cell,
    Grid,
    Part,
    names_of,
    plain,
    rows_of,
    signed,
    with_difference,
    with_interval,
)
from lightning_pce.reports._tail import LONGEST_LABEL
from lightning_pce.reports._words import cut
from lightning_pce.runs._comparison_text import advice
from lightning_pce.runs._words import correlation, in_order, listed, number

if TYPE_CHECKING:
    from lightning_pce.runs._table import Row
    from lightning_pce.runs.comparison import Comparison


_MOST_NAMED = 4


def headline(comparison: Comparison) -> str:
    """The answer in a few words; without error bars it is no advice."""
    names, verdict = names_of(comparison), comparison.verdict
    if len(names) == 1:
        return f"One record: {next(iter(names.values()))}"
    kept = [names[each] for each in (comparison.mean.names if verdict is None else verdict.shortlist)]
    which = listed(kept, "or") if len(kept) <= _MOST_NAMED else f"{len(kept)} of {len(names)} records"
    if comparison.no_intervals is not None:
        return f"Lowest, without error bars: {which}"
    return f"Keep {which}" if len(kept) == 1 else f"Shortlist: {which}"


def about(comparison: Comparison) -> str:
    """What was compared, in one line."""
    records = comparison.records
    counts = {record.values["ce_count"] for record in records if "ce_count" in record.values}
    tokens = [f"{next(iter(counts)):,.10g} tokens each"] if len(counts) == 1 else []
    names = dict.fromkeys(shown(record.name, LONGEST_NAME) for record in records)
    return " · ".join([f"{len(records)} record{'s' * (len(records) != 1)} of {listed(list(names))}", *tokens])


def sentences(comparison: Comparison) -> tuple[str, ...]:
    """What the comparison says, and of what if not of tokens."""
    of = {
        "bytes": "The records have other tokens: bits per byte are compared, over the bytes that all score.",
        "documents": "The records hold sums of documents only: the mean of documents is compared.",
    }
    # The headline is the shortlist.
    said = [each for each in comparison.to_plain()["sentences"] if not each.startswith("Shortlist: ")]
    return (*said, *([of[comparison.by]] if comparison.by in of else []))


def values(comparison: Comparison) -> Part:
    """Every statistic of every record with its interval, the best one and its ties marked."""
    names, (records, not_all) = names_of(comparison), rows_of(comparison)
    picked = dict(_picked(comparison))
    bytes_too = comparison.by != "bytes" and bool(comparison.bits_per_byte)
    rows = []
    for record in records:
        found = comparison.values.get(record.label, {})
        cells = [with_interval(found.get(name), _kind(*of, record.label)) for name, of in picked.items()]
        cells += [with_interval(comparison.bits_per_byte.get(record.label))] if bytes_too else []
        rows.append((Cell(names[record.label]), *cells))
    says = f"{_what(comparison)} ◆ the lowest, ● within error of it.{not_all}"
    return Part(says, Grid(("", *picked, *(["bits per byte"] if bytes_too else [])), tuple(rows)))


def _what(comparison: Comparison) -> str:
    """What values are, and whether they have intervals."""
    words = [{"ce": "cross-entropy", "log_rank": "log of the rank"}.get(comparison.of, comparison.of)]
    words += [f"of {shown(comparison.group, LONGEST_NAME)}"] if comparison.group else []
    unit = f" in {comparison.unit}" if comparison.unit else ""
    why = comparison.no_intervals
    below = "95 % intervals below." if why is None else f"No intervals: {why}."
    first = " ".join(words)
    return f"{first[:1].upper()}{first[1:]}{unit}. {below}"


def _picked(comparison: Comparison) -> Iterator[tuple[str, tuple[str, tuple[str, ...]]]]:
    """Of each statistic the record with the lowest value, and those within error of it."""
    if comparison.table is None:
        yield "mean", (comparison.mean.best, comparison.mean.names)
    else:
        yield from ((row.statistic, (row.pick, row.ties)) for row in comparison.table.rows)


def _kind(pick: str, ties: Sequence[str], label: str) -> str:
    return "best" if pick == label else "tie" if label in ties else ""


def differences(comparison: Comparison) -> Part:
    """Every statistic of every record less that of the reference, paired."""
    found = comparison.differences
    if not found:
        return Part("With one record there is none.")
    names, (records, not_all) = names_of(comparison), rows_of(comparison)
    statistics = list(dict.fromkeys(name for each in found.values() for name in each))
    rows = tuple(
        (Cell(names[each.label]), *(with_difference(found[each.label].get(name)) for name in statistics))
        for each in records
        if each.label in found
    )
    says = f"Each record less {names[comparison.reference]}"
    if comparison.no_intervals is None:
        says += ", the documents paired. ▼ surely lower, ▲ surely higher"
    says += f".{not_all}"
    return Part(says, Grid(("", *statistics), rows))


def picks(comparison: Comparison) -> Part:
    """What each statistic picks, its ties, and a task metric there; nothing of a single record."""
    table, names = comparison.table, names_of(comparison)
    if table is None or len(names) == 1:
        return Part("")
    noise = any(not math.isnan(row.signal_to_noise) for row in table.rows)
    head = ["", "pick", "value", "within error", *(["signal / noise"] if noise else [])]
    if table.task is not None:
        head += [f"{shown(table.task, LONGEST_NAME)} there", "Pearson", "Spearman"]
    every, rows = [names.get(each, each) for each in table.names], []
    for row in table.rows:
        ties = in_order([names.get(each, each) for each in row.ties], every)
        cells = [Cell(row.statistic), Cell(names[row.pick]), with_interval(row.value), Cell(ties)]
        cells += [plain(row.signal_to_noise, "{:.1f}")] if noise else []
        rows.append((*cells, *(_of_task(row) if table.task is not None else [])))
    says = "The record with the lowest value of each statistic."
    if table.best is not None:
        best, value = table.best
        says += f" The best {shown(table.task, LONGEST_NAME)} is {number(value)} at {names[best]}."
    if any(row.misleading for row in table.rows):
        says += " Wrong sign: where the statistic was lower the task was worse."
    return Part(says, Grid(tuple(head), tuple(rows)))


def _of_task(row: Row) -> list[Cell]:
    sign = ("wrong sign", "bad") if row.misleading else ("", "")
    return [plain(row.task), Cell(correlation(row.pearson), *sign), Cell(correlation(row.spearman))]


def moved(comparison: Comparison) -> Part:
    """The labels that moved the mean most between two records."""
    found, pair = comparison.moved, comparison.moved_pair
    if found is None or pair is None:
        return Part(_why_not_moved(comparison))
    texts = comparison.label_texts
    rows = []
    for each in found.labels:
        same = each.tokens_before == each.tokens_after
        tokens = f"{each.tokens_before:,.10g}" + ("" if same else f" → {each.tokens_after:,.10g}")
        known = each.label in texts
        label = cut(comparison.text_of(each.label), LONGEST_LABEL)
        change = Cell(signed(each.change), "", "worse" if each.change > 0 else "better")
        means = Cell(number(each.before)), Cell(number(each.after))
        rows.append((Cell(label, "", "text" if known else ""), change, Cell(tokens), *means))
    rows.append((Cell("all others"), Cell(signed(found.others)), Cell(""), Cell(""), Cell("")))
    names = names_of(comparison)
    says = (
        f"From {names[pair[0]]} to {names[pair[1]]} the mean goes from {number(found.before)} to "
        f"{number(found.after)} nats a token; these labels moved it most."
    )
    says += "" if texts else " Labels are numbers of the vocabulary: their texts were not kept, or left out."
    head = ("label", "part of the change", "tokens", "mean before", "mean after")
    return Part(says, Grid(head, tuple(rows)))


def _why_not_moved(comparison: Comparison) -> str:
    if len(comparison.records) == 1:
        return "With one record nothing has moved."
    if comparison.by == "bytes":
        return "Not known: other tokens are other labels."
    if (comparison.of, comparison.group) != ("ce", ""):
        return "Known of the cross-entropy of all tokens only."
    return "Not known: the records keep no totals of labels; lightning-pce evaluate and LabelTotals do."


def notes(comparison: Comparison) -> tuple[str, ...]:
    """What to know when reading the page, without what the verdict has said."""
    found = [*comparison.notes, *(() if comparison.table is None else comparison.table.notes)]
    if comparison.no_intervals is not None and len(comparison.records) > 1:
        found.append(advice(comparison.no_intervals))
    said = sentences(comparison)
    return tuple(each for each in dict.fromkeys(found) if each not in said)
