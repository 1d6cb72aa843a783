"""The digest loads torch and NumPy, and nothing of the frameworks around it."""

import subprocess
import sys

import pytest

HEAVY = ("torchmetrics", "lightning", "lightning_fabric", "matplotlib", "transformers", "torch._dynamo")


def loaded_by(statement):
    """The modules that a fresh process has loaded after a statement."""
    code = (
        f"import torch, numpy, sys; before = set(sys.modules); {statement}; print(*set(sys.modules) - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import lightning_pce.digest",
        "from lightning_pce import digest; digest.mean(digest.from_values(torch.ones(3)))",
        "from lightning_pce import exchange",
    ],
)
def test_the_digest_loads_nothing_heavy(statement):
    loaded = loaded_by(statement)
    assert "lightning_pce.digest" in loaded
    assert not {name for name in loaded if name.split(".")[0] in HEAVY or name in HEAVY}
    ours = {name for name in loaded if name.startswith("lightning_pce.")}
    leaves = {"_names", "_checks", "_threads", "_version", "exchange"}
    assert {name.split(".")[1] for name in ours} - leaves == {"digest"}
