"""``lightning-pce capability``: what it refuses, and what it reads of a scored model."""

import json
import shutil

import pytest
import torch

from lightning_pce.cli import main
from lightning_pce.runs.history import History
from tests.helpers.all_losses import all_losses
from tests.helpers.tiny_checkpoints import CONTEXT, tiny_checkpoint

MODEL, ROWS = "{folder}/models/a", "{folder}/rows.jsonl"
REFUSED = {
    "several models": (["{folder}/models/*", "--data", ROWS], "stands for 2 models: give one of them"),
    "no such data": ([MODEL, "--data", "/no/y"], "/no/y: no such file"),
    "into a device": ([MODEL, "--data", ROWS, "-o", "/dev/full"], "is a device"),
    "no such group": ([MODEL, "--data", ROWS, "--group", "source"], "source"),
    "no context": ([MODEL, "--data", ROWS, "--context", "1"], "--context 1"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("capability")
    tiny_checkpoint(folder / "models/a")
    shutil.copytree(folder / "models/a", folder / "models/b")
    rows = [{"prompt": f"{n}: ", "completion": f"water in the winter {n * 7} there"} for n in range(30)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_one_line(case, folder, capsys):
    given, words = REFUSED[case]
    assert main(["capability", *(each.format(folder=folder) for each in given)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert words in err


def test_the_mean_p_of_completions_is_that_of_a_loop_that_keeps_all_losses(folder, capsys):
    arguments = ["capability", str(folder / "models/a"), "--data", str(folder / "rows.jsonl")]
    assert main(arguments) == 0
    kept = capsys.readouterr()
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    texts = [row["prompt"] + row["completion"] for row in rows]
    oracle = all_losses(folder / "models/a", texts, context=CONTEXT, stride=CONTEXT // 2)
    completion = torch.cat(
        [
            losses[torch.tensor([end for _, end in spans])[1:] > len(row["prompt"])]
            for losses, spans, row in zip(oracle.losses, oracle.spans, rows, strict=True)
        ]
    )
    p = (-completion.double()).exp()
    lines = kept.out.splitlines()
    assert lines[0] == f"{folder / 'models/a'} on rows, tokens of completion:"
    assert lines[1].startswith(f"mean p {p.mean():.3g} of {len(p):,} tokens, standard error ")
    below = f"below p = 0.2: {100 * (p < 0.2).double().mean():.1f} % of the tokens, "
    assert [line for line in lines if line.startswith(below)]
    assert "Without -o the record was not kept." in kept.err


def test_a_record_that_evaluate_has_kept_is_read_and_not_made_again(folder, capsys):
    model, data, out = (str(folder / name) for name in ("models/a", "rows.jsonl", "records.jsonl"))
    assert main(["evaluate", model, "--data", data, "-o", out]) == 0
    written = (folder / "records.jsonl").read_bytes()
    capsys.readouterr()
    assert main(["capability", model, "--data", data, "-o", out]) == 0
    out_, err = capsys.readouterr()
    assert "not scored again" in err
    assert (folder / "records.jsonl").read_bytes() == written
    assert "This data lies " in out_
    assert "not kept" not in err
    assert len(History.load(folder / "records.jsonl")) == 1


def test_several_processes_without_a_file_of_records_are_refused(folder, capsys, monkeypatch):
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    assert main(["capability", str(folder / "models/a"), "--data", str(folder / "rows.jsonl")]) == 2
    assert "give -o RECORDS" in capsys.readouterr().err


def test_ctrl_c_without_a_file_says_that_it_begins_anew(folder, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("lightning_pce.scoring.evaluate.evaluate", interrupted)
    assert main(["capability", str(folder / "models/a"), "--data", str(folder / "rows.jsonl")]) == 130
    assert "without -o nothing was kept" in capsys.readouterr().err
