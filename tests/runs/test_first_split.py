"""The one word in training on a mean and a bulk that part ways."""

import pytest

from lightning_pce import History
from lightning_pce.runs.concordance import common_tie
from lightning_pce.runs.first_split import FirstSplit
from tests.helpers.checkpoint_runs import agreeing, run_of, saturating, split, written


def looked(tmp_path, run):
    """What is said after each record of a run, and what a look at all of them would find."""
    looks, said, apart = FirstSplit(), [], []
    for number in range(1, len(run) + 1):
        (tmp_path / "history.jsonl").unlink(missing_ok=True)
        history = History.load(written(tmp_path / "history.jsonl", run[:number]))
        said.append(looks.look(lambda history=history: history))
        apart.append(not common_tie(history))
    return said, apart


def test_a_split_is_said_once_when_it_is_first_there(tmp_path):
    said, apart = looked(tmp_path, run_of(split, epochs=6, documents=1600))
    assert apart[-1]
    [words] = [each for each in said if each is not None]
    first = apart.index(True)
    assert said[first] == words
    assert f"part at epoch {first}:" in words


@pytest.mark.parametrize("curve", [agreeing, saturating])
def test_where_they_agree_nothing_is_said(tmp_path, curve):
    said, _ = looked(tmp_path, run_of(curve, epochs=3))
    assert said == [None] * 3


def test_without_documents_nothing_is_said_for_it_may_be_chance(tmp_path):
    run = [(name, digest, None) for name, digest, _ in run_of(split, epochs=6, documents=1600)]
    path = written(tmp_path / "history.jsonl", run)
    assert FirstSplit().look(lambda: History.load(path)) is None


def test_with_few_documents_nothing_is_said_for_it_may_be_chance(tmp_path):
    run = run_of(agreeing, epochs=8, documents=15, seed=1)
    assert not common_tie(run)
    path = written(tmp_path / "history.jsonl", run)
    assert FirstSplit().look(lambda: History.load(path)) is None


def test_the_file_is_read_more_rarely_the_longer_it_is(tmp_path):
    looks, reads = FirstSplit(), []
    every = History.load(written(tmp_path / "history.jsonl", run_of(agreeing, epochs=60)))
    for number in range(1, 61):
        looks.look(lambda number=number: reads.append(number) or every[:number])
    assert reads[:21] == list(range(1, 22))
    assert len(reads) < 45
