"""Log-probabilities from hidden states and their gradients are those of the logits, in float64."""

import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from lightning_pce.tokens._linear_log_prob_operator import gradient_of_labels, scored_labels
from lightning_pce.tokens.linear_log_prob import linear_token_log_prob
from tests.helpers.linear_heads import V, WithAdapter, layer, linear_layer

LIMITS = [1, 50_000, 64 << 20]


def loss_of(log_prob, logsumexp, valid):
    """Something with other gradients for every token, of both results."""
    weights = torch.linspace(-1, 2, log_prob.numel(), dtype=log_prob.dtype).view(log_prob.shape)
    return ((weights * log_prob.exp() + 0.01 * logsumexp.square()) * valid).sum()


def by_logits(hidden, head, bias, labels, scale=1.0, softcap=None):
    """The same in float64, by torch's own functions, with the gradients of hidden states, head and bias."""
    inputs = [part.detach().double().requires_grad_() for part in (hidden, head, bias)]
    logits = F.linear(*inputs) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    valid = labels != -100
    log_prob = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    logsumexp = logits.logsumexp(-1)
    gradients = torch.autograd.grad(loss_of(log_prob, logsumexp, valid), inputs)
    return log_prob.where(valid, 0), logsumexp.where(valid, 0), gradients


def assert_those_of_the_logits(parts, labels, tolerance, *, head=None, limit=64 << 20, **settings):
    """Results and gradients of ``(hidden, head, bias)``; or of another head that does the same."""
    parts = [part.requires_grad_() for part in parts]
    arguments = {"bias": parts[2]} if head is None else {}
    scored = linear_token_log_prob(
        parts[0], parts[1] if head is None else head, labels, max_logits_bytes=limit, **arguments, **settings
    )
    log_prob, logsumexp, gradients = by_logits(*parts, labels, **settings)
    wide = torch.float64 if parts[0].dtype == torch.float64 else torch.float32
    assert scored.log_prob.dtype == scored.logsumexp.dtype == wide
    assert torch.equal(scored.valid, labels != -100)
    for value, expected in ((scored.log_prob, log_prob), (scored.logsumexp, logsumexp)):
        torch.testing.assert_close(value.double(), expected, rtol=tolerance, atol=10 * tolerance)
    for value, expected in zip(torch.autograd.grad(loss_of(*scored), parts), gradients, strict=True):
        assert value.dtype == parts[0].dtype
        assert (value.double() - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 0.02)]
)
@pytest.mark.parametrize("ignored", [0.0, 0.6])
@pytest.mark.parametrize("limit", LIMITS)
def test_results_and_gradients_are_those_of_the_logits(limit, ignored, dtype, tolerance):
    *parts, labels = layer(3, 33, dtype=dtype, ignored=ignored)
    assert_those_of_the_logits(parts, labels, tolerance, limit=limit)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 5e-6), (torch.bfloat16, 0.03)]
)
@pytest.mark.parametrize(("scale", "softcap"), [(0.5, None), (-0.3, 4.0)])
@pytest.mark.parametrize("wrap", [None, lambda module: module, torch.nn.Sequential])
def test_scale_and_softcap_are_differentiated(wrap, scale, softcap, dtype, tolerance):
    hidden, head, bias, labels = layer(4, 9, dtype=dtype, ignored=0.2)
    made = linear_layer(head, bias)
    settings = {"scale": scale, "softcap": softcap, "limit": 50_000, "head": wrap and wrap(made)}
    assert_those_of_the_logits([hidden, made.weight, made.bias], labels, tolerance, **settings)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("limit", [1, 64 << 20])
def test_gradcheck(limit, softcap):
    hidden, head, bias, labels = layer(7, dtype=torch.float64, ignored=0.3, vocabulary=23, width=5)
    parts = [part.requires_grad_() for part in (hidden, head, bias)]

    def function(hidden, head, bias):
        settings = {"scale": 0.4, "softcap": softcap, "max_logits_bytes": limit}
        return linear_token_log_prob(hidden, head, labels, bias=bias, **settings)[:2]

    assert torch.autograd.gradcheck(function, parts)


@pytest.mark.parametrize("shape", [(), (7,), (2, 3, 5)])
@pytest.mark.parametrize("shift", [False, True])
def test_any_shape_shift_and_ignore_index(shape, shift):
    hidden, head, _, labels = layer(*shape)
    labels = torch.where(torch.arange(labels.numel()).view(shape) % 3 == 1, 7, labels)
    if shift and not shape:
        return
    scored = linear_token_log_prob(hidden, head, labels, ignore_index=7, shift=shift)
    target = F.pad(labels[..., 1:], (0, 1), value=7) if shift else labels
    expected = F.linear(hidden, head).log_softmax(-1).gather(-1, target[..., None])[..., 0]
    assert torch.equal(scored.valid, target != 7)
    torch.testing.assert_close(scored.log_prob, expected.where(target != 7, 0), rtol=1e-5, atol=1e-5)
    everything = linear_token_log_prob(hidden, head, labels.clamp(min=0), ignore_index=None)
    assert everything.valid.all()


def test_where_p_is_nearly_1_the_gradient_at_the_label_is_not_rounded_away():
    """With the identity as head the hidden states' gradient is that of the logits."""
    hidden = torch.randn(6, V, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(6)
    behind = torch.tensor([1.0, 5.0, 10.0, 20.0, 27.6, 40.0])  # the last: 1 - p is about 1e-17 * V
    hidden[labels, labels] = hidden.amax(-1) + behind
    hidden.requires_grad_()
    (-linear_token_log_prob(hidden, torch.eye(V), labels).log_prob).sum().backward()
    exact = hidden.detach().double().softmax(-1)
    exact[labels, labels] = 0
    exact[labels, labels] = -exact.sum(-1)
    torch.testing.assert_close(hidden.grad.double(), exact, rtol=5e-6, atol=0)
    own = hidden.grad.double()[labels, labels] / exact[labels, labels]
    assert (own - 1).abs().max() < 2e-6


@pytest.mark.parametrize("offset", [-1e4, 1e4])
def test_far_from_0_nothing_is_lost(offset):
    hidden = (4 * torch.randn(5, V, generator=torch.Generator().manual_seed(0)) + offset).requires_grad_()
    labels = torch.arange(5)
    (-linear_token_log_prob(hidden, torch.eye(V), labels).log_prob).sum().backward()
    exact = hidden.detach().double().softmax(-1)
    exact[labels, labels] -= 1
    torch.testing.assert_close(hidden.grad.double(), exact, rtol=1e-5, atol=1e-12)


def test_masked_logits_are_those_of_a_bias_of_minus_infinity():
    hidden, head, bias, labels = layer(4)
    hidden.requires_grad_()
    bias[labels[0]] = bias[: V // 3] = -math.inf
    assert_those_of_the_logits([hidden[1:], head, bias], torch.tensor([V - 1, V - 2, V - 3]), 2e-6)
    scored = linear_token_log_prob(hidden, head, labels, bias=bias)
    assert scored.log_prob[0] == -math.inf
    found = torch.autograd.grad(scored.log_prob[0], hidden)[0]
    logits = F.linear(hidden, head, bias)
    torch.testing.assert_close(found[0], head[labels[0]] - logits[0].softmax(-1) @ head)


@pytest.mark.parametrize("module", [False, True])
def test_rows_that_do_not_count_may_hold_anything(module):
    hidden, head, bias, labels = layer(3, 33, ignored=0.5)
    hidden[labels == -100] = torch.nan
    hidden.requires_grad_()
    made = WithAdapter(linear_layer(head, bias))
    scored = linear_token_log_prob(hidden, made if module else made.base, labels)
    scored.log_prob.sum().backward()
    assert (hidden.grad[labels == -100] == 0).all()
    assert hidden.grad[labels != -100].abs().amin() > 0
    assert made.base.weight.grad.isfinite().all()


def test_tokens_without_a_gradient_are_not_in_the_backward_pass():
    """A row of NaN that counts, but has no gradient: a product with it would be NaN."""
    hidden, head, _, labels = layer(3, 33)
    hidden[1] = torch.nan
    hidden.requires_grad_(), head.requires_grad_()
    log_prob = linear_token_log_prob(hidden, head, labels).log_prob
    assert log_prob[1].isnan().all()
    log_prob[::2].sum().backward()
    expected = [part.detach().clone().requires_grad_() for part in (hidden[::2], head)]
    linear_token_log_prob(*expected, labels[::2]).log_prob.sum().backward()
    assert (hidden.grad[1] == 0).all()
    torch.testing.assert_close(hidden.grad[::2], expected[0].grad)
    torch.testing.assert_close(head.grad, expected[1].grad)


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_what_is_frozen_costs_nothing(wanted):
    hidden, head, bias, labels = layer(3, 33)
    log_prob, logsumexp, _, peak, target = scored_labels(
        hidden, head, bias, labels, -100, False, 1.0, None, 64 << 20
    )
    ones = torch.ones_like(log_prob)
    arguments = (hidden, head, bias, log_prob, logsumexp, peak, target, ones, None)
    every, some = (
        gradient_of_labels(*arguments, wants, 1.0, None, 64 << 20) for wants in ([True] * 3, list(wanted))
    )
    for value, expected, want in zip(some, every, wanted, strict=True):
        assert torch.equal(value, expected) if want else value.shape == (0,)
    parts = [part.requires_grad_(want) for part, want in zip((hidden, head, bias), wanted, strict=True)]
    linear_token_log_prob(hidden, head, labels, bias=bias).log_prob.sum().backward()
    assert [part.grad is not None for part in parts] == list(wanted)


@pytest.mark.parametrize("shape", [(3, 5), (0, 5)])
@pytest.mark.parametrize("module", [False, True])
def test_without_tokens_that_count_there_is_a_gradient_of_zeros(module, shape):
    hidden, head, bias, labels = layer(*shape, ignored=1.0)
    hidden.fill_(torch.nan).requires_grad_()
    made = WithAdapter(linear_layer(head, bias))
    scored = linear_token_log_prob(hidden, made if module else made.base, labels)
    assert scored.log_prob.shape == shape
    loss = scored.log_prob.sum()
    assert loss == 0
    loss.backward()
    for part in (hidden, *(made if module else made.base).parameters()):
        assert (part.grad == 0).all()


PEAK = """
import sys
import torch
from lightning_pce.tokens.linear_log_prob import linear_token_log_prob

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

torch.set_num_threads(2)
dtype, frozen, limit = getattr(torch, sys.argv[1]), sys.argv[2] == "frozen", int(sys.argv[3])
hidden, head = torch.randn(1024, 128, dtype=dtype), torch.randn(65_536, 128, dtype=dtype)
labels = torch.zeros(1024, dtype=torch.long)

def step(tokens, vocabulary, limit):
    parts = hidden[:tokens].detach(), head[:vocabulary].detach()
    parts[0].requires_grad_(), parts[1].requires_grad_(not frozen)
    linear_token_log_prob(*parts, labels[:tokens], max_logits_bytes=limit).log_prob.mean().backward()
    return sum(part.grad.nbytes for part in parts if part.grad is not None)

step(64, 1024, limit)
before = peak()
gradients = step(1024, 65_536, limit)
print(peak() - before - gradients // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize(
    ("dtype", "frozen", "limit"),
    [
        ("bfloat16", "trained", 32 << 20),
        pytest.param("float32", "trained", 16 << 20, marks=pytest.mark.slow),
        pytest.param("float32", "frozen", 16 << 20, marks=pytest.mark.slow),
        pytest.param("bfloat16", "frozen", 64 << 20, marks=pytest.mark.slow),
    ],
)
def test_memory_beyond_the_gradients_stays_within_the_limit(dtype, frozen, limit):
    command = [sys.executable, "-c", PEAK, dtype, frozen, str(limit)]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
    assert int(output) <= (limit >> 10) + 10_240  # and MKL's buffers
