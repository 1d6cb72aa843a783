"""Files of llama-perplexity --kl-divergence-base: one that it has written itself, and made ones."""

import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from lightning_pce.runs.history import History
from lightning_pce.scoring.evaluate import evaluate
from lightning_pce.scoring.imports import import_records, llama_cpp
from lightning_pce.scoring.imports._options import Options, Source
from lightning_pce.scoring.keys import TokenIds
from tests.helpers.imports import imported, refused
from tests.helpers.tiny_gguf import TEXT, tiny_gguf

REAL = Path(__file__).parent / "data" / "llama_perplexity.bin"
# What llama-perplexity printed when it wrote it: the perplexity after each chunk.
PRINTED = 915.9905, 1083.5217, 1101.0216


def made(path, logits, tokens, context):
    """A file as the tool writes it, of logits [chunks, rows, V] float32 and tokens [chunks, context]."""
    chunks, _, vocabulary = logits.shape
    with path.open("wb") as file:
        file.write(b"_logits_" + struct.pack("<Iii", context, vocabulary, chunks))
        file.write(tokens.astype("<i4").tobytes())
        for row in logits.reshape(-1, vocabulary):
            highest = row.max()
            lowest = np.float32(max(row.min(), highest - 16))
            log_sum = np.float32(np.log(np.exp(row - highest).sum(dtype=np.float64)))
            step = np.float32((highest - lowest) / 65535)
            q = np.where(row > lowest, np.rint((row - lowest) / step), 0).astype("<u2")
            padding = np.full(vocabulary % 2, 12345, "<u2")
            file.write(struct.pack("<ff", step, lowest - highest - log_sum) + q.tobytes() + padding.tobytes())
    return path


def example(vocabulary=41, scale=3.0):
    rng = np.random.default_rng(0)
    logits = (rng.standard_normal((2, 4, vocabulary)) * scale).astype(np.float32)
    return logits, rng.integers(0, vocabulary, (2, 10))


def log_softmax(logits):
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def test_a_file_of_the_tool_itself_has_the_perplexity_that_it_printed(tmp_path):
    path = Path(shutil.copy(REAL, tmp_path / "tiny.bin"))
    record = imported(path, "llama.cpp")
    totals = record.document_totals
    running = (totals.nats.cumsum(0) / totals.tokens.cumsum(0)).exp().tolist()
    assert running == pytest.approx(PRINTED, rel=2e-5)
    assert record.values["ce_count"] == 3 * 31
    assert record.how["protocol"] == "llama.cpp"
    assert (record.how["context"], record.how["stride"]) == (64, None)
    assert any("0 of 93 tokens" in note for note in record.how["notes"])


@pytest.mark.parametrize("vocabulary", [40, 41])
def test_every_statistic_of_each_token(tmp_path, vocabulary):
    logits, tokens = example(vocabulary)
    path = made(tmp_path / "a.bin", logits, tokens, 10)
    log_p, targets = log_softmax(logits), tokens[:, 6:]
    found = list(llama_cpp.documents(path, Options(), Source()))
    for at, document in enumerate(found):
        expected = -np.take_along_axis(log_p[at], targets[at][:, None], 1)[:, 0]
        assert document.ce == pytest.approx(expected, abs=2e-4)
        assert document.entropy == pytest.approx(-(np.exp(log_p[at]) * log_p[at]).sum(1), abs=2e-4)
        assert document.ranks.tolist() == [
            1 + (row > row[target]).sum() for row, target in zip(log_p[at], targets[at], strict=True)
        ]
        assert document.tops.tolist() == log_p[at].argmax(1).tolist()
        assert document.first == 6
    ids = TokenIds()
    ids.add(targets.reshape(-1))
    assert imported(path, "llama.cpp").how["token_ids"] == ids.key


def test_what_is_cut_is_counted_and_said(tmp_path):
    logits, tokens = example(scale=0.5)
    logits[0, 1, tokens[0, 7]] = -30.0
    logits[1, 0, 0] = -40.0  # of a token that did not come
    record = imported(made(tmp_path / "a.bin", logits, tokens, 10), "llama.cpp")
    assert any("1 of 8 tokens lie there" in note for note in record.how["notes"])
    log_p = log_softmax(logits)[0, 1]
    assert record.tail[0].ce == pytest.approx(16 - log_p.max(), abs=1e-4)
    found = list(llama_cpp.documents(tmp_path / "a.bin", Options(), Source()))
    assert found[0].entropy[1] == pytest.approx(-(np.exp(log_p) * log_p).sum(), abs=2e-4)


def test_a_token_below_all_others_but_within_16_nats_is_not_cut(tmp_path):
    logits, tokens = example(scale=0.5)
    logits[0, 1, tokens[0, 7]] = -6.0
    record = imported(made(tmp_path / "a.bin", logits, tokens, 10), "llama.cpp")
    assert any("0 of 8 tokens lie there" in note for note in record.how["notes"])


def test_rows_in_blocks_are_the_same(tmp_path, monkeypatch):
    path = made(tmp_path / "a.bin", *example(), 10)
    whole = imported(path, "llama.cpp").values
    monkeypatch.setattr(llama_cpp, "_BLOCK", 100)
    assert imported(path, "llama.cpp").values == whole


def test_a_file_of_another_size_or_kind_is_refused(tmp_path):
    path = made(tmp_path / "a.bin", *example(), 10)
    content = path.read_bytes()
    for spoilt, words in (
        (content[:-1], "is cut short: it has"),
        (content + b"x", "is too long"),
        (content[:15], "ends in its header"),
        (b"something else", "begins otherwise"),
        (content[:8] + struct.pack("<Iii", 10, -5, 2) + content[20:], "it is damaged"),
        (content[:20] + struct.pack("<i", 77) + content[24:], "outside its vocabulary of 41"),
        (content[:100] + bytes(len(content) - 100), "chunk 1 is damaged"),
        (content[:100] + b"\xff" * (len(content) - 100), "chunk 1 is damaged"),
    ):
        path.write_bytes(spoilt)
        refused(path, "llama.cpp", words)


@pytest.mark.slow
def test_evaluate_by_that_protocol_finds_what_the_tool_found(tmp_path):
    model, text = tiny_gguf(tmp_path / "tiny.gguf"), tmp_path / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    out = tmp_path / "records.jsonl"
    evaluate([str(model)], [text], out, protocol="llama.cpp", context=64)
    import_records(REAL, "llama.cpp", out, name="text")
    ours, theirs = History.load(out)
    assert ours.how["token_ids"] == theirs.how["token_ids"]
    assert ours.document_totals.ids.tolist() == theirs.document_totals.ids.tolist()
    # The tool rounds keys and values of attention to float16, and log-probabilities to 65,536 steps.
    assert theirs.document_totals.nats.tolist() == pytest.approx(ours.document_totals.nats.tolist(), rel=1e-4)
    for name in ("ce_mean", "ce_p5", "ce_p50", "ce_p95", "entropy_mean", "entropy_p50", "log_rank_mean"):
        assert theirs.values[name] == pytest.approx(ours.values[name], abs=2e-3), name
