"""Records compared by what each document has cost, where their tokens are not the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_pce import digest as td
from lightning_pce import intervals
from lightning_pce._errors import UserError
from lightning_pce.intervals import Interval
from lightning_pce.intervals._counts import BINS
from lightning_pce.runs._candidates import Candidates, Item
from lightning_pce.runs._records import Record
from lightning_pce.runs.document_totals import DocumentTotals


class DocumentCandidates(Candidates):
    """Records as candidates by a number for each document: percentiles are those of documents.

    The mean is over documents too, or with weights over what these count, such as bytes.

    Args:
        records: with their labels.
        ids: int64 ``[D]`` of the documents: what has one id was not drawn independently.
        values: float64 ``[R, D]``.
        weights: float64 ``[D]``.
        of: what the values are.
    """

    def __init__(
        self, records: Sequence[Record], ids: Tensor, values: Tensor, weights: Tensor | None, of: str
    ) -> None:
        super().__init__(_items(records, ids, values, None), of)
        self._weighted = None if weights is None else Candidates(_items(records, ids, values, weights), of)

    def error_bars(self, name: str, statistics: Sequence[str]) -> dict[str, Interval]:
        found = super().error_bars(name, statistics)
        if self._weighted is not None and "mean" in found:
            found |= self._weighted.error_bars(name, ["mean"])
        return found

    def differences(self, before: str, after: str, statistics: Sequence[str]) -> dict[str, Interval]:
        found = super().differences(before, after, statistics)
        if self._weighted is not None and "mean" in found:
            found |= self._weighted.differences(before, after, ["mean"])
        return found

    def values(self, statistic: str) -> Tensor:
        if statistic == "mean" and self._weighted is not None:
            return self._weighted.values("mean")
        return super().values(statistic)

    def replicates(self, *statistics: str) -> list[Tensor] | None:
        found = super().replicates(*statistics)
        if found is None or self._weighted is None or "mean" not in statistics:
            return found
        weighted = self._weighted.replicates("mean")
        assert weighted is not None  # of the same documents
        return [weighted[0] if name == "mean" else each for name, each in zip(statistics, found, strict=True)]


class CommonBytes(NamedTuple):
    """The bytes of documents that all records have scored; without the documents that have none."""

    ids: Tensor
    """int64 ``[D]``."""
    bytes: Tensor
    """float64 ``[D]``, how many there are."""
    nats: Tensor
    """float64 ``[R, D]``, the sum of cross-entropies over them."""
    left_out: str | None
    """What was left out, in a sentence."""


def by_bytes(records: Sequence[Record]) -> tuple[DocumentCandidates, tuple[str, ...]]:
    """Bits per byte, over the bytes of each document that all records have scored; and what to say of it.

    Raises:
        UserError: if a record does not know its documents or their bytes, or there are no common bytes.
    """
    common = common_bytes(records, _totals_of(records))
    bits = common.nats / (math.log(2) * common.bytes)
    chosen = DocumentCandidates(records, common.ids, bits, common.bytes, "bits_per_byte")
    said = "Other tokenizers: the mean is that of bits per byte, and percentiles are those of documents."
    return chosen, (said,) if common.left_out is None else (said, common.left_out)


def by_documents(records: Sequence[Record]) -> tuple[DocumentCandidates, tuple[str, ...]]:
    """Nats a document, of records that hold sums of documents only; and what to say of it.

    Raises:
        UserError: if a record does not know its documents, or there are none in common.
    """
    totals, left_out = _aligned(records, _totals_of(records))
    nats = torch.stack([each.nats for each in totals])
    known = ~nats.isnan().any(0)
    if not bool(known.any()):
        raise UserError("No document has a sum in all of the records: import them again.")
    notes = ["Only sums of documents are known: the mean is that of nats a document, without percentiles."]
    if left_out or not bool(known.all()):
        every = left_out + len(known)
        notes.append(
            f"Left out: {every - int(known.sum())} of {every} documents, which not all records have."
        )
    chosen = DocumentCandidates(records, totals[0].ids[known], nats[:, known], None, "document_nats")
    return chosen, tuple(notes)


def bits_per_byte(totals: DocumentTotals) -> Interval | None:
    """Of one record over all bytes that it has scored; None if there are none, or they are not known."""
    known = (totals.bytes > 0) & ~totals.nats.isnan()
    if not bool(known.any()):
        return None
    bits, ids, size = totals.bits_per_byte[known], totals.ids[known], totals.bytes[known]
    return intervals.interval(td.from_values(bits, size), _counts(ids, bits, size), "mean")


def common_bytes(records: Sequence[Record], totals: Sequence[DocumentTotals]) -> CommonBytes:
    """The bytes that all records have scored, from the first place on where each begins a token.

    That is where the first token that was scored begins, or one of the first ends. A document without a
    common place, or of which records have not scored the same bytes, is left out.

    Raises:
        UserError: if no document is left.
    """
    aligned, missing = _aligned(records, totals)
    places = [_places(each) for each in aligned]
    start = _first_common([bytes_until for bytes_until, _ in places])
    nats, size = [], []
    for each, (bytes_until, nats_until) in zip(aligned, places, strict=True):
        at = (bytes_until == start[:, None]).int().argmax(1, keepdim=True)
        nats.append(each.nats - nats_until.gather(1, at)[:, 0])
        size.append(each.bytes - (start - each.first_byte))
    by_record = torch.stack(size)
    same = (by_record - by_record[0]).abs().amax(0) < 0.5  # False of NaN, also where there is no start
    kept = same & (by_record[0] > 0) & ~torch.stack(nats).isnan().any(0)
    if not bool(kept.any()):
        raise UserError(
            f"No document of {len(kept)} has bytes that all records have scored, or they are not known: "
            "score all of them with evaluate on the same file."
        )
    scored = torch.stack([each.bytes for each in aligned]).nan_to_num(nan=1).amax(0) > 0
    dropped, left_out = missing + int((scored & ~kept).sum()), None
    if dropped:
        left_out = (
            f"Left out: {dropped} of {missing + int(scored.sum())} documents, where no token of all records "
            "ends at one place near the beginning, or not the same bytes were scored."
        )
    return CommonBytes(aligned[0].ids[kept], by_record[0][kept], torch.stack(nats)[:, kept], left_out)


def _places(totals: DocumentTotals) -> tuple[Tensor, Tensor]:
    """Where a document may begin, in bytes ``[D, 1 + E]``, and the nats until there."""
    begin = torch.stack([totals.first_byte, torch.zeros_like(totals.first_byte)], dim=1)
    places = torch.cat([begin[:, None], totals.ends], dim=1)
    return places[..., 0], places[..., 1]


def _first_common(places: Sequence[Tensor]) -> Tensor:
    """The smallest number of each row that all ``[D, 1 + E]`` have, NaN if there is none."""
    first = places[0]
    common = torch.ones_like(first, dtype=torch.bool)
    for other in places:
        common &= (first[:, :, None] == other[:, None, :]).any(-1)
    found = torch.where(common, first, torch.inf).amin(1)
    return torch.where(found.isfinite(), found, torch.nan)


def _aligned(records: Sequence[Record], totals: Sequence[DocumentTotals]) -> tuple[list[DocumentTotals], int]:
    """Rows of the same documents in the same order, and how many documents not all records have."""
    first = totals[0].ids
    if all(torch.equal(each.ids, first) for each in totals):
        return list(totals), 0
    places = [{number: place for place, number in enumerate(each.ids.tolist())} for each in totals]
    for record, each, found in zip(records, totals, places, strict=True):
        if len(found) < len(each.ids):
            raise UserError(
                f"Record {record.label!r} has other documents than {records[0].label!r}, and several of one "
                "id: score both on the same file."
            )
    shared = [number for number in places[0] if all(number in each for each in places)]
    if not shared:
        raise UserError(
            f"Record {records[0].label!r} has no document in common with all others: score all on the same "
            "file."
        )
    rows = [torch.tensor([each[number] for number in shared]) for each in places]
    missing = len(set().union(*places)) - len(shared)
    return [
        DocumentTotals(*(column[row] for column in each)) for each, row in zip(totals, rows, strict=True)
    ], missing


def _totals_of(records: Sequence[Record]) -> list[DocumentTotals]:
    found = []
    for record in records:
        totals = record.document_totals
        if totals is None or len(totals.ids) == 0:
            raise UserError(
                f"Record {record.label!r} does not know what each document has cost, by which records of "
                "other tokenizers are compared: score it with evaluate."
            )
        found.append(totals)
    return found


def _items(records: Sequence[Record], ids: Tensor, values: Tensor, weights: Tensor | None) -> list[Item]:
    return [
        Item(record.label, td.from_values(own, weights), _counts(ids, own, weights), None, record)
        for record, own in zip(records, values, strict=True)
    ]


def _counts(ids: Tensor, values: Tensor, weights: Tensor | None) -> Tensor:
    """Counts with the documents in the bins by their order, few of them or equal ones in each.

    Error bars of percentiles ask of bins for nothing but their order. By value they would be too wide: bits a
    byte of most documents lie within 20 %, which is one bin, and such a bin's intervals have no width.
    """
    slots = intervals.slots_of(ids)
    counts = intervals.add(intervals.empty(), values, weights, slots)
    order = torch.unique(values, return_inverse=True)[1]
    bins = order * BINS // (order.max() + 1)
    each = torch.ones_like(values) if weights is None else weights
    counts[:, :BINS] = 0
    return counts.index_put_((slots.long(), bins), each, accumulate=True)
