"""Other tokenizers on the same text: bits per byte over the bytes that all have scored."""

import math

import numpy as np
import pytest
import torch

from lightning_pce import digest, intervals
from lightning_pce._errors import UserError
from lightning_pce.runs._documents_compared import bits_per_byte, by_bytes, by_documents, common_bytes
from lightning_pce.runs._records import Record
from lightning_pce.runs.document_totals import DocumentTotals
from lightning_pce.runs.history import History
from tests.helpers.scored_records import write_scored

NAN = math.nan
DOCUMENTS = 60


def tokenized(rng, longest, *, skip):
    """Documents of 40 bytes as tokens: for each ends in bytes, NaN inside of a character, and nats.

    ``skip``: without BOS, so that the first token is not scored.
    """
    found = []
    for _ in range(DOCUMENTS):
        sizes = []
        while sum(sizes) < 40:
            sizes.append(min(int(rng.integers(1, longest + 1)), 40 - sum(sizes)))
        ends = np.cumsum(sizes).astype(float)
        starts = ends - sizes
        ends[rng.random(len(ends)) < 0.2] = np.nan
        ends[-1] = 40
        nats = rng.exponential(size=len(sizes))
        found.append((starts[skip:], ends[skip:], nats[skip:]))
    return found


def totals_of(documents, ids, ends=8):
    rows, early = [], []
    for starts, until, nats in documents:
        rows.append([len(nats), nats.sum(), 40 - starts[0], starts[0]])
        known = np.full((ends, 2), np.nan)
        number = min(ends, len(nats))
        known[:number] = np.column_stack([until, nats.cumsum()])[:number]
        early.append(known)
    columns = torch.tensor(np.array(rows)).T
    return DocumentTotals(torch.tensor(ids), *columns, torch.tensor(np.array(early)))


def by_hand(every, ends=8):
    """The start and the nats of each model beyond it, by looking for it; None without one."""
    found = []
    for documents in zip(*every, strict=True):
        places = [{starts[0], *until[:ends]} for starts, until, _ in documents]
        common = sorted(place for place in set.intersection(*places) if place < 40)
        if not common:
            found.append(None)
            continue
        start = common[0]
        nats = []
        for starts, until, own in documents:
            first = 0 if starts[0] == start else int(np.flatnonzero(until == start)[0]) + 1
            nats.append(own[first:].sum())
        found.append((start, nats))
    return found


@pytest.mark.parametrize("longest", [(3, 5), (2, 3, 4), (9, 9)])
def test_common_bytes_are_those_found_by_hand(longest):
    rng = np.random.default_rng(len(longest))
    every = [tokenized(rng, each, skip=place % 2) for place, each in enumerate(longest)]
    ids = list(range(DOCUMENTS))
    records = [Record(str(place), "score", "web", label=str(place)) for place in range(len(longest))]
    common = common_bytes(records, [totals_of(each, ids) for each in every])
    wanted = by_hand(every)
    kept = [each for each in wanted if each is not None]
    assert 0 < len(kept) < DOCUMENTS or longest != (9, 9)
    assert common.ids.tolist() == [number for number in ids if wanted[number] is not None]
    assert common.bytes.tolist() == [40 - start for start, _ in kept]
    np.testing.assert_allclose(common.nats.T, [nats for _, nats in kept], rtol=1e-12)
    lost = DOCUMENTS - len(kept)
    assert (common.left_out is None) == (lost == 0)
    assert lost == 0 or common.left_out.startswith(
        f"Left out: {lost} of {DOCUMENTS} documents, where no token"
    )


def two(tmp_path, first, second, how=None):
    """A history of two models of other tokenizers; each is (ids, losses, sizes) of tokens."""
    path = tmp_path / "r.jsonl"
    for name, (ids, losses, sizes), tokenizer in (("small", first, "a1"), ("large", second, "b2")):
        write_scored(
            path, name, losses, ids, sizes=sizes, how={"tokenizer": tokenizer, "token_ids": tokenizer}
        )
    return list(History.load(path))


def tokens_of(number, size, seed, documents=DOCUMENTS):
    ids = torch.arange(documents).repeat_interleave(number)
    losses = torch.rand(len(ids), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return ids, losses, torch.full_like(ids, size)


def test_the_mean_is_that_of_all_bytes_and_percentiles_are_those_of_documents(tmp_path):
    # Documents of other lengths, so that the mean over documents is another one.
    ids = torch.arange(DOCUMENTS).repeat_interleave(torch.arange(DOCUMENTS) % 7 + 1)
    losses = torch.rand(len(ids), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    small = ids, losses, torch.full_like(ids, 6)
    twice = ids.repeat_interleave(2)
    large = twice, torch.rand(len(twice), generator=torch.Generator().manual_seed(2)).double(), twice * 0 + 3
    records = two(tmp_path, small, large)
    chosen, notes = by_bytes(records)
    assert len(notes) == 1
    assert chosen.names == ("small", "large")
    for place, (own, nats, size) in enumerate((small, large)):
        bits = nats.sum() / size.sum() / math.log(2)
        assert float(chosen.values("mean")[place]) == pytest.approx(float(bits), rel=1e-9)
        sums = torch.zeros(2, DOCUMENTS, dtype=torch.float64).index_add_(
            1, own, torch.stack([nats, size.double()])
        )
        each = sums[0] / sums[1] / math.log(2)
        assert float(chosen.values("p50")[place]) == pytest.approx(float(each.quantile(0.5)))
        bars = chosen.error_bars(chosen.names[place], ["mean", "p50"])
        assert bars["mean"].value == pytest.approx(float(bits))
        assert bars["mean"].low < float(bits) < bars["mean"].high
        weighted = digest.from_values(each, sums[1])
        counts = intervals.add(intervals.empty(), each, sums[1], intervals.slots_of(torch.arange(DOCUMENTS)))
        want = pytest.approx(intervals.interval(weighted, counts, "mean")[:3])
        assert bars["mean"][:3] == want
        assert bits_per_byte(records[place].document_totals)[:3] == want
    change = chosen.differences("small", "large", ["mean", "p50"])
    assert change["mean"].paired
    assert change["mean"].value == pytest.approx(float(chosen.values("mean")[1] - chosen.values("mean")[0]))
    mean, median = chosen.replicates("mean", "p50")
    assert mean.shape == median.shape == (2, intervals.RESAMPLES)
    torch.testing.assert_close(mean.mean(1), chosen.values("mean"), rtol=0.02, atol=0)
    assert not torch.equal(mean, chosen.replicates("p50")[0])


def test_documents_in_another_order_are_found_by_their_ids(tmp_path):
    small, large = tokens_of(4, 6, 1), tokens_of(8, 3, 2)
    records = two(tmp_path, small, large)
    first, second = (each.document_totals for each in records)
    order = torch.randperm(DOCUMENTS, generator=torch.Generator().manual_seed(3))[: DOCUMENTS - 5]
    shuffled = DocumentTotals(*(column[order] for column in second))
    common = common_bytes(records, [first, shuffled])
    want = common_bytes(records, [first, second])
    kept = torch.isin(want.ids, second.ids[order])
    assert torch.equal(common.ids, want.ids[kept])
    assert torch.equal(common.nats, want.nats[:, kept])
    assert common.left_out.startswith(f"Left out: 5 of {DOCUMENTS} documents")
    twice = shuffled._replace(ids=shuffled.ids // 2)
    with pytest.raises(UserError, match="'large' has other documents than 'small', and several of one id"):
        common_bytes(records, [first, twice])
    with pytest.raises(UserError, match="'small' has no document in common"):
        common_bytes(records, [first, second._replace(ids=second.ids + 1000)])


def test_documents_of_one_id_are_paired_by_their_place(tmp_path):
    ids = torch.arange(DOCUMENTS) // 2
    small, large = (tokens_of(*each) for each in ((4, 6, 1), (8, 3, 2)))
    records = two(tmp_path, small, large)
    totals = [each.document_totals._replace(ids=ids) for each in records]
    assert torch.equal(common_bytes(records, totals).ids, ids)


def test_what_was_not_scored_by_both_is_left_out_and_said(tmp_path):
    records = two(tmp_path, tokens_of(4, 6, 1), tokens_of(8, 3, 2))
    first, second = (each.document_totals for each in records)
    shorter = second._replace(bytes=second.bytes - (torch.arange(DOCUMENTS) < 3) * 3.0)
    assert common_bytes(records, [first, shorter]).left_out.startswith("Left out: 3 of")
    nan = second._replace(nats=torch.where(torch.arange(DOCUMENTS) < 2, NAN, second.nats))
    assert common_bytes(records, [first, nan]).left_out.startswith("Left out: 2 of")
    empty = [
        each._replace(bytes=torch.where(torch.arange(DOCUMENTS) < 2, 0.0, each.bytes))
        for each in (first, second)
    ]
    assert common_bytes(records, empty).left_out is None  # without text there is nothing to leave out
    unknown = second._replace(bytes=second.bytes * NAN)
    with pytest.raises(UserError, match=f"No document of {DOCUMENTS} has bytes that all records have scored"):
        common_bytes(records, [first, unknown])
    assert bits_per_byte(unknown) is None


def test_without_sums_of_documents_it_says_so(tmp_path):
    ids, losses, _ = tokens_of(4, 6, 1)
    path = write_scored(tmp_path / "r.jsonl", "small", losses, ids, document_totals=None)
    with pytest.raises(UserError, match="'small' does not know what each document has cost"):
        by_bytes(list(History.load(path)))


def test_sums_of_documents_are_compared_by_document():
    records = [Record(name, "import", "task", label=name) for name in ("a", "b")]
    column = torch.full((DOCUMENTS,), NAN, dtype=torch.float64)
    nats = torch.rand(2, DOCUMENTS, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    nats[1, 5] = NAN
    ends = torch.zeros(DOCUMENTS, 0, 2, dtype=torch.float64)
    totals = [DocumentTotals(torch.arange(DOCUMENTS), column, each, column, column, ends) for each in nats]

    class Known(Record):
        """A record whose sums are given."""

        document_totals = property(lambda self: totals[int(self.label == "b")])

    known = [Known(each.run, each.function, each.name, label=each.label) for each in records]
    chosen, notes = by_documents(known)
    assert len(notes) == 2
    assert "Left out: 1 of 60 documents, which not all" in notes[1]
    kept = ~nats[1].isnan()
    torch.testing.assert_close(chosen.values("mean"), nats[:, kept].mean(1))
    change = chosen.differences("a", "b", ["mean"])["mean"]
    assert change.paired
    assert change.low < float((nats[1] - nats[0])[kept].mean()) < change.high


def test_error_bars_of_percentiles_are_those_of_a_bootstrap_of_documents(tmp_path):
    # Bits a byte within a few percent, as of real text: all of them lie in one bin of the usual counts.
    generator = torch.Generator().manual_seed(5)
    ids = torch.arange(DOCUMENTS)
    losses = 4 + 0.1 * torch.randn(2, DOCUMENTS, generator=generator, dtype=torch.float64)
    records = two(tmp_path, *((ids, each, torch.full_like(ids, 6)) for each in losses))
    chosen, _ = by_bytes(records)
    bits = losses / 6 / math.log(2)
    drawn = torch.randint(DOCUMENTS, (4000, DOCUMENTS), generator=generator)
    for statistic, q in (("p25", 0.25), ("p50", 0.5), ("p90", 0.9)):
        resampled = bits[:, drawn].quantile(q, dim=2)
        errors = chosen.replicates(statistic)[0].std(1)
        torch.testing.assert_close(errors, resampled.std(1), rtol=0.35, atol=0)
        for name, own in zip(chosen.names, resampled, strict=True):
            bar = chosen.error_bars(name, [statistic])[statistic]
            low, high = own.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
            assert bar.high - bar.low == pytest.approx(high - low, rel=0.35)
            assert "one bin" not in bar.reason
        change = chosen.differences("small", "large", [statistic])[statistic]
        low, high = (resampled[1] - resampled[0]).quantile(torch.tensor([0.025, 0.975]).double()).tolist()
        assert change.high - change.low == pytest.approx(high - low, rel=0.35)
