"""Error bars load torch, NumPy and the digest, and nothing of the frameworks around them."""

import subprocess
import sys


def test_intervals_load_the_digest_only():
    code = "import torch, numpy, sys; from lightning_pce import intervals; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    loaded = set(done.stdout.split())
    assert "lightning_pce.intervals" in loaded
    heavy = {"torchmetrics", "lightning", "lightning_fabric", "scipy", "matplotlib", "transformers"}
    assert not loaded & (heavy | {"torch._dynamo"})
    ours = {name.split(".")[1] for name in loaded if name.startswith("lightning_pce.")}
    assert ours - {"_names", "_checks", "_threads", "_version"} == {"intervals", "digest"}
