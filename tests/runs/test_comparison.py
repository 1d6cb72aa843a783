"""Comparisons: what they hold, and how they read."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lightning_pce import digest, intervals
from lightning_pce._errors import UserError
from lightning_pce.intervals import Interval
from lightning_pce.runs import table, verdict
from lightning_pce.runs._comparison_text import surely
from lightning_pce.runs.comparison import compare
from lightning_pce.runs.history import History, write_validation
from lightning_pce.runs.task_values import TaskFile
from lightning_pce.runs.what_moved import moved
from tests.helpers import checkpoint_runs as generators
from tests.helpers.checkpoint_runs import losses_of
from tests.helpers.scored_records import write_scored

EPOCHS = (3, 7, 11)
VOCABULARY = 50


def label_totals(losses, size=VOCABULARY):
    labels = torch.arange(len(losses)) % VOCABULARY
    totals = torch.zeros(size, 2, dtype=torch.float64)
    totals[:, 0].index_add_(0, labels, torch.ones_like(losses))
    totals[:, 1].index_add_(0, labels, losses)
    return totals


def write(path, curve, number=120, epochs=EPOCHS, one_document=False, **more):
    ids, losses = losses_of(curve, 12, number)
    for epoch in epochs:
        write_scored(
            path,
            f"runs/demo/checkpoint-{100 * (epoch + 1)}",
            losses[epoch],
            ids * 0 if one_document else ids,
            label_totals={"label_totals": label_totals(losses[epoch])},
            label_texts={label: f" w{label}" for label in range(VOCABULARY)},
            scalars={"recall": epoch / 12},
            **more,
        )
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Three checkpoints whose mean and bulk part."""
    return write(tmp_path_factory.mktemp("saturating") / "records.jsonl", generators.saturating)


@pytest.fixture(scope="module")
def history(path):
    return History.load(path)


@pytest.fixture(scope="module")
def found(history):
    return compare(history, task="recall")


FIRST, SECOND, LAST = (f"checkpoint-{100 * (epoch + 1)}" for epoch in EPOCHS)


def test_values_and_paired_differences_of_each_record(history, found):
    assert found.by == "tokens"
    assert found.unit == "nats a token"
    assert found.reference == FIRST
    statistics = ["mean", "p25", "p50", "p75", "p90", "p95", "p99"]
    records = {record.label: (record.digest(), record.documents()) for record in history}
    assert list(found.values) == list(records) == [FIRST, SECOND, LAST]
    assert list(found.differences) == [SECOND, LAST]
    for label, record in records.items():
        assert found.values[label] == intervals.intervals(*record, statistics)
    for label, change in found.differences.items():
        assert change == intervals.differences(records[FIRST], records[label], statistics)
        assert all(each.paired for each in change.values())


def test_table_and_verdict_are_those_of_the_records(history, found):
    # Which these functions take as the records of one run only.
    rows = [(record.label, record.digest(), record.documents()) for record in history]
    task = {record.label: record.scalars["recall"] for record in history}
    wanted = table(rows, task)
    assert found.table.rows == wanted.rows
    assert found.table.task == "recall"
    assert found.verdict.shortlist == verdict(rows).shortlist
    assert found.verdict.reshaping is not None
    assert (found.agree, found.verdict.agree) == (False, False)
    assert found.mean.names == (FIRST,)


def test_labels_that_moved_the_mean_between_the_picks_of_mean_and_bulk(history, found):
    assert found.moved_pair == (FIRST, LAST)
    totals = [record.label_totals["label_totals"] for record in (history[0], history[2])]
    assert found.moved == moved(*totals)
    assert found.text_of(7) == " w7"
    assert found.text_of(99) == "token 99"
    assert replace(found, label_texts={5: "\ufffd"}).text_of(5) == "\ufffd (token 5)"  # a part of a character


def test_labels_are_those_between_reference_and_last_where_there_is_one_pick(tmp_path):
    history = History.load(write(tmp_path / "r.jsonl", generators.agreeing, epochs=(0, 1, 4)))
    first, second, last = (record.label for record in history)
    found = compare(history, reference=1)
    assert found.verdict.picks["mean"] == found.verdict.picks[found.verdict.bulk]
    assert found.agree
    assert found.reference == second
    assert found.moved_pair == (second, last)
    assert compare(history[:2], reference=f"runs/demo/{second}").moved_pair == (second, first)
    assert compare(history[:1]).moved_pair is None


def test_a_larger_vocabulary_has_labels_without_tokens(tmp_path):
    path = write(tmp_path / "r.jsonl", generators.agreeing, epochs=(0,))
    ids, losses = losses_of(generators.agreeing, 12, 120)
    write_scored(path, "chat", losses[5], ids, label_totals={"label_totals": label_totals(losses[5], 60)})
    found = compare(History.load(path))
    assert found.moved.after == pytest.approx(float(losses[5].mean()))
    assert found.text_of(3) == " w3"


def test_bits_per_byte_where_bytes_are_known(history, found):
    for record in history:
        bits = float(digest.mean(record.digest())) / 4 / math.log(2)
        assert found.bits_per_byte[record.label].value == pytest.approx(bits)
        assert found.bits_per_byte[record.label].low < bits


def test_one_record_has_intervals_and_nothing_to_choose_from(history):
    found = compare(history[:1])
    assert found.agree
    assert found.differences == {}
    text = str(found)
    assert "1 record" in text
    assert "nothing to choose from" in text
    assert "95 % interval" in text
    assert "Differences" not in text
    assert "What the pick of each line costs" not in text


def test_without_documents_enough_there_are_no_intervals_and_a_line_says_what_to_do(tmp_path):
    found = compare(History.load(write(tmp_path / "r.jsonl", generators.saturating, one_document=True)))
    assert found.agree  # nobody can tell
    assert found.verdict.picks["mean"] != found.verdict.picks[found.verdict.bulk]
    assert all(math.isnan(each.low) for record in found.values.values() for each in record.values())
    text = str(found)
    assert "No error bars: only 1 of 128 slots of documents hold tokens, 20 are needed." in text
    assert "blank" in text.split("No error bars")[1]
    assert "[" not in text
    assert "95 %" not in text


def test_other_tokenizers_are_compared_by_bytes(tmp_path):
    path = write(tmp_path / "r.jsonl", generators.agreeing, epochs=(0, 5), sizes=None)
    ids, losses = losses_of(generators.agreeing, 12, 120, length=30)
    write_scored(
        path,
        "other/model",
        losses[11] / 2,
        ids,
        sizes=torch.full_like(ids, 2),
        how={"tokenizer": "b2", "token_ids": "e2"},
    )
    found = compare(History.load(path))
    assert (found.by, found.unit) == ("bytes", "bits a byte")
    assert found.moved is None
    assert found.verdict.reshaping is None
    assert found.bits_per_byte == {name: values["mean"] for name, values in found.values.items()}
    bits = float((losses[11] / 2).mean()) / 2 / math.log(2)
    assert found.values["model"]["mean"].value == pytest.approx(bits)
    assert found.table.rows[0].statistic == "mean"
    assert found.table.rows[0].value == found.values[found.table.rows[0].pick]["mean"]
    assert found.table.rows[0].pick == min(found.values, key=lambda name: found.values[name]["mean"].value)
    assert all(each.paired for each in found.differences["model"].values())
    assert "Other tokenizers: the mean is that of bits per byte" in str(found)


def test_sums_of_documents_have_a_mean_only(tmp_path):
    path = write(tmp_path / "r.jsonl", generators.saturating, digests={}, documents={})
    found = compare(History.load(path), task="recall")
    assert (found.by, found.unit, found.table, found.verdict) == ("documents", "nats a document", None, None)
    _, losses = losses_of(generators.saturating, 12, 120)
    assert list(found.values[LAST]) == ["mean"]
    assert found.values[LAST]["mean"].value == pytest.approx(float(losses[EPOCHS[2]].sum()) / 120)
    assert found.differences[LAST]["mean"].low > 0
    assert found.agree
    text = str(found)
    assert "Only sums of documents are known" in text
    assert f"The mean is lowest at {FIRST}; within error of it: {FIRST}." in text
    json.dumps(found.to_plain(), allow_nan=False)


def test_groups_and_other_statistics(tmp_path):
    ids, losses = losses_of(generators.agreeing, 12, 120)
    slots = intervals.slots_of(ids)
    counts = intervals.add(intervals.empty(), losses[3], None, slots)
    every = digest.from_values(losses[3])
    digests = {"ce": {"": every, "completion": every}, "entropy": {"": every}}
    documents = {"ce": {"": counts, "completion": counts}, "entropy": {"": counts}}
    path = write_scored(tmp_path / "r.jsonl", "a", losses[3], ids, digests=digests, documents=documents)
    history = History.load(path)
    assert compare(history).of == "ce"
    found = compare(history.select(of="entropy"))
    assert (found.of, found.unit, found.moved) == ("entropy", "nats a token", None)
    assert str(found).startswith("topics: 1 record by their tokens, entropy in nats a token\n")
    write_scored(path, "b", losses[3], ids, digests=digests, documents=documents)
    history = History.load(path)
    assert "bits a byte" in str(compare(history))
    assert "bits a byte" not in str(compare(history.select(of="entropy")))
    assert compare(history.select(group="completion")).group == "completion"


def test_records_of_several_trainings_are_compared_by_their_fingerprint(tmp_path):
    path = tmp_path / "history.jsonl"
    ids, losses = losses_of(generators.agreeing, 4, 60)
    for run in ("a", "b"):
        for epoch, own in enumerate(losses):
            write_validation(
                path,
                run=run,
                name="val",
                step=epoch,
                epoch=epoch,
                fingerprint="f1",
                digests={"ce": {"": digest.from_values(own)}},
                documents={"ce": {"": intervals.add(intervals.empty(), own, None, intervals.slots_of(ids))}},
            )
    found = compare(History.load(path), reference="b epoch 0")
    assert len(found.values) == 8
    assert found.reference == "b epoch 0"
    assert found.differences["a epoch 0"]["mean"].value == 0


def test_what_is_of_other_data_is_refused(tmp_path):
    path = write(tmp_path / "r.jsonl", generators.agreeing, epochs=(0,))
    ids, losses = losses_of(generators.agreeing, 1, 110)
    unknown = ["data", "token_ids", "context"]
    write_scored(path, "import", losses[0], ids, function="import", without=unknown)
    with pytest.raises(
        UserError, match="'import' are not of the same data: they have 1,800 and 1,650 tokens"
    ):
        compare(History.load(path))
    ids, losses = losses_of(generators.agreeing, 1, 120)
    write_scored(path, "import", losses[0], ids + 7, function="import", without=unknown)
    with pytest.raises(UserError, match="their slots of documents hold other numbers of tokens"):
        compare(History.load(path))
    write_scored(path, "import", losses[0], ids, function="import", without=unknown)
    assert "data and context are not known of import" in compare(History.load(path)).notes[0]


def test_a_reference_with_nan_is_refused_if_it_was_asked_for(tmp_path):
    path = tmp_path / "r.jsonl"
    ids, losses = losses_of(generators.agreeing, 2, 60)
    losses[0][:3] = math.nan
    for name, own in zip(("a", "b"), losses, strict=True):
        write_scored(path, name, own, ids)
    history = History.load(path)
    found = compare(history)
    assert found.reference == "b"
    assert list(found.values) == ["b"]
    assert "Left out: a (NaN in 3 of its tokens)" in str(found)
    with pytest.raises(UserError, match="The reference 'a' has NaN in 3 of its tokens: choose another one"):
        compare(history, reference="a")
    with pytest.raises(UserError, match="none of 1 has a token with a value"):
        compare(History.load(write_scored(tmp_path / "n.jsonl", "n", losses[0] * math.nan, ids)))


def test_no_records_and_damaged_records_are_refused(tmp_path):
    with pytest.raises(UserError, match="no records to compare"):
        compare(History([]))
    path = write_scored(tmp_path / "r.jsonl", "a", torch.rand(60).double(), torch.arange(60))
    line = path.read_text()
    for wrong in (
        line.replace('"digest":"', '"digest":"x'),
        line.replace('"compression":1024', '"compression":3'),
    ):
        path.write_text(wrong)
        with pytest.raises(UserError, match=r"A record cannot be read .*damaged"):
            compare(History.load(path))


def test_the_file_of_a_task(tmp_path, history):
    picks = tmp_path / "picks.csv"
    picks.write_text(f"checkpoint,f1\nruns/demo/{FIRST},0.1\n{LAST},0.7\nx,1\n")
    found = compare(history, task=TaskFile.read(picks))
    assert found.table.task == "f1"
    assert found.table.best == (LAST, 0.7)
    assert ["no record for 'x'." in note for note in found.notes[-2:]] == [True, False]
    assert f"no f1 for {SECOND!r}" in found.notes[-1]


def test_torn_lines_are_said(tmp_path, path):
    torn = tmp_path / "r.jsonl"
    torn.write_bytes(path.read_bytes()[:-30])
    assert "1 line was torn" in str(compare(History.load(torn)))


def test_the_text_fits_a_terminal_and_has_all_parts_in_order(found):
    text = str(found)
    lines = text.split("\n")
    assert max(map(len, lines)) <= 100
    assert not any(line.endswith(" ") for line in lines)
    order = [
        "topics: 3 records by their tokens, ce in nats a token",
        "bits a byte",
        f"Differences from {FIRST} (95 % intervals of the same documents, *: surely not 0)",
        "statistic",
        "What the pick of each line costs",
        "Shortlist: ",
        f"From {FIRST} to {LAST}: mean ",
    ]
    places = [text.index(words) for words in order]
    assert places == sorted(places)
    change = next(line for line in lines if line.startswith(SECOND) and "+" in line)
    assert change.split()[1].startswith("+0.0")
    assert change.count("*") == 3


def test_of_very_many_records_the_tables_show_the_picks_the_reference_and_the_last(tmp_path):
    path = tmp_path / "r.jsonl"
    ids, losses = losses_of(generators.agreeing, 12, 40)
    for step in range(24):
        write_scored(path, f"step-{step}", losses[step % 12], ids)
    text = str(compare(History.load(path)))
    rows = text.split("\n\n")[1].split("\n")
    assert 3 <= len(rows) < 10
    assert rows[1].startswith("step-0 ")
    assert rows[-1].startswith("step-23 ")


def test_numbers_have_as_many_decimals_as_the_narrowest_interval_needs(tmp_path):
    ids, losses = losses_of(generators.agreeing, 1, 60)
    for name, own in (("a", losses[0]), ("b", losses[0] * 1.00001)):
        write_scored(tmp_path / "r.jsonl", name, own, ids)
    found = compare(History.load(tmp_path / "r.jsonl"))
    row = next(line for line in str(found).split("\n") if line.startswith("b") and "+" in line)
    change = found.differences["b"]["mean"]
    assert change.high - change.low < 1e-4
    shown = float(row.split()[1])
    assert 0.9 < shown / change.value < 1.1


def keys_of(value):
    """All keys of plain values but labels and statistics."""
    if isinstance(value, list):
        return {key for each in value for key in keys_of(each)}
    if not isinstance(value, dict):
        return set()
    inner = {key for each in value.values() for key in keys_of(each)}
    return inner if "mean" in value or "protocol" in value else {*value, *inner}


def test_the_page_names_every_key(found):
    page = (Path(__file__).parents[2] / "docs" / "compare.md").read_text(encoding="utf-8")
    keys = keys_of(found.to_plain())
    assert {"records", "within_error", "tokens_after", "reason", "text"} <= keys
    assert {key for key in keys if f"`{key}`" not in page} == set()


def test_plain_values_are_json_without_nan(history, found, tmp_path):
    plain = json.loads(json.dumps(found.to_plain(), allow_nan=False))
    assert plain["agree"] is False
    assert [record["label"] for record in plain["records"]] == [FIRST, SECOND, LAST]
    assert plain["records"][1]["values"]["mean"]["value"] == found.values[SECOND]["mean"].value
    assert plain["records"][1]["differences"]["p95"]["paired"] is True
    assert plain["records"][0]["differences"] == {}
    assert plain["records"][2]["task"] == pytest.approx(11 / 12)
    assert plain["records"][2]["how"]["context"] == 512
    assert [pick["statistic"] for pick in plain["picks"]][:3] == ["mean", "p25", "p50"]
    assert plain["picks"][0]["within_error"] == [FIRST]
    assert plain["picks"][0]["signal_to_noise"] is None
    assert plain["moved"]["labels"][0]["text"].startswith(" w")
    assert plain["sentences"] == list(found.verdict.sentences)
    few = compare(History.load(write(tmp_path / "r.jsonl", generators.agreeing, one_document=True)))
    assert json.loads(json.dumps(few.to_plain(), allow_nan=False))["no_intervals"].startswith("only 1 of 128")


def test_a_record_and_itself_differ_by_0_and_say_so(tmp_path):
    ids, losses = losses_of(generators.agreeing, 1, 120)
    for model in ("out/a", "out/b"):
        path = write_scored(tmp_path / "r.jsonl", model, losses[0], ids)
    found = compare(History.load(path))
    assert {each[:3] for each in found.differences["b"].values()} == {(0, 0, 0)}
    assert "+0.000 [+0.000, +0.000]" in str(found)


def test_a_path_that_a_label_is_the_end_of_is_not_said_twice(tmp_path):
    ids, losses = losses_of(generators.agreeing, 1, 120)
    path = write_scored(tmp_path / "r.jsonl", "out/step-1", losses[0], ids)
    assert "Checkpoints: out/step-1." in compare(History.load(path)).verdict.sentences
    path = write_scored(tmp_path / "hub.jsonl", "model", losses[0], ids)
    assert not any("Checkpoints" in each for each in compare(History.load(path)).verdict.sentences)


@pytest.mark.parametrize(("low", "sure"), [(1e-17, False), (0.0, False), (1e-9, True), (math.nan, False)])
def test_what_is_rounded_is_not_surely_another_number(low, sure):
    assert surely(Interval(0.1, low, low + 0.2, True, None)) == sure
    assert surely(Interval(-0.1, -low - 0.2, -low, True, None)) == sure
