"""vLLM's prompt_logprobs, in every form in which it is written."""

import copy
import json
import math

import numpy as np
import pytest

from lightning_pce.scoring.keys import TokenIds
from tests.helpers.imports import imported, json_lines, refused


def candidate(logprob, rank=1, text="x"):
    return {"logprob": logprob, "rank": rank, "decoded_token": text}


def with_ids(ids, logprobs, ranks=None):
    """prompt_logprobs with two candidates, the actual token in the second place."""
    entries = [
        {"999": candidate(-0.01), str(token): candidate(logprob, rank, f"<{token}>")}
        for token, logprob, rank in zip(ids[1:], logprobs, ranks or [2] * len(logprobs), strict=True)
    ]
    return {"prompt_token_ids": ids, "prompt_logprobs": [None, *entries]}


PROMPTS = ([1, 5, 6], [-2.0, -0.5]), ([1, 7], [-3.25])
CE = [2.0, 0.5, 3.25]


def completion(*prompts, **more):
    choices = [{"index": at, "text": "", **with_ids(*prompt)} for at, prompt in enumerate(prompts)]
    told = sum(len(prompt[0]) for prompt in prompts)
    return {"id": "cmpl-3f", "object": "text_completion", "model": "m", "choices": choices} | {
        "usage": {"prompt_tokens": told, "completion_tokens": 1},
        **more,
    }


FORMS = {
    "a batch of prompts": lambda: [completion(*PROMPTS)],
    "an answer each": lambda: [completion(prompt) for prompt in PROMPTS],
    "chat": lambda: [{"model": "m", "choices": [{"message": {}}], **with_ids(*prompt)} for prompt in PROMPTS],
    "RequestOutput": lambda: [{"request_id": "0", "outputs": [], **with_ids(*prompt)} for prompt in PROMPTS],
    "batch files": lambda: [
        {"id": f"vllm-{at}", "custom_id": f"q{at}", "error": None}
        | {"response": {"status_code": 200, "body": completion(prompt)}}
        for at, prompt in enumerate(PROMPTS)
    ],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("file", ["lines", "list", "pretty"])
def test_the_actual_token_is_found_by_its_id(tmp_path, form, file):
    rows, path = FORMS[form](), tmp_path / "answers.json"
    if file == "lines":
        json_lines(path, *rows)
    else:
        whole = rows[0] if len(rows) == 1 else rows
        path.write_text(json.dumps(whole, indent=2 if file == "pretty" else None))
    record = imported(path, "vllm")
    assert record.values["ce_count"] == 3
    assert record.values["ce_mean"] == pytest.approx(sum(CE) / 3, abs=1e-15)
    assert record.document_totals.nats.tolist() == [2.5, 3.25]
    assert record.document_totals.tokens.tolist() == [2, 1]
    ids = TokenIds()
    ids.add([5, 6, 7])
    assert record.how["token_ids"] == ids.key
    assert record.how["source"] == "vllm"


def test_ranks_become_log_ranks_and_accuracy_and_texts_the_tail(tmp_path):
    path = json_lines(tmp_path / "a.jsonl", completion(([1, 5, 6], [-2.0, -0.5], [9, 1])))
    record = imported(path, "vllm")
    assert record.values["accuracy"] == 0.5
    assert record.values["log_rank_mean"] == pytest.approx(math.log(9) / 2)
    first = record.tail[0]
    assert (first.ce, first.rank, first.label, first.position, first.text) == (2.0, 9, 5, 1, "<5>")
    assert record.tail[1].context == "<5>"


def test_without_ids_a_single_candidate_is_the_token_and_several_are_refused(tmp_path):
    entries = [None, {"5": candidate(-2.0)}, {"6": candidate(-0.5)}]
    record = imported(json_lines(tmp_path / "a.jsonl", {"prompt_logprobs": entries}), "vllm")
    assert record.values["ce_mean"] == 1.25
    (tmp_path / "records.jsonl").unlink()
    entries[2]["7"] = candidate(-1.0, 2)
    path = json_lines(tmp_path / "a.jsonl", {"prompt_logprobs": entries})
    refused(path, "vllm", "line 1, token 2 has 2 candidates and no prompt_token_ids")


def test_minus_infinity_is_counted_and_said(tmp_path):
    prompt = [1, 5, 6, 7], [-2.0, -9999.0, -float("inf")]
    record = imported(json_lines(tmp_path / "a.jsonl", completion(prompt)), "vllm")
    assert record.values["ce_mean"] == math.inf
    assert record.values["ce_nonfinite"] == 2
    assert record.values["ce_finite_mean"] == 2
    assert any("2 log-probabilities are minus infinity" in note for note in record.how["notes"])
    assert [token.ce for token in record.tail] == [math.inf, math.inf, 2.0]


def cut(row):
    row["choices"][0]["prompt_logprobs"].pop()


def shorter(row):
    cut(row)
    row["choices"][0].pop("prompt_token_ids")


def null(row):
    row["choices"][0]["prompt_logprobs"][2] = None


def other_ids(row):
    row["choices"][0]["prompt_token_ids"][1] = 44


def positive(row):
    row["choices"][0]["prompt_logprobs"][1]["5"]["logprob"] = 0.5


def no_number(row):
    row["choices"][0]["prompt_logprobs"][1]["5"]["logprob"] = "-0.5"


def nan(row):
    row["choices"][0]["prompt_logprobs"][1]["5"]["logprob"] = np.nan


def repeated(row):
    row["choices"] *= 2


def none(row):
    row["choices"][0]["prompt_logprobs"] = None


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (cut, "2 prompt_logprobs, but usage tells of 3 tokens"),
        (shorter, "2 prompt_logprobs, but usage tells of 3 tokens"),
        (null, "line 2, token 2 has no candidates but 'None'"),
        (other_ids, "the text's token 44 is not among the candidates 999, 5"),
        (positive, "line 2: a log-probability of 0.5 is above 0"),
        (no_number, "expected a log-probability but got '-0.5'"),
        (nan, "null or NaN"),
        (repeated, "repeat the same prompts"),
        (none, "line 2 has no prompt_logprobs"),
    ],
)
def test_what_is_spoilt_is_refused_with_its_line(tmp_path, spoil, words):
    row = copy.deepcopy(completion(PROMPTS[0]))
    spoil(row)
    refused(json_lines(tmp_path / "a.jsonl", completion(PROMPTS[1]), row), "vllm", words)


def test_two_models_in_one_file_are_refused(tmp_path):
    rows = completion(PROMPTS[0]), completion(PROMPTS[1], model="other")
    refused(json_lines(tmp_path / "a.jsonl", *rows), "vllm", "'other' and those before of 'm'")


def test_an_id_given_twice_and_an_error_are_refused(tmp_path):
    (row, _) = FORMS["batch files"]()
    refused(json_lines(tmp_path / "a.jsonl", row, row), "vllm", "another document 'q0'")
    row |= {"response": None, "error": {"message": "too long"}}
    refused(json_lines(tmp_path / "a.jsonl", row), "vllm", "is an error and no answer")
