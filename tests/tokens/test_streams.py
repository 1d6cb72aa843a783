"""The eager kernel on a CPU: streams of chunks in threads, with the results of one thread."""

import os
import subprocess
import sys
import threading

import pytest
import torch

from lightning_pce.tokens.from_hidden_states import linear_token_statistics
from lightning_pce.tokens.kernels import eager
from lightning_pce.tokens.statistics import token_cross_entropy, token_statistics
from tests.helpers.threads import count_of_a_new_thread
from tests.helpers.token_cases import assert_statistics, hard_rows, reference


@pytest.fixture
def threads(monkeypatch):
    """Sets the number of threads, and uses them for few logits too."""
    before = torch.get_num_threads()
    monkeypatch.setattr(eager, "LOGITS_FOR_A_THREAD", 1)
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def streams_seen(monkeypatch):
    """In how many streams each call of the kernel worked."""
    seen, in_streams = [], eager.in_streams

    def noting(stream, pieces, streams):
        seen.append(streams)
        in_streams(stream, pieces, streams)

    monkeypatch.setattr(eager, "in_streams", noting)
    return seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("vocabulary", [1, 17, 5003, 262_144])
def test_results_are_the_same_bits_with_any_number_of_threads(vocabulary, dtype, threads, streams_seen):
    logits, labels = hard_rows(vocabulary, dtype)
    threads(1)
    expected = token_statistics(logits, labels)
    if vocabulary < 262_144:
        assert_statistics(expected, reference(logits, labels))
    for number in (2, 3, 6):
        threads(number)
        stats = token_statistics(logits, labels)
        for value, other in zip(stats, expected, strict=True):
            torch.testing.assert_close(value, other, rtol=0, atol=0, equal_nan=True)
        with torch.inference_mode():
            assert torch.equal(token_statistics(logits, labels).rank, expected.rank)
    assert streams_seen[0] == 1
    assert max(streams_seen) > 2


def test_more_threads_than_there_is_scratch_for_are_shared_out(threads, streams_seen):
    logits, labels = hard_rows(262_144, torch.float32)
    threads(9)
    assert_statistics(token_statistics(logits, labels), reference(logits, labels))
    assert streams_seen == [6]


def test_hidden_states_and_the_cross_entropy_alone_go_in_streams_too(threads, streams_seen):
    random = torch.Generator().manual_seed(0)
    hidden, head = torch.randn(64, 8, generator=random), torch.randn(300, 8, generator=random)
    labels = torch.randint(0, 300, (64,), generator=random)
    threads(3)
    ce, _, _ = token_cross_entropy(hidden @ head.T, labels)
    stats = linear_token_statistics(hidden, head, labels, statistics=("ce",))
    assert streams_seen == [3, 3]
    torch.testing.assert_close(stats.ce, ce, rtol=1e-5, atol=1e-5)


def test_few_logits_are_read_in_the_callers_thread(streams_seen):
    logits, labels = hard_rows(1000, torch.float32)
    token_statistics(logits, labels)
    assert streams_seen == [1]


def test_nothing_is_left_behind(threads):
    threads(3)
    logits, labels = hard_rows(1000, torch.float32)
    running = threading.active_count()
    for rows in (logits, logits[:1, :1]):
        token_statistics(rows, labels[: len(rows), : rows.shape[1]])
        assert torch.get_num_threads() == count_of_a_new_thread() == 3
    assert threading.active_count() == running


def test_an_error_inside_a_stream_reaches_the_caller(threads, monkeypatch):
    def fails(*_):
        raise MemoryError("no more")

    threads(3)
    monkeypatch.setattr(eager, "_ahead", fails)
    with pytest.raises(MemoryError, match="no more"):
        token_statistics(*hard_rows(1000, torch.float32))
    assert torch.get_num_threads() == 3


FORK = """
import os
import torch
from lightning_pce.tokens.statistics import token_statistics

torch.set_num_threads(2)
logits, labels = torch.randn(512, 8000), torch.randint(0, 8000, (512,))
expected = token_statistics(logits, labels)
child = os.fork()
if child == 0:
    stats = token_statistics(logits, labels)
    os._exit(0 if torch.equal(stats.ce, expected.ce) and torch.get_num_threads() == 2 else 1)
print(os.waitpid(child, 0)[1])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_process_that_was_forked_afterwards_can_do_the_same():
    run = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=100)
    assert run.stdout.split() == ["0"], run.stderr
