"""Rows of JSON lines and parquet as documents."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lightning_pce._errors import UserError
from lightning_pce.scoring.data import Part, read_data

USER = {"role": "user", "content": "hi"}
ASSISTANT = {"role": "assistant", "content": "yes"}


def lines(folder, *rows):
    path = folder / "data.jsonl"
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_bytes(text.encode())
    return path


def parquet(folder, *rows):
    path = folder / "data.parquet"
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


WRITERS = pytest.mark.parametrize("write", [lines, parquet])


@WRITERS
def test_text_with_ids_and_units(tmp_path, write):
    rows = [
        {"text": "a", "id": 7, "document": "x", "extra": None},
        {"text": "b", "id": 8, "document": "x", "extra": None},
    ]
    data = read_data(write(tmp_path, *rows))
    assert [(d.id, d.unit, d.parts) for d in data.documents] == [
        ("7", "x", (Part("a"),)),
        ("8", "x", (Part("b"),)),
    ]


@WRITERS
def test_prompt_and_completion_are_groups(tmp_path, write):
    data = read_data(write(tmp_path, {"prompt": "a ", "completion": "b", "text": None}))
    assert data.groups == ("prompt", "completion")
    assert data.documents[0].parts == (Part("a ", "prompt"), Part("b", "completion"))


@WRITERS
def test_messages_lose_what_is_null(tmp_path, write):
    rows = [
        {"messages": [{**USER, "name": None}, {**ASSISTANT, "name": "bot"}], "prompt": "an extra column"},
        {"messages": [{**USER, "name": None}], "prompt": "another"},
    ]
    data = read_data(write(tmp_path, *rows))
    assert data.groups == ("prompt", "completion")
    assert data.documents[0].messages == (USER, {**ASSISTANT, "name": "bot"})
    assert data.documents[1].messages == (USER,)


@WRITERS
def test_prompt_and_completion_may_be_messages(tmp_path, write):
    data = read_data(write(tmp_path, {"prompt": [USER], "completion": [ASSISTANT]}))
    (document,) = data.documents
    assert (document.messages, document.completion_from) == ((USER, ASSISTANT), 1)


@WRITERS
def test_a_column_is_the_group_of_a_row(tmp_path, write):
    rows = [
        {"prompt": "a", "completion": "b", "source": "web/en"},
        {"prompt": "c", "completion": "d", "source": "code"},
    ]
    data = read_data(write(tmp_path, *rows), group="source")
    assert data.groups == ("code", "web_en")
    assert [d.parts for d in data.documents] == [(Part("ab", "web_en"),), (Part("cd", "code"),)]


def test_blank_lines_are_passed_over_and_lines_end_with_newlines_only(tmp_path):
    path = lines(tmp_path, '{"text": "a\u2028b"}', "", "  ", '{"text": "c"}\r')
    assert [d.parts[0].text for d in read_data(path).documents] == ["a\u2028b", "c"]
    assert [d.id for d in read_data(path).documents] == ["0", "1"]


def test_parquet_reads_the_columns_it_needs_whatever_else_there_is(tmp_path):
    table = pa.table({"text": ["a"], "when": pa.array([1 << 60], pa.timestamp("us")), "n": [1]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert [d.parts[0].text for d in read_data(tmp_path / "a.parquet").documents] == ["a"]


A = {"text": "a"}
REFUSED = {
    "no rows": ([""], {}, "holds no rows"),
    "not JSON": ([A, "text"], {}, "line 2 is not JSON"),
    "a list": (["[1]"], {}, "line 1 is a list"),
    "nothing known": ([{"content": "a"}], {}, "line 1 has neither `text`.*it has `content`"),
    "null": ([A, {"text": None}], {}, "line 2 has neither"),
    "a number": ([{"text": 1}], {}, "line 1: `text` is to be text but is a number"),
    "half a pair": ([{"prompt": "a"}], {}, "has `prompt` but no `completion`"),
    "a mixed pair": ([{"prompt": "a", "completion": [ASSISTANT]}], {}, "line 1: `completion` is to be text"),
    "two forms": ([{"text": "a", "messages": [USER]}], {}, "both `text` and `messages`"),
    "other rows": ([A, {"messages": [USER]}], {}, "line 2 has `messages` but .* line 1 has `text`"),
    "empty": ([A, {"text": ""}], {}, "1 of 2 documents hold no text .* '1'"),
    "half of a character": (['{"text": "a\\ud800"}'], {}, "half of a surrogate pair at character 1"),
    "too deep": (["[" * 100_000], {}, "nested too deeply"),
    "a repeated id": (
        [{**A, "id": "x"}, A | {"id": 1}, {**A, "id": "x"}],
        {},
        "line 3 has the id 'x' of .* line 1",
    ),
    "an id that is text and number": ([{**A, "id": "1"}, {**A, "id": 1}], {}, "line 2 has the id '1'"),
    "an id at times": ([{**A, "id": "x"}, A], {}, "line 2 has no `id`"),
    "an id that is none": ([{**A, "id": 1.5}], {}, "`id` is to be text or a whole number"),
    "a document at times": ([A, {**A, "document": 1}], {}, "line 1 has no `document`"),
    "no such column": ([A], {"group": "source"}, "no `source` to be its group; it has `text`"),
    "a null group": ([{**A, "s": "x"}, {**A, "s": None}], {"group": "s"}, "line 2 has no `s`"),
    "a list as group": ([{**A, "s": []}], {"group": "s"}, "line 1: `s` is to be text"),
    "a group without a name": ([{**A, "s": "日本"}], {"group": "s"}, "no letter A-Z"),
    "groups alike": (
        [{**A, "s": "a b"}, {**A, "s": "a-b"}],
        {"group": "s"},
        "line 2: 'a-b' and 'a b' .* a_b",
    ),
    "many groups": ([{**A, "s": i} for i in range(33)], {"group": "s"}, "line 33: `s` has more than 32"),
    "no messages": (
        [{"messages": []}],
        {},
        "`messages` is to be a list of messages but is a list that is empty",
    ),
    "messages as text": ([{"messages": "hi"}], {}, "is to be a list of messages but is text"),
    "a message as text": ([{"messages": ["hi"]}], {}, "message 1 of `messages` is text"),
    "no role": ([{"messages": [{"content": "hi"}]}], {}, "message 1 of `messages` has no text as `role`"),
    "null content": (
        [{"messages": [USER, {"role": "assistant", "content": None}]}],
        {},
        "message 2 .* `content`",
    ),
    "content in parts": (
        [{"messages": [{**USER, "content": [{"type": "text"}]}]}],
        {},
        "`content` but a list",
    ),
    "tool calls": ([{"messages": [{**ASSISTANT, "tool_calls": [{"a": 1}]}]}], {}, "has `tool_calls`"),
    "tools": ([{"messages": [USER], "tools": [{"a": 1}]}], {}, "has `tools`"),
}


@pytest.mark.parametrize(("rows", "arguments", "said"), REFUSED.values(), ids=REFUSED)
def test_rows_that_are_refused(tmp_path, rows, arguments, said):
    with pytest.raises(UserError, match=said) as caught:
        read_data(lines(tmp_path, *rows), **arguments)
    assert "\n" not in str(caught.value)
    assert "data.jsonl" in str(caught.value)


def test_a_torn_last_line_is_said(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b', encoding="utf-8")
    with pytest.raises(UserError, match="line 2 is torn"):
        read_data(path)
    path.write_text('{"text": "a"}\n{"text": "b"}', encoding="utf-8")  # whole, though no newline ends it
    assert len(read_data(path).documents) == 2


@pytest.mark.parametrize("damage", [lambda raw: raw[:-9], lambda raw: b"", lambda raw: b"{}" * 50])
def test_parquet_that_cannot_be_read(tmp_path, damage):
    path = parquet(tmp_path, {"text": "a"})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"data\.parquet") as caught:
        read_data(path)
    assert "\n" not in str(caught.value)


def test_parquet_rows_that_are_refused(tmp_path):
    with pytest.raises(UserError, match="row 2 has neither `text`"):
        read_data(parquet(tmp_path, {"text": "a"}, {"text": None}))
    with pytest.raises(UserError, match="no column 'source'; it has text, n"):
        read_data(parquet(tmp_path, {"text": "a", "n": 1}), group="source")
