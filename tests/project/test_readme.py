"""Every code block of the README runs, in order, as a reader would type them."""

import re
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import LlamaConfig, LlamaForCausalLM

README = Path(__file__).parents[2] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(), flags=re.MULTILINE | re.DOTALL)


def pictures():
    """The names of the images that TensorBoard finds in ``logs``."""
    names = set()
    for path in Path("logs").rglob("events*"):
        events = EventAccumulator(str(path))
        events.Reload()
        names |= set(events.Tags()["images"])
    return names


@pytest.fixture(scope="module")
def reader():
    """What a reader has before the first line: a causal language model and data."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    rows = [{"input_ids": ids, "labels": ids.clone()} for ids in torch.randint(64, (8, 12))]
    loader = torch.utils.data.DataLoader(rows, batch_size=4)
    return {
        "model": LlamaForCausalLM(config),
        "train_loader": loader,
        "val_loader": loader,
        "train_set": rows,
        "eval_set": rows,
    }


# What a block leaves behind, by a piece of its text.
OUTCOMES = {
    "class LitLM(": lambda names: (
        names["trainer"].callback_metrics["val_ce_p50"] > 0 and Path(names["best"].best_model_path).exists()
    ),
    "percentile_checkpoints(": lambda names: all(Path(c.best_model_path).exists() for c in names["best"]),
    "PercentileFigures()": lambda names: pictures() == {"val_ce_fan", "val_ce_quantiles"},
    "L.Trainer(callbacks=[ce])": lambda names: (
        0 < names["results"]["val_ce_p5"] < names["results"]["val_ce_p95"]
    ),
    "percentiles=(50, 99.9))": lambda names: names["result"]["count"] == 64,
    "TrainingArguments(": lambda names: names["hf_trainer"].state.log_history[-1]["eval_ce_p50"] > 0,
    "is_completion = ": lambda names: (
        names["result"]["completion_count"] == 12 and names["result"]["prompt_count"] == 18
    ),
    "BitsPerByte(bytes_of)": lambda names: names["bits"].compute() > 0,
    "linear_token_statistics(": lambda names: names["metric"].compute()["count"] == 30,
    "plain_trainer": lambda names: names["plain_trainer"].callback_metrics["val_ce_p95"] > 0,
    "norms.update(": lambda names: names["norms"].compute()["count"] == 100,
}


def test_readme_has_its_blocks():
    pieces = [[piece for piece in OUTCOMES if piece in block] for block in BLOCKS]
    assert [len(each) for each in pieces] == [1] * len(BLOCKS)
    assert {each[0] for each in pieces} == set(OUTCOMES)
    assert "make demo" in README.read_text()
    assert "make test" in README.read_text()


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_block_runs(number, reader, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(BLOCKS[number], f"README.md, block {number + 1}", "exec"), reader)
    (outcome,) = [check for piece, check in OUTCOMES.items() if piece in BLOCKS[number]]
    assert outcome(reader)


def test_picture_exists_and_is_small():
    (name,) = re.findall(r"!\[[^]]*\]\(([^)]*)\)", README.read_text())
    assert 10_000 < (README.parent / name).stat().st_size < 300_000
