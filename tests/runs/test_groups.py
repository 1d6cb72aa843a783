"""Groups of tokens that choose other records by their means."""

import json

import numpy as np
import pytest
import torch

from lightning_pce import digest, intervals
from lightning_pce.runs import concordance
from lightning_pce.runs.comparison import compare
from lightning_pce.runs.history import History, write_validation
from tests.helpers import checkpoint_runs as generators


def of_two_curves(path, first, second, *, groups=2, documents=True, statistic="ce", seed=0, absent=()):
    """A history of 12 epochs; the tokens of group 0 follow the first curve, all others the second.

    ``absent``: epochs that have no digest of group 0.
    """
    ids, losses = generators.losses_of(first, 12, 240, seed)
    others = generators.losses_of(second, 12, 240, seed)[1]
    of = torch.from_numpy(np.random.default_rng(seed).integers(groups, size=len(ids)))
    losses, slots = torch.where(of == 0, losses, others), intervals.slots_of(ids)
    for epoch, each in enumerate(losses):
        masks = {"": of >= 0} | {f"group {k}": of == k for k in range(groups)}
        if epoch in absent:
            masks.pop("group 0")
        digests = {name: digest.from_values(each[mask]) for name, mask in masks.items()}
        counts = {
            name: intervals.add(intervals.empty(), each[mask], None, slots[mask])
            for name, mask in masks.items()
        }
        more = {"documents": {statistic: counts}} if documents else {}
        write_validation(
            path, run="a", name="val", step=epoch + 1, epoch=epoch, digests={statistic: digests}, **more
        )
    return History.load(path)


def parted_lines(history):
    return history[0].payload.path.read_text(encoding="utf-8").splitlines()


def late(epoch):
    """Becomes worse from the first epoch on."""
    return generators.agreeing(12 - epoch)


def said(verdict):
    return [each for each in verdict.sentences if each.startswith("Groups of tokens part")]


@pytest.fixture(scope="module")
def parted(tmp_path_factory):
    return of_two_curves(tmp_path_factory.mktemp("parted") / "history.jsonl", late, generators.agreeing)


def test_groups_that_part_are_told_with_what_each_would_choose(parted):
    verdict = concordance.verdict(parted)
    assert list(verdict.groups) == ["group 0", "group 1"]
    assert verdict.groups_part
    early, end = (verdict.groups[name].best for name in verdict.groups)
    assert said(verdict) == [
        f"Groups of tokens part: the mean is lowest in group 0 at {early} and in group 1 at {end}, and no "
        "record is within error of the lowest in each group. All tokens together mix them: look at the group "
        "that matters, by history.select(group=) or --group."
    ]
    assert [each.label for each in parted].index(early) < [each.label for each in parted].index(end)
    assert set(verdict.groups["group 0"].names).isdisjoint(verdict.groups["group 1"].names)


def test_a_table_for_the_command_line_says_it_too(parted):
    assert any(each.startswith("Groups of tokens part") for each in compare(parted).to_plain()["sentences"])


def test_a_history_of_one_group_says_nothing_of_groups(parted):
    verdict = concordance.verdict(parted.select(group="group 1"))
    assert verdict.groups == {}
    assert not said(verdict)
    assert not verdict.groups_part


@pytest.mark.parametrize("groups", [5, 10])
def test_groups_of_one_curve_have_a_record_in_common(tmp_path, groups):
    path = tmp_path / "history.jsonl"
    verdict = concordance.verdict(
        of_two_curves(path, generators.agreeing, generators.agreeing, groups=groups)
    )
    assert len(verdict.groups) == groups
    assert len({each.best for each in verdict.groups.values()}) > 1  # by chance
    assert not said(verdict)


def test_many_groups_are_judged_more_mildly_each(parted, tmp_path):
    many = of_two_curves(tmp_path / "history.jsonl", late, generators.agreeing, groups=6)
    own = concordance.ties(many.select(group="group 5"), "mean")
    allowed = concordance.verdict(many).groups["group 5"].allowed
    assert all(allowed[name] >= own.allowed[name] for name in own.allowed)
    assert sum(allowed.values()) > 1.1 * sum(own.allowed.values())


def test_without_error_bars_nothing_is_said(tmp_path):
    history = of_two_curves(tmp_path / "history.jsonl", late, generators.agreeing, documents=False)
    assert concordance.verdict(history).groups == {}


def test_groups_that_some_records_do_not_have_are_left_out(tmp_path):
    history = of_two_curves(tmp_path / "history.jsonl", late, generators.agreeing, absent=(3,))
    verdict = concordance.verdict(history)
    assert list(verdict.groups) == ["group 1"]
    assert not said(verdict)


@pytest.mark.parametrize(
    "damage", [lambda item: item | {"digest": item["digest"][:9]}, lambda item: {}, lambda item: 3]
)
def test_a_group_that_is_damaged_is_left_out_and_all_tokens_are_compared(parted, tmp_path, damage):
    path = tmp_path / "history.jsonl"
    lines = parted_lines(parted)
    record = json.loads(lines[4])
    record["payload"]["ce"]["group 0"] = damage(record["payload"]["ce"]["group 0"])
    lines[4] = json.dumps(record, separators=(",", ":"))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    verdict = concordance.verdict(History.load(path))
    assert verdict.shortlist == concordance.verdict(parted).shortlist
    assert list(verdict.groups) == ["group 1"]


def test_groups_of_another_statistic_are_those_it_has(tmp_path):
    history = of_two_curves(tmp_path / "history.jsonl", late, generators.agreeing, statistic="entropy")
    assert said(concordance.verdict(history.select(of="entropy")))
