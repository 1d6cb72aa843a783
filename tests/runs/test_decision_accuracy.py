"""How often small runs decide between two corpora as the large ones do."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_pce._errors import UserError
from lightning_pce.runs.ranking import decision_accuracy

values = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=9)


@settings(max_examples=30)
@given(values)
def test_it_is_a_loop_over_pairs(pairs):
    small, target = map(list, zip(*pairs, strict=True))
    scores = []
    for i in range(len(small)):
        for j in range(i):
            if target[i] != target[j]:
                same = (small[i] > small[j]) == (target[i] > target[j])
                scores.append(0.5 if small[i] == small[j] else float(same))
    if not scores:
        with pytest.raises(UserError, match="nothing to decide"):
            decision_accuracy(small, target)
        return
    found = decision_accuracy(small, target)
    assert found.value == pytest.approx(np.mean(scores))
    assert (found.pairs, found.corpora) == (len(scores), len(small))
    turned = decision_accuracy(small, target, higher_is_better=False)
    assert turned.value == pytest.approx(1 - found.value)


def test_the_interval_is_over_corpora_and_of_six_at_least():
    random = np.random.default_rng(0)
    target = random.normal(size=10)
    small = target + 0.5 * random.normal(size=10)
    found = decision_accuracy(small, target)
    assert found == decision_accuracy(small, target)
    assert 0 < found.low < found.value < found.high <= 1
    perfect = decision_accuracy(target, target)
    assert perfect[:3] == (1, 1, 1)
    few = decision_accuracy(small[:5], target[:5])
    assert math.isnan(few.low)
    assert "no interval over 5 corpora" in str(few)
    assert str(perfect) == "1.00, 90 % [1.00, 1.00] over 10 corpora (45 pairs)"


def test_it_holds_the_share_of_other_corpora_as_often_as_it_says():
    random = np.random.default_rng(0)
    target, noise = random.normal(size=(2, 150, 10))
    small = target + noise
    # The share of pairs of two normal numbers with correlation 1 / sqrt(2) that agree is 3/4.
    found = [decision_accuracy(*each, seed=1) for each in zip(small, target, strict=True)]
    assert np.mean([each.value for each in found]) == pytest.approx(0.75, abs=0.03)
    assert 0.83 < np.mean([each.low <= 0.75 <= each.high for each in found]) < 0.99


def test_corpora_are_matched_by_name():
    small, target = {"web": 1.0, "code": 2.0, "books": 3.0}, {"books": 0.3, "web": 0.1, "code": 0.2}
    assert decision_accuracy(small, target).value == 1


@pytest.mark.parametrize(
    ("small", "target", "words"),
    [
        ({"a": 1, "b": 2}, {"a": 1, "c": 2}, "'b' and 'c' are in one only"),
        ({"a": 1, "b": 2}, [1, 2], "both by corpus, or both as arrays"),
        ([1, 2], [1, 2, 3], r"got shapes \(2,\) and \(3,\)"),
        ([[1, 2]], [[1, 2]], "one value a corpus"),
        ({"a": 1, "b": math.nan}, {"a": 1, "b": 2}, "`small` of 'b' is NaN"),
        ([1, 2], ["x", 2], "to hold numbers"),
        ([1], [1], "nothing to decide"),
        ([], [], "nothing to decide"),
        (None, [1, 2], "to hold numbers|one value a corpus"),
        ((number for number in (1, 2)), [1, 2], "to hold numbers"),
    ],
)
def test_what_is_refused(small, target, words):
    with pytest.raises(UserError, match=words):
        decision_accuracy(small, target)


@pytest.mark.parametrize("seed", [-1, 0.5, None])
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises(UserError, match="`seed` to be a whole number from 0 on"):
        decision_accuracy([1, 2], [1, 2], seed=seed)
