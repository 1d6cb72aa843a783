"""What stands in a file of records, and what happens when the same or another command comes upon it."""

import json
import os
import shutil

import numpy as np
import pytest

from lightning_pce._errors import UserError
from lightning_pce.runs.history import History
from lightning_pce.scoring import evaluate as module
from lightning_pce.scoring.chunks import Work, folder_of
from lightning_pce.scoring.evaluate import evaluate, put
from tests.helpers.tiny_checkpoints import tiny_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two checkpoints of a run and a text."""
    folder = tmp_path_factory.mktemp("again")
    for seed, step in enumerate((100, 200)):
        tiny_checkpoint(folder / "run" / f"checkpoint-{step}", seed=seed)
    (folder / "text.txt").write_text(
        "\n\n".join(f"the thing in the {n}" for n in range(30)), encoding="utf-8"
    )
    return folder


def scored(folder, out, steps=(100, 200), **options):
    models = [folder / "run" / f"checkpoint-{step}" for step in steps]
    return evaluate(models, [folder / "text.txt"], out, **options)


def test_what_is_there_is_not_scored_again_and_other_lines_stay(folder, tmp_path, capsys):
    out = tmp_path / "r.jsonl"
    other = (
        b'{"kind":"start","schema":1,"run":"x","step":0,"batch":0,"epoch":0,"resumed_from":null,"time":1}\n'
    )
    out.write_bytes(other)
    (first,) = scored(folder, out, steps=(200,))
    before = out.read_bytes()
    assert scored(folder, out) == [record.run for record in History.load(out)][::-1]
    assert "checkpoint-200 on text is in" in capsys.readouterr().err
    assert out.read_bytes().startswith(before)
    assert before.startswith(other)
    assert [record.step for record in History.load(out)] == [200, 100]
    assert History.load(out)[0].run == first


def test_a_changed_model_or_text_or_setting_never_returns_old_numbers(folder, tmp_path):
    out = tmp_path / "r.jsonl"
    shutil.copytree(folder / "run", tmp_path / "run")
    shutil.copy(folder / "text.txt", tmp_path / "text.txt")
    (first,) = scored(tmp_path, out, steps=(100,))
    shutil.rmtree(tmp_path / "run" / "checkpoint-100")
    shutil.copytree(folder / "run" / "checkpoint-200", tmp_path / "run" / "checkpoint-100")
    (second,) = scored(tmp_path, out, steps=(100,))
    (tmp_path / "text.txt").write_text("the other thing\n\nin there", encoding="utf-8")
    (third,) = scored(tmp_path, out, steps=(100,))
    (fourth,) = scored(tmp_path, out, steps=(100,), context=4)
    assert len({first, second, third, fourth}) == 4
    means = [record.values["ce_mean"] for record in History.load(out)]
    assert len(set(means)) == 4


def test_equal_models_are_scored_once(folder, tmp_path, capsys):
    shutil.copytree(folder / "run" / "checkpoint-100", tmp_path / "copy")
    keys = evaluate(
        [folder / "run" / "checkpoint-100", tmp_path / "copy"], [folder / "text.txt"], tmp_path / "r.jsonl"
    )
    assert keys[0] == keys[1]
    assert len(History.load(tmp_path / "r.jsonl")) == 1
    assert "the same as" in capsys.readouterr().err


def test_work_that_was_ended_goes_on_and_gives_the_same_bytes(folder, tmp_path, monkeypatch):
    whole, ended = tmp_path / "whole.jsonl", tmp_path / "ended.jsonl"
    scored(folder, whole, steps=(100,), batch_tokens=50)
    times, keep = [0], Work.keep

    def keep_few(self, number, arrays):
        times[0] += 1
        if times[0] == 4:
            raise KeyboardInterrupt
        keep(self, number, arrays)

    monkeypatch.setattr(Work, "keep", keep_few)
    with pytest.raises(KeyboardInterrupt):
        scored(folder, ended, steps=(100,), batch_tokens=50)
    assert not ended.exists()
    (work,) = folder_of(ended).iterdir()
    done = sorted(work.glob("0*.json"))
    assert [path.name for path in done] == ["000000.json", "000001.json", "000002.json"]
    # One of another plan, and one that a file system has damaged: both are open.
    done[0].write_bytes(done[0].read_bytes().replace(b'"plan": "', b'"plan": "0'))
    done[1].write_bytes(done[1].read_bytes()[:100])
    scored(folder, ended, steps=(100,), batch_tokens=50)
    assert times[0] > 4
    assert ended.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in work.iterdir()) == ["plan.json", "record.json"]


def test_chunks_that_another_process_has_tidied_up_are_not_scored_again(folder, tmp_path, monkeypatch):
    out = tmp_path / "r.jsonl"
    (key,) = scored(folder, out, steps=(100,))
    line = out.read_bytes()
    out.unlink()
    # As if the other process had finished while this one was scoring: its chunks are gone when it looks.
    finished = (folder_of(out) / key / "record.json").read_bytes()
    monkeypatch.setattr(Work, "keep", lambda *_: None)
    scored(folder, out, steps=(100,))
    assert out.read_bytes() == line == finished


def test_a_record_that_another_command_has_overwritten_is_put_back(folder, tmp_path):
    out = tmp_path / "r.jsonl"
    scored(folder, out)
    first, second = out.read_bytes().splitlines(keepends=True)
    # Another command has read the file before the first record stood in it, and replaced it afterwards.
    out.write_bytes(b"")
    put(out, second, since=0.0)
    assert sorted(out.read_bytes().splitlines(keepends=True)) == sorted([first, second])


def test_records_that_were_removed_long_ago_stay_removed(folder, tmp_path):
    out = tmp_path / "r.jsonl"
    scored(folder, out, steps=(100,))
    out.write_bytes(b"")
    for path in folder_of(out).glob("*/record.json"):
        os.utime(path, (1e9, 1e9))
    scored(folder, out, steps=(200,))
    assert [record.step for record in History.load(out)] == [200]


def test_a_file_that_was_removed_begins_anew(folder, tmp_path):
    out = tmp_path / "r.jsonl"
    scored(folder, out, steps=(100,))
    out.unlink()  # a moment ago: another command that is just putting its record there looks alike
    scored(folder, out, steps=(200,))
    assert [record.step for record in History.load(out)] == [200]


def test_a_home_that_is_not_there_is_a_name_like_others(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scored(folder, "~no-such-user.jsonl", steps=(100,))
    assert len(History.load("~no-such-user.jsonl")) == 1


def test_step_is_that_of_one_model(folder, tmp_path):
    scored(folder, tmp_path / "r.jsonl", steps=(100,), step=7)
    assert History.load(tmp_path / "r.jsonl")[0].step == 7
    with pytest.raises(UserError, match="--step 7"):
        scored(folder, tmp_path / "r.jsonl", step=7)


def test_every_token_in_a_file(folder, tmp_path):
    from pyarrow import parquet

    out, tokens = tmp_path / "r.jsonl", tmp_path / "tokens.parquet"
    keys = scored(folder, out, batch_tokens=50, save_tokens=tokens)
    table = parquet.read_table(tokens)
    assert table.column_names == ["run", "data", "document", "position", "id", "ce", "rank"]
    for record in History.load(out):
        mine = table.filter(np.array(table["run"].to_pylist()) == record.run)
        assert mine.num_rows == record.values["ce_count"]
        assert np.mean(mine["ce"].to_numpy().astype(float)) == pytest.approx(
            record.values["ce_mean"], abs=1e-9
        )
        nats = dict.fromkeys(map(str, range(30)), 0.0)
        for document, ce in zip(mine["document"].to_pylist(), mine["ce"].to_pylist(), strict=True):
            nats[document] += ce
        assert list(nats.values()) == pytest.approx(record.document_totals.nats.tolist())
        worst = record.tail[0]
        (row,) = [
            row
            for row in mine.to_pylist()
            if (row["document"], row["position"]) == (worst.document, worst.position)
        ]
        assert (row["id"], row["ce"], row["rank"]) == (worst.label, worst.ce, worst.rank)
    assert set(keys) == set(table["run"].to_pylist())
    assert not list(folder_of(out).glob("*/*.parquet"))


def test_the_file_of_tokens_takes_the_place_of_nothing_but_parquet(folder, tmp_path):
    pytest.importorskip("pyarrow")
    out, tokens, text = tmp_path / "r.jsonl", tmp_path / "tokens.parquet", tmp_path / "notes.txt"
    text.write_text("kept", encoding="utf-8")
    with pytest.raises(UserError, match="also named for records or data"):
        scored(folder, out, save_tokens=tmp_path / "." / "r.jsonl")
    with pytest.raises(UserError, match="also named for records or data"):
        scored(folder, out, save_tokens=folder / "text.txt")
    with pytest.raises(UserError, match="is no parquet file, and stays"):
        scored(folder, out, save_tokens=text)
    assert text.read_bytes() == b"kept"
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    for _ in range(2):  # over its own
        scored(folder, out, steps=(100,), save_tokens=tokens)
    assert tokens.read_bytes()[:4] == b"PAR1"


def test_nothing_is_left_of_what_could_not_begin(folder, tmp_path):
    with pytest.raises(UserError, match="--context 999"):
        scored(folder, tmp_path / "r.jsonl", context=999)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_others_write_to_all_the_time_is_one_line_and_left_as_it_is(
    folder, tmp_path, monkeypatch
):
    out = tmp_path / "r.jsonl"
    scored(folder, out, steps=(100,))
    before = out.read_bytes()
    monkeypatch.setattr(module, "_TRIES", 0)
    with pytest.raises(UserError, match="other processes"):
        scored(folder, out)
    assert out.read_bytes() == before
    plan = json.loads(next(folder_of(out).glob("*/plan.json")).read_bytes())
    assert plan["tokens"] > 0


def test_chunks_that_go_while_they_are_put_together_are_no_failure(folder, tmp_path, monkeypatch):
    out, again = tmp_path / "r.jsonl", tmp_path / "again.jsonl"
    (key,) = scored(folder, out, steps=(100,))
    kept = Work.kept

    def kept_once(self, number):
        # The other process puts its record down and removes the chunks after this one has looked for them.
        found = kept(self, number)
        if found is not None and not (self.folder / "record.json").exists():
            shutil.copy(folder_of(out) / key / "record.json", self.folder)
            self.clear()
        return found

    monkeypatch.setattr(Work, "kept", kept_once)
    scored(folder, again, steps=(100,))
    assert again.read_bytes() == out.read_bytes()
