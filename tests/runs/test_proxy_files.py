"""Files of proxies: what is written is read, and nothing else is written."""

import json
import math
import os

import numpy as np
import pytest
import torch

from lightning_pce import TokenProxies
from lightning_pce._errors import UserError
from lightning_pce.metrics.proxies import proxy_names
from lightning_pce.runs.ranking import ProxyTable, save_proxies

RESULT = {"ce_uniform": 1.5, "ce_uniform_se": 0.1, "top1_uniform": 0.5, "top1_uniform_se": 0.02, "tokens": 90}


def save(path, **changes):
    save_proxies(path, **{"model": "small", "task": "sums", "result": RESULT, **changes})
    return json.loads(path.read_text(encoding="utf-8"))


def test_what_the_metric_gives_comes_back(tmp_path):
    proxies = TokenProxies()
    proxies.update(torch.randn(3, 5, 7), torch.randint(7, (3, 5)))
    result = proxies.compute()
    path = tmp_path / "not there yet" / "a.json"
    save_proxies(path, model="small", task="sums", result=result, truth=0.25, baselines={"web_ce": 3.5})
    table = ProxyTable.read(path)
    assert (table.models, table.tasks, table.styles) == (("small",), ("sums",), (None,))
    assert table.names == proxy_names()
    np.testing.assert_array_equal(table.values[0], [float(result[name]) for name in proxy_names()])
    np.testing.assert_array_equal(table.errors[0], [float(result[f"{name}_se"]) for name in proxy_names()])
    assert table.truth.tolist() == [0.25]
    assert table.baselines["web_ce"].tolist() == [3.5]
    assert repr(table) == "ProxyTable(1 model x 1 task, 80 proxies; truth of 1 of 1 rows; baselines: web_ce)"


def test_the_file_is_what_other_programs_can_read(tmp_path):
    result = {**RESULT, "ce_uniform": math.inf, "ce_uniform_se": math.nan}
    found = save(
        tmp_path / "a.json", result=result, truth=math.nan, baselines={"web_ce": np.float32(2)}, style="long"
    )
    assert found == {
        "kind": "proxies",
        "schema": 1,
        "model": "small",
        "task": "sums",
        "style": "long",
        "truth": None,
        "baselines": {"web_ce": 2.0},
        "values": {**RESULT, "ce_uniform": "inf", "ce_uniform_se": None},
    }
    table = ProxyTable.read(tmp_path / "a.json")
    assert table.column("ce_uniform").tolist() == [math.inf]
    assert np.isnan(table.errors[0, 0])
    assert np.isnan(table.truth[0])
    assert os.listdir(tmp_path) == ["a.json"]


REFUSED = {
    "no model": ({"model": " "}, "`model` to be a name but got ' '"),
    "a number as task": ({"task": 3}, "`task` to be a name but got 3"),
    "no style": ({"style": ""}, "`style` to be a name"),
    "another metric": (
        {"result": {"mean": 1.0, "p50": 0.5}},
        "has 'mean' and 'p50': expected what TokenProxies",
    ),
    "nothing": ({"result": {}}, "has no proxy: expected what TokenProxies"),
    "a proxy without error": ({"result": {**RESULT, "rank_uniform": 1.0}}, "has 'rank_uniform'"),
    "several sequences": ({"result": {**RESULT, "ce_uniform": torch.ones(2)}}, "a number as 'ce_uniform'"),
    "text": ({"result": {**RESULT, "ce_uniform": "1.5"}}, "a number as 'ce_uniform' but got '1.5'"),
    "a number too large": (
        {"result": {**RESULT, "ce_uniform": 10**400}},
        "a number as 'ce_uniform' but got 1",
    ),
    "a list": ({"result": [1.0]}, "`result` to be a mapping of names"),
    "a word as truth": ({"truth": "good"}, "`truth` to be a number but got 'good'"),
    "infinite truth": ({"truth": math.inf}, "`truth` to be finite"),
    "a word as baseline": ({"baselines": {"web_ce": None}}, "a number as 'web_ce'"),
    "a baseline of a report": ({"baselines": {"known_tasks": 1.0}}, "'known_tasks' would be mistaken"),
    "a baseline as a proxy": ({"baselines": {"ce_uniform": 1.0}}, "'ce_uniform' would be mistaken"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_leaves_no_file(case, tmp_path):
    changes, words = REFUSED[case]
    with pytest.raises(UserError) as raised:
        save(tmp_path / "a.json", **changes)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
    assert os.listdir(tmp_path) == []


def test_only_files_of_proxies_are_replaced(tmp_path):
    path = tmp_path / "a.json"
    save(path)
    assert save(path, truth=0.5)["truth"] == 0.5
    path.write_text('{"kind": "validation"}')
    with pytest.raises(UserError, match="is no file of proxies: it is left as it is"):
        save(path)
    assert path.read_text() == '{"kind": "validation"}'
    with pytest.raises(UserError, match="is a folder"):
        save(tmp_path)
    with pytest.raises(OSError, match=r"a\.json"):
        save(path / "b.json")


def test_a_disk_that_takes_no_more_leaves_the_older_file_and_nothing_else(tmp_path, monkeypatch):
    save(tmp_path / "a.json", truth=0.5)
    before = (tmp_path / "a.json").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path / "a.json", truth=0.75)
    assert (tmp_path / "a.json").read_bytes() == before
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 2}, "has schema 2, and lightning-pce"),
        ({"model": 3}, "is damaged (TypeError: model, task or style is no text)"),
        ({"values": {"ce_uniform": 1.0}}, "has 'ce_uniform': expected"),
        ({"values": {"ce_uniform": [1], "ce_uniform_se": 1}}, "is damaged (TypeError"),
        ({"values": None}, "is damaged (AttributeError"),
        ({"truth": "high"}, "is damaged (ValueError"),
        ({"truth": "inf"}, "is damaged (ValueError: its truth is infinite)"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, change, words):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({**save(path), **change}))
    with pytest.raises(UserError) as raised:
        ProxyTable.read(path)
    assert str(raised.value).startswith(str(path))
    assert words in str(raised.value)


def test_a_key_that_is_missing_is_named(tmp_path):
    path = tmp_path / "a.json"
    content = save(path)
    del content["truth"]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="is damaged \\(KeyError: 'truth'\\)"):
        ProxyTable.read(path)
