"""What all formats share: the record, its key, the file of records, and what is refused before reading."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from lightning_pce._errors import UserError
from lightning_pce.cli import main
from lightning_pce.digest import quantile
from lightning_pce.intervals import interval, slots_of
from lightning_pce.runs.history import History
from lightning_pce.scoring.imports import _collecting, import_records
from lightning_pce.scoring.keys import document_number
from tests.helpers.imports import imported, json_lines, refused


def losses(documents=40, seed=0):
    rng = np.random.default_rng(seed)
    return [{"loss": rng.gamma(0.7, 2.0, rng.integers(1, 40)).tolist()} for _ in range(documents)]


def test_a_record_has_exact_percentiles_error_bars_and_documents(tmp_path):
    rows = losses()
    path = json_lines(tmp_path / "a.jsonl", *rows)
    record = imported(path, "columns", column="loss", kind="loss", model="mine", step=7, name="books")
    values = np.concatenate([row["loss"] for row in rows])
    assert (record.function, record.name, record.step, len(record.run)) == ("import", "books", 7, 16)
    assert record.saved[0].path == "mine"
    assert record.values["ce_count"] == len(values)
    assert record.values["ce_mean"] == pytest.approx(values.mean(), abs=1e-12)
    assert record.values["ce_p50"] == pytest.approx(np.median(values), abs=1e-12)
    assert float(quantile(record.digest(), 0.9)) == record.values["ce_p90"]
    bar = interval(record.digest(), record.documents(), "p50")
    assert (record.values["ce_p50_low"], record.values["ce_p50_high"]) == (bar.low, bar.high)
    assert bar.low < record.values["ce_p50"] < bar.high
    ids = torch.tensor([document_number(str(at)) for at in range(40)])
    assert record.document_totals.ids.tolist() == ids.tolist()
    tokens = record.documents()[:, :-1].sum(1)
    lengths = torch.tensor([len(row["loss"]) for row in rows], dtype=torch.float64)
    assert tokens.tolist() == torch.zeros(128).double().index_add(0, slots_of(ids).long(), lengths).tolist()


def test_the_tail_is_the_highest_tokens_in_order(tmp_path):
    rows = losses(300)
    record = imported(json_lines(tmp_path / "a.jsonl", *rows), "columns", column="loss", kind="loss")
    all_tokens = [(-ce, row, at) for row, each in enumerate(rows) for at, ce in enumerate(each["loss"])]
    expected = sorted(all_tokens)[:100]
    assert [(-token.ce, int(token.document), token.position) for token in record.tail] == expected


def test_many_tokens_enter_in_parts(tmp_path, monkeypatch):
    path = json_lines(tmp_path / "a.jsonl", *losses())
    whole = imported(path, "columns", column="loss", kind="loss")
    monkeypatch.setattr(_collecting, "_ENOUGH", 50)
    parts = imported(path, "columns", column="loss", kind="loss")
    assert parts.values["ce_count"] == whole.values["ce_count"]
    assert parts.values["ce_p50"] == pytest.approx(whole.values["ce_p50"], abs=1e-12)
    assert torch.equal(parts.documents()[:, :-1], whole.documents()[:, :-1])


def test_the_same_content_is_one_record_and_the_same_bytes(tmp_path):
    path, out = json_lines(tmp_path / "a.jsonl", *losses()), tmp_path / "records.jsonl"
    key = import_records(path, "columns", out, column="loss", kind="loss")
    content = out.read_bytes()
    assert import_records(path, "columns", out, column="loss", kind="loss") == key
    assert out.read_bytes() == content
    json_lines(path, *losses(seed=1))
    assert import_records(path, "columns", out, column="loss", kind="loss") != key
    assert len(History.load(out)) == 2
    assert out.read_bytes().startswith(content)


def test_a_statistic_that_some_documents_lack_is_left_out(tmp_path):
    ranked = {"5": {"logprob": -1.0, "rank": 1}}
    rows = [{"prompt_logprobs": [None, ranked]}, {"prompt_logprobs": [None, {"5": {"logprob": -2.0}}]}]
    record = imported(json_lines(tmp_path / "a.jsonl", *rows), "vllm")
    assert record.statistics == ("ce",)
    assert "accuracy" not in record.values


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"[]", "is empty"),
        (b"[\n]\n", "is empty"),
        (b'{"prompt_logprobs": [null, {"5": ', "is torn or no JSON"),
        (b'{"prompt_logprobs": [null, {"5": -1.0}]}\n{"prompt', "line 2 is torn or no JSON"),
        (b'{"prompt_logprobs": [null, {"5": -1.0}]}\n\xff\xfe', "line 2 is not UTF-8"),
        (b"text of a book\n", "is torn or no JSON"),
        (b"[" * 100_000, "is nested too deeply"),
        (b"1\n", "expected an object in braces but got '1'"),
        (b"\x00\x01\x02", "is torn or no JSON"),
        (b"PAR1....", "try --format columns"),
        (b"_logits_....", "try --format llama.cpp"),
        (b'{"prompt_logprobs": [null]}', "no token with a log-probability"),
    ],
)
def test_a_file_that_is_something_else_is_refused(tmp_path, content, words):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    refused(path, "vllm", words)


def test_options_that_do_not_fit_are_refused(tmp_path):
    path = json_lines(tmp_path / "a.jsonl", {"loss": [1.0]})
    refused(path, "vllmm", "There is no format 'vllmm': choose one of vllm, completions")
    refused(path, "vllm", "are of --format columns, not of vllm", column="loss")
    refused(path, "columns", "Expected a name of A-Z", column="loss", name="my books")
    with pytest.raises(UserError, match="is the file to import"):
        import_records(path, "columns", path, column="loss", kind="loss")
    with pytest.raises(UserError, match="is a folder"):
        import_records(tmp_path, "vllm", tmp_path / "r.jsonl")
    with pytest.raises(FileNotFoundError):
        import_records(tmp_path / "nothing.jsonl", "vllm", tmp_path / "r.jsonl")


def test_the_command_says_what_the_record_holds(tmp_path, capsys):
    path, out = json_lines(tmp_path / "a.jsonl", {"x": -1.0}, {"x": -2.0}), tmp_path / "r.jsonl"
    assert main(["import", str(path), "--format", "columns", "--column", "x", "-o", str(out)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{out}: a.jsonl, imported: 2 tokens, CE mean 1.5000, p50 1.5000"
    assert said[1].startswith("note: there is no --document")


def test_what_is_wrong_with_a_file_is_said_without_torch(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt_logprobs": [null, {"5": -1.0}]}\n{"prompt')
    arguments = ["import", str(path), "--format", "vllm", "-o", str(tmp_path / "r.jsonl")]
    program = (
        f"import sys; from lightning_pce.cli import main; print(main({arguments}), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout == "2 False\n"
    assert done.stderr.count("\n") == 1
    assert "line 2 is torn" in done.stderr
