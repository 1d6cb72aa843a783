"""What importing and using token statistics loads, in fresh processes."""

import json
import subprocess
import sys

import pytest

HEAVY = {"lightning", "lightning_fabric", "pytorch_lightning", "torch._dynamo", "triton", "sympy"}
PEERS = {"torchmetrics", "transformers", "matplotlib", "pandas", "scipy"}


def loaded_by(code):
    """The modules and packages that a fresh process has loaded after ``code``."""
    code += "\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr
    return set(json.loads(run.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "code",
    [
        "from lightning_pce import token_statistics",
        "from lightning_pce import linear_token_statistics, TokenStatistics",
        "import lightning_pce.digest",
        "import torch; from lightning_pce import token_log_prob, token_statistics\n"
        "from lightning_pce.objectives import Power\n"
        "logits, labels = torch.zeros(99, 30_000), torch.zeros(99, dtype=torch.long)\n"
        "token_statistics(logits, labels).rank\n"
        "Power(1)(token_log_prob(logits.requires_grad_(), labels)).backward()",
        "import torch; from lightning_pce import digest; digest.from_values(torch.ones(9))",
    ],
)
def test_statistics_and_digests_load_neither_torchmetrics_nor_lightning_nor_a_compiler(code):
    loaded = loaded_by(code)
    assert "torch" in loaded
    assert not loaded & (HEAVY | PEERS)


def test_metrics_load_torchmetrics_and_neither_lightning_nor_a_compiler():
    """Also when they are used; torchmetrics itself loads what it finds of transformers and matplotlib."""
    loaded = loaded_by(
        "import torch; from lightning_pce import PercentileCrossEntropy as Metric\n"
        "metric = Metric(); metric.update(torch.zeros(1, 3, 4), torch.zeros(1, 3, dtype=torch.long))\n"
        "metric.compute()"
    )
    assert "torchmetrics" in loaded
    # What torchmetrics loads itself is not for us to answer for.
    assert not (loaded - loaded_by("import torchmetrics")) & (HEAVY | PEERS)
    assert "lightning_pce.integrations" not in loaded
