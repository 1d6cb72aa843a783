"""A column of JSON lines or parquet."""

import pytest

from tests.helpers.imports import imported, json_lines, refused

LISTS = [{"id": "a", "lp": [None, -2.0, -0.5]}, {"id": "b", "lp": [-1.0]}, {"id": "c", "lp": [None]}]
TOKENS = [
    {"id": 7, "loss": None, "kind": "web"},
    {"id": 7, "loss": 2.0, "kind": "web"},
    {"id": 8, "loss": 1.0, "kind": "code"},
    {"id": 7, "loss": 0.5, "kind": None},
]


def written(path, rows, suffix):
    path = path / f"a.{suffix}"
    if suffix == "jsonl":
        return json_lines(path, *rows)
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_list_is_a_document(tmp_path, suffix):
    record = imported(written(tmp_path, LISTS, suffix), "columns", column="lp", document="id")
    assert record.document_totals.tokens.tolist() == [2, 1, 0]
    assert record.document_totals.nats.tolist() == [2.5, 1.0, 0.0]
    assert [(token.document, token.position) for token in record.tail] == [("a", 1), ("b", 0), ("a", 2)]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_number_is_a_token_of_the_document_of_its_row(tmp_path, suffix):
    path = written(tmp_path, TOKENS, suffix)
    record = imported(path, "columns", column="loss", kind="loss", document="id", group="kind")
    assert record.document_totals.tokens.tolist() == [2, 1]
    assert record.document_totals.nats.tolist() == [2.5, 1.0]
    assert record.groups == ("", "web", "code")
    assert (record.values["ce_mean"], record.values["ce_web_mean"]) == (3.5 / 3, 2.0)
    assert [token.position for token in record.tail] == [1, 0, 2]


def test_without_a_document_numbers_are_of_one_and_that_is_said(tmp_path):
    record = imported(json_lines(tmp_path / "a.jsonl", {"x": -1.0}, {"x": -2.0}), "columns", column="x")
    assert record.document_totals.tokens.tolist() == [2]
    assert any("no --document" in note for note in record.how["notes"])


def test_lists_of_one_document_are_one_in_error_bars_and_rows_of_their_own(tmp_path):
    rows = [{"id": f"d{at % 30}", "lp": [-0.1 * at - 0.1, -1.0]} for at in range(60)]
    record = imported(json_lines(tmp_path / "a.jsonl", *rows), "columns", column="lp", document="id")
    assert len(record.document_totals.ids) == 60
    assert len(record.document_totals.ids.unique()) == 30
    used = int((record.documents("ce")[:, :-1].sum(1) > 0).sum())
    assert used <= 30


def test_many_zeros_are_said(tmp_path):
    def notes(zeros):
        path = json_lines(tmp_path / "a.jsonl", {"loss": [1.0] * 90 + [0.0] * zeros})
        return " ".join(imported(path, "columns", column="loss", kind="loss").how["notes"])

    assert "10 of 100 numbers are exactly 0" in notes(10)
    assert notes(4) == ""


def test_nan_is_the_null_of_a_first_token_only(tmp_path):
    nan = float("nan")
    record = imported(json_lines(tmp_path / "a.jsonl", {"lp": [nan, -1.0]}), "columns", column="lp")
    assert record.values["ce_count"] == 1
    (tmp_path / "records.jsonl").unlink()
    refused(json_lines(tmp_path / "a.jsonl", {"lp": [-1.0, nan]}), "columns", "null or NaN", column="lp")


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        ([{"lp": [-1.0]}, {"x": 1}], {}, "line 2 has no 'lp': it has 'x'"),
        ([{"lp": [0.5]}], {}, "a log-probability of 0.5 is above 0"),
        ([{"lp": [-0.5]}], {"kind": "loss"}, "a loss of -0.5 is below 0"),
        ([{"lp": [True]}], {}, "but got 'True'"),
        ([{"lp": "-0.5"}], {}, "but got '-0.5'"),
        ([{"lp": [[-0.5]]}], {}, "but got '[-0.5]'"),
        ([{"lp": [None]}, {"lp": []}], {}, "no token with a log-probability"),
        ([{"lp": [-1.0], "d": None}], {"document": "d"}, "expected the id of a document in 'd'"),
        ([{"lp": [-1.0], "g": "a b"}], {"group": "g"}, "expected a group's name"),
        ([{"lp": [-1.0], "g": at} for at in range(65)], {"group": "g"}, "more than 64 groups"),
        ([{"lp": [-1.0]}], {"kind": "bits"}, "no --kind 'bits'"),
        ([{"lp": [-1.0]}], {"column": None}, "needs --column"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, rows, options, words):
    refused(json_lines(tmp_path / "a.jsonl", *rows), "columns", words, **{"column": "lp", **options})


def test_a_parquet_file_is_refused_where_it_is_torn_or_has_no_such_column(tmp_path):
    path = written(tmp_path, LISTS, "parquet")
    refused(path, "columns", "has no column 'nll': it has 'id', 'lp'", column="nll")
    path.write_bytes(path.read_bytes()[:-20])
    refused(path, "columns", "no parquet file, or torn", column="lp")


def test_saved_tokens_of_several_models_are_refused(tmp_path):
    rows = [{"run": run, "data": "books", "document": "0", "ce": 1.0} for run in "aab"]
    options = {"column": "ce", "kind": "loss", "document": "document"}
    refused(written(tmp_path, rows, "parquet"), "columns", "several models or data", **options)
    record = imported(written(tmp_path, rows[:2], "parquet"), "columns", **options)
    assert record.document_totals.tokens.tolist() == [2]
