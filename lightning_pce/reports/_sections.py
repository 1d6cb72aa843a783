"""The parts of a page: what a comparison says, as words and tables without any markup."""

from __future__ import annotations

import math
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
from lightning_pce.runs._words import correlation, in_order, listed, number

if TYPE_CHECKING:
    from lightning_pce.runs._table import Row
    from lightning_pce.runs.comparison import Comparison


def headline(comparison: Comparison) -> str:
    """The answer in a few words."""
    names, verdict = names_of(comparison), comparison.verdict
    if len(names) == 1:
        return f"One record: {next(iter(names.values()))}"
    if verdict is not None:
        kept = [names[each] for each in verdict.shortlist]
        return f"Keep {kept[0]}" if verdict.agree else f"Shortlist: {listed(kept, 'or')}"
    known = {name: each for name, each in comparison.bits_per_byte.items() if not math.isnan(each.value)}
    if not known:
        return f"{len(names)} records that cannot be ranked"
    return f"Fewest bits per byte: {names[min(known, key=lambda name: known[name].value)]}"


def about(comparison: Comparison) -> str:
    """What was compared, in one line."""
    records = comparison.records
    counts = {record.values["ce_count"] for record in records if "ce_count" in record.values}
    tokens = [f"{next(iter(counts)):,.10g} tokens each"] if len(counts) == 1 else []
    names = dict.fromkeys(shown(record.name, LONGEST_NAME) for record in records)
    return " · ".join([f"{len(records)} record{'s' * (len(records) != 1)} of {listed(list(names))}", *tokens])


def sentences(comparison: Comparison) -> tuple[str, ...]:
    """What the verdict says, or how records of other tokenizers were compared."""
    if comparison.verdict is not None:
        return comparison.verdict.sentences
    return (
        "The records have other tokens, so that percentiles of tokens cannot be compared: bits per byte can, "
        "over the bytes that all of them score.",
    )


def values(comparison: Comparison) -> Part:
    """Every statistic of every record with its interval, the best one and its ties marked."""
    table = comparison.table
    if table is None:
        return Part("Percentiles of tokens are compared between records of one tokenizer only.")
    names, (records, not_all) = names_of(comparison), rows_of(comparison)
    bytes_too = _bytes_known(comparison)
    rows = []
    for record in records:
        found = comparison.values.get(record.label, {})
        cells = [with_interval(found.get(row.statistic), _kind(row, record.label)) for row in table.rows]
        cells += [with_interval(comparison.bits_per_byte.get(record.label))] if bytes_too else []
        rows.append((Cell(names[record.label]), *cells))
    says = "Nats a token, 95 % intervals below. ◆ the lowest, ● within error of it." + not_all
    head = ("", *(row.statistic for row in table.rows), *(["bits per byte"] if bytes_too else []))
    return Part(says, Grid(head, tuple(rows)))


def _kind(row: Row, label: str) -> str:
    return "best" if row.pick == label else "tie" if label in row.ties else ""


def differences(comparison: Comparison) -> Part:
    """Every statistic of every record less that of the reference, paired."""
    found = {name: each for name, each in comparison.differences.items() if name != comparison.reference}
    if not found:
        one = len(comparison.records) == 1
        return Part("With one record there is none." if one else "Not known: the records have other tokens.")
    names, (records, not_all) = names_of(comparison), rows_of(comparison)
    statistics = list(dict.fromkeys(name for each in found.values() for name in each))
    rows = tuple(
        (Cell(names[each.label]), *(with_difference(found[each.label].get(name)) for name in statistics))
        for each in records
        if each.label in found
    )
    less = names.get(str(comparison.reference), shown(comparison.reference, LONGEST_NAME))
    says = f"Each record less {less}, nats a token, 95 % intervals below. ▼ surely lower, ▲ surely higher."
    return Part(says + not_all, Grid(("", *statistics), rows))


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


def bits_per_byte(comparison: Comparison) -> Part | None:
    """Bits per byte of records whose tokens differ; others have them beside their values."""
    if comparison.by == "tokens":
        return None
    if not _bytes_known(comparison):
        return Part(
            "Not known: the records do not keep the bytes of their tokens; `lightning-pce evaluate` does."
        )
    names = names_of(comparison)
    rows = ((Cell(names[name]), with_interval(each)) for name, each in comparison.bits_per_byte.items())
    says = "Over the UTF-8 bytes that all records score, 95 % intervals below; less is better."
    return Part(says, Grid(("", "bits per byte"), tuple(rows)))


def _bytes_known(comparison: Comparison) -> bool:
    return any(not math.isnan(each.value) for each in comparison.bits_per_byte.values())


def moved(comparison: Comparison, *, text: bool = True) -> Part:
    """The labels that moved the mean most between two records."""
    found, pair = comparison.moved, comparison.moved_pair
    if len(comparison.records) == 1:
        return Part("With one record nothing has moved.")
    if found is None or pair is None:
        why = "the records keep no totals of labels; `lightning-pce evaluate` and LabelTotals do"
        return Part(f"Not known: {'other tokens are other labels' if comparison.by == 'bytes' else why}.")
    texts: dict[int, str] = {}
    for record in comparison.records:
        if text and record.label in pair:
            texts |= record.label_texts
    rows = []
    for each in found.labels:
        same = each.tokens_before == each.tokens_after
        tokens = f"{each.tokens_before:,.10g}" + ("" if same else f" → {each.tokens_after:,.10g}")
        known = each.label in texts
        label = cut(texts[each.label], LONGEST_LABEL) if known else f"token {each.label}"
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


def notes(comparison: Comparison) -> tuple[str, ...]:
    """What to know when reading the page."""
    return tuple(
        dict.fromkeys((*comparison.notes, *(() if comparison.table is None else comparison.table.notes)))
    )
