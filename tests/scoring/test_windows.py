"""Windows, chunks and batches: against the loops that they are to equal."""

from types import SimpleNamespace

import numpy as np
import pytest

from lightning_pce._errors import UserError
from lightning_pce.scoring.windows import plan, windows


def guide(length, context, stride):
    """The loop of transformers' guide to perplexity: which tokens each window predicts, after its shift."""
    found, before = [], 0
    for begin in range(0, length, stride):
        end = min(begin + context, length)
        labels = np.full(end - begin, -100)
        labels[-(end - before) :] = np.arange(begin, end)[-(end - before) :]
        found.append((begin, end, [label for label in labels[1:].tolist() if label != -100]))
        before = end
        if end == length:
            break
    return [each for each in found if each[2]]


@pytest.mark.parametrize("context", [2, 3, 8])
def test_windows_are_those_of_the_guide(context):
    for stride in range(1, context + 1):
        for length in range(40):
            ours = [(a, b, list(range(first, b))) for a, b, first in windows(length, context, stride)]
            assert ours == guide(length, context, stride)


@pytest.mark.parametrize("context", [2, 3, 8])
def test_every_token_but_the_first_is_predicted_once(context):
    for stride in range(1, context):
        for length in range(1, 40):
            found = windows(length, context, stride)
            assert [p for _, end, first in found for p in range(first, end)] == list(range(1, length))
    assert windows(20, context) == windows(20, context, context // 2)


@pytest.mark.parametrize("context", [3, 4, 7, 8])
def test_llama_cpp_predicts_the_second_half_of_chunks_side_by_side(context):
    for length in range(40):
        found = windows(length, context, protocol="llama.cpp")
        chunks = length // context  # what is left is dropped
        assert [(start, end) for start, end, _ in found] == [
            (k * context, (k + 1) * context) for k in range(chunks)
        ]
        # Logits first ... n_ctx - 2 are read, with first = n_ctx / 2; each predicts the token after it.
        logits = range(context // 2, context - 1)
        for start, end, first in found:
            assert list(range(first, end)) == [start + row + 1 for row in logits]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"context": 1}, "context of 1"),
        ({"context": 2, "protocol": "llama.cpp"}, "context of 2"),
        ({"context": 8, "stride": 9}, "stride of 9"),
        ({"context": 8, "stride": 0}, "stride of 0"),
        ({"context": 8, "stride": 4, "protocol": "llama.cpp"}, "leave out the stride"),
        ({"context": 8, "protocol": "lm-eval"}, "lm-eval"),
    ],
)
def test_windows_that_are_refused(arguments, said):
    with pytest.raises(UserError, match=said):
        windows(10, **arguments)


def documents(lengths):
    return [SimpleNamespace(scored=np.arange(length) > 0) for length in lengths]


LENGTHS = np.random.default_rng(0).integers(1, 90, 200).tolist()


@pytest.mark.parametrize(("context", "batch_tokens"), [(32, 64), (64, 1), (16, 500), (128, 1 << 30)])
def test_a_plan_predicts_every_token_once_in_small_enough_batches(context, batch_tokens):
    chunks = plan(documents(LENGTHS), context, batch_tokens=batch_tokens)
    assert [chunk.number for chunk in chunks] == list(range(len(chunks)))
    predicted = {d: [] for d in range(len(LENGTHS))}
    for chunk in chunks:
        for batch in chunk.batches:
            sizes = [window.end - window.start for window in batch]
            assert sizes == sorted(sizes, reverse=True)
            assert len(batch) == 1 or len(batch) * sizes[0] <= batch_tokens
            for document, start, end, first in batch:
                assert start < first < end <= start + context
                predicted[document] += range(first, end)
    assert predicted == {  # each document's tokens in their order
        d: list(range(1, length)) for d, length in enumerate(LENGTHS)
    }


def test_chunks_are_small_where_there_is_little_and_hold_many_batches_where_there_is_much():
    few = plan(documents(LENGTHS), 64, batch_tokens=128)
    assert 20 < len(few) < 50
    assert len(plan(documents(LENGTHS[:5]), 64, batch_tokens=4096)) == 1
    many = plan(documents(LENGTHS * 50), 64, batch_tokens=128)
    assert 25 < np.median([len(chunk.batches) for chunk in many]) < 50
    sizes = [
        max(window.end - window.start for batch in c.batches for window in batch) for c in many if c.batches
    ]
    assert sizes == sorted(sizes, reverse=True)  # out of memory shows in the first chunk


def test_a_book_is_shared_by_many_chunks():
    chunks = plan(documents([100_000]), 64, batch_tokens=128)
    assert len(chunks) > 32
    starts = [window.start for chunk in chunks for batch in chunk.batches for window in batch]
    assert starts == sorted(starts)


def test_windows_begin_to_predict_at_the_first_scored_token_and_are_left_out_without_one():
    late = SimpleNamespace(scored=np.arange(20) >= 13)
    (chunk,) = plan([late, *documents([1])], 8, batch_tokens=64)
    assert [tuple(window) for batch in chunk.batches for window in batch] == [(0, 8, 16, 13), (0, 12, 20, 16)]


def test_a_plan_without_documents_is_empty_and_batches_of_nothing_are_refused():
    assert plan([], 8, batch_tokens=8) == ()
    with pytest.raises(UserError, match="Batches of 0"):
        plan(documents([3]), 8, batch_tokens=0)
