"""One intra-op thread inside, streams of pieces in threads, and nothing of either left behind."""

import os
import signal
import threading
import time

import pytest
import torch

from lightning_pce._threads import in_streams, single_threaded
from tests.helpers.threads import count_of_a_new_thread


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


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


def left_behind():
    """What an earlier call may have left: threads, and the counts here and in threads started from now on."""
    return threading.active_count(), torch.get_num_threads(), count_of_a_new_thread()


@pytest.mark.parametrize(("streams", "counts"), [(1, [1]), (2, [1, 2]), (3, [1, 1, 1]), (4, [1, 1, 1, 1])])
def test_every_piece_is_done_once_and_the_callers_threads_are_shared_out(streams, counts, three_threads):
    before = left_behind()
    done, seen, met = [], [], threading.Barrier(streams)

    def stream(pieces):
        seen.append(torch.get_num_threads())
        met.wait(10)  # all run at the same time
        for piece in pieces:
            done.append(piece)
            assert torch.get_num_threads() == seen[0] or streams == 2

    in_streams(stream, range(100), streams)
    assert sorted(done) == list(range(100))
    assert sorted(seen) == counts
    assert left_behind() == before


def test_there_are_no_more_streams_than_pieces(three_threads):
    seen = []
    in_streams(lambda pieces: seen.append(len(list(pieces))), range(2), 3)
    assert len(seen) == sum(seen) == 2
    in_streams(lambda pieces: seen.append("called"), [], 3)
    assert "called" not in seen


def test_threads_of_others_that_start_meanwhile_have_the_callers_count(three_threads):
    counts, other = [], threading.Event()

    def stream(pieces):
        for _ in pieces:
            assert other.wait(10)

    def look():
        time.sleep(0.3)  # the streams have begun
        counts.append(count_of_a_new_thread())
        other.set()

    looking = threading.Thread(target=look)
    looking.start()
    in_streams(stream, range(3), 3)
    looking.join()
    assert counts == [3]


@pytest.mark.parametrize("streams", [1, 3])
def test_the_first_error_reaches_the_caller_and_the_others_end_early(streams, three_threads):
    before, done = left_behind(), []

    def stream(pieces):
        for piece in pieces:
            if piece == 5:
                raise ZeroDivisionError("the fifth")
            done.append(piece)
            time.sleep(0.001)

    with pytest.raises(ZeroDivisionError, match="the fifth"):
        in_streams(stream, range(10_000), streams)
    assert len(done) < 1000
    assert left_behind() == before


@pytest.mark.parametrize("streams", [1, 3])
def test_an_interrupt_ends_all_threads(streams, three_threads):
    before, begun = left_behind(), []

    def stream(pieces):
        for piece in pieces:
            begun.append(piece)
            time.sleep(0.01)

    def interrupt():
        while not begun:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    interrupting = threading.Thread(target=interrupt)
    interrupting.start()
    with pytest.raises(KeyboardInterrupt):
        in_streams(stream, range(10_000), streams)
    interrupting.join()
    assert len(begun) < 1000
    deadline = time.monotonic() + 10  # a thread that was being started may end a moment later
    while left_behind() != before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert left_behind() == before


@pytest.mark.parametrize("most", [0, 1])
def test_where_threads_can_not_be_started_the_work_is_done_by_fewer(most, three_threads, monkeypatch):
    done, started, start = [], [], threading.Thread.start

    def limited(thread):
        if len(started) == most:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    def stream(pieces):
        assert torch.get_num_threads() == 1
        done.extend(pieces)

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", limited)
        in_streams(stream, range(100), 3)
    assert sorted(done) == list(range(100))
    assert torch.get_num_threads() == count_of_a_new_thread() == 3


@pytest.mark.parametrize("streams", [1, 2])
def test_gradient_and_inference_modes_are_those_of_the_caller(streams):
    modes = set()

    def stream(pieces):
        for _ in pieces:
            modes.add((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))

    in_streams(stream, range(9), streams)
    assert modes == {(True, False)}
    modes.clear()
    with torch.no_grad():
        in_streams(stream, range(9), streams)
    assert modes == {(False, False)}
    modes.clear()
    with torch.inference_mode():
        in_streams(stream, range(9), streams)
    assert modes == {(False, True)}
