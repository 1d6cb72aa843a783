"""Forty-nine real Trainer runs, a pairwise plan over nine axes: see ``situations.py``."""

import itertools

import pytest
import torch

from tests.helpers import situations as si
from tests.helpers.ranks import run_module_on_ranks
from tests.helpers.summaries import expected_log

# Every value of every axis occurs in these; the slow part runs the others.
REPRESENTATIVE = [si.NAMES[number] for number in (0, 2, 3, 6, 8, 11, 22, 38, 39)]
OTHERS = [name for name in si.NAMES if name not in REPRESENTATIVE]


def possible(row):
    """Whether a situation exists: not every combination does."""
    s = si.Situation(*row)
    fit = s.stage in ("fit_val", "fit_train")
    if (s.schedule == "-") == fit or (s.sanity == "-") == fit:
        return False
    if s.twist in ("accumulate", "metric_in_step") and not fit:
        return False
    if s.twist == "limit_0" and s.stage == "test":
        return False
    return not (
        s.devices == "fsdp2" and (s.precision == "64-true" or s.twist in ("compiled", "configure_model"))
    )


def pairs(row):
    return {frozenset(pair) for pair in itertools.combinations(enumerate(row), 2)}


AXES = [
    (
        "none",
        "accumulate",
        "compiled",
        "configure_model",
        "no_super",
        "metric_in_step",
        "validate_first",
        "limit_0",
        "checkpoint",
    ),
    ("one", "equal", "unequal", "zero", "fsdp2"),
    ("32-true", "bf16-mixed", "bf16-true", "16-true", "64-true"),
    ("fit_val", "fit_train", "validate", "test"),
    ("one", "two", "three", "cycle"),
    ("epoch", "inside", "second", "-"),
    ("mixin", "callback", "views"),
    ("tqdm", "rich", "none"),
    ("on", "off", "-"),
]


def possible_pairs():
    """All pairs of values of two axes that occur in a situation that exists."""
    found = set()
    for i, j in itertools.combinations(range(len(AXES)), 2):
        for first, second in itertools.product(AXES[i], AXES[j]):
            axes = [*AXES[:i], (first,), *AXES[i + 1 : j], (second,), *AXES[j + 1 :]]
            if any(possible(row) for row in itertools.product(*axes)):
                found.add(frozenset([(i, first), (j, second)]))
    return found


def test_the_plan_holds_every_possible_pair_of_values_and_nothing_impossible():
    assert all(possible(row) for row in si.PLAN)
    assert possible_pairs() == set().union(*map(pairs, si.PLAN))
    part = [si.PLAN[si.NAMES.index(name)] for name in REPRESENTATIVE]
    assert [set(values) for values in zip(*part, strict=True)] == [set(axis) for axis in AXES]


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory, worker_id):
    root = tmp_path_factory.getbasetemp()
    root = root if worker_id == "master" else root.parent

    def notes_of(names):
        """Of the runs that need two processes; whoever asks first makes them all."""
        directory = root / f"situations_{len(names)}"
        return run_module_on_ranks(directory, "tests.helpers.situations", *names, seconds=400)

    return notes_of


@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_a_situation_logs_what_its_tokens_say(name, two_processes, tmp_path):
    check_situation(name, REPRESENTATIVE, two_processes, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_every_other_situation_logs_what_its_tokens_say(name, two_processes, tmp_path):
    check_situation(name, OTHERS, two_processes, tmp_path)


def check_situation(name, names, two_processes, tmp_path):
    situation = si.PLAN[si.NAMES.index(name)]
    if situation.devices == "one":
        ranks = [si.run(situation, tmp_path)]
    else:
        ranks = [notes[name] for notes in two_processes(names)]
    check(situation, ranks)


def check(situation, ranks):
    """What the ranks noted is what the situation promises."""
    if situation.twist == "no_super" and situation.entry == "mixin":
        for notes in ranks:
            assert "super().on_" in notes["error"]
        return
    assert [notes["error"] for notes in ranks] == [None] * len(ranks)
    assert [len(notes["runs"]) for notes in ranks] == [number_of_runs(situation)] * len(ranks)
    for runs in zip(*(notes["runs"] for notes in ranks), strict=True):
        check_run(situation, runs)
    if situation.stage in ("fit_val", "fit_train"):
        check_training(situation, [notes["train"] for notes in ranks])
    if number_of_runs(situation):
        assert all(notes["dtypes"] == ["torch.float64"] for notes in ranks)


def number_of_runs(situation):
    if situation.twist == "limit_0":
        return 0
    own = {"epoch": 2, "inside": 2, "second": 1, "-": 1}[situation.schedule]
    return own + (situation.twist == "validate_first")


def check_run(situation, runs):
    """A validation or test: the same on all ranks, of the tokens of all, by one collective for a digest."""
    stage, loaders = runs[0]["stage"], si.LOADERS[situation.loaders]
    pooled = situation.loaders == "cycle" and situation.entry == "callback"
    digests = 1 if pooled else loaders
    assert [run["logged"] for run in runs] == [runs[0]["logged"]] * len(runs)
    assert [run["gathers"] for run in runs] == [digests if len(runs) > 1 else 0] * len(runs)
    seen = [joined(value(run["seen"], i) for run in runs) for i in range(loaders)]
    promised = {}
    for index, losses in enumerate([joined(seen)] if pooled else seen):
        prefix = stage if digests == 1 else f"{stage}_dl{index}"
        promised |= expected_log(torch.tensor(losses), prefix, si.PERCENTILES)
    assert runs[0]["logged"] == pytest.approx(promised, rel=1e-6)


def joined(lists):
    return list(itertools.chain.from_iterable(lists))


def value(seen, index):
    """JSON makes strings of numbers."""
    return seen.get(index, seen.get(str(index), []))


def check_training(situation, notes):
    assert [note["logged"] for note in notes] == [notes[0]["logged"]] * len(notes)
    if situation.stage == "fit_val":
        assert notes[0]["logged"] == {}
        assert [note["gathers"] for note in notes] == [0] * len(notes)
        return
    epochs = 1 if situation.schedule == "inside" else 2
    last = si.TRAIN_BATCHES  # the batches of the last epoch
    if situation.entry == "callback":  # of the last window
        last = si.WINDOW * (2 if situation.twist == "accumulate" else 1)
    losses = joined(joined(note["seen"][-last:]) for note in notes)
    assert notes[0]["logged"] == pytest.approx(
        expected_log(torch.tensor(losses), "train", si.PERCENTILES), rel=1e-6
    )
    results = epochs * si.TRAIN_BATCHES // last
    assert [note["gathers"] for note in notes] == [results if len(notes) > 1 else 0] * len(notes)
