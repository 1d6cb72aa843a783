"""SGLang's input_token_logprobs."""

import json

import pytest

from tests.helpers.imports import imported, json_lines, refused

ROWS = [[None, 1, "<s>"], [-2.0, 5, "The"], [-0.5, 6, " end"]]


def answer(rows=ROWS, prompt_tokens=3):
    about = {"id": "f3", "prompt_tokens": prompt_tokens, "input_token_logprobs": rows}
    return {"text": " .", "meta_info": about | {"output_token_logprobs": [[-0.1, 9, None]]}}


@pytest.mark.parametrize("several", [False, True])
def test_a_prompt_is_a_document(tmp_path, several):
    rows = [answer(), answer(ROWS[:2], 2)]
    path = tmp_path / "a.jsonl"
    if several:  # the answer to a batch of prompts in a line
        path.write_text(json.dumps(rows) + "\n" + json.dumps([answer()]) + "\n")
    else:
        json_lines(path, *rows, answer())
    record = imported(path, "sglang")
    assert record.document_totals.nats.tolist() == [2.5, 2.0, 2.5]
    assert [token.text for token in record.tail[:2]] == ["The", "The"]
    assert record.tail[0].context == "<s>"
    assert "token_ids" in record.how


def test_from_where_on_it_is_scored_is_said(tmp_path):
    rows = [[None, 4, None], [-1.0, 5, None]]
    record = imported(json_lines(tmp_path / "a.jsonl", answer(rows, 10)), "sglang")
    assert any("logprob_start_len" in note for note in record.how["notes"])
    assert record.tail[0].position == 9
    assert record.tail[0].text is None


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (answer([*ROWS, [None, 7, None]], 4), "null or NaN"),
        (answer(prompt_tokens=2), "3 input_token_logprobs, but its prompt has 2 tokens"),
        (answer([]), "no meta_info.input_token_logprobs"),
        (answer([[None, 1, None], [-1.0]], 2), "token 1: expected [log-probability, id, text]"),
        (answer([[None, 1, None], [-1.0, "5", None]], 2), "expected the ids of tokens"),
        ({"text": "x"}, "no meta_info.input_token_logprobs"),
        ({"error": {"message": "too long"}}, "is an error"),
    ],
)
def test_what_is_no_answer_or_cut_short_is_refused(tmp_path, row, words):
    refused(json_lines(tmp_path / "a.jsonl", row), "sglang", words)
