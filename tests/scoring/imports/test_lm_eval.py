"""Samples that lm-evaluation-harness itself has written (data/README.md), and what is not to be imported."""

import json
import math
from pathlib import Path

import pytest

from tests.helpers.imports import imported, json_lines, refused

DATA = Path(__file__).parent / "data"


def samples(task):
    (path,) = DATA.glob(f"samples_{task}_*.jsonl")
    return path, [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def copied(tmp_path, task):
    path, rows = samples(task)
    (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path / path.name, rows


def test_rolling_likelihoods_are_sums_of_documents_with_bits_per_byte(tmp_path):
    path, rows = copied(tmp_path, "pce_roll")
    record = imported(path, "lm-eval", model="tiny")
    totals = record.document_totals
    assert totals.nats.tolist() == [-row["bits_per_byte"][0] for row in rows]
    assert totals.bytes.tolist() == [row["bits_per_byte"][1] for row in rows]
    # As the harness printed it.
    assert record.values["bits_per_byte"] == pytest.approx(14.2881, abs=5e-5)
    assert totals.tokens.isnan().all()
    assert (record.name, record.statistics, record.tail) == ("pce_roll", (), ())
    assert record.how["protocol"] == "lm-eval loglikelihood_rolling"
    assert any("no percentiles" in note for note in record.how["notes"])


def test_of_likelihoods_it_is_the_continuation(tmp_path):
    path, rows = copied(tmp_path, "pce_ll")
    totals = imported(path, "lm-eval").document_totals
    assert totals.nats.tolist() == [-row["perplexity"] for row in rows]
    assert totals.bytes.tolist() == [3, 4]


def test_of_multiple_choice_it_is_the_right_answer(tmp_path):
    path, rows = copied(tmp_path, "pce_choice")
    record = imported(path, "lm-eval")
    expected = [-float(row["resps"][int(row["target"])][0][0]) for row in rows]
    assert record.document_totals.nats.tolist() == expected
    assert record.values["document_nats_mean"] == pytest.approx(sum(expected) / 2)


def test_a_target_may_be_the_text_of_a_choice_and_must_be_one(tmp_path):
    _, (row, _) = samples("pce_choice")
    by_text = json_lines(tmp_path / "a.jsonl", row | {"target": "six"})
    record = imported(by_text, "lm-eval")
    assert record.document_totals.nats.tolist() == [-float(row["resps"][2][0][0])]
    (tmp_path / "records.jsonl").unlink()
    refused(json_lines(tmp_path / "a.jsonl", row | {"target": "ten"}), "lm-eval", "'ten' is none of the 3")
    row["arguments"]["gen_args_0"]["arg_1"] = " 2"  # the text of one and the number of another
    refused(json_lines(tmp_path / "a.jsonl", row | {"target": "2"}), "lm-eval", "'2' is several of the 3")


def test_each_filter_has_the_same_answers_and_counts_once(tmp_path):
    _, rows = samples("pce_roll")
    again = [row | {"filter": "strict"} for row in rows]
    record = imported(json_lines(tmp_path / "a.jsonl", *rows, *again), "lm-eval")
    assert record.values["document_count"] == 3


def test_other_prompts_are_other_data(tmp_path):
    _, rows = samples("pce_ll")
    one = imported(json_lines(tmp_path / "a.jsonl", *rows), "lm-eval").how["data"]
    rows[0]["prompt_hash"] = "few shots"
    assert imported(json_lines(tmp_path / "a.jsonl", *rows), "lm-eval").how["data"] != one


def test_minus_infinity_is_an_infinite_sum(tmp_path):
    _, (row, *_) = samples("pce_roll")
    record = imported(json_lines(tmp_path / "a.jsonl", row | {"resps": [["-inf"]]}), "lm-eval")
    assert record.document_totals.nats.tolist() == [math.inf]


def test_what_is_no_likelihood_is_refused(tmp_path):
    path, _ = copied(tmp_path, "pce_generate")
    refused(path, "lm-eval", "is of generated text")
    _, (row, *_) = samples("pce_roll")
    for change, words in (
        ({"resps": [["a word"]]}, "expected a log-likelihood but got 'a word'"),
        ({"resps": [["nan"]]}, "null or NaN"),
        ({"resps": [["0.5"]]}, "is above 0"),
        ({"resps": [["-1"], ["-2"]]}, "2 answers to 1 requests"),
        ({"arguments": None}, "no sample of lm-eval"),
    ):
        refused(json_lines(tmp_path / "a.jsonl", row | change), "lm-eval", words)
    mixed = samples("pce_ll")[1][0], row
    refused(json_lines(tmp_path / "a.jsonl", *mixed), "lm-eval", "give a file to each task")
