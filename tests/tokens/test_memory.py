"""What is used beyond the logits."""

import subprocess
import sys

import pytest
import torch

from lightning_pce._threads import single_threaded
from lightning_pce.tokens.statistics import token_cross_entropy, token_statistics
from tests.helpers.token_cases import VIEW_NAMES, VIEWS, Allocations, tokens


@pytest.mark.parametrize("view", VIEWS, ids=VIEW_NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_of_any_strides_are_never_copied_whole(view, dtype):
    logits = view(torch.randn(4, 32, 100_000).to(dtype))
    labels = torch.zeros(4, 32, dtype=torch.long)
    with single_threaded(), Allocations(logits) as seen:  # a dispatch mode sees the operations of its thread
        token_statistics(logits, labels)
        token_cross_entropy(logits, labels)
    assert 1 << 19 < seen.largest <= 10 << 20


def test_the_cross_entropy_alone_compares_no_logits():
    logits, labels = tokens(4, 33)
    with Allocations(logits) as alone:
        token_statistics(logits, labels, statistics=("ce", "target_prob", "max_prob"))
    with Allocations(logits) as everything:
        token_statistics(logits, labels)
    extra = {"gt", "eq", "mul_"}
    assert extra <= everything.names
    assert not extra & alone.names - {"eq"}  # the labels are compared too


PEAK = """
import sys
import torch
from lightning_pce.tokens.statistics import token_statistics

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

backend, dtype = sys.argv[1], getattr(torch, sys.argv[2])
tokens, vocabulary, threads = map(int, sys.argv[3:])
torch.set_num_threads(threads)
logits = torch.empty(tokens, vocabulary, dtype=dtype)
for row in logits:  # no temporary as large as the logits
    row.copy_(torch.randn(vocabulary))
labels = torch.zeros(tokens, dtype=torch.long)
token_statistics(logits[:2], labels[:2], backend=backend)
before = peak()
kept = [token_statistics(logits[i:], labels[i:], backend=backend) for i in range(0, tokens, tokens // 8)]
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize(
    ("backend", "dtype", "shape", "threads"),
    [
        ("eager", "float32", (1024, 32_000), 2),
        ("eager", "bfloat16", (1024, 32_000), 16),
        ("eager", "float32", (64, 262_144), 2),
        ("eager", "float32", (64, 262_144), 16),
        pytest.param("compile", "float32", (1024, 32_000), 2, marks=pytest.mark.slow),
        pytest.param("compile", "bfloat16", (64, 262_144), 2, marks=pytest.mark.slow),
    ],
)
def test_at_most_16_mib_are_used_beyond_the_logits(backend, dtype, shape, threads):
    command = [sys.executable, "-c", PEAK, backend, dtype, *map(str, (*shape, threads))]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
    assert int(output) <= 16 << 10
