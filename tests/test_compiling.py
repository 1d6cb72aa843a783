"""Functions that torch.compile leaves alone, decorated before torch._dynamo is imported and after."""

import subprocess
import sys

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from lightning_pce import linear_token_statistics, token_statistics
from lightning_pce._compiling import not_compiled

STEP = """
import sys
import torch
from lightning_pce._compiling import not_compiled

def helper(x):
    assert not torch.compiler.is_compiling()
    return x.sin()

class Counter:
    calls = 0  # an int that changes: compiled, each call would be a graph of its own

def method(number):
    def count(self, x, by=1):
        assert not torch.compiler.is_compiling()
        self.calls += by
        return helper(x) * number
    return not_compiled(count)

for number in range(12):  # more than torch compiles one frame for
    setattr(Counter, f"count{number}", method(number))
counter = Counter()
counter.count0(torch.ones(2))
assert "torch._dynamo" not in sys.modules
from torch._dynamo.testing import CompileCounter

graphs = CompileCounter()

@torch.compile(backend=graphs)
def step(x):
    y = 2 * x
    counter.count0(y, by=2), counter.count1(y), counter.count2(y), counter.count3(y, 3)
    counter.count4(y), counter.count5(y), counter.count6(y), counter.count7(y)
    counter.count8(y), counter.count9(y), counter.count10(y)
    return y + counter.count11(y)

for _ in range(2):
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(10):
            assert torch.equal(step(torch.ones(3)), 2 + 11 * torch.full((3,), 2.0).sin())
    torch._dynamo.reset()
print(counter.calls, graphs.frame_count, graphs.op_count)
"""


def test_a_function_decorated_before_torch_dynamo_is_imported_is_never_compiled():
    run = subprocess.run([sys.executable, "-c", STEP], capture_output=True, text=True, timeout=200)
    assert run.stdout.split() == [str(1 + 20 * 15), "4", "4"], run.stderr  # before and after, compiled twice


def test_a_function_decorated_afterwards_is_not_compiled_either():
    seen, graphs = [], CompileCounter()

    @not_compiled
    def look(x):
        """What it looks at."""
        seen.append(torch.compiler.is_compiling())
        return x

    @torch.compile(backend=graphs)
    def step(x):
        return look(x + 1) * 2

    assert step(torch.ones(2)).tolist() == [4.0, 4.0]
    assert seen == [False]
    assert graphs.frame_count == 2
    assert look.__name__ == "look"
    assert look.__doc__ == "What it looks at."


@pytest.mark.parametrize("from_hidden", [False, True])
def test_statistics_inside_of_a_compiled_function_are_those_outside(from_hidden):
    graphs = CompileCounter()
    x, head, labels = torch.randn(6, 9), torch.randn(17, 9), torch.randint(0, 17, (6,))

    def ce(x):
        x = 2 * x
        if from_hidden:
            return linear_token_statistics(x, head, labels).ce + 1
        return token_statistics(x @ head.T, labels).ce + 1

    torch._dynamo.reset()
    compiled = torch.compile(ce, backend=graphs)
    assert torch.equal(compiled(x), ce(x))
    assert graphs.frame_count == 2  # before and after, and nothing of ours
