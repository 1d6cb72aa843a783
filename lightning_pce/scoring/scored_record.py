"""The line of a history that a scored dataset becomes. It holds no time, host or number of processes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_pce import digest as td
from lightning_pce import intervals
from lightning_pce._names import percentile_key
from lightning_pce.metrics.tail_tokens import unpacked
from lightning_pce.runs._lines import Contents
from lightning_pce.runs._writing import validation_line
from lightning_pce.runs.document_totals import DocumentTotals
from lightning_pce.runs.tail import TailToken
from lightning_pce.scoring.chunk_totals import HEADS, STATISTICS, ChunkTotals
from lightning_pce.scoring.tokenizing import Tokenized

PERCENTILES = (5.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0)
_CONTEXT = 32  # tokens of text before one of the tail


def line_of(
    totals: ChunkTotals,
    data: Tokenized,
    counted: Sequence[NDArray[np.int64]],
    *,
    key: str,
    name: str,
    model: str,
    step: int | None,
    how: Mapping[str, Any],
    vocabulary: int,
    tokenizer: Any | None,
    more: Mapping[str, float] | None = None,
) -> bytes:
    """The line of a record, equal for equal arguments.

    Args:
        totals: of all chunks.
        data: what was scored.
        counted: the positions of the scored tokens of each document.
        key: of the record.
        name: of the data.
        model: as the user named it.
        step: of its training.
        how: how it was scored.
        vocabulary: how many labels the model has.
        tokenizer: for texts of tokens; None leaves them out.
        more: further values.
    """
    groups = ("", *data.groups)
    digests = {
        statistic: {group: torch.from_numpy(each) for group, each in zip(groups, rows, strict=True)}
        for statistic, rows in zip(STATISTICS, totals.digests, strict=True)
    }
    slots = {
        statistic: {group: torch.from_numpy(each) for group, each in zip(groups, rows, strict=True)}
        for statistic, rows in zip(STATISTICS, totals.slots, strict=True)
    }
    documents = _documents(totals, data, counted)
    label_totals = torch.zeros(vocabulary, 2, dtype=torch.float64)
    label_totals[torch.from_numpy(totals.labels)] = torch.from_numpy(totals.label_totals)
    labels = totals.labels.tolist()
    texts = {} if tokenizer is None else {label: _text(tokenizer, [label]) for label in labels}
    values = {
        **_values(digests, slots),
        **_accuracies(totals.counts, groups),
        **_bits_per_byte(documents),
        **(more or {}),
    }
    return validation_line(
        run=key,
        name=name,
        step=step,
        function="score",
        values=values,
        checkpoint=model,
        how={**how, "halved": int(totals.halved), "notes": [*how["notes"], *_notes(digests["ce"][""])]},
        contents=Contents(
            digests, slots, {"labels": label_totals}, texts, documents, _tail(totals, data, tokenizer)
        ),
    )


def _values(
    digests: Mapping[str, Mapping[str, torch.Tensor]], slots: Mapping[str, Mapping[str, torch.Tensor]]
) -> dict[str, float]:
    percentiles = [percentile_key(each) for each in PERCENTILES]
    found: dict[str, float] = {}
    for statistic, groups in digests.items():
        for group, digest in groups.items():
            start = f"{statistic}_{group}_" if group else f"{statistic}_"
            bars = intervals.intervals(digest, slots[statistic][group], ["mean", *percentiles])
            found |= {start + name: each.value for name, each in bars.items()}
            found |= {
                start + "trimmed_mean": float(td.trimmed_mean(digest, 0.05, 0.95)),
                start + "count": float(td.count(digest)),
            }
            for name, each in bars.items():
                found |= {f"{start}{name}_low": each.low, f"{start}{name}_high": each.high}
    return found


def _accuracies(counts: NDArray[np.float64], groups: Sequence[str]) -> dict[str, float]:
    found = {}
    for group, (number, first, five) in zip(groups, counts.tolist(), strict=True):
        end = f"_{group}" if group else ""
        found[f"accuracy{end}"] = first / number if number else math.nan
        found[f"top5_accuracy{end}"] = five / number if number else math.nan
    return found


def _documents(totals: ChunkTotals, data: Tokenized, counted: Sequence[NDArray[np.int64]]) -> DocumentTotals:
    """A row for each document of the data, those without a scored token too."""
    number = len(data.documents)
    tokens, nats, size = np.zeros(number), np.zeros(number), np.zeros(number)
    tokens[totals.documents], nats[totals.documents] = totals.document_totals.T
    first = np.full(number, np.nan)
    ends = np.full((number, HEADS, 2), np.nan)
    for row, (each, places) in enumerate(zip(data.documents, counted, strict=True)):
        if not len(places):
            continue
        size[row], first[row] = each.bytes[places].sum(dtype=np.int64), each.starts[places[0]]
        few = places[:HEADS]
        after = (each.starts[few] + each.bytes[few]).astype(np.float64)
        ends[row, : len(few), 0] = np.where(each.on_character[few], after, np.nan)
    ends[totals.documents, :, 1] = totals.heads.cumsum(axis=1)
    ids = torch.tensor([each.number for each in data.documents], dtype=torch.int64)
    rows = (torch.from_numpy(each) for each in (tokens, nats, size, first, ends))
    return DocumentTotals(ids, *rows)


def _bits_per_byte(documents: DocumentTotals) -> dict[str, float]:
    """The bits of all bytes, with the error bar of a mean over documents that count by their bytes."""
    size = float(documents.bytes.sum())
    if not size > 0:
        return {}
    each = documents.bits_per_byte.nan_to_num(0.0)  # of documents without bytes, which have no weight
    slots = intervals.slots_of(documents.ids)
    digest = td.add(td.empty(), each, documents.bytes)
    bar = intervals.interval(digest, intervals.add(intervals.empty(), each, documents.bytes, slots), "mean")
    bits = float(documents.nats.sum()) / math.log(2) / size
    return {"bits_per_byte": bits, "bits_per_byte_low": bar.low, "bits_per_byte_high": bar.high}


def _tail(totals: ChunkTotals, data: Tokenized, tokenizer: Any | None) -> list[TailToken]:
    tail = unpacked(torch.from_numpy(totals.tail[:-1]))
    found = []
    for ce, number, position, label, top, rank in zip(*(column.tolist() for column in tail), strict=True):
        if not ce > -math.inf:
            continue  # fewer tokens than rows
        document = data.documents[number]
        row = TailToken(document.id, position, ce, rank, label, top)
        if tokenizer is not None:
            before = document.ids[max(0, position - _CONTEXT) : position].tolist()
            row = row._replace(
                text=_text(tokenizer, [label]),
                top_text=_text(tokenizer, [top]),
                context=_text(tokenizer, before),
            )
        found.append(row)
    return found


def _text(tokenizer: Any, ids: list[int]) -> str:
    # Cleaned up, a space before a comma would be gone.
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def _notes(digest: torch.Tensor) -> list[str]:
    """What is odd about the cross-entropies: infinite ones have moved the mean, NaN has left it."""
    lost = float(td.nonfinite(digest))
    return [f"{lost:.0f} tokens have a cross-entropy that is infinite or NaN"] if lost else []
