"""Several threads update, read and copy one metric: nothing is lost, nothing counted twice."""

import copy
import pickle
import sys
import threading

import pytest
import torch

from lightning_pce import BitsPerByte, PercentileCrossEntropy, StreamingQuantiles, TokenProxies
from lightning_pce.metrics.weighted_mean import WeightedMean

THREADS, UPDATES = 3, 60
LOGITS, LABELS = torch.zeros(2, 4, 5), torch.zeros(2, 4).long()
# A metric, what an update of 8 tokens is, and under which key a result counts them.
METRICS = {
    "quantiles": (StreamingQuantiles, lambda m: m.update(torch.ones(8)), "count"),
    "percentiles": (PercentileCrossEntropy, lambda m: m.update(LOGITS, LABELS), "count"),
    "bits": (lambda: BitsPerByte([1] * 5), lambda m: m.update(torch.ones(8), LABELS.flatten()), None),
    "proxies": (TokenProxies, lambda m: m.update(LOGITS, LABELS), "tokens"),
    "mean": (WeightedMean, lambda m: m.update(torch.ones(8)), "count"),
}


def counted(metric, key):
    return metric.totals["tokens"] if key is None else metric.compute()[key]


@pytest.fixture(autouse=True)
def threads_that_switch_often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def in_threads(*jobs):
    errors = []

    def run(job):
        try:
            for _ in range(UPDATES):
                job()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


@pytest.mark.parametrize("name", METRICS)
def test_no_update_of_several_threads_is_lost(name):
    make, update, key = METRICS[name]
    metric = make()
    in_threads(*[lambda: update(metric)] * THREADS)
    assert counted(metric, key) == THREADS * UPDATES * 8


@pytest.mark.parametrize("name", ["quantiles", "bits"])
def test_forward_compute_and_copies_beside_updates_lose_nothing(name):
    make, update, key = METRICS[name]
    metric = make()
    arguments = (torch.ones(8), torch.zeros(8).long()) if name == "bits" else (torch.ones(8),)
    in_threads(
        lambda: update(metric),
        lambda: metric(*arguments),
        lambda: counted(metric, key),
        lambda: pickle.loads(pickle.dumps(metric)),
    )
    assert counted(metric, key) == 2 * UPDATES * 8


def test_moves_and_copies_beside_updates_lose_nothing():
    metric = StreamingQuantiles()
    in_threads(lambda: metric.update(torch.ones(8)), lambda: metric.to("cpu"), lambda: copy.deepcopy(metric))
    assert metric.compute()["count"] == UPDATES * 8


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda metric: pickle.loads(pickle.dumps(metric))])
def test_a_copy_has_a_lock_of_its_own(copied):
    metric = StreamingQuantiles()
    metric.update(torch.ones(8))
    with metric._lock:
        other = copied(metric)
    assert other._lock is not metric._lock
    in_threads(*[lambda: other.update(torch.ones(8))] * THREADS)
    assert other.compute()["count"] == (THREADS * UPDATES + 1) * 8
