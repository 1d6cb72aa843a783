"""One intra-op thread inside, and nothing of it left behind."""

import threading

import pytest
import torch

from lightning_pce._threads import single_threaded


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def count_of_a_new_thread():
    counts = []
    thread = threading.Thread(target=lambda: counts.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return counts[0]


def test_one_thread_inside_and_the_callers_count_afterwards(three_threads):
    with single_threaded():
        assert torch.get_num_threads() == 1
        with single_threaded():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == count_of_a_new_thread() == 3


def test_an_error_inside_leaves_the_callers_count(three_threads):
    with pytest.raises(ZeroDivisionError), single_threaded():
        _ = 1 // 0
    assert torch.get_num_threads() == count_of_a_new_thread() == 3


def test_a_worker_that_ran_single_threaded_leaves_threads_started_later_as_they_were(three_threads):
    def work():
        with single_threaded():
            torch.ones(10).sum()

    worker = threading.Thread(target=work)
    worker.start()
    worker.join()
    assert torch.get_num_threads() == count_of_a_new_thread() == 3
