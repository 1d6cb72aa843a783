"""linear_token_log_prob in compiled code, under autocast, as checkpointed; modules; what is refused."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from lightning_pce.tokens._linear_log_prob_operator import gradient_of_labels, scored_labels
from lightning_pce.tokens.linear_log_prob import linear_token_log_prob
from tests.helpers.linear_heads import H, V, WithAdapter, layer, linear_layer


def parts_of(*shape, **settings):
    """Hidden states, head and bias that record gradients, and labels."""
    *parts, labels = layer(*shape, **settings)
    return [part.requires_grad_() for part in parts], labels


def loss_of(hidden, head, bias, labels, **settings):
    scored = linear_token_log_prob(hidden, head, labels, bias=bias, **settings)
    return -torch.expm1(scored.log_prob).sum() + 1e-4 * scored.logsumexp.square().sum()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_compiled_graph_takes_it_whole(autocast, backend):
    torch._dynamo.reset()
    parts, labels = parts_of(3, 9, ignored=0.3)
    compiled = torch.compile(loss_of, fullgraph=True, backend=backend)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = torch.autograd.grad(loss_of(*parts, labels, shift=True), parts)
        found = torch.autograd.grad(compiled(*parts, labels, shift=True), parts)
        torch.testing.assert_close(found, expected)
        with pytest.raises(Exception, match=f"in \\[0, {V}\\)"):  # by the operator
            compiled(*parts, labels + V, shift=True)


@pytest.mark.slow
def test_the_operators_are_what_torch_takes_for_such():
    (hidden, head, bias), labels = parts_of(7, ignored=0.3)
    settings = (1.0, None, 1 << 20)
    torch.library.opcheck(scored_labels, (hidden, head, bias, labels, -100, False, *settings))
    torch.library.opcheck(scored_labels, (hidden.detach(), head, None, labels, -100, True, 0.5, 3.0, 1 << 20))
    known = scored_labels(hidden, head, bias, labels, -100, False, *settings)
    log_prob, logsumexp, _, peak, target = (each.detach() for each in known)
    arguments = [part.detach() for part in (hidden, head, bias)]
    arguments += [log_prob, logsumexp, peak, target, torch.ones_like(log_prob), None]
    for wanted in ([True, True, True], [True, False, False]):
        torch.library.opcheck(gradient_of_labels, (*arguments, wanted, *settings))


@pytest.mark.parametrize("module", [False, True])
def test_under_autocast_logits_are_those_of_f_linear(module):
    (hidden, *_), labels = parts_of(3, 33)
    made = linear_layer(*layer(1)[1:3])
    head = torch.nn.Sequential(made) if module else made
    with torch.autocast("cpu", torch.bfloat16):
        scored = linear_token_log_prob(hidden, head, labels)
        logits = made(hidden)
    assert logits.dtype == torch.bfloat16
    expected = logits.float().log_softmax(-1).gather(-1, labels[..., None])[..., 0]
    torch.testing.assert_close(scored.log_prob, expected, rtol=2e-3, atol=2e-3)
    found = torch.autograd.grad(scored.log_prob.exp().sum(), (hidden, made.weight))
    others = torch.autograd.grad(expected.exp().sum(), (hidden, made.weight))
    for value, other in zip(found, others, strict=True):
        assert value.dtype == torch.float32
        assert (value - other).norm() < 0.02 * other.norm()


def test_autocast_around_the_backward_pass_changes_nothing():
    parts, labels = parts_of(3, 33)
    expected = torch.autograd.grad(loss_of(*parts, labels), parts)
    loss = loss_of(*parts, labels)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(loss, parts)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_it_gives_the_same(reentrant):
    parts, labels = parts_of(3, 33)
    expected = torch.autograd.grad(loss_of(*parts, labels), parts)
    checkpoint(loss_of, *parts, labels, use_reentrant=reentrant).backward()
    for part, other in zip(parts, expected, strict=True):
        assert torch.equal(part.grad, other)


@pytest.mark.parametrize("factor", [2.0**-20, 2.0**20])
def test_a_factor_on_the_loss_is_one_on_the_gradient(factor):
    parts, labels = parts_of(3, 33)
    expected = torch.autograd.grad(loss_of(*parts, labels), parts)
    found = torch.autograd.grad(factor * loss_of(*parts, labels), parts)
    for value, other in zip(found, expected, strict=True):
        torch.testing.assert_close(value / factor, other)


@pytest.mark.parametrize("limit", [50_000, 64 << 20])
def test_a_layer_with_an_adapter_is_called_on_chunks_and_again_for_the_gradient(limit):
    hidden, head, bias, labels = layer(3, 33, dtype=torch.float64, ignored=0.4)
    made = WithAdapter(linear_layer(head, bias))
    made.base.requires_grad_(False)
    hidden.requires_grad_()
    seen = []
    made.register_forward_hook(lambda module, arguments, result: seen.append(len(result)))
    trained = (hidden, made.down.weight, made.up.weight)
    log_prob = linear_token_log_prob(hidden, made, labels, max_logits_bytes=limit).log_prob
    count = int((labels != -100).sum())
    assert sum(seen) == 1 + count
    assert (len(seen) > 2) == (limit == 50_000)
    found = torch.autograd.grad(log_prob.exp().sum(), trained)
    assert sum(seen) == 1 + 2 * count
    p = made(hidden).softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    torch.testing.assert_close(found, torch.autograd.grad(p[labels != -100].sum(), trained))


def test_a_linear_layer_is_its_weight_unless_something_hangs_on_it():
    hidden, head, bias, labels = layer(5)
    made, seen = linear_layer(head, bias), []
    expected = linear_token_log_prob(hidden, head, labels, bias=bias).log_prob
    assert torch.equal(linear_token_log_prob(hidden, made, labels).log_prob, expected)
    made.register_forward_hook(lambda module, arguments, result: seen.append(1) or 2 * result)
    doubled = linear_token_log_prob(hidden, head, labels, bias=bias, scale=2.0).log_prob
    torch.testing.assert_close(linear_token_log_prob(hidden, made, labels).log_prob, doubled)
    assert seen


def test_what_has_no_gradient_of_a_gradient_says_so():
    parts, labels = parts_of(5)
    (grad,) = torch.autograd.grad(loss_of(*parts, labels), parts[0], create_graph=True)
    with pytest.raises(ValueError, match="for that"):
        grad.sum().backward()


def test_torch_func_and_forward_mode_are_refused_with_a_sentence():
    (hidden, head, bias), labels = parts_of(5)

    def loss(hidden):
        return loss_of(hidden, head, bias, labels)

    for transform in (
        lambda: torch.func.grad(loss)(hidden),
        lambda: torch.func.jvp(loss, (hidden,), (hidden,)),
        lambda: torch.func.vmap(loss)(hidden[None]),
    ):
        with pytest.raises(ValueError, match=r"does not go through torch\.func"):
            transform()


def message_of(*arguments, **settings):
    with pytest.raises(ValueError) as error:
        linear_token_log_prob(*arguments, **settings)
    return str(error.value)


def test_what_does_not_fit_is_refused_and_shown():
    hidden, head, bias, labels = layer(3, 33)
    assert "head.T" in message_of(hidden, head.T, labels)
    assert "(5,)" in message_of(hidden, head, labels, bias=bias[:5])
    assert "torch.bfloat16" in message_of(hidden.bfloat16(), head, labels)
    assert "(3, 32)" in message_of(hidden, head, labels[:, 1:])
    assert "`bias`" in message_of(hidden, linear_layer(head, bias), labels, bias=bias)
    assert f"[n, {H - 1}]" in message_of(hidden[..., 1:], WithAdapter(linear_layer(head, bias)), labels)
    assert "str" in message_of(hidden, "head", labels)
    assert "`scale`" in message_of(hidden, head, labels, scale=0.0)
    assert "`softcap`" in message_of(hidden, head, labels, softcap=-1.0)
    labels[0, 0] = V
    assert f"[0, {V})" in message_of(hidden, head, labels)
    assert f"[0, {V})" in message_of(hidden, WithAdapter(linear_layer(head, bias)), labels)


def test_a_mean_far_above_guessing_asks_for_the_scale(monkeypatch):
    monkeypatch.setattr("lightning_pce.tokens.from_hidden_states._said", set())
    hidden, head, _, labels = layer(64)
    with pytest.warns(UserWarning, match="scale or cap its logits"):
        linear_token_log_prob(hidden, 9 * head, labels)
