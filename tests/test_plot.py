"""Fan charts: what is drawn is what was given."""

import subprocess
import sys

import pytest

from lightning_pce.plot import fan_chart

STEPS = [1, 2, 3]
SERIES = {
    5: [0.1, 0.1, 0.0],
    25: [1.0, 0.5, 0.2],
    50: [2, 1, 0.5],
    75: [4, 4, 4],
    95: [8, 9, 10],
    99: [12, 13, 14],
}


def test_bands_pair_percentiles_and_the_rest_are_lines(tmp_path):
    ax = fan_chart(STEPS, SERIES, mean=[3.0, 3.2, 3.4])
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["p5 to p95", "p25 to p75", "p99", "median", "mean"]
    drawn = {line.get_label(): list(line.get_ydata()) for line in ax.get_lines()}
    assert drawn["median"] == SERIES[50]
    assert drawn["mean"] == [3.0, 3.2, 3.4]
    assert drawn["p99"] == SERIES[99]
    ax.figure.savefig(tmp_path / "fan.png")
    assert (tmp_path / "fan.png").stat().st_size > 5000


def test_series_of_another_length_is_refused():
    with pytest.raises(ValueError, match="Expected 3 values of 50"):
        fan_chart(STEPS, {50: [1.0]})
    with pytest.raises(ValueError, match="Expected 3 values of mean"):
        fan_chart(STEPS, SERIES, mean=[1.0])


def test_package_imports_no_matplotlib_or_transformers():
    code = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("matplotlib", "transformers", "triton", "tdigest"):
            raise ModuleNotFoundError(f"blocked {name}", name=name)

import torch, torchmetrics, lightning.pytorch  # they import some of them when installed
for name in ("matplotlib", "transformers", "triton", "tdigest"):
    for loaded in [m for m in sys.modules if m.split(".")[0] == name]:
        del sys.modules[loaded]
sys.meta_path.insert(0, Block())
import lightning_pce, lightning_pce.plot, lightning_pce.stages, lightning_pce.digest
import lightning_pce.integrations.transformers
print("clean")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.stdout.strip() == "clean", result.stderr
