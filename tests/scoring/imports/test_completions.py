"""Completions that repeat the prompt."""

import copy

import pytest

from tests.helpers.imports import imported, json_lines, refused

TOKENS = ["<s>", "The", " sky", " is", " blue"]
LOGPROBS = [None, -4.0, -3.0, -0.5, -0.25]


def choice(number=5, **more):
    offsets = [0, 3, 6, 10, 13][:number]
    logprobs = {"tokens": TOKENS[:number], "token_logprobs": LOGPROBS[:number], "text_offset": offsets}
    return {"index": 0, "text": "", "logprobs": logprobs, **more}


def answer(*choices, prompt=None, generated=0):
    usage = None if prompt is None else {"prompt_tokens": prompt, "completion_tokens": generated}
    return {"object": "text_completion", "model": "m", "choices": list(choices), "usage": usage}


@pytest.mark.parametrize(
    ("row", "count"),
    [
        (answer(choice(), prompt=5), 4),
        (answer(choice(), prompt=3, generated=2), 2),  # what was generated is not the text's
        (answer(choice(), prompt=5, generated=1), 4),  # vLLM tells of a token that it leaves out
        (answer(choice(), choice(3), prompt=8), 6),
        (answer(choice(prompt_token_ids=[1, 2, 3])), 2),
        (answer(choice()), 4),
    ],
)
def test_the_prompt_is_counted_and_what_was_generated_is_not(tmp_path, row, count):
    record = imported(json_lines(tmp_path / "a.jsonl", row), "completions")
    assert record.values["ce_count"] == count
    assert record.values["ce_p50"] >= 0.5
    assert record.tail[0].text == "The"
    assert record.tail[0].context == "<s>"
    assert record.tail[0].position == 1
    assert record.saved[0].path == "m"


def test_that_generated_tokens_may_be_among_them_is_said(tmp_path):
    record = imported(json_lines(tmp_path / "a.jsonl", answer(choice())), "completions")
    assert any("generated" in note for note in record.how["notes"])
    assert "token_ids" not in record.how


def test_tokens_as_ids_are_ids(tmp_path):
    row = answer(choice(), prompt=5)
    row["choices"][0]["logprobs"]["tokens"] = [f"token_id:{number}" for number in range(5)]
    record = imported(json_lines(tmp_path / "a.jsonl", row), "completions")
    assert [token.label for token in record.tail] == [1, 2, 3, 4]
    assert record.tail[0].text is None
    assert len(record.how["token_ids"]) == 16


def without_echo(row):
    row["choices"][0]["logprobs"]["token_logprobs"][0] = -1.0


def null(row):
    row["choices"][0]["logprobs"]["token_logprobs"][3] = None


def fewer(row):
    row["choices"][0]["logprobs"]["tokens"].pop()


def short(row):
    row["usage"]["prompt_tokens"] = 9


def chat(row):
    row["choices"][0]["logprobs"] = {"content": [{"token": "a", "logprob": -1.0}]}


def no_logprobs(row):
    row["choices"][0]["logprobs"] = None


def several(row):
    row["choices"].append(choice(3))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (without_echo, "does not repeat the prompt"),
        (null, "null or NaN"),
        (fewer, "5 token_logprobs of 4 tokens"),
        (short, "5 tokens of a prompt of 9: it is cut short"),
        (chat, "is a chat, whose logprobs are of generated tokens only"),
        (no_logprobs, "no logprobs.token_logprobs"),
        (several, "which are the prompt's is not known"),
    ],
)
def test_what_is_no_prompt_is_refused(tmp_path, spoil, words):
    row = copy.deepcopy(answer(choice(), prompt=5))
    spoil(row)
    refused(json_lines(tmp_path / "a.jsonl", row), "completions", words)
