"""What the answers refuse, in words."""

import pytest
import torch

from lightning_pce import digest as dg
from lightning_pce import intervals as iv
from tests.helpers.intervals_by_hand import clustered, record_of

DIGEST, COUNTS = record_of(*clustered())
ASK = {
    "interval": lambda digest, counts: iv.interval(digest, counts, "p50"),
    "difference": lambda digest, counts: iv.difference((DIGEST, COUNTS), (digest, counts), "p50"),
    "replicates": lambda digest, counts: iv.replicates(digest, counts, ["p50"]),
    "curves": lambda digest, counts: iv.replicate_quantiles(digest, counts, torch.tensor([0.5])),
    "why_unpaired": lambda digest, counts: iv.why_unpaired((digest, counts), (DIGEST, COUNTS)),
}
RECORDS = {
    "counts of groups": ((DIGEST, COUNTS[None]), r"\(1, 128, 97\). Of groups pass those of one"),
    "counts of other bins": ((DIGEST, COUNTS[:, 1:]), r"`documents` to be float64 \[128, 97\]"),
    "float32 counts": ((DIGEST, COUNTS.float()), "but got torch.float32"),
    "counts in a list": ((DIGEST, COUNTS.tolist()), "`documents` to be a tensor .* but got list"),
    "digests of groups": ((DIGEST[None], COUNTS), r"`digest` to be \[K \+ 3, 2\]"),
    "no digest": ((None, COUNTS), "`digest` to be a tensor but got NoneType"),
    "the two interchanged": ((COUNTS, DIGEST), r"float64 \[128, 97\]"),
    "a digest on meta": ((DIGEST.to("meta"), COUNTS), "`digest` with numbers but got .* meta device"),
    "counts on meta": ((DIGEST, COUNTS.to("meta")), "`documents` with numbers but got .* meta device"),
}
STATISTICS = ["p", "50", "p50.0", "p50_0", "p050", "p101", "p-1", "median", "Mean", "p1_000", "p5_", 50, None]


@pytest.mark.parametrize("question", ASK)
@pytest.mark.parametrize("case", RECORDS)
def test_records_that_do_not_fit_are_refused(question, case):
    record, words = RECORDS[case]
    with pytest.raises(ValueError, match=words):
        ASK[question](*record)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_unknown_statistics_are_refused(statistic):
    words = 'to be "mean" or a percentile such as "p50" or "p99_9" but got'
    with pytest.raises(ValueError, match=words):
        iv.interval(DIGEST, COUNTS, statistic)
    with pytest.raises(ValueError, match=words):
        iv.difference((DIGEST, COUNTS), (DIGEST, COUNTS), statistic)
    with pytest.raises(ValueError, match=words):
        iv.replicates(DIGEST, COUNTS, [statistic])
    with pytest.raises(ValueError, match=words):  # also where there is no interval
        iv.interval(dg.empty(), None, statistic)


@pytest.mark.parametrize("level", [0, 1, -0.5, 95, float("nan"), "0.95", True, None])
def test_levels_outside_are_refused(level):
    with pytest.raises(ValueError, match=r"`level` to be a number in \(0, 1\)"):
        iv.interval(DIGEST, COUNTS, "p50", level)
    with pytest.raises(ValueError, match=r"`level` to be a number in \(0, 1\)"):
        iv.difference((DIGEST, COUNTS), (DIGEST, COUNTS), "p50", level)
    with pytest.raises(ValueError, match=r"`level` to be a number in \(0, 1\)"):
        iv.expanded(level, COUNTS)


@pytest.mark.parametrize("record", [(DIGEST,), (DIGEST, COUNTS, "a", "b"), DIGEST, None])
def test_what_is_no_record_is_refused(record):
    with pytest.raises(ValueError, match=r"`b` to be \(digest, documents\)"):
        iv.difference((DIGEST, COUNTS), record, "p50")
    with pytest.raises(ValueError, match=r"`a` to be \(digest, documents\)"):
        iv.why_unpaired(record, (DIGEST, COUNTS))


def test_names_of_percentiles_are_those_of_results():
    for percentile, name in ((0.1, "p0_1"), (5, "p5"), (50, "p50"), (99.9, "p99_9"), (99.99, "p99_99")):
        got = iv.interval(DIGEST, COUNTS, name).value
        assert got == dg.quantile(DIGEST, percentile / 100)
