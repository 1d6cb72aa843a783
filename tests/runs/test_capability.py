"""A capability equals a script that keeps every token's probability."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_pce import digest as td
from lightning_pce import intervals
from lightning_pce._errors import UserError
from lightning_pce.runs._capability_text import place_of, short
from lightning_pce.runs.capability import capability, reading_of
from lightning_pce.runs.history import History, write_validation
from tests.helpers.distributions import bound, values_of

# Percentiles of p of Qwen2.5-Math-1.5B on mathematics before training: thresholds of the authors' code.
PUBLISHED = {
    5: 0.038074,
    10: 0.175395,
    20: 0.585842,
    30: 0.869026,
    40: 0.970060,
    50: 0.993602,
    60: 0.998560,
    70: 0.999644,
    80: 0.999908,
    90: 0.99998045,
}


def recorded(ce, documents, batches=1):
    """A digest and counts by document of values that arrive in batches."""
    digest, counts = td.empty(), intervals.empty()
    for values, ids in zip(
        torch.tensor_split(ce, batches), torch.tensor_split(documents, batches), strict=True
    ):
        digest = td.add(digest, values)
        counts = intervals.add(counts, values, None, intervals.slots_of(ids))
    return digest, counts


def error_by_slots(ce, documents):
    """The standard error of the mean p from each slot's own tokens."""
    p, slots = np.exp(-ce.double().numpy()), intervals.slots_of(documents).numpy()
    sums, numbers = np.bincount(slots, p, 128), np.bincount(slots, minlength=128)
    residuals = (sums - p.mean() * numbers) / len(p)
    used = (numbers > 0).sum()
    return math.sqrt((residuals**2).sum() * used / (used - 1))


def published(n):
    """``n`` CEs whose percentiles of p at the published places are the published ones."""
    at = [0, *(1 - each / 100 for each in reversed(PUBLISHED)), 1]
    ce = np.array([1e-7, *(-math.log(p) for p in reversed(PUBLISHED.values())), 15.0])
    return torch.from_numpy(np.exp(np.interp(np.arange(n) / (n - 1), at, np.log(ce))))


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.sampled_from([0.0, 1e-8, 1e-3, 0.7, 1.6094379, 3.0, 40.0, math.inf])
        | st.floats(0, 30, width=32, allow_subnormal=False),
        min_size=1,
        max_size=200,
    ),
    st.integers(1, 4),
    st.floats(0, 1),
    st.floats(0, 100),
)
def test_up_to_1024_values_all_is_that_of_the_stored_values(values, times, threshold, percentile):
    ce = torch.tensor(values, dtype=torch.float64).repeat(times)
    found = capability(td.from_values(ce))
    p, below = np.exp(-ce.numpy()), ce.numpy() > -np.log(threshold or np.nextafter(0, 1))
    assert found.tokens == len(ce)
    assert found.mean.value == pytest.approx(p.mean(), rel=1e-12, abs=1e-300)
    assert found.share_below(threshold) == pytest.approx((below & (threshold > 0)).mean(), abs=1e-12)
    lost = -np.expm1(-ce.numpy())
    expected = lost[below & (threshold > 0)].sum() / lost.sum() if lost.sum() > 0 else math.nan
    assert found.weight_below(threshold) == pytest.approx(expected, rel=1e-9, abs=1e-300, nan_ok=True)
    if np.isfinite(values).all():
        quantile = np.quantile(ce.numpy(), 1 - percentile / 100)
        assert found.percentile(percentile) == pytest.approx(math.exp(-quantile), rel=1e-9)


@pytest.mark.parametrize("name", ["ce like", "exponential", "61 % zeros", "lognormal", "constant"])
def test_above_it_is_within_the_bound_of_the_digest(name):
    n = 200_000
    ce = values_of(name, n).double()
    found = capability(recorded(ce, torch.arange(n) // 100, batches=20)[0])
    p, lost = np.exp(-ce.numpy()), -np.expm1(-ce.numpy())
    assert found.mean.value == pytest.approx(p.mean(), abs=2e-6)
    for threshold in (0.01, 0.2, 0.5, 0.9, 0.999):
        below = ce.numpy() > -math.log(threshold)
        assert found.share_below(threshold) == pytest.approx(below.mean(), abs=bound(n))
        weight = lost[below].sum() / lost.sum()
        assert found.weight_below(threshold) == pytest.approx(weight, abs=2 * bound(n) / lost.mean())
    for percentile in (1, 5, 20, 50, 80, 95, 99):
        threshold = found.percentile(percentile) * (1 + np.array([-1e-9, 1e-9]))
        low, high = ((p < each).mean() for each in threshold)
        assert low - bound(n) <= percentile / 100 <= high + bound(n)


@pytest.mark.parametrize("n", [1001, 100_001])
def test_the_published_percentiles_of_p(n):
    ce = published(n)
    found = capability(td.from_values(ce))
    for percentile, p in PUBLISHED.items():
        assert found.share_below(p) == pytest.approx(percentile / 100, abs=bound(n))
        threshold = found.percentile(percentile)
        assert float((ce > -math.log(threshold)).double().mean()) == pytest.approx(
            percentile / 100, abs=bound(n)
        )
        if n <= 1024:
            assert threshold == pytest.approx(p, rel=1e-9)
    text = str(found)
    assert "0.994" in text
    assert re.search(r" 90 % +1 - [12][.\d]*e-05 ", text)  # and not 1: that is no certainty


# How CE spreads over documents and tokens: (middle, of documents, of tokens) of the CE, or of its logarithm.
SPREADS = {
    "weak": lambda e, z: (4.6 + 0.3 * e + z).clamp_min(0),
    "all in one bin": lambda e, z: 4.6 + 0.05 * e + 0.1 * z,
    "by documents alone": lambda e, z: 4.9 + 0.6 * e + 0.02 * z,
    "middle": lambda e, z: (-0.6 + 0.3 * e + 1.8 * z).exp(),
    "strong": lambda e, z: (-3 + 0.5 * e + 2 * z).exp(),
    "all the same": lambda e, z: 0 * e + 2.0,
}


@pytest.mark.parametrize("name", SPREADS)
def test_the_standard_error_is_within_6_percent_of_that_of_every_token(name):
    random = torch.Generator().manual_seed(1)
    documents = torch.randint(300, (30_000,), generator=random)
    of_documents, of_tokens = (torch.randn(size, generator=random) for size in (300, 30_000))
    ce = SPREADS[name](of_documents[documents], of_tokens)
    found = capability(*recorded(ce, documents, batches=7))
    exact = error_by_slots(ce, documents)
    assert found.error == pytest.approx(exact, rel=0.06, abs=1e-9)
    assert found.mean.low == pytest.approx(found.mean.value - found.error * 1.979, rel=1e-3)
    assert found.mean.high - found.mean.value == pytest.approx(found.mean.value - found.mean.low)
    assert found.mean.reason is None


def test_an_infinite_token_has_p_0_and_no_error_is_infinite():
    ce = torch.rand(4000, generator=torch.Generator().manual_seed(0))
    ce[7], ce[8] = torch.inf, torch.nan
    found = capability(*recorded(ce, torch.arange(4000) // 20))
    counted = ce[~ce.isnan()].double()
    assert found.mean.value == pytest.approx(float((-counted).exp().mean()), abs=1e-6)
    assert found.error == pytest.approx(
        error_by_slots(counted, torch.arange(4000)[~ce.isnan()] // 20), rel=0.05
    )
    text = str(found)
    assert "\n1 tokens have an infinite cross-entropy" in text
    assert "\n1 tokens have no cross-entropy (NaN)" in text


def test_without_enough_documents_there_is_a_mean_and_a_reason():
    ce, documents = torch.rand(600), torch.arange(600) // 60
    for counts, words in ((None, "no documents were given"), (recorded(ce, documents)[1], "only 10 of 128")):
        found = capability(td.from_values(ce), counts)
        assert found.mean.value == pytest.approx(float((-ce).exp().mean()), abs=1e-6)
        assert math.isnan(found.error)
        assert math.isnan(found.mean.low)
        assert words in found.mean.reason
        assert f"no standard error ({found.mean.reason})" in str(found)
    other = capability(td.from_values(ce[:500]), recorded(ce, torch.arange(600) // 6)[1])
    assert "not of the same data" in other.mean.reason
    few = capability(*recorded(ce, torch.arange(600) // 20))
    assert "only 2" in few.mean.reason  # 30 documents in fewer slots: a word of caution beside a number
    assert few.error > 0


@pytest.mark.parametrize(
    ("p", "place"),
    [
        (0.001, "below the weak anchor: not covered by the paper"),
        (0.01, "at the weak anchor"),
        (0.02, "at the weak anchor"),
        (0.11, "between the weak anchor and the middle anchor: not covered by the paper"),
        (0.44, "between the weak anchor and the middle anchor: not covered by the paper"),
        (0.5, "at the middle anchor"),
        (0.6, "between the middle anchor and the strong anchor: not covered by the paper"),
        (0.76, "at the strong anchor"),
        (0.81, "at the strong anchor"),
        (0.95, "above the strong anchor: not covered by the paper"),
    ],
)
def test_it_says_where_data_lie_and_what_to_try_and_never_what_to_use(p, place):
    text = str(capability(td.from_values(torch.full((50,), -math.log(p)))))
    assert place_of(p) == place
    assert f"This data lies {place}." in text
    assert ("Nearest: " in text) == ("not covered" in place)
    assert re.search(r"\nTo try: NLL[;,]|\nTo try: 1 - p ", text)
    assert "1.5 B and up" in text
    assert not re.search(r"\b(use|should|best|better than)\b", text, re.IGNORECASE)
    assert text.isascii()


def test_an_interval_over_the_edge_of_an_anchor_is_told():
    random = torch.Generator().manual_seed(0)
    documents = torch.arange(2000) // 20
    p = 0.45 + 0.1 * torch.randn(100, generator=random)[documents]
    found = capability(*recorded(-p.clamp(0.05, 1).log(), documents))
    assert found.mean.low < 0.45 < found.mean.high
    assert str(found).count("Its 95 % interval ends at 0.4") == 1


def test_a_record_is_read_by_its_completions_and_other_groups_get_a_line(tmp_path):
    def record(name, groups):
        ce = {group: torch.full((40,), -math.log(p)) for group, p in groups.items()}
        digests = {group: td.from_values(values) for group, values in ce.items()}
        digests[""] = td.merge(torch.stack(list(digests.values())))
        write_validation(
            tmp_path / "r.jsonl",
            run=name,
            name="web",
            step=None,
            function="score",
            checkpoint=name,
            digests={"ce": digests},
        )
        return next(each for each in History.load(tmp_path / "r.jsonl") if each.run == name)

    answers = reading_of(record("m", {"prompt": 0.9, "completion": 0.01}))
    assert answers.startswith("m on web, tokens of completion:\nmean p 0.01 of 40 tokens")
    assert "prompt" not in answers
    sources = reading_of(record("n", {"code": 0.2, "prose": 0.4}))
    assert sources.startswith("n on web, all scored tokens:\nmean p 0.3 of 80 tokens")
    assert "\ncode: mean p 0.2 of 40 tokens" in sources
    assert "\nprose: mean p 0.4 of 40 tokens" in sources


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: capability(td.empty()), "holds no tokens"),
        (lambda: capability(td.from_values(torch.tensor([-0.5, -3.0]))), "smallest value is -3"),
        (lambda: capability(td.from_values(torch.tensor([-torch.inf, 1.0]))), "smallest value is -inf"),
        (lambda: capability(td.from_values(torch.rand(9))).share_below(1.5), "got 1.5"),
        (lambda: capability(td.from_values(torch.rand(9))).weight_below(-1), "got -1"),
        (lambda: capability(td.from_values(torch.rand(9))).percentile(101), "got 101"),
    ],
)
def test_what_is_refused_is_one_line(call, words):
    with pytest.raises(UserError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


def test_rounding_below_0_is_a_p_of_1():
    found = capability(td.from_values(torch.tensor([-1e-7, 0.0, 2.0])))
    assert found.mean.value == pytest.approx((2 + math.exp(-2)) / 3)
    assert short(found.percentile(100)) == "1"


def test_near_certainty_the_gradient_weight_keeps_its_digits():
    ce = torch.tensor([1e-12, 3e-12, 5e-12, 1e-11], dtype=torch.float64)
    assert capability(td.from_values(ce)).weight_below(math.exp(-4e-12)) == pytest.approx(15 / 19, rel=1e-3)


def test_a_token_at_the_threshold_is_not_below_it():
    ce = torch.tensor([-math.log(0.25)] * 3 + [2.0], dtype=torch.float64)
    found = capability(td.from_values(ce))
    assert found.share_below(0.25) == 0.25
    assert found.share_below(0.26) == 1
    assert found.weight_below(0.25) == pytest.approx((1 - math.exp(-2)) / (3 * 0.75 + 1 - math.exp(-2)))
