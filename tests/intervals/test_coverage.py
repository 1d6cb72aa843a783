"""How often intervals hold the truth, on a small scale; on a large one see benchmarks/intervals.py."""

import math

import pytest
import torch

from lightning_pce import intervals as iv
from tests.helpers.intervals_by_hand import clustered, record_of

# Normal quantiles 0.5 and 0.95 of ln CE; the mean of a log-normal.
BEFORE = {"p50": math.exp(-5), "p95": math.exp(-5 + 3 * 1.644854), "mean": math.exp(-5 + 9 / 2)}
AFTER = {"p50": math.exp(-5.3), "p95": math.exp(-5.3 + 3 * 1.644854), "mean": math.exp(-5.3 + 9 / 2)}
SIMULATIONS = 200


@pytest.fixture(scope="module")
def held():
    """The share of intervals of each statistic that held the truth."""
    hits = dict.fromkeys([*BEFORE, *(f"difference of {name}" for name in BEFORE), "tokens"], 0)
    for seed in range(SIMULATIONS):
        losses, documents = clustered(seed, documents=100)
        a, b = (
            record_of(losses, documents),
            record_of(clustered(seed, documents=100, after=True)[0], documents),
        )
        for name, each in iv.intervals(*a, list(BEFORE)).items():
            hits[name] += each.low <= BEFORE[name] <= each.high
        for name, each in iv.differences(a, b, list(BEFORE)).items():
            hits[f"difference of {name}"] += each.low <= AFTER[name] - BEFORE[name] <= each.high
        error = 1.96 * math.sqrt(0.25 / len(losses))
        low, high = torch.quantile(losses, torch.tensor([0.5 - error, 0.5 + error])).tolist()
        hits["tokens"] += low <= BEFORE["p50"] <= high
    return {name: 100 * number / SIMULATIONS for name, number in hits.items()}


# In 200 simulations 95 % are 92 to 98 %. Of so heavy a tail the mean is held less often by any method.
@pytest.mark.parametrize(
    ("name", "least"),
    [("p50", 90), ("p95", 88), ("mean", 75), ("difference of p50", 90), ("difference of p95", 88)],
)
def test_intervals_hold_the_truth_about_as_often_as_they_say(held, name, least):
    assert least <= held[name] <= 99


def test_intervals_by_tokens_hold_it_rarely(held):
    assert held["tokens"] < 50
