from __future__ import annotations

import math
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


@pytest.fixture
def nothing_said(monkeypatch):
    monkeypatch.setattr("lightning_pce.tokens.from_hidden_states._said", set())


def large_logits(factor, tokens=64):
    """Of a model that is right three times in four, once they are divided by the factor."""
    random = torch.Generator().manual_seed(4)
    labels = torch.randint(V, (tokens,), generator=random)
    hidden = torch.eye(V)[torch.where(torch.arange(tokens) % 4 > 0, labels, (labels + 1) % V)]
    return hidden, factor * 6 * torch.eye(V), labels


@pytest.mark.parametrize("factor", [8, 16])
def test_a_mean_far_above_guessing_asks_once_for_the_scale(nothing_said, recwarn, factor):
    hidden, head, labels = large_logits(factor)
    for _ in range(2):
        linear_token_statistics(hidden, torch.nn.Parameter(head), labels)
    (message,) = [str(each.message) for each in recwarn]
    assert f"ln V = {math.log(V):.1f}" in message
    assert "output_layer(model)" in message


UNTRAINED = torch.randn(64, H, generator=torch.Generator().manual_seed(5)) * 0.3


@pytest.mark.parametrize(
    ("hidden", "head", "labels", "settings"),
    [
        (*large_logits(16), {"scale": 1 / 16}),
        (*large_logits(16), {"scale": 1.0, "softcap": 5.0}),
        (*large_logits(1), {}),
        (*large_logits(16, tokens=20), {}),  # too few to tell
        (*large_logits(16), {"statistics": ("rank",)}),
        (large_logits(16)[0], lambda states: states @ large_logits(16)[1], large_logits(16)[2], {}),
        (UNTRAINED, layer(64)[1], layer(64)[3], {}),
        (UNTRAINED, layer(64)[1], torch.full((64,), -100), {}),
        (UNTRAINED / 0, layer(64)[1], layer(64)[3], {}),
    ],
)
def test_a_scale_is_not_asked_for_elsewhere(nothing_said, recwarn, hidden, head, labels, settings):
    linear_token_statistics(hidden, head, labels, **settings)
    assert not recwarn.list


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


class WithAdapter(torch.nn.Module):
    """An output layer with a low-rank update beside it, as LoRA makes of one."""

    def __init__(self, base, rank=4):
        super().__init__()
        self.base, self.scaling = base, 2.0
        self.down = torch.nn.Linear(base.in_features, rank, bias=False, dtype=base.weight.dtype)
        self.up = torch.nn.Linear(rank, base.out_features, bias=False, dtype=base.weight.dtype)

    def forward(self, x):
        return self.base(x) + self.scaling * self.up(self.down(x))


def made_layer(head, bias):
    made = torch.nn.Linear(H, V, dtype=head.dtype)
    made.weight.data, made.bias.data = head, bias
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("limit", [50_000, 64 << 20])
@pytest.mark.parametrize("wrap", [lambda layer: layer, WithAdapter], ids=["linear", "adapter"])
def test_a_module_is_called_on_chunks(wrap, limit, dtype):
    hidden, head, bias, labels = layer(3, 33, dtype=dtype, ignored=0.4)
    module = wrap(made_layer(head, bias))
    seen = []
    module.register_forward_hook(lambda module, arguments, result: seen.append(len(result)))
    stats = linear_token_statistics(hidden, module, labels, max_logits_bytes=limit)
    assert sum(seen) == 1 + (labels != -100).sum()
    assert (len(seen) > 2) == (limit == 50_000)
    assert not stats.ce.requires_grad
    tolerance = 1e-5 if dtype == torch.float32 else 0.05  # products of other sizes are rounded otherwise
    expected = token_statistics(module(hidden).detach(), labels)
    torch.testing.assert_close(stats.ce, expected.ce, rtol=tolerance, atol=tolerance)
    assert torch.equal(stats.valid, expected.valid)


def test_a_module_that_returns_its_argument_or_another_dtype_loses_nothing():
    hidden, _, _, labels = layer(3, 33)
    before, labels = hidden.clone(), labels % H
    stats = linear_token_statistics(hidden, torch.nn.Identity(), labels, scale=3.0)
    assert torch.equal(hidden, before)
    assert_same(stats, token_statistics(3 * hidden, labels))
    wider = linear_token_statistics(hidden.bfloat16(), lambda states: states.double() / 3, labels)
    assert_statistics(wider, reference(hidden.bfloat16().double() / 3, labels))


def test_under_autocast_a_module_gives_the_logits_of_autocast():
    hidden, head, bias, labels = layer(3, 33)
    module = made_layer(head, bias)
    with torch.autocast("cpu", torch.bfloat16):
        stats = linear_token_statistics(hidden, module, labels)
        expected = token_statistics(module(hidden).detach(), labels)
    torch.testing.assert_close(stats.ce, expected.ce, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("scale", "softcap"), [(0.0625, None), (1.0, 5.0), (1 / 3, 2.0), (-2.0, 30.0)])
def test_logits_are_scaled_and_then_capped(scale, softcap, dtype):
    hidden, head, bias, labels = layer(3, 33, dtype=dtype, ignored=0.2)
    logits = torch.nn.functional.linear(hidden, head, bias) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    expected = token_statistics(logits, labels)
    settings = {"scale": scale, "softcap": softcap}
    assert_same(linear_token_statistics(hidden, head, labels, bias=bias, **settings), expected)
    assert_same(linear_token_statistics(hidden, made_layer(head, bias), labels, **settings), expected)


def test_without_tokens_that_count_a_module_tells_the_vocabulary():
    hidden, head, bias, labels = layer(3, 33, ignored=1.0)
    stats = linear_token_statistics(hidden, made_layer(head, bias), labels)
    assert (stats.rank == V + 1).all()
    empty = linear_token_statistics(hidden[:0], made_layer(head, bias), labels[:0])
    assert empty.ce.shape == (0, 33)


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
    assert "(3, 32)" in message_of(hidden, head, labels[:, 1:])
    assert "`statistics`" in message_of(hidden, head, labels, statistics=("loss",))
    labels[0, 0] = V
    assert f"{V}" in message_of(hidden, head, labels)


def test_modules_and_settings_that_can_not_be_are_refused_and_shown():
    hidden, head, bias, labels = layer(3, 33)
    module = made_layer(head, bias)
    assert "`bias`" in message_of(hidden, module, labels, bias=bias)
    assert f"[n, {H - 1}]" in message_of(hidden[..., 1:], module, labels)
    assert "(2, 1)" in message_of(hidden, lambda states: states.new_zeros(2, 1), labels)
    assert "int64" in message_of(hidden, lambda states: states.long(), labels)
    assert "None" in message_of(hidden, lambda states: None, labels)
    assert "str" in message_of(hidden, "head", labels)
    for settings in ({"scale": 0.0}, {"scale": float("nan")}, {"softcap": 0.0}, {"softcap": -30.0}):
        name, value = next(iter(settings.items()))
        message = message_of(hidden, head, labels, **settings)
        assert f"`{name}`" in message
        assert str(value) in message
