from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from lightning_pce.tokens.from_hidden_states import linear_token_statistics
from lightning_pce.tokens.statistics import token_statistics
from tests.helpers.token_cases import assert_statistics, reference

H, V = 24, 311


def layer(*shape, dtype=torch.float32, ignored=0.0, seed=0):
    random = torch.Generator().manual_seed(seed)
    hidden = torch.randn(*shape, H, generator=random).to(dtype)
    head = torch.randn(V, H, generator=random).to(dtype)
    bias = torch.randn(V, generator=random).to(dtype)
    labels = torch.randint(0, V, shape, generator=random)
    return hidden, head, bias, torch.where(torch.rand(shape, generator=random) < ignored, -100, labels)


def assert_same(stats, expected, rtol=1e-5):
    for value, other in zip(stats, expected, strict=True):
        torch.testing.assert_close(value, other, rtol=rtol, atol=1e-5)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("ignored", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("limit", [1, 50_000, 64 << 20])
def test_statistics_are_those_of_the_logits(limit, ignored, with_bias):
    hidden, head, bias, labels = layer(3, 33, ignored=ignored)
    bias = bias if with_bias else None
    stats = linear_token_statistics(hidden, head, labels, bias=bias, max_logits_bytes=limit)
    logits = torch.nn.functional.linear(hidden, head, bias)
    assert_same(stats, token_statistics(logits, labels))
    assert torch.equal(stats.valid, labels != -100)


def test_they_are_those_of_float64():
    hidden, head, _, labels = layer(3, 33, dtype=torch.float64, ignored=0.2)
    assert_statistics(linear_token_statistics(hidden, head, labels), reference(hidden @ head.T, labels))


@pytest.mark.parametrize("shape", [(), (7,), (2, 3, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_shape_and_dtype(shape, dtype):
    hidden, head, _, labels = layer(*shape, dtype=dtype)
    stats = linear_token_statistics(hidden, head, labels)
    assert stats.ce.shape == shape
    assert stats.ce.dtype == torch.float32
    assert_same(stats, token_statistics(hidden @ head.T, labels))


@pytest.mark.parametrize("shift", [False, True])
def test_shift_and_ignore_index_are_those_of_token_statistics(shift):
    hidden, head, _, labels = layer(3, 33)
    labels[:, ::4] = 7
    settings = {"shift": shift, "ignore_index": 7, "statistics": ("ce", "rank")}
    stats = linear_token_statistics(hidden, head, labels, **settings)
    assert stats.entropy is None
    expected = token_statistics(hidden @ head.T, labels, **settings)
    assert_same([stats.ce, *stats[4:]], [expected.ce, *expected[4:]])


def test_hidden_states_of_any_strides_give_the_same():
    hidden, head, _, labels = layer(4, 17)
    cut = torch.cat([hidden, -hidden], dim=1)[:, :17]
    expected = linear_token_statistics(hidden, head, labels)
    assert_same(linear_token_statistics(cut, head, labels), expected)
    turned = hidden.transpose(0, 1).contiguous().transpose(0, 1)
    assert_same(linear_token_statistics(turned, head.T.contiguous().T, labels), expected)


def test_rows_that_do_not_count_are_not_multiplied():
    hidden, head, _, labels = layer(3, 33, ignored=0.5)
    hidden[labels == -100] = torch.nan
    seen = []

    class Head(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            if function is torch.mm:
                seen.append(len(args[0]))
            return super().__torch_function__(function, types, args, kwargs or {})

    stats = linear_token_statistics(hidden, head.as_subclass(Head), labels)
    assert sum(seen) == (labels != -100).sum()
    assert not stats.ce.isnan().any()


def test_gradients_and_autocast_change_nothing():
    hidden, head, bias, labels = layer(3, 33)
    expected = linear_token_statistics(hidden, head, labels, bias=bias)
    parameters = [torch.nn.Parameter(part) for part in (head, bias)]
    with torch.autocast("cpu", torch.bfloat16):
        stats = linear_token_statistics(hidden.requires_grad_(), parameters[0], labels, bias=parameters[1])
    assert not stats.ce.requires_grad
    assert_same(stats, expected)


PEAK = """
import sys
import torch
from lightning_pce.tokens.from_hidden_states import linear_token_statistics

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

torch.set_num_threads(2)
dtype, limit = getattr(torch, sys.argv[1]), int(sys.argv[2])
hidden, head = torch.randn(4096, 64, dtype=dtype), torch.randn(32_000, 64, dtype=dtype)
labels = torch.zeros(4096, dtype=torch.long)
linear_token_statistics(hidden[:99], head, labels[:99], max_logits_bytes=99 * 128_000)
before = peak()
linear_token_statistics(hidden, head, labels, max_logits_bytes=limit)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize(
    ("dtype", "limit"), [("float32", 24 << 20), ("float32", 64 << 20), ("bfloat16", 64 << 20)]
)
def test_memory_stays_within_the_limit(dtype, limit):
    command = [sys.executable, "-c", PEAK, dtype, str(limit)]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
    assert int(output) <= (limit >> 10) + 4096  # and MKL's buffers


def message_of(*arguments, **settings):
    with pytest.raises(ValueError) as error:
        linear_token_statistics(*arguments, **settings)
    return str(error.value)


def test_what_does_not_fit_is_refused_and_shown():
    hidden, head, bias, labels = layer(3, 33)
    assert f"({H}, {V})" in (message := message_of(hidden, head.T, labels))
    assert "head.T" in message
    assert "(5,)" in message_of(hidden, head, labels, bias=bias[:5])
    assert "torch.bfloat16" in message_of(hidden.bfloat16(), head, labels)
    assert "weight" in message_of(hidden, torch.nn.Linear(H, V), labels)
    assert "(3, 32)" in message_of(hidden, head, labels[:, 1:])
    assert "`statistics`" in message_of(hidden, head, labels, statistics=("loss",))
    labels[0, 0] = V
    assert f"{V}" in message_of(hidden, head, labels)
