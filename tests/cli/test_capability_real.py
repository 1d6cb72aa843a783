"""What SmolLM2 knows of invented facts, maths, source code, reversed prose and its own samples."""

import math

import numpy as np
import pyarrow.parquet as pq
import pytest

from lightning_pce.cli import main
from lightning_pce.runs.capability import capability
from lightning_pce.runs.history import History
from lightning_pce.scoring.evaluate import evaluate
from tests.helpers import capability_texts as texts
from tests.helpers.real_model import folder_of_smollm2, smollm2

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Records of all texts, and every token's cross-entropy beside them."""
    folder = tmp_path_factory.mktemp("capability")
    model, tokenizer = smollm2()
    rows = {
        "facts": texts.facts(),
        "maths": texts.maths(),
        "code": texts.source_code(),
        "prose": texts.prose(),
        "reversed": texts.reversed_prose(),
        "warm": texts.own_samples(model, tokenizer, 0.7),
        "cold": texts.own_samples(model, tokenizer, 0.2),
    }
    files = [texts.write_rows(folder / f"{name}.jsonl", some) for name, some in rows.items()]
    gguf = next(folder_of_smollm2().glob("*.gguf"))
    evaluate([gguf], files, folder / "records.jsonl", save_tokens=folder / "tokens.parquet")
    return folder


@pytest.fixture(scope="module")
def records(folder):
    return {each.name: each for each in History.load(folder / "records.jsonl")}


@pytest.fixture(scope="module")
def found(records):
    """Readings of completions where there are some, else of all tokens."""
    groups = {name: "completion" if "completion" in each.groups else "" for name, each in records.items()}
    return {
        name: capability(each.digest(group=groups[name]), each.documents(group=groups[name]))
        for name, each in records.items()
    }


def test_what_it_sees_and_what_it_does_not(found):
    p = {name: each.mean.value for name, each in found.items()}
    assert p["facts"] < p["code"] < p["maths"]
    assert p["warm"] < p["cold"]
    # Of reversed lines no model can know the next, but most of mean p is inside of lines and of words.
    assert p["facts"] < 0.65 * p["prose"] < p["reversed"] < p["prose"]
    assert 0 < found["facts"].error < 0.02
    assert math.isnan(found["maths"].error)  # 12 documents


def test_each_equals_a_script_that_keeps_all_tokens(folder, records):
    tokens = pq.read_table(folder / "tokens.parquet")
    names, values = np.array(tokens["data"].to_pylist()), tokens["ce"].to_numpy().astype(np.float64)
    for name, record in records.items():
        ce, reading = values[names == name], capability(record.digest())
        p, lost = np.exp(-ce), -np.expm1(-ce)
        assert len(ce) == reading.tokens <= 1024  # so that nothing is an approximation
        assert reading.mean.value == pytest.approx(p.mean(), rel=1e-9)
        for percentile in (5, 20, 50, 80, 95):
            value = math.exp(-np.quantile(ce, 1 - percentile / 100))
            assert reading.percentile(percentile) == pytest.approx(value, rel=1e-9)
        below = p < 0.2
        assert reading.share_below(0.2) == pytest.approx(below.mean(), rel=1e-9)
        assert reading.weight_below(0.2) == pytest.approx(lost[below].sum() / lost.sum(), rel=1e-9)


def test_the_command_prints_what_is_there(folder, capsys):
    file, data = next(folder_of_smollm2().glob("*.gguf")), folder / "facts.jsonl"
    assert main(["capability", str(file), "--data", str(data), "-o", str(folder / "records.jsonl")]) == 0
    out, err = capsys.readouterr()
    assert "not scored again" in err
    assert "not covered by the paper. Nearest: the weak anchor, about 0.01." in out
    assert "note: the weights are quantised" in out
