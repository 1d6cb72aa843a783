import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_pce import LabelTotals
from lightning_pce.runs.what_moved import from_plain, label_changes, moved, to_plain
from tests.helpers.metric_states import fed
from tests.helpers.token_batches import V, batch

BEFORE = torch.tensor([[6.0, 3.0], [0.0, 0.0], [2.0, 5.0], [2.0, 2.0]], dtype=torch.float64)
AFTER = torch.tensor([[6.0, 1.5], [0.0, 0.0], [2.0, 9.5], [2.0, 2.25]], dtype=torch.float64)


def mean(totals):
    return float(totals[:, 1].sum() / totals[:, 0].sum())


@given(
    rows=st.lists(st.tuples(*[st.integers(0, 10**6), st.floats(0, 1e7)] * 2), min_size=1, max_size=40),
    n=st.integers(0, 50),
)
def test_the_parts_of_the_labels_add_up_to_the_change_of_the_mean(rows, n):
    before, after = torch.tensor(rows, dtype=torch.float64).reshape(-1, 2, 2).unbind(1)
    before[0, 0] += 1
    after[0, 0] += 1
    change, scale = mean(after) - mean(before), max(1.0, mean(after) + mean(before))
    assert float(label_changes(before, after).sum()) == pytest.approx(change, abs=1e-12 * scale)
    found = moved(before, after, n)
    assert len(found.labels) == min(n, int((before + after).any(1).sum()))
    parts = sum(each.change for each in found.labels) + found.others
    assert parts == pytest.approx(change, abs=1e-12 * scale)
    assert (found.before, found.after) == (mean(before), mean(after))
    sizes = [abs(each.change) for each in found.labels]
    assert sizes == sorted(sizes, reverse=True)


def test_a_label_that_got_worse_is_named_with_its_part():
    logits, labels = batch(0, (8, 40))
    worse = logits.clone()
    worse[..., 5] -= 3 * (labels == 5)  # only where it is the label
    totals = [fed(LabelTotals(V), (each, labels)).compute() for each in (logits, worse)]
    found = moved(*totals, n=3)
    first, *others = found.labels
    assert first.label == 5
    assert first.change == pytest.approx(found.after - found.before, abs=1e-9)
    assert first.after > first.before + 2
    assert first.tokens_before == first.tokens_after == (labels == 5).sum()
    assert all(each.change == 0 for each in others)
    assert found.others == 0


def test_labels_that_do_not_occur_are_not_named():
    assert [each.label for each in moved(BEFORE, AFTER, n=4).labels] == [2, 0, 3]
    with pytest.raises(ValueError, match="`n` to be a number of labels >= 0 but got -1"):
        moved(BEFORE, AFTER, n=-1)


def test_in_words():
    assert moved(BEFORE, AFTER, n=2).words(["the", "an", " __", "\n"].__getitem__).splitlines() == [
        "mean 1.000 -> 1.325 nats, a change of +0.325",
        "change  label   tokens  mean before  after",
        "+0.450  ' __'   2       2.500        4.750",
        "-0.150  'the'   6       0.500        0.250",
        "+0.025  others",
    ]
    fewer = AFTER.clone()
    fewer[0, 0] = 1234.0
    assert "6 -> 1,234" in moved(BEFORE, fewer).words(str)


def test_an_infinite_label_is_named_first_and_one_without_tokens_has_no_mean():
    after = AFTER.clone()
    after[3, 1] = math.inf
    after[1] = torch.tensor([1.0, 0.25])
    found = moved(BEFORE, after)
    assert found.labels[0].label == 3
    assert found.labels[0].change == found.after == math.inf
    assert math.isnan(found.labels[-1].before)
    assert found.labels[-1].label == 1
    assert moved(after, after).labels[0].label == 3  # from inf to inf


def test_totals_as_plain_values_and_back():
    after = AFTER.clone()
    after[3, 1] = 1 / 3
    stored = to_plain(after)
    assert stored == {
        "vocabulary": 4,
        "labels": [0, 2, 3],
        "tokens": [6.0, 2.0, 2.0],
        "ce": [1.5, 9.5, 1 / 3],
    }
    assert torch.equal(from_plain(json.loads(json.dumps(stored))), after)
    assert torch.equal(from_plain(to_plain(torch.zeros(3, 2))), torch.zeros(3, 2).double())


BAD = {
    "of another vocabulary": (BEFORE, AFTER[:3], "`before` and `after` of one vocabulary"),
    "no totals": (BEFORE, AFTER[0], r"`after` to be totals \[V, 2\]"),
    "no tensor": ([[1, 2]], AFTER, "`before` to be totals"),
    "without tokens": (0 * BEFORE, AFTER, "`before` with tokens"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("function", [moved, label_changes])
def test_what_cannot_be_compared_is_refused(case, function):
    before, after, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        function(before, after)


GOOD = {"vocabulary": 3, "labels": [1], "tokens": [2.0], "ce": [1.5]}


@pytest.mark.parametrize(
    "wrong",
    [{"labels": [3]}, {"labels": [-1]}, {"labels": [1, 2]}, {"ce": []}, {"ce": ["x"]}, {"vocabulary": None}],
    ids=str,
)
def test_plain_values_that_were_damaged_are_refused(wrong):
    with pytest.raises(ValueError, match="`stored`"):
        from_plain({**GOOD, **wrong})
    with pytest.raises(ValueError, match="`stored`"):
        from_plain({name: value for name, value in GOOD.items() if name not in wrong})
