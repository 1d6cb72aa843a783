"""Every code block of the README runs, in order, as a reader would type them."""

import re
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def reader():
    """What a reader has before the first line: a causal language model and data."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    rows = [{"input_ids": ids, "labels": ids.clone()} for ids in torch.randint(64, (8, 12))]
    loader = torch.utils.data.DataLoader(rows, batch_size=4)
    return {"model": LlamaForCausalLM(config), "train_loader": loader, "val_loader": loader}


def test_readme_has_its_blocks():
    assert len(BLOCKS) == 6
    assert "make demo" in README.read_text()
    assert "make test" in README.read_text()


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_block_runs(number, reader, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(BLOCKS[number], f"README.md, block {number + 1}", "exec"), reader)
    if number == 0:
        assert "val_ce_p50" in reader["trainer"].callback_metrics
        assert Path(reader["best"].best_model_path).exists()
    if number == 1:
        assert reader["result"]["count"] == 64
    if number == 2:
        assert reader["result"]["completion_count"] == 12
        assert reader["result"]["prompt_count"] == 18
    if number == 3:
        assert reader["bits"].compute() > 0
    if number == 4:
        assert reader["metric"].compute()["count"] == 30


def test_picture_exists_and_is_small():
    (name,) = re.findall(r"!\[[^]]*\]\(([^)]*)\)", README.read_text())
    assert 10_000 < (README.parent / name).stat().st_size < 300_000
