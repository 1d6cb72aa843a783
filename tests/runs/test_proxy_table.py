"""A table of proxies from files: which files, whose truth, which baselines, and what is refused."""

import math
import os

import numpy as np
import pytest

from lightning_pce._errors import UserError
from lightning_pce.runs.ranking import ProxyTable, best_style, save_proxies, signal_to_noise
from tests.helpers.proxy_records import PROTOCOL, with_errors, write_record


def save(path, model, task, ce=1.0, **more):
    save_proxies(path, model=model, task=task, result=with_errors({"ce_uniform": ce}), **more)
    return path


@pytest.fixture
def folder(tmp_path):
    for model in ("small", "large"):
        for task in ("sums", "maps"):
            save(tmp_path / f"{model} {task}.json", model, task, truth=0.5)
    return tmp_path


def rows(table):
    return list(zip(table.models, table.tasks, strict=True))


def test_patterns_are_sorted_and_each_file_is_read_once(folder, monkeypatch):
    expected = [("large", "maps"), ("large", "sums"), ("small", "maps"), ("small", "sums")]
    assert rows(ProxyTable.read(folder / "*.json")) == expected
    assert rows(ProxyTable.read(folder / "small sums.json", folder / "*.json"))[0] == ("small", "sums")
    assert len(ProxyTable.read(folder / "*", folder / "*.json")) == 4
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))
    assert len(ProxyTable.read("~/large*.json")) == 2
    save(folder / "odd[1].json", "odd", "sums")
    assert rows(ProxyTable.read(folder / "odd[1].json")) == [("odd", "sums")]


def test_files_that_are_not_there_or_hold_something_else(folder):
    with pytest.raises(UserError, match="No file fits"):
        ProxyTable.read(folder / "*.csv")
    with pytest.raises(FileNotFoundError):
        ProxyTable.read(folder / "none.json")
    with pytest.raises(UserError, match="is a folder: give the files in it, such as"):
        ProxyTable.read(folder)
    with pytest.raises(UserError, match="but got none"):
        ProxyTable.read()
    with pytest.raises(UserError, match=r"of a list write read\(\*paths\)"):
        ProxyTable.read([folder / "small sums.json"])
    (folder / "x.json").write_text('{"a": 1}')
    with pytest.raises(UserError, match=r"x\.json is no history: .* Nor is it a file of save_proxies"):
        ProxyTable.read(folder / "*.json")
    os.remove(folder / "x.json")
    with pytest.raises(UserError, match="is no file but a device"):
        ProxyTable.read("/dev/null")
    write_record(folder / "plain.jsonl", "small", "web", {"ce_mean": 3.0}, proxies=None)
    with pytest.raises(UserError, match="There are no proxies in"):
        ProxyTable.read(folder / "plain.jsonl")


def test_a_model_has_a_task_once(folder):
    save(folder / "z.json", "small", "sums")
    words = r"'small' on 'sums' is in .*small sums.json and .*z.json: keep one"
    with pytest.raises(UserError, match=words):
        ProxyTable.read(folder / "*.json")
    save(folder / "z.json", "small", "sums", style="long")  # is another row
    assert len(ProxyTable.read(folder / "*.json")) == 5
    with pytest.raises(UserError, match="'a' on 't' is there twice"):
        ProxyTable(["a", "a"], ["t", "t"], ["ce_uniform"], [[1], [2]])


def test_truth_from_a_mapping_or_a_file_takes_the_place_of_what_was_there(folder):
    table = ProxyTable.read(folder / "*.json", truth={("small", "sums"): 0.25, ("large", "maps"): math.nan})
    assert dict(zip(rows(table), table.truth, strict=True)) == pytest.approx(
        {
            ("large", "maps"): math.nan,
            ("large", "sums"): 0.5,
            ("small", "maps"): 0.5,
            ("small", "sums"): 0.25,
        },
        nan_ok=True,
    )
    truth = folder / "truth.csv"
    for head in ("", "model,task,value\n"):
        truth.write_text(f"{head}small,sums,0.125\r\nsmall,none,1\n", encoding="utf-8")
        table = ProxyTable.read(folder / "*.json", truth=truth)
        assert table.select("small", "sums").truth.tolist() == [0.125]
        assert table.notes == (f"{truth}: nothing here is 'small, none'.",)


WRONG = {
    "no line": ("", "has no values"),
    "a header alone": ("model,task,value\n", "has no values"),
    "two columns": ("small,0.5\n", "line 1: expected three columns, model, task and value"),
    "no number": (
        "model,task,value\nsmall,sums,high\n",
        "line 2: the value of 'small' is no number but 'high'",
    ),
    "infinite": ("small,sums,inf\n", "line 1: the value of 'small' is inf"),
    "two values": ("small,sums,1\nsmall,sums,2\n", "has two values of 'small' on 'sums'"),
    "another task": ("small,digits,1\n", "names none of the models and tasks: it has 'small, digits'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_of_truth_is_one_line(case, folder):
    text, words = WRONG[case]
    truth = folder / "truth.csv"
    truth.write_text(text)
    with pytest.raises(UserError) as raised:
        ProxyTable.read(folder / "*.json", truth=truth)
    assert words in str(raised.value)
    assert "truth.csv" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("truth", "words"),
    [
        ({}, "it is empty"),
        ({"small": 1.0}, "keys \\(model, task\\) but got 'small'"),
        ({("small", "sums"): None}, "to hold numbers but got None"),
        ({("small", "sums"): "high"}, "to hold numbers but got 'high'"),
        ({("small", "sums"): math.inf}, "the value of 'small' is inf"),
        ([1.0], "or the path of a CSV file"),
    ],
)
def test_a_wrong_mapping_of_truth_is_refused(folder, truth, words):
    with pytest.raises(UserError, match=words):
        ProxyTable.read(folder / "*.json", truth=truth)


def write_all(path, **more):
    for model, ce in (("out/a/last.ckpt", 1.0), ("out/b/last.ckpt", 2.0)):
        for task in ("sums", "maps"):
            write_record(path, model, task, with_errors({"ce_uniform": ce, "top1_uniform": 0.5}), **more)
    return path


def test_records_are_rows_and_those_without_proxies_baselines(tmp_path):
    path = write_all(tmp_path / "records.jsonl")
    for model, ce in (("out/a/last.ckpt", 3.0), ("out/b/last.ckpt", 4.0), ("other", 5.0)):
        write_record(path, model, "web", {"ce_mean": ce}, proxies=None)
    write_record(path, "out/a/last.ckpt", "sums", {"ce_mean": 9.0}, proxies=None)
    table = ProxyTable.read(path, truth={("a/last.ckpt", "sums"): 0.5, ("./out/b/last.ckpt", "maps"): 0.75})
    assert rows(table) == [(f"{m}/last.ckpt", task) for m in "ab" for task in ("sums", "maps")]
    assert table.names == ("ce_uniform", "top1_uniform")
    assert table.column("ce_uniform").tolist() == [1, 1, 2, 2]
    assert set(table.errors.ravel()) == {0.1}
    assert {name: each.tolist() for name, each in table.baselines.items()} == {"web_ce": [3, 3, 4, 4]}
    np.testing.assert_array_equal(table.truth, [0.5, math.nan, math.nan, 0.75])
    [note] = table.notes
    assert note.startswith("Left out, as no baseline: records of other models, or on one of the tasks: ")
    assert "other" in note


def test_a_model_is_known_by_its_weights_however_its_path_was_written(tmp_path):
    path = tmp_path / "r.jsonl"
    values = with_errors({"ce_uniform": 3.0})
    for name, task, weights in (("out/a/", "sums", "1"), ("./out/a", "maps", "1"), ("out/b", "sums", "2")):
        write_record(path, name, task, values, how={"model": weights})
    write_record(path, "/home/out/a", "web", {"ce_mean": 2.0}, proxies=None, how={"model": "1"})
    write_record(path, "out/b", "web", {"ce_mean": 9.0}, proxies=None, how={"model": "trained on"})
    table = ProxyTable.read(path, truth={("out/a", "maps"): 0.5})
    assert rows(table) == [("a", "sums"), ("a", "maps"), ("b", "sums")]
    np.testing.assert_array_equal(table.baselines["web_ce"], [2.0, 2.0, math.nan])
    np.testing.assert_array_equal(table.truth, [math.nan, 0.5, math.nan])
    write_record(path, "out/b/", "maps", values, how={"model": "trained on"})
    with pytest.raises(UserError, match="'out/b/' was scored on 'sums' and 'maps' with different weights"):
        ProxyTable.read(path)


def test_a_name_that_fits_two_models_is_refused(tmp_path):
    path = write_all(tmp_path / "records.jsonl")
    with pytest.raises(UserError, match=r"'last\.ckpt' may be 'a/last.ckpt' and 'b/last.ckpt'"):
        ProxyTable.read(path, truth={("last.ckpt", "sums"): 1.0})


def test_models_with_other_tokenizers_have_bits_per_byte_as_baseline(tmp_path):
    path = write_all(tmp_path / "r.jsonl")
    other = {"tokenizer": "t2", "token_ids": "i2"}
    values = with_errors({"ce_uniform": 3.0, "top1_uniform": 0.5})
    counts = {**PROTOCOL, "vocabulary": 32000}
    write_record(path, "out/c", "sums", values, how=other, proxies=counts)
    for model, how in (("out/a/last.ckpt", {}), ("out/b/last.ckpt", {}), ("out/c", other)):
        write_record(path, model, "web", {"ce_mean": 3.0, "bits_per_byte": 1.5}, proxies=None, how=how)
    table = ProxyTable.read(path)
    assert table.baselines["web_bits_per_byte"].tolist() == [1.5] * 5
    assert "web_ce" not in table.baselines
    assert [note for note in table.notes if note.startswith("sums: vocabularies of 64") and "32000" in note]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"proxies": {**PROTOCOL, "last_n": 50}}, "of their proxies last_n is 1000 and 50"),
        ({"proxies": {**PROTOCOL, "frequency": "corpus 1"}}, "frequency is sequence and corpus 1"),
        ({"how": {"data": "other"}}, "data is data of sums and other"),
        ({"how": {"context": 8}}, "context is 512 and 8; score both with the same --context"),
    ],
)
def test_proxies_that_were_made_in_other_ways_are_not_compared(tmp_path, change, words):
    path = write_all(tmp_path / "r.jsonl")
    write_record(path, "out/c", "sums", with_errors({"ce_uniform": 3.0}), **change)
    with pytest.raises(UserError) as raised:
        ProxyTable.read(path)
    assert words in str(raised.value)
    assert "cannot be compared" in str(raised.value)


def test_a_table_of_counts_may_be_another_for_another_tokenizer_only(tmp_path):
    values = with_errors({"ce_uniform": 3.0})
    for name, tokenizer in (("same", "a1"), ("other", "a2")):
        path = tmp_path / f"{name}.jsonl"
        for model, of, table in (("a", "a1", "1"), ("b", tokenizer, "2")):
            how = {"tokenizer": of, "token_ids": f"ids {of}"}
            frequency = f"table {table}, tokenizer {of}"
            write_record(path, model, "sums", values, how=how, proxies={**PROTOCOL, "frequency": frequency})
    assert len(ProxyTable.read(tmp_path / "other.jsonl")) == 2
    with pytest.raises(UserError, match="frequency is table 1, tokenizer a1 and table 2, tokenizer a1"):
        ProxyTable.read(tmp_path / "same.jsonl")


def test_a_baseline_that_cannot_be_compared_is_left_out_and_said(tmp_path):
    path = write_all(tmp_path / "r.jsonl")
    for model, context in (("out/a/last.ckpt", 512), ("out/b/last.ckpt", 8)):
        write_record(path, model, "web", {"ce_mean": 3.0}, proxies=None, how={"context": context})
    write_record(path, "out/a/last.ckpt", "news", {}, proxies=None)
    table = ProxyTable.read(path)
    assert table.baselines == {}
    assert "context is 512 and 8" in table.notes[0]
    assert "has no ce_mean" in table.notes[1]


def test_records_and_files_are_one_table_and_what_one_lacks_is_nan(tmp_path):
    write_all(tmp_path / "r.jsonl")
    save(tmp_path / "c.json", "c", "sums", 3.0, baselines={"web_ce": 2.5})
    table = ProxyTable.read(tmp_path / "r.jsonl", tmp_path / "c.json")
    np.testing.assert_array_equal(table.select(models=["c"]).values, [[3.0, math.nan]])
    np.testing.assert_array_equal(table.baselines["web_ce"], [2.5, *[math.nan] * 4])


def test_the_same_record_in_two_files_and_a_torn_line_are_said(tmp_path):
    path = write_all(tmp_path / "r.jsonl")
    (tmp_path / "s.jsonl").write_bytes(path.read_bytes())
    with pytest.raises(UserError, match=r"is in .*r.jsonl and .*s.jsonl"):
        ProxyTable.read(tmp_path / "*.jsonl")
    path.write_bytes(path.read_bytes()[:-30])
    table = ProxyTable.read(path)
    assert len(table) == 3
    assert table.notes == (f"{path}: 1 torn line left out.",)


def test_tables_are_checked_and_cannot_be_written_to():
    table = ProxyTable(["a", "b"], ["t", "t"], ["ce_uniform"], [[1], [2]])
    with pytest.raises(ValueError, match="read-only"):
        table.values[0] = 3
    for changes, words in (
        ({"values": [[1, 2], [3, 4]]}, r"`values` to be of shape \(2, 1\) but got \(2, 2\)"),
        ({"values": [["x"], ["y"]]}, "to be numbers"),
        ({"truth": [1.0]}, r"`truth` to be of shape \(2,\)"),
        ({"truth": [1.0, math.inf]}, "to be finite"),
        ({"tasks": ["t"]}, "Expected 2 tasks, one for each row, but got 1"),
        ({"names": ["x", "x"], "values": [[1, 2], [3, 4]]}, "each once, but 'x' is there twice"),
        ({"names": [], "values": [[], []]}, "names of proxies but got none"),
        ({"models": ["a", 7]}, "name of a model to be text but got 7"),
        ({"baselines": {"expert_ce": [1, 2]}}, "would be mistaken"),
    ):
        columns = {"models": ["a", "b"], "tasks": ["t", "t"], "names": ["ce_uniform"], "values": [[1], [2]]}
        with pytest.raises(UserError, match=words):
            ProxyTable(**{**columns, **changes})
    with pytest.raises(UserError, match="There is no model 'c': there are 'a' and 'b'"):
        table.select(models="c")
    with pytest.raises(UserError, match="no proxy 'rank'"):
        table.column("rank")


def styles(rows, names=("ce_uniform", "rank")):
    """A table of (model, task, style, ce): the rank of a row is its place."""
    models, tasks, style, ce = zip(*rows, strict=True)
    values = [[each, place] for place, each in enumerate(ce)]
    return ProxyTable(models, tasks, names, values, styles=style)


def test_the_best_style_is_the_likeliest_for_each_model_and_task():
    table = styles(
        [
            *(
                ("a", "t", "long", 2.0),
                ("a", "t", "short", 1.0),
                ("b", "t", "short", 3.0),
                ("b", "t", "long", 3.0),
            ),
            *(
                ("a", "u", "x", math.inf),
                ("a", "u", "y", math.inf),
                ("b", "u", "y", 2.0),
                ("b", "u", "x", 2.5),
            ),
        ]
    )
    found = best_style(table)
    assert list(zip(found.models, found.tasks, found.styles, found.column("rank"), strict=True)) == [
        ("a", "t", "short", 1),
        ("b", "t", "long", 3),
        ("a", "u", "x", 4),
        ("b", "u", "y", 6),
    ]
    assert found.best_of == found.select(tasks=["t"]).best_of == 2
    assert (table.best_of, repr(table)[:42]) == (1, "ProxyTable(2 models x 2 tasks x 4 styles, ")


def test_truth_is_that_of_all_styles(tmp_path):
    save(tmp_path / "long.json", "a", "t", style="long", truth=0.5)
    save(tmp_path / "short.json", "a", "t", style="short")
    table = ProxyTable.read(tmp_path / "*.json")
    assert table.truth.tolist() == best_style(table).truth.tolist() * 2 == [0.5, 0.5]
    save(tmp_path / "short.json", "a", "t", style="short", truth=0.25)
    with pytest.raises(UserError, match=r"truth of 'a' on 't' is 0\.5 in one style and 0.25 in another"):
        ProxyTable.read(tmp_path / "*.json")
    assert ProxyTable.read(tmp_path / "*.json", truth={("a", "t"): 0.75}).truth.tolist() == [0.75, 0.75]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("b", "t", "long", 1.0), "'b' on 't' has styles long, and 'a' on 't' long and short"),
        (("a", "u", "long", 1.0), "'a' on 'u' has styles long, and 'a' on 't' long and short"),
        (("b", "t", None, 1.0), "'b' on 't' has no style"),
        (("b", "t", "long", math.nan), "The ce_uniform of 'b' on 't' in style 'long' is NaN"),
    ],
)
def test_other_numbers_of_styles_are_not_compared(more, words):
    table = styles([("a", "t", "long", 2.0), ("a", "t", "short", 1.0), more])
    with pytest.raises(UserError, match=words):
        best_style(table)


def test_as_many_styles_but_others_are_not_compared():
    rows = [
        ("a", "t", "long", 2.0),
        ("a", "t", "short", 1.0),
        ("b", "t", "long", 2.0),
        ("b", "t", "terse", 1.0),
    ]
    with pytest.raises(
        UserError, match="'b' on 't' has styles long and terse, and 'a' on 't' long and short"
    ):
        best_style(styles(rows))


def test_signal_to_noise_is_over_pairs_of_models_in_differences():
    random = np.random.default_rng(0)
    values, errors = random.normal(size=(2, 6)) - 100
    table = ProxyTable(
        list("abcdef"), ["t"] * 6, ["p"], values[:, None], errors=np.abs(errors[:, None]) / 100
    )
    pairs = [(i, j) for i in range(6) for j in range(i)]
    signal = np.mean([(values[i] - values[j]) ** 2 for i, j in pairs])
    noise = np.mean([(errors[i] ** 2 + errors[j] ** 2) / 1e4 for i, j in pairs])
    assert signal_to_noise(table, "p", "t") == pytest.approx(math.sqrt(signal / noise))
    with pytest.raises(UserError, match="There is no task 'u'"):
        signal_to_noise(table, "p", "u")
    assert math.isnan(signal_to_noise(table.select(models=["a"]), "p", "t"))
