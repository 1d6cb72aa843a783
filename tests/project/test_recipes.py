"""docs/recipes/: pages about stacks that no other test needs.

trl and litgpt come with ``pip install 'lightning-pce[recipes]'`` and ``pip install --no-deps litgpt``.
"""

import ast
import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers.pages import ROOT
from tests.project.test_readme import blocks, run, text

NUMBER = r"\d+\.\d+"


def run_page(page, folder, monkeypatch):
    """What the blocks of a page leave behind, run as in an empty file."""
    monkeypatch.chdir(folder)
    names = {"__name__": "__main__"}
    for line, block in blocks(page, "python"):
        run(page, line, block, names)
    return names


@pytest.mark.slow
def test_trl_gives_the_percentiles_of_the_answers_and_keeps_the_lowest(tmp_path, monkeypatch):
    pytest.importorskip("trl", reason="needs pip install 'lightning-pce[recipes]'")
    names = run_page("docs/recipes/trl.md", tmp_path, monkeypatch)
    trainer = names["sft_trainer"]
    losses = []
    for row in trainer.eval_dataset:  # which trl has tokenized
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
        assert 0 < (labels == -100).sum() < len(labels)
        with torch.no_grad():
            logits = trainer.model(input_ids=ids).logits[0, :-1]
        losses.append(
            torch.nn.functional.cross_entropy(logits, labels[1:], reduction="none")[labels[1:] != -100]
        )
    every = torch.cat(losses)
    assert names["results"]["eval_ce_mean"] == pytest.approx(every.mean().item(), rel=1e-5)
    assert names["results"]["eval_ce_p50"] == pytest.approx(every.median().item(), abs=0.01)
    seen = [line["eval_ce_p50"] for line in trainer.state.log_history if "eval_ce_p50" in line]
    assert len(seen) == 3
    assert trainer.state.best_metric == min(seen)


@pytest.mark.slow
def test_litgpt_prints_what_its_page_says(tmp_path, monkeypatch, capsys):
    script = pytest.importorskip("litgpt.finetune.lora", reason="needs pip install --no-deps litgpt")
    import lightning
    from lightning.fabric.loggers import CSVLogger

    # The page replaces these; they come back after the test.
    monkeypatch.setattr(lightning.Fabric, "log_dict", lightning.Fabric.log_dict)
    for name in ("chunked_cross_entropy", "validate"):
        monkeypatch.setattr(script, name, getattr(script, name))
    names = run_page("docs/recipes/litgpt.md", tmp_path, monkeypatch)
    assert names["result"]["count"] == 2 + 2 * 31
    ((_, said),) = blocks("docs/recipes/litgpt.md", "text")
    printed = capsys.readouterr().out.splitlines()[-1]
    words, numbers = re.split(NUMBER, said.strip()), [float(each) for each in re.findall(NUMBER, said)]
    assert re.split(NUMBER, printed) == words
    assert [float(each) for each in re.findall(NUMBER, printed)] == pytest.approx(numbers, rel=0.1, abs=2e-3)
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    lightning.Fabric(accelerator="cpu", loggers=logger).log_dict({"val_loss": names["val_loss"]}, step=7)
    (row,) = csv.DictReader((Path(logger.log_dir) / "metrics.csv").open(encoding="utf-8"))
    assert float(row["val_ce_p50"]) == names["result"]["p50"]
    assert row["step"] == "7"


@pytest.mark.slow
def test_accelerate_counts_no_sample_twice_in_two_processes(tmp_path):
    ((_, block),) = blocks("docs/recipes/accelerate.md", "python")
    (tmp_path / "loop.py").write_text(block, encoding="utf-8")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "loop.py"]
    settings = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *launch],
        cwd=tmp_path,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.findall(r"'val_ce_count': ([\d.]+)", done.stdout) == ["84.0"] * 3


@pytest.mark.parametrize("name", ["torchtune", "others"])
def test_what_is_not_run_says_so_and_parses(name):
    page = f"docs/recipes/{name}.md"
    assert re.search(r"\*\*Not run here\.\*\*|Not run in the tests", text(page))
    assert re.search(r"by hand on \d{4}-\d\d-\d\d", text(page))
    assert [ast.parse(block) for _, block in blocks(page, "python")]
