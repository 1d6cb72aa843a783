"""The example loops as real processes, against an oracle that has all tokens of the data in one tensor."""

import contextlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.helpers.distributions import bound

EXAMPLES = Path(__file__).parents[2] / "examples"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
LAUNCHES = {
    ("fabric", 1): [EXAMPLES / "fabric_loop.py", "--devices", "1"],
    ("fabric", 2): [EXAMPLES / "fabric_loop.py", "--devices", "2"],
    ("distributed", 1): [EXAMPLES / "distributed_loop.py"],
    ("distributed", 2): [*TORCHRUN, EXAMPLES / "distributed_loop.py"],
}
UNEVEN, ONE_BATCH = 100, 16  # sequences: batches for ranks of 4 and 3, and of 1 and 0


def run(command, timeout):
    """What a command printed; it and all it started are ended after ``timeout`` seconds."""
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    # Not pipes: whoever survives would hold them open.
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        process = subprocess.Popen(
            command, stdout=stdout, stderr=stderr, env=environment, start_new_session=True
        )
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.terminate()  # torchrun then ends its workers, which are in sessions of their own
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        stdout.seek(0), stderr.seek(0)
        assert process.returncode == 0, f"{process.returncode}: {stdout.read()}\n{stderr.read()[-6000:]}"
        return stdout.read()


class Outcome:
    """What a loop printed and where it wrote: the figures of each epoch, and the epochs that were saved."""

    def __init__(self, out, example, ranks, sequences, *arguments):
        self.out, self.sequences = out / example, sequences
        options = ["--val-sequences", str(sequences), "--out", str(self.out), *arguments]
        stdout = run([sys.executable, *map(str, LAUNCHES[example, ranks]), *options], timeout=150)
        lines = re.findall(r"^epoch (\d+): (.*)$", stdout, flags=re.MULTILINE)
        assert [int(epoch) for epoch, _ in lines] == [0, 1, 2, 3]  # each said by one rank
        epochs = [dict(pair.split("=") for pair in line.split()) for _, line in lines]
        self.epochs = [{name: float(value) for name, value in figures.items()} for figures in epochs]
        self.saved = [int(epoch) for epoch in re.findall(r"^saved epoch (\d+)$", stdout, re.MULTILINE)]


def all_losses(sequences, model_state=None, dtype=torch.float32):
    """The losses of all validation tokens, with the model as it begins or as it was saved."""
    spec = importlib.util.spec_from_file_location("fabric_loop", EXAMPLES / "fabric_loop.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    model = example.make_model()
    if model_state is not None:
        model.load_state_dict(model_state)
    ids = example.make_sequences(sequences, seed=2)
    with torch.no_grad():
        logits = model.to(dtype)(ids).float()[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")


def assert_figures(figures, losses):
    assert figures["tokens"] == len(losses)
    assert figures["mean"] == pytest.approx(float(losses.double().mean()), abs=2e-6)
    for q, printed in ((0.5, figures["p50"]), (0.95, figures["p95"])):
        # The figures are rounded, and many tokens have the same loss.
        below = (losses < printed - 2e-6).double().mean()
        up_to = (losses <= printed + 2e-6).double().mean()
        assert below - bound(len(losses)) <= q <= up_to + bound(len(losses))


def check(outcome, dtype=torch.float32):
    medians = [figures["p50"] for figures in outcome.epochs]
    assert outcome.saved == [e for e in range(4) if medians[e] < min(medians[:e], default=torch.inf)]
    assert len(outcome.saved) > 1
    best = torch.load(outcome.out / "best.pt")
    assert best["epoch"] == outcome.saved[-1]
    assert_figures(outcome.epochs[0], all_losses(outcome.sequences, dtype=dtype))
    assert_figures(outcome.epochs[best["epoch"]], all_losses(outcome.sequences, best["model"], dtype))


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_both_loops_print_the_figures_of_all_tokens_and_save_the_best_median(tmp_path, ranks):
    fabric, distributed = (Outcome(tmp_path, example, ranks, UNEVEN) for example in ("fabric", "distributed"))
    check(fabric)
    check(distributed)
    assert fabric.epochs == distributed.epochs
    (log,) = fabric.out.rglob("metrics.csv")
    header, *rows = (line.split(",") for line in log.read_text().splitlines())
    logged = [float(row[header.index("val_ce_p50")]) for row in rows]
    assert logged == pytest.approx([figures["p50"] for figures in fabric.epochs], abs=1e-6)


@pytest.mark.slow
def test_a_rank_without_batches_takes_part(tmp_path):
    check(Outcome(tmp_path, "distributed", 2, ONE_BATCH))


@pytest.mark.slow
def test_a_rank_without_batches_takes_part_in_fabric_and_bfloat16_leaves_the_counts_exact(tmp_path):
    check(Outcome(tmp_path, "fabric", 2, ONE_BATCH, "--precision", "bf16-true"), torch.bfloat16)
