"""Records of tiny checkpoints equal an independent loop that keeps all losses."""

import json

import numpy as np
import pytest
import torch

from lightning_pce.digest import quantile
from lightning_pce.runs.history import History
from lightning_pce.scoring.evaluate import evaluate, summary
from tests.helpers.all_losses import all_losses
from tests.helpers.tiny_checkpoints import CONTEXT, tiny_checkpoint

TEXTS = [
    "the thing in there: naïve café",
    "a " * 90,
    "漢字 and 🎉🎉 emoji, then the rest of the text, which is longer than one window of the model is",
    *(f"{word} in the {word * 3}" for word in ["other", "water", "winter", "finger", "thunder", "leather"]),
    "x",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    tiny_checkpoint(folder / "checkpoint-100")
    rows = [{"prompt": f"{n}: ", "completion": text} for n, text in enumerate(TEXTS)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    evaluate([folder / "checkpoint-100"], [folder / "rows.jsonl"], folder / "records.jsonl")
    return folder


@pytest.fixture(scope="module")
def record(folder):
    (record,) = History.load(folder / "records.jsonl")
    return record


@pytest.fixture(scope="module")
def oracle(folder):
    texts = [f"{n}: {text}" for n, text in enumerate(TEXTS)]
    return all_losses(folder / "checkpoint-100", texts, context=CONTEXT, stride=CONTEXT // 2)


def test_count_mean_and_percentiles_are_those_of_all_losses(record, oracle):
    losses = torch.cat(oracle.losses)
    assert record.values["ce_count"] == len(losses)
    assert record.values["ce_mean"] == pytest.approx(float(losses.mean()), abs=1e-6)
    q = torch.linspace(0, 1, 101, dtype=torch.float64)
    # Fewer tokens than centroids: nothing is an approximation.
    torch.testing.assert_close(
        quantile(record.digest(), q), losses.quantile(q, interpolation="linear"), atol=1e-5, rtol=0
    )
    assert record.values["entropy_mean"] == pytest.approx(float(torch.cat(oracle.entropies).mean()), abs=1e-5)
    ranks = torch.cat(oracle.ranks).double()
    assert record.values["log_rank_mean"] == pytest.approx(float(ranks.log().mean()), abs=1e-6)
    assert record.values["accuracy"] == pytest.approx(float((ranks == 1).double().mean()))
    assert record.values["top5_accuracy"] == pytest.approx(float((ranks <= 5).double().mean()))


def test_groups_are_counted_apart(record, oracle):
    starts = [len(f"{n}: ") for n in range(len(TEXTS))]
    ends = [torch.tensor([end for _, end in spans]) for spans in oracle.spans]
    completion = torch.cat(
        [losses[end[1:] > start] for losses, end, start in zip(oracle.losses, ends, starts, strict=True)]
    )
    assert record.values["ce_completion_count"] == len(completion)
    assert record.values["ce_completion_mean"] == pytest.approx(float(completion.mean()), abs=1e-6)
    assert record.values["ce_prompt_count"] == record.values["ce_count"] - len(completion)
    assert set(record.groups) == {"", "prompt", "completion"}


def test_bits_per_byte_are_over_the_bytes_of_scored_tokens_and_of_each_document(record, oracle):
    documents = record.document_totals
    # The first token of each is not scored, and is one byte here.
    size = torch.tensor([len(f"{n}: {text}".encode()) - 1 for n, text in enumerate(TEXTS)])
    nats = torch.stack([losses.sum() for losses in oracle.losses])
    torch.testing.assert_close(documents.bytes, size.double())
    torch.testing.assert_close(documents.nats, nats, atol=1e-4, rtol=0)
    torch.testing.assert_close(documents.first_byte, torch.ones(len(TEXTS), dtype=torch.float64))
    assert record.values["bits_per_byte"] == pytest.approx(
        float(nats.sum() / size.sum()) / np.log(2), rel=1e-6
    )
    ends = documents.ends[2]  # of a text that begins with two characters of three bytes each
    torch.testing.assert_close(ends[:, 1], oracle.losses[2][:8].cumsum(0), atol=1e-4, rtol=0)
    # "2", ":", " ", then three bytes of a character.
    assert ends[:5, 0].nan_to_num(-1).tolist() == [2, 3, -1, -1, 6]


def test_the_tail_is_the_tokens_of_highest_loss_with_their_text(record, oracle):
    place = [(float(ce), n, t + 1) for n, losses in enumerate(oracle.losses) for t, ce in enumerate(losses)]
    place.sort(reverse=True)
    assert len(record.tail) == 100
    for row, (ce, document, position) in zip(record.tail[:20], place, strict=False):
        assert row.ce == pytest.approx(ce, abs=1e-4)
        ids = oracle.ids[document]
        assert (row.document, row.position, row.label) == (str(document), position, int(ids[position]))
        assert row.rank == int(oracle.ranks[document][position - 1])
        assert row.text == oracle.tokenizer.decode([row.label])
        assert row.context == oracle.tokenizer.decode(ids[max(0, position - 32) : position])


def test_label_totals_are_sums_over_equal_labels(record, oracle):
    labels = torch.cat([ids[1:] for ids in oracle.ids])
    losses = torch.cat(oracle.losses)
    totals = record.label_totals["labels"]
    expected = torch.zeros(len(totals), dtype=torch.float64).index_add(0, labels, losses)
    torch.testing.assert_close(totals[:, 1], expected, atol=1e-4, rtol=0)
    assert totals[:, 0].sum() == len(losses)
    assert record.label_texts[int(labels[0])] == oracle.tokenizer.decode([int(labels[0])])


def test_what_a_record_says_of_itself(record, folder):
    assert (record.function, record.name, record.step) == ("score", "rows", 100)
    assert record.saved[0].path == str(folder / "checkpoint-100")
    assert dict(record.how) | {"protocol": "windows", "context": 64, "stride": 32, "bos": None} == record.how
    assert record.how["dtype"] == "float32"
    assert record.how["device"] == "cpu"
    assert record.run == json.loads((folder / "records.jsonl").read_bytes())["run"]
    assert "time" not in json.loads((folder / "records.jsonl").read_bytes())
    (line,) = summary(folder / "records.jsonl", [record.run])
    assert f"mean {record.values['ce_mean']:.4f}" in line


@pytest.mark.parametrize("batch_tokens", [1, 100, 5000])
def test_batches_of_any_size_agree(record, folder, batch_tokens, tmp_path):
    evaluate(
        [folder / "checkpoint-100"], [folder / "rows.jsonl"], tmp_path / "r.jsonl", batch_tokens=batch_tokens
    )
    (other,) = History.load(tmp_path / "r.jsonl")
    assert other.run != record.run
    torch.testing.assert_close(other.digest()[:, 0], record.digest()[:, 0], atol=1e-4, rtol=0)
    torch.testing.assert_close(other.document_totals.nats, record.document_totals.nats, atol=1e-3, rtol=0)


def test_any_number_of_threads_gives_the_same_bytes(folder, tmp_path):
    found = set()
    for threads in (1, 3):
        out, before = tmp_path / f"{threads}.jsonl", torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            evaluate([folder / "checkpoint-100"], [folder / "rows.jsonl"], out, batch_tokens=64)
        finally:
            torch.set_num_threads(before)
        found.add(out.read_bytes())
    assert len(found) == 1


def test_llama_cpp_scores_the_second_half_of_each_window(folder, tmp_path):
    text = "\n\n".join(TEXTS)
    (tmp_path / "whole.txt").write_text(text + "\n", encoding="utf-8")
    evaluate(
        [folder / "checkpoint-100"],
        [tmp_path / "whole.txt"],
        tmp_path / "r.jsonl",
        protocol="llama.cpp",
        context=32,
    )
    (record,) = History.load(tmp_path / "r.jsonl")
    whole = all_losses(folder / "checkpoint-100", [text], context=32, stride=32)
    # Windows side by side; of each the logits from place 16 on but the last, which predict the places after.
    ids = whole.ids[0]
    begins = range(0, len(ids) - 31, 32)
    losses = torch.cat([whole.of_window(ids[begin : begin + 32])[0][16:] for begin in begins])
    assert record.values["ce_count"] == len(losses) == len(ids) // 32 * 15
    assert record.values["ce_mean"] == pytest.approx(float(losses.mean()), abs=1e-6)
    assert record.how["stride"] is None


def test_a_token_in_front_lets_the_first_be_scored(folder, tmp_path):
    evaluate([folder / "checkpoint-100"], [folder / "rows.jsonl"], tmp_path / "r.jsonl", bos=7, text=False)
    (record,) = History.load(tmp_path / "r.jsonl")
    assert record.how["bos"] == 7
    assert record.document_totals.first_byte.tolist() == [0.0] * len(TEXTS)
    assert record.label_texts == {}
    assert record.tail[0].text is record.tail[0].context is None


def test_memory_of_a_piece_of_logits_changes_no_more_than_rounding(record, folder, tmp_path):
    evaluate([folder / "checkpoint-100"], [folder / "rows.jsonl"], tmp_path / "r.jsonl", memory="16MiB")
    (other,) = History.load(tmp_path / "r.jsonl")
    assert other.values["ce_mean"] == pytest.approx(record.values["ce_mean"], abs=1e-6)


def test_a_model_without_numbers_says_so(folder, tmp_path):
    from transformers import AutoModelForCausalLM

    broken = tiny_checkpoint(tmp_path / "broken")
    model = AutoModelForCausalLM.from_pretrained(broken)
    model.lm_head.weight.data[3] = torch.inf
    model.save_pretrained(broken)
    evaluate([broken], [folder / "rows.jsonl"], tmp_path / "r.jsonl")
    (record,) = History.load(tmp_path / "r.jsonl")
    assert np.isnan(record.values["ce_mean"])
    (note,) = record.how["notes"]
    assert "tokens have a cross-entropy that is infinite or NaN" in note
    assert note in summary(tmp_path / "r.jsonl", [record.run])[0]
