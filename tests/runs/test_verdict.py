"""The verdict: a test for each of its sentences."""

import math

import pytest
import torch

from lightning_pce import digest
from lightning_pce.runs import _sentences, concordance
from lightning_pce.runs.history import History, write_checkpoint
from tests.helpers import checkpoint_runs as generators
from tests.helpers.checkpoint_runs import losses_of, records_of, run_of, written

NAN = math.nan


@pytest.fixture(scope="module")
def agreeing():
    return run_of(generators.agreeing)


@pytest.fixture(scope="module")
def saturating():
    return run_of(generators.saturating)


@pytest.fixture(scope="module")
def split():
    return run_of(generators.split, 6, 1600)


@pytest.fixture(scope="module")
def tail():
    return run_of(generators.tail_regression)


def without_documents(run):
    return [(name, state, None) for name, state, _ in run]


def sentence(verdict, beginning):
    (found,) = (each for each in verdict.sentences if each.startswith(beginning))
    return found


def begins(verdict, beginning):
    return any(each.startswith(beginning) for each in verdict.sentences)


# Agreement or shortlist


def test_agreement_names_the_record_and_all_that_are_as_good(agreeing):
    verdict = concordance.verdict(agreeing)
    (kept,) = verdict.shortlist
    assert verdict.agree
    assert verdict.sentences[0] == (
        f"Mean, p50 and p95 agree on {kept}: it is within error of the best in each of them."
    )
    common = set.intersection(*(set(ties.names) for ties in verdict.ties.values()))
    others = sentence(verdict, "Within error in each of them too: ")
    assert len(common) > 2
    assert "epoch" in others
    assert kept not in others.split(": ")[1].rstrip(".").split(", ")
    assert verdict.alarm is None


def test_a_shortlist_says_what_each_record_stands_for(split):
    verdict = concordance.verdict(split)
    assert not verdict.agree
    assert verdict.shortlist == concordance.shortlist(split)
    assert verdict.sentences[0] == (
        "Mean, p50 and p95 do not agree: no record is within error of the best in all of them."
    )
    assert verdict.sentences[1] == f"Shortlist: {' and '.join(verdict.shortlist)}."
    assert verdict.bulk == "p50"
    assert verdict.picks["p50"] == "epoch 6"
    late = sentence(verdict, "At epoch 6 p50 (0.4")
    assert late.endswith(" nats, the lowest) is within error of its best.")
    early = sentence(verdict, f"At {verdict.shortlist[0]} mean (1.")
    assert "and p95 (6." in early
    assert early.endswith(") are within error of their best.")
    for name, ties in verdict.ties.items():
        assert ties == concordance.ties(split, name)


def test_a_tie_that_is_not_the_lowest_says_where_that_is():
    run = run_of(generators.saturating, seed=7000)  # by chance p95 is lowest at epoch 3
    verdict = concordance.verdict(run)
    ties = verdict.ties["p95"]
    assert ties.best == "epoch 3"
    assert verdict.shortlist[0] == "epoch 4"
    said = sentence(verdict, "At epoch 4 mean (")
    assert f", the lowest is {verdict_value(run, ties)} nats at epoch 3) are within error" in said


def verdict_value(run, ties):
    (state,) = (state for name, state, _ in run if name == ties.best)
    return f"{digest.quantile(state, float(ties.statistic[1:]) / 100):.3f}"


def test_mean_and_bulk_may_agree_without_p95():
    bulk, tail = torch.linspace(0.1, 2, 900), torch.full((100,), 5.0)
    # The bulk falls by 0.1; p95 rises by 0.5, which costs the mean 0.05.
    records = [
        ("before", digest.from_values(torch.cat([bulk, tail])), None),
        ("after", digest.from_values(torch.cat([bulk - 0.1, tail + 0.5])), None),
    ]
    verdict = concordance.verdict(records)
    assert verdict.sentences[0] == (
        "Mean and p50 agree on after, but no record is within error of the best in p95 too."
    )
    assert verdict.shortlist == ("before", "after")
    assert not verdict.agree


def test_two_that_are_as_good_are_joined_by_a_word_and_very_many_are_counted():
    losses = torch.linspace(0.1, 5, 400, dtype=torch.float64)
    costs = [1.0, 0.0, 1.0, 0.004, 1.0, 0.002]
    runs = [(f"{k}", digest.from_values(losses + cost), None) for k, cost in enumerate(costs)]
    assert sentence(concordance.verdict(runs), "Within error in each of them too") == (
        "Within error in each of them too: 3 and 5."
    )
    many = [(f"{k}", digest.from_values(losses + (k % 3 % 2)), None) for k in range(60)]
    assert sentence(concordance.verdict(many), "Within error in each of them too") == (
        "Within error in each of them too: 39 of 60 from 2 to 59."
    )


def test_names_of_the_user_are_written_as_they_are():
    losses = torch.linspace(0.1, 5, 400, dtype=torch.float64)
    other = torch.where(losses < 3, losses - 0.1, losses + 1)
    broken = torch.cat([losses[1:], torch.tensor([NAN])])
    names = ("checkpoint-1", "model b", "last.ckpt")
    runs = [
        (name, digest.from_values(each), None)
        for name, each in zip(names, (losses, other, broken), strict=True)
    ]
    verdict = concordance.verdict(runs)
    assert verdict.shortlist == ("checkpoint-1", "model b")
    for beginning in ("At checkpoint-1 ", "At model b ", "Left out: last.ckpt "):
        assert begins(verdict, beginning)


def test_one_record_is_no_choice(agreeing):
    verdict = concordance.verdict(agreeing[:1])
    assert verdict.sentences[0] == "There is one record, epoch 1: nothing to choose from."
    assert verdict.agree
    assert verdict.shortlist == ("epoch 1",)


def test_no_sentence_tells_to_use_a_statistic(agreeing, saturating, split, tail):
    for run in (agreeing, saturating, split, tail):
        assert "use " not in str(concordance.verdict(run)).lower()


# From the mean's to the bulk's pick


def test_the_change_between_the_picks_is_told_by_share_crossing_and_areas(saturating):
    verdict = concordance.verdict(saturating)
    change = verdict.reshaping
    assert (change.before, change.after) == (verdict.picks["mean"], verdict.picks["p75"])
    assert sentence(verdict, "From ") == (
        f"From {change.before}, the mean's pick, to {change.after}, the pick of p75, "
        f"{100 * change.better_share:.0f} % of the percentiles fall, mostly those below "
        f"p{100 * change.crossing:g}, while those above it rise."
    )
    assert sentence(verdict, "What falls") == (
        f"What falls lowers the mean by {change.gained.total:.2g} nats a token, what rises raises it by "
        f"{change.lost.total:.2g}, {change.lost.upper:.2g} of that in the top 5 % of the tokens: together "
        f"{change.lost.total - change.gained.total:+.2g}."
    )
    assert change.lost.upper > 0.1


def test_what_is_sure_about_the_change_is_told_by_ranges(saturating):
    verdict = concordance.verdict(saturating)
    said = sentence(verdict, "Surely lower: p")
    low, high = max(verdict.reshaping.better, key=lambda ends: ends[1] - ends[0])
    assert f"p{100 * low:g} to p{100 * high:g}" in said
    assert "; surely higher: p9" in said


def test_if_nothing_is_sure_about_the_change_that_is_told():
    runs = (run_of(generators.agreeing, 12, 60, seed)[7:] for seed in range(20))
    verdicts = (concordance.verdict(run) for run in runs)
    verdict = next(each for each in verdicts if each.reshaping and not each.reshaping.better)
    assert "No percentile is surely lower or higher." in verdict.sentences


def test_one_pick_of_both_is_no_change():
    losses = torch.linspace(0.1, 5, 400, dtype=torch.float64)
    records = [(f"{k}", digest.from_values(losses + abs(k - 1)), None) for k in range(3)]
    verdict = concordance.verdict(records)
    assert verdict.reshaping is None
    assert not begins(verdict, "From")


def test_a_rise_of_the_last_token_alone_is_told():
    losses = torch.linspace(0.1, 5, 400, dtype=torch.float64)
    lower = losses - 0.05
    lower[-1] = 500.0
    records = [("a", digest.from_values(losses), None), ("b", digest.from_values(lower), None)]
    said = sentence(concordance.verdict(records), "From")
    assert said == (
        "From a, the mean's pick, to b, the pick of p50, over 99 % of the percentiles fall, mostly those "
        "below p99.5, while those above it rise."
    )


def test_equal_areas_are_no_change_of_the_mean_and_large_ones_are_plain_numbers():
    losses = torch.linspace(1, 3, 1001, dtype=torch.float64)
    wider = 2 + (losses - 2) * 1.1  # by symmetry as much up as down, but for a rounding error
    change = concordance.reshaping(
        *((name, digest.from_values(each), None) for name, each in (("a", losses), ("b", wider)))
    )
    assert list(_sentences.change(change, "p50", in_nats=True))[1].endswith("of the tokens: together 0.")
    change = concordance.reshaping(
        *((name, digest.from_values(each), None) for name, each in (("a", losses), ("b", 1000 * losses)))
    )
    assert list(_sentences.change(change, "p50", in_nats=True))[1].endswith(": together +1,998.")


def test_an_infinite_token_leaves_the_areas_out(saturating):
    ids, losses = losses_of(generators.saturating)
    losses[8:, 5] = torch.inf  # not yet at the mean's pick
    verdict = concordance.verdict(records_of(ids, losses))
    assert begins(verdict, "Some tokens have an infinite value")
    assert not begins(verdict, "What falls")


def test_a_mean_that_is_infinite_everywhere_picks_nothing(agreeing):
    ids, losses = losses_of(generators.agreeing)
    losses[:, 5] = torch.inf
    verdict = concordance.verdict(records_of(ids, losses))
    assert verdict.picks["p50"] != "epoch 1"
    # Epoch 1, the first of equal ones, has a p95 that is surely worse: of no interest.
    assert verdict.alarm is verdict.reshaping is None
    assert begins(verdict, "The mean is infinite at every record")
    assert not begins(concordance.verdict(agreeing), "The mean is infinite")


# Saturation


def test_a_saturating_run_names_p75_for_the_bulk_and_keeps_the_best_p95(saturating):
    verdict = concordance.verdict(saturating)
    assert verdict.bulk == "p75"
    assert verdict.saturated == ("p5", "p25", "p50")
    assert sentence(verdict, "Saturated: p5, p25 and p50 (under 0.01 nats at best").endswith(
        "Their order is about certainty, not about what is known. p75 stands for the bulk."
    )
    assert "epoch 4" in verdict.shortlist
    assert set(verdict.shortlist) & set(verdict.ties["p75"].names)
    assert not verdict.agree


def test_saturated_percentiles_below_the_bulk_are_told(agreeing):
    said = sentence(concordance.verdict(agreeing), "Saturated: p5 (")
    assert said.endswith("not about what is known.")


def test_saturation_of_entropy_says_nothing_of_labels(saturating, tmp_path):
    history = History.load(written(tmp_path / "history.jsonl", saturating, statistic="entropy"))
    said = sentence(concordance.verdict(history.select(of="entropy")), "Saturated: ")
    assert said.startswith("Saturated: p5, p25 and p50 (under 0.01 nats at best). Their")


def test_without_a_bulk_mean_and_p95_are_compared():
    losses = torch.linspace(0, 1, 1001, dtype=torch.float64)
    records = [(f"{k}", digest.from_values(losses ** (60 + k)), None) for k in range(3)]
    verdict = concordance.verdict(records)
    assert verdict.bulk is verdict.reshaping is None
    assert list(verdict.ties) == ["mean", "p95"]
    assert verdict.sentences[0].startswith("Mean and p95 agree on 2")
    assert sentence(verdict, "The bulk is saturated (p50, p75 and p90 are under 0.01 nats at best")


# The alarm


def test_a_tail_that_grows_while_the_bulk_is_equal_raises_an_alarm(tail):
    verdict = concordance.verdict(tail)
    assert verdict.alarm in verdict.sentences
    assert verdict.alarm.startswith("Alarm: mean and p50 agree, but the tail has become worse. At epoch 1")
    assert f"surely more than {verdict_value(tail, verdict.ties['p95'])} nats" in verdict.alarm
    assert verdict.ties["p95"].best in ("epoch 7", "epoch 8")


def test_the_last_record_raises_it_where_mean_and_bulk_pick_an_earlier_one():
    said = [concordance.verdict(run_of(generators.tail_regression, seed=seed)).alarm for seed in range(6)]
    assert all(said)
    assert any("the pick of p50" in each for each in said)
    assert any("At epoch 12, the last record, where p50 is within error of its best" in each for each in said)


def test_a_bulk_that_rises_by_as_much_is_no_alarm():
    verdict = concordance.verdict(run_of(generators.overtrained, seed=104))
    assert "epoch 12" in verdict.ties["p50"].names
    assert "epoch 12" not in verdict.ties["p95"].names
    assert verdict.alarm is None


def test_a_last_record_whose_bulk_is_worse_too_is_no_alarm():
    def both_in_the_end(epoch):
        rise = torch.tensor([1, 1.3, 1.3, 1.3, 2, 2, 2]).numpy() if epoch > 10 else 1
        return generators.agreeing(epoch) * rise

    verdict = concordance.verdict(run_of(both_in_the_end))
    assert verdict.agree
    assert "epoch 12" not in verdict.ties["p50"].names
    assert verdict.alarm is None


def test_of_records_with_the_same_lowest_bulk_one_with_a_good_tail_is_enough():
    ids, losses = losses_of(generators.overtrained, seed=[35, 0])
    run = records_of(ids, (10 * losses).round() / 10)  # p50 is 0.5 at several epochs, of which 6 is the first
    verdict = concordance.verdict(run)
    assert list(verdict.ties["p50"].costs.values()).count(0) > 1
    costs = verdict.ties["p95"].costs
    assert costs[verdict.picks["p50"]] > 0.2
    assert verdict.alarm is None


def test_no_alarm_without_documents_or_without_agreement(tail, saturating):
    assert concordance.verdict(without_documents(tail)).alarm is None
    assert concordance.verdict(saturating).alarm is None


# The task


def test_the_task_is_told_at_each_pick_and_at_its_best(saturating):
    recall = {name: k / 12 for k, (name, *_) in enumerate(saturating)}
    verdict = concordance.verdict(saturating, recall)
    picks = verdict.picks
    said = sentence(verdict, "task is ")
    assert f"{recall[picks['p75']]:.3f} at {picks['p75']} (picked by p75)" in said
    assert f"at {picks['mean']} (picked by mean" in said
    assert said.endswith("; its best is 0.917 at epoch 12.")


def test_a_statistic_that_goes_the_wrong_way_is_told(saturating):
    recall = {name: k / 12 for k, (name, *_) in enumerate(saturating)}
    verdict = concordance.verdict(saturating, recall)
    assert sentence(verdict, "Where p95 was lower task was worse (Pearson +0.").endswith(
        "): the pick of p95 is not to be trusted."
    )
    assert not begins(verdict, "Where p75")
    errors = {name: -value for name, value in recall.items()}
    assert begins(concordance.verdict(saturating, errors, higher_is_better=False), "Where p95 was lower")


def test_the_task_chooses_from_the_shortlist(saturating):
    recall = {name: k / 12 for k, (name, *_) in enumerate(saturating)}
    verdict = concordance.verdict(saturating, recall)
    late = verdict.shortlist[-1]
    assert sentence(verdict, "Of the shortlist") == (
        f"Of the shortlist {late} has the best task, {recall[late]:.3f}."
    )
    lowest = concordance.verdict(saturating, recall, higher_is_better=False)
    assert begins(lowest, f"Of the shortlist {verdict.shortlist[0]} has")
    del recall[late]
    assert not begins(concordance.verdict(saturating, recall), "Of the shortlist")


def test_a_task_that_is_not_known_at_a_pick_is_told(saturating):
    verdict = concordance.verdict(saturating, {"epoch 1": 0.25})
    assert sentence(verdict, "task is not known at epoch 4 (picked by ").endswith(
        "; its best is 0.250 at epoch 1."
    )
    assert "nan" not in str(verdict)


def test_a_task_without_a_value_is_told(agreeing):
    verdict = concordance.verdict(agreeing[:3], {"epoch 1": NAN})
    assert "task has no value at any record." in verdict.sentences


# What is missing, and checkpoints


def test_without_a_task_the_answer_is_a_shortlist(agreeing, split):
    assert sentence(concordance.verdict(split), "A task metric is missing").endswith(
        "losses cannot say which record of the shortlist a task prefers."
    )
    assert sentence(concordance.verdict(agreeing), "A task metric is missing").endswith(
        "losses cannot say whether a task agrees."
    )
    recall = {name: 0.5 for name, *_ in split}
    assert not begins(concordance.verdict(split, recall), "A task metric")


def test_without_documents_the_missing_error_bars_are_told(split):
    verdict = concordance.verdict(without_documents(split))
    assert sentence(verdict, "Error bars are missing (no documents were given)").endswith(
        "any difference over 0.01 nats counts, also one of chance."
    )
    assert not begins(verdict, "Surely")
    assert not begins(verdict, "No percentile")


def test_few_documents_are_told():
    few, some = (concordance.verdict(run_of(generators.agreeing, 3, number)) for number in (10, 40))
    assert "20 are needed" in sentence(few, "Error bars are missing (")
    assert begins(some, "Error bars are rough: only ")


def test_a_record_that_is_left_out_is_told(agreeing):
    broken = ("epoch 13", digest.from_values(torch.tensor([NAN, 1.0])), None)
    verdict = concordance.verdict([*agreeing[:3], broken])
    assert "Left out: epoch 13 (NaN in 1 of its tokens)." in verdict.sentences


def test_checkpoints_of_the_shortlist_are_told(split, tmp_path):
    path = written(tmp_path / "history.jsonl", split)
    (tmp_path / "late.ckpt").write_text("")
    for step, name in ((600, "late.ckpt"), (600, "gone.ckpt"), (300, "other.ckpt")):
        write_checkpoint(path, run="a", step=step, checkpoint=str(tmp_path / name))
    history = History.load(path)
    verdict = concordance.verdict(history)
    early, late = verdict.shortlist
    there = tmp_path / "late.ckpt"
    assert sentence(verdict, "Checkpoints: ") == f"Checkpoints: none of {early}; {late} in {there}."
    there.unlink()
    assert sentence(concordance.verdict(history), "Checkpoints: ") == (
        f"Checkpoints: none of {early}; {late} in {tmp_path / 'gone.ckpt'} (deleted)."
    )
    assert not begins(concordance.verdict(split), "Checkpoints")


def test_a_history_gives_the_verdict_of_its_list(split, tmp_path):
    history = History.load(written(tmp_path / "history.jsonl", split))
    named = [
        (record.label, state, documents) for record, (_, state, documents) in zip(history, split, strict=True)
    ]
    assert str(concordance.verdict(history)) == str(concordance.verdict(named))


def test_units_are_nats_of_losses_only(split, tmp_path):
    history = History.load(written(tmp_path / "history.jsonl", split, statistic="log_rank"))
    assert "nats" not in str(concordance.verdict(history.select(of="log_rank")))
