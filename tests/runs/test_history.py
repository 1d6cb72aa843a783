"""A history that is written line by line, and what is read of it again."""

import json
import math
import resource
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_pce import digest as td
from lightning_pce.runs.history import (
    History,
    run_that_saved,
    write_checkpoint,
    write_start,
    write_validation,
)

INF, NAN = math.inf, math.nan


def make_digest(seed=0, count=3000, compression=64):
    values = torch.randn(count, generator=torch.Generator().manual_seed(seed)).exp()
    return td.from_values(values, compression=compression)


def make_documents(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(5, (128, 97), generator=generator).double() / 3


@pytest.fixture
def path(tmp_path):
    return tmp_path / "history.jsonl"


def write(path, step, *, run="a", name="val", batch=None, **arguments):
    """A validation that can be told by its median, which is its step."""
    arguments = {"values": {"ce_p50": float(step or 0)}, **arguments}
    write_validation(path, run=run, name=name, step=step, batch=step if batch is None else batch, **arguments)


def steps(history):
    return [record.step for record in history]


def lines(path):
    return path.read_bytes().splitlines(keepends=True)


def test_what_is_written_is_read_again(path):
    digests = {
        "ce": {"": make_digest(1), "web": make_digest(2, 5)},
        "entropy": {"": td.empty(8), "web": make_digest(3)},
    }
    documents = {"ce": {"": make_documents(1), "web": make_documents(2)}}
    values = {"ce_mean": 1 / 3, "ce_p50": NAN, "ce_p99": INF, "margin_p5": -INF, "ce_count": 1e17}
    scalars, stale = {"val_acc": 0.1, "val/bleu": NAN}, {"train_loss": -INF}
    metadata = {"data": 'a "quoted", "payload": text', "more": [1, {"payload": None, "x": True}]}
    write_validation(
        path,
        run="a",
        name="val_web",
        function="fit",
        step=12,
        epoch=3,
        batch=48,
        values=values,
        scalars=scalars,
        stale=stale,
        fingerprint="00ff",
        metadata=metadata,
        digests=digests,
        documents=documents,
    )
    [record] = History.load(path)
    assert (record.run, record.function, record.name) == ("a", "fit", "val_web")
    assert (record.step, record.epoch, record.batch, record.fingerprint) == (12, 3, 48, "00ff")
    for found, written in ((record.values, values), (record.scalars, scalars), (record.stale, stale)):
        assert found == pytest.approx(written, nan_ok=True, rel=0, abs=0)
    assert record.metadata == metadata
    assert (record.statistics, record.groups) == (("ce", "entropy"), ("", "web"))
    for of, groups in digests.items():
        for group, digest in groups.items():
            assert torch.equal(record.digest(of, group), digest)
            expected = documents.get(of, {}).get(group)
            found = record.documents(of, group)
            assert found is None if expected is None else torch.equal(found, expected)


@pytest.mark.parametrize("values", [[], [1.0], [NAN, INF, -INF, 2.0], [3.0] * 7])
def test_digests_of_little_come_back_bit_for_bit(path, values):
    digest = td.add_invalid(td.from_values(torch.tensor(values, dtype=torch.float64), compression=8), 3)
    write(path, 1, digests={"ce": {"": digest}})
    assert torch.equal(History.load(path)[0].digest(), digest)


def test_each_line_is_json_that_anybody_can_read_with_the_payload_last(path):
    write_start(path, run="a", step=0, batch=0)
    write(path, 1, values={"ce_p50": NAN, "ce_mean": INF}, digests={"ce": {"": make_digest()}})
    write_checkpoint(path, run="a", checkpoint="a.ckpt", step=1, batch=1)

    def refuse(name):
        raise AssertionError(name)

    read = [json.loads(line, parse_constant=refuse) for line in lines(path)]
    assert [line["kind"] for line in read] == ["start", "validation", "checkpoint"]
    assert {line["schema"] for line in read} == {1}
    assert read[1]["values"] == {"ce_p50": None, "ce_mean": "inf"}
    assert list(read[1])[-1] == "payload"
    assert list(read[1]["payload"]["ce"][""]) == ["compression", "digest"]


def test_a_file_that_another_program_has_written_anew_is_read_too(path):
    write(path, 1, digests={"ce": {"": make_digest()}}, metadata={"payload": 1, "z": 2})
    write(path, 2)
    anew = [json.dumps(json.loads(line), sort_keys=True, indent=None) for line in lines(path)]
    path.write_text("\r\n".join(anew))
    history = History.load(path)
    assert steps(history) == [1, 2]
    assert torch.equal(history[0].digest(), make_digest())
    assert history[0].metadata == {"payload": 1, "z": 2}


def test_a_payload_is_not_looked_at_until_it_is_asked_for(path):
    write(path, 1, digests={"ce": {"": make_digest()}})
    line = lines(path)[0]
    path.write_bytes(line.replace(b'"digest":"', b'"digest":"!!!'))
    [record] = History.load(path)
    assert record.values == {"ce_p50": 1.0}
    with pytest.raises(ValueError, match="payload of a record is damaged"):
        record.digest()


@pytest.mark.parametrize("change", ["deleted", "another record", "shorter"])
def test_a_digest_from_a_file_that_has_changed_since_is_refused(path, change):
    write(path, 1, digests={"ce": {"": make_digest()}})
    [record] = History.load(path)
    whole = path.read_bytes()
    path.unlink()
    if change == "another record":
        write(path, 2, digests={"ce": {"": make_digest()}})
    elif change == "shorter":
        path.write_bytes(whole[:-9])
    with pytest.raises(ValueError, match=r"history.jsonl is not what it was .* load it again"):
        record.digest()


def test_a_digest_that_there_is_not_is_refused_by_words_that_say_what_there_is(path):
    write(path, 1, digests={"ce": {"": make_digest(), "web": make_digest()}})
    write(path, 2)
    history = History.load(path)
    with pytest.raises(ValueError, match=r"step 1 has no digest of='entropy'.*of='ce', group='web'"):
        history[0].digest("entropy")
    with pytest.raises(ValueError, match=r"step 2 has no digest .* kept without digests"):
        history[1].documents()


# Torn lines


def test_wherever_a_writer_was_killed_the_whole_lines_are_read(path, tmp_path):
    for step in (1, 2):
        write(path, step, digests={"ce": {"": make_digest(), "web": make_digest(1)}})
    first, second = lines(path)
    cuts = {*range(0, len(second), 97), *(len(second) - n for n in range(1, 60))}
    for cut in sorted(cuts):
        torn = tmp_path / "torn.jsonl"
        torn.write_bytes(first + second[:cut])
        history = History.load(torn)
        whole = cut == len(second) - 1  # but its end
        assert steps(history) == ([1, 2] if whole else [1]), cut
        assert history.torn == (not whole and cut > 0)
        write(torn, 3)
        again = History.load(torn)
        assert steps(again) == [*steps(history), 3]
        assert again.torn == history.torn


def test_a_file_of_one_torn_line_is_an_empty_history(path):
    for torn in (b'{"kind":"st', b"{", b'{"kind":"validation","schema":1,"run":"a"'):
        path.write_bytes(torn)
        history = History.load(path)
        assert (len(history), history.torn) == (0, 1)
        assert "1 torn" in repr(history)
    path.write_bytes(b"")
    assert (len(History.load(path)), History.load(path).torn) == (0, 0)


@pytest.mark.parametrize(
    "line",
    [
        '{"kind":"validation","schema":1,"run":"a"}',
        '{"kind":"validation","schema":1,"run":"a","function":"fit","name":"val","step":1,"epoch":1,"batch":1,'
        '"fingerprint":null,"values":{"ce_p50":"much"},"scalars":{},"stale":{},"metadata":{}}',
        '{"kind":"start","schema":1}',
        '{"kind":"another","schema":1,"run":"a"}',
        '{"kind":"start","schema":true,"run":"a","step":1,"batch":1}',
        "[1, 2]",
        "\0\0\0",
    ],
)
def test_a_line_that_cannot_be_understood_is_skipped_and_counted(path, line):
    write(path, 1)
    with path.open("a") as file:
        file.write(line + "\n")
    write(path, 2)
    history = History.load(path)
    assert (steps(history), history.torn) == ([1, 2], 1)


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=40))
def test_any_bytes_after_a_history_leave_what_was_there(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("any") / "history.jsonl"
    write(path, 1)
    path.write_bytes(path.read_bytes() + data)
    assert steps(History.load(path)) == [1]
    write(path, 2)
    assert steps(History.load(path)) == [1, 2]


def test_a_line_that_a_full_disk_cuts_raises_and_the_next_one_is_whole(path):
    write(path, 1, digests={"ce": {"": make_digest()}})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 700, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write(path, 2, digests={"ce": {"": make_digest()}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert lines(path)[1].startswith(b'{"kind":"validation"')
    assert len(lines(path)[1]) == 700
    write(path, 3)
    history = History.load(path)
    assert (steps(history), history.torn) == ([1, 3], 1)


def test_several_writers_do_not_mix_their_lines(path):
    digests = {"ce": {"": make_digest(compression=1024, count=2000)}}

    def write_some(run):
        for step in range(20):
            write(path, step, run=run, digests=digests)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write_some, "abcd"))
    history = History.load(path)
    assert (len(history), history.torn) == (80, 0)
    for run in "abcd":
        assert steps(history.select(run=run)) == list(range(20))


def test_a_path_may_begin_in_the_home_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write("~/runs/history.jsonl", 1)
    assert steps(History.load(tmp_path / "runs" / "history.jsonl")) == [1]
    assert steps(History.load("~/runs/history.jsonl")) == [1]


def test_a_line_right_behind_a_torn_one_is_no_part_of_its_payload(path, tmp_path):
    """As where two processes write at once, and one of them is killed."""
    for step in (1, 2, 3):
        write(path, step, digests={"ce": {"": make_digest()}})
    torn, whole, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(torn[:-100] + whole + last)
    history = History.load(path)
    assert (steps(history), history.torn) == ([3], 1)


# Files that are none


def test_a_line_of_a_later_version_is_named_with_its_file(path):
    write(path, 1)
    path.write_text(path.read_text() + '{"kind":"validation","schema":2,"run":"a"}\n')
    with pytest.raises(
        ValueError, match=r"history.jsonl, line 2, has schema 2, .* lightning-pce \d.*upgrade"
    ):
        History.load(path)


@pytest.mark.parametrize("text", ["epoch,val_loss\n1,2\n", '{"loss": 1.0}\n{"loss": 2.0}\n', "null\n"])
def test_another_file_is_refused(path, text):
    path.write_text(text)
    with pytest.raises(ValueError, match=r"history.jsonl is no history: none of its \d lines"):
        History.load(path)


def test_a_folder_a_missing_file_and_no_file_are_refused(tmp_path):
    with pytest.raises(IsADirectoryError, match=r"is a folder: give the file in it, such as .*history.jsonl"):
        History.load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"missing\.jsonl"):
        History.load(tmp_path / "missing.jsonl")
    with pytest.raises(ValueError, match="but got none"):
        History.load()


def test_metadata_that_json_has_no_word_for_is_refused_and_nothing_is_written(path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write(path, 1, metadata={"x": NAN})
    with pytest.raises(TypeError, match="not JSON serializable"):
        write(path, 1, metadata={"x": object()})
    assert not path.exists()


# What lines mean


def test_of_lines_with_one_key_the_last_is_meant_and_stands_where_it_was_written(path):
    write(path, 1)
    write(path, 2, values={"ce_p50": 20.0})
    write(path, 1, values={"ce_p50": 10.0})
    write(path, 1, function="validate")
    write(path, 1, name="val_dl0")
    write(path, 1, run="b")
    write(path, 1, batch=7)
    history = History.load(path)
    assert [record.values["ce_p50"] for record in history] == [20.0, 10.0, 1.0, 1.0, 1.0, 1.0]


def test_other_data_at_the_same_step_are_another_record(path):
    for fingerprint, value in (("a", 1.0), ("b", 2.0), ("a", 3.0)):
        write(path, 1, values={"ce_p50": value}, fingerprint=fingerprint)
    history = History.load(path)
    assert [(each.fingerprint, each.values["ce_p50"]) for each in history] == [("b", 2.0), ("a", 3.0)]
    assert len({each.label for each in history}) == 2


def test_a_start_takes_back_what_its_run_has_behind_that_batch(path):
    for batch in (1, 2, 3, 4):  # gradients are accumulated: two batches a step
        write(path, batch // 2, batch=batch)
        write(path, batch // 2, batch=batch, run="b")
    write(path, None, batch=None, function="validate", checkpoint="b.ckpt")
    write_start(path, run="a", step=1, batch=2)
    history = History.load(path)
    assert [record.batch for record in history.select(run="a")] == [1, 2, None]
    assert [record.batch for record in history.select(run="b")] == [1, 2, 3, 4]
    write_start(path, run="a", step=0, batch=None)
    assert steps(History.load(path).select(run="a")) == [0, None]


def test_several_files_are_read_as_one(path, tmp_path):
    later = tmp_path / "later.jsonl"
    for step in (1, 2, 3):
        write(path, step, digests={"ce": {"": make_digest(step)}})
    write_start(later, run="a", step=1, batch=1)
    write(later, 2, digests={"ce": {"": make_digest(20)}})
    later.write_text(later.read_text() + "{torn")
    history = History.load(path, later)
    assert (steps(history), history.torn) == ([1, 2], 1)
    assert torch.equal(history[0].digest(), make_digest(1))
    assert torch.equal(history[1].digest(), make_digest(20))


def test_checkpoints_belong_to_the_records_of_their_run_and_step(path, tmp_path):
    kept, gone = tmp_path / "kept.ckpt", tmp_path / "gone.ckpt"
    kept.touch()
    for step in (1, 2):
        write(path, step)
        write(path, step, name="val_dl1")
        write(path, step, run="b")
    write_checkpoint(path, run="a", checkpoint=str(kept), step=2, batch=2, monitor="val_ce_p50")
    write_checkpoint(path, run="a", checkpoint=str(gone), step=2, batch=2)
    write_checkpoint(path, run="b", checkpoint="s3://bucket/b.ckpt", step=1, batch=1)
    found = {(r.run, r.name, r.step): r.checkpoints for r in History.load(path)}
    for name in ("val", "val_dl1"):
        assert found["a", name, 2] == ((str(kept), "val_ce_p50", False), (str(gone), None, True))
        assert found["a", name, 1] == ()
    assert found["b", "val", 1] == (("s3://bucket/b.ckpt", None, False),)


def test_a_file_that_was_written_over_belongs_to_the_last_step_alone(path):
    for step in (1, 2, 3):
        write(path, step)
        write_checkpoint(path, run="a", checkpoint="best.ckpt", step=step, batch=step)
    assert [len(record.checkpoints) for record in History.load(path)] == [0, 0, 1]
    write_start(path, run="a", step=2, batch=2)  # what it holds is behind
    assert [len(record.checkpoints) for record in History.load(path)] == [0, 0]


def test_the_run_that_has_saved_a_checkpoint_is_found(path):
    assert run_that_saved(path, "a.ckpt") is None
    for run in ("a", "b"):
        write_checkpoint(path, run=run, checkpoint="a.ckpt", step=1)
    write_checkpoint(path, run="c", checkpoint="c.ckpt", step=1)
    assert run_that_saved(path, "a.ckpt") == "b"
    assert run_that_saved(path, "b.ckpt") is None


# Names and choices


def labels(history):
    return [record.label for record in history]


def test_labels_are_short_and_no_two_are_alike(path):
    for step in (2, 4):
        write(path, step, epoch=step // 2 - 1)
    assert labels(History.load(path)) == ["epoch 0", "epoch 1"]
    write(path, 6, epoch=1)
    assert labels(History.load(path)) == ["step 2", "step 4", "step 6"]
    write(path, 6, epoch=1, batch=7)
    assert labels(History.load(path)) == ["batch 2", "batch 4", "batch 6", "batch 7"]
    write(path, 6, batch=7, function="validate")
    write(path, None, function="validate", checkpoint="/kept/best.ckpt")
    write(path, None, function="validate", checkpoint="/else/best.ckpt")
    write(path, None, function="validate")
    assert labels(History.load(path))[4:] == [
        "validate batch 7",
        "validate best.ckpt",
        "validate best.ckpt (2)",
        "validate unknown step",
    ]
    write(path, 2, epoch=0, name="val_dl1")
    write(path, 2, epoch=0, run="b")
    history = History.load(path)
    assert len(set(labels(history))) == len(history) == 10
    assert labels(history)[-2:] == ["a val_dl1 batch 2", "b val batch 2"]
    assert labels(history.select(run="b")) == ["epoch 0"]
    assert labels(history[:2]) == ["epoch 0", "epoch 1"]


def test_select_chooses_and_says_what_there_is_if_nothing_is_left(path):
    for run in ("a", "b"):
        for name in ("val", "val_dl0"):
            write(path, 1, run=run, name=name)
    write(path, 1, function="validate")
    history = History.load(path)
    assert (history.runs, history.names) == (("a", "b"), ("val", "val_dl0"))
    assert history.functions == ("fit", "validate")
    assert [record.run for record in history.select(name="val", function="fit")] == ["a", "b"]
    chosen = history.select(run="b", of="entropy", group="web")
    assert (len(chosen), chosen.of, chosen.group) == (2, "entropy", "web")
    assert (chosen.select(name="val").of, chosen[:1].group) == ("entropy", "web")
    with pytest.raises(ValueError, match="No record of run='c', name='val': there are run=a, b; name=val"):
        history.select(run="c", name="val")
    with pytest.raises(ValueError, match="there are none"):
        History([]).select(run="a")


def test_a_history_is_a_sequence(path):
    for step in (1, 2, 3):
        write(path, step)
    history = History.load(path)
    assert history[-1].step == 3
    assert steps(history[1:]) == [2, 3]
    assert isinstance(history[1:], History)
    assert [record.step for record in reversed(history)] == [3, 2, 1]
    assert history[0] in history
    assert repr(history) == "History(3 records: run=a; name=val; function=fit)"
    assert repr(History([])) == "History(0 records: none)"
