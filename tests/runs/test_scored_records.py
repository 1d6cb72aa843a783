"""Records of what the command line has scored, and what they hold beside digests."""

import math
import subprocess
import sys

import pytest
import torch

from lightning_pce.digest import from_values
from lightning_pce.runs._lines import Contents
from lightning_pce.runs._writing import validation_line
from lightning_pce.runs.document_totals import DocumentTotals
from lightning_pce.runs.history import History, write_validation
from lightning_pce.runs.tail import TailToken


def test_a_scored_record_keeps_documents_tail_and_texts(tmp_path):
    path = tmp_path / "records.jsonl"
    column = torch.tensor([4.0, torch.nan], dtype=torch.float64)
    ends = torch.full((2, 8, 2), torch.nan, dtype=torch.float64)
    totals = DocumentTotals(torch.tensor([2**62 + 1, -5]), column, column + 1, column + 2, column, ends)
    tail = (
        TailToken("a", 3, math.inf, 7, 2, 1, "\u2028<b>", None, "before"),
        TailToken("b", 0, 9.5, -1, 3, -1),
    )
    labels = torch.tensor([[0.0, 0.0], [2.0, 1.5], [1.0, 3.0]])
    more = {
        "document_totals": totals,
        "tail": tail,
        "label_texts": {2: "é", 1: " x"},
        "how": {"context": 128},
    }
    write_validation(
        path, run="k", name="web", step=None, function="score", label_totals={"ce": labels}, **more
    )
    [record] = History.load(path)
    assert record.how == {"context": 128}
    assert record.statistics == ()
    assert record.tail == tail
    assert record.label_texts == {2: "é", 1: " x"}
    torch.testing.assert_close(record.label_totals["ce"], labels.double())
    for kept, given in zip(record.document_totals, totals, strict=True):
        torch.testing.assert_close(kept, given, rtol=0, atol=0, equal_nan=True)


def test_a_line_without_a_time_depends_on_its_contents_alone():
    made = [
        validation_line(run="k", name="web", step=3, function="score", contents=Contents({"ce": {"": each}}))
        for each in (from_values(torch.tensor([1.0, 2.0])), from_values(torch.tensor([1.0, 2.0])))
    ]
    assert made[0] == made[1]
    assert b"time" not in made[0]


@pytest.mark.parametrize(
    ("paths", "labels"),
    [
        (["runs/a/checkpoint-5", "runs/a/checkpoint-10"], ["checkpoint-5", "checkpoint-10"]),
        (["runs/a/last.ckpt", "runs/b/last.ckpt"], ["a/last.ckpt", "b/last.ckpt"]),
        (["C:\\runs\\one.gguf", "two"], ["one.gguf", "two"]),
        (["same/", "same/"], ["same", "same (2)"]),
    ],
)
def test_scored_records_are_called_by_their_models(tmp_path, paths, labels):
    path = tmp_path / "records.jsonl"
    for run, model in enumerate(paths):
        write_validation(path, run=str(run), name="d", step=7, function="score", checkpoint=model)
    assert [record.label for record in History.load(path)] == labels


def test_a_history_is_looked_through_without_torch(tmp_path):
    path = tmp_path / "records.jsonl"
    write_validation(path, run="k", name="d", step=7, digests={"ce": {"": from_values(torch.tensor([1.0]))}})
    code = (
        "import sys; from lightning_pce.runs import History\n"
        f"[record] = History.load({str(path)!r}); assert record.step == 7 and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
