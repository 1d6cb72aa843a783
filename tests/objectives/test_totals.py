"""Weights, what the sum is divided by, batches without tokens, and batches that are cut."""

import math

import pytest
import torch

from lightning_pce import token_log_prob
from lightning_pce.objectives import DCO, NLL, Power, Threshold, Unlikelihood, z_loss
from tests.objectives.cases import FAMILY, batch, by_autograd, loss_and_gradient

ALL = {**{name: case[0] for name, case in FAMILY.items()}, "dco": DCO(4), "z": z_loss}


@pytest.mark.parametrize("name", FAMILY)
def test_weights_multiply_and_the_normalizer_divides(name):
    objective, of_tokens, _ = FAMILY[name]
    logits, labels = batch(4, 9)
    weights = torch.rand(4, 9, dtype=torch.float64) * (torch.rand(4, 9) < 0.7)
    for normalizer in (None, 50, torch.tensor(50), torch.tensor([50.0])):
        got = loss_and_gradient(objective, logits, labels, weights=weights, normalizer=normalizer)
        by = None if normalizer is None else 50
        for value, expected in zip(got, by_autograd(of_tokens, logits, labels, weights, by), strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-13)


def test_no_gradient_flows_into_weights_and_weight_0_hides_an_infinite_loss():
    logits, labels = batch(3, ignored=0)
    logits[1, labels[1]] = -math.inf
    weights = torch.tensor([1.0, 0.0, 2.0], requires_grad=True)
    loss, grad = loss_and_gradient(NLL(), logits, labels, weights=weights)
    assert loss.isfinite()
    assert grad.isfinite().all()
    assert not grad[1].any()
    assert weights.grad is None


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("normalizer", [None, 12, 0])
@pytest.mark.parametrize("shape", [(2, 3), (0, 3), (2, 0)])
def test_without_a_token_the_loss_is_0_and_has_a_gradient_of_zeros(name, normalizer, shape):
    logits, labels = torch.randn(*shape, 5), torch.full(shape, -100)
    logits[..., 0] = math.nan
    loss, grad = loss_and_gradient(ALL[name], logits, labels, normalizer=normalizer)
    assert loss.item() == 0
    assert not math.copysign(1, loss.item()) < 0
    assert torch.equal(grad, torch.zeros_like(grad))


@pytest.mark.parametrize("divide_by_kept", [False, True])
def test_where_nothing_is_kept_the_loss_is_0_and_has_a_gradient_of_zeros(divide_by_kept):
    logits, labels = batch(3, 5)
    objective = Threshold(NLL(), 1.0, divide_by_kept=divide_by_kept)
    loss, grad = loss_and_gradient(objective, logits, labels)
    assert loss.item() == 0
    assert torch.equal(grad, torch.zeros_like(grad))


@pytest.mark.parametrize("name", ALL)
def test_micro_batches_with_the_normalizer_of_all_give_the_gradient_of_one_batch(name):
    logits, labels = batch(8, 6, dtype=torch.float32, ignored=0.5)
    rows = (labels != -100).any(-1).sum() if name == "dco" else (labels != -100).sum()
    _, whole = loss_and_gradient(ALL[name], logits, labels)
    parts = [
        loss_and_gradient(ALL[name], x, y, normalizer=rows)[1]
        for x, y in zip(logits.split(2), labels.split(2), strict=True)
    ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-6, atol=1e-9)


def test_dividing_by_kept_tokens_depends_on_how_a_batch_is_cut_and_dividing_by_all_does_not():
    logits, labels = batch(64, ignored=0, seed=3)
    parts = list(zip(logits.split(8), labels.split(8), strict=True))

    def whole_and_cut(objective):
        cut = [loss_and_gradient(objective, *part)[0] for part in parts]
        return loss_and_gradient(objective, logits, labels)[0], torch.stack(cut).mean()

    by_all, by_kept = (Threshold(NLL(), 0.2, divide_by_kept=kept) for kept in (False, True))
    torch.testing.assert_close(*whole_and_cut(by_all), rtol=1e-12, atol=0)
    whole, cut = whole_and_cut(by_kept)
    assert abs(whole - cut) / whole > 0.01
    kept = logits.log_softmax(-1).gather(-1, labels[:, None]) >= math.log(0.2)
    wanted = whole_and_cut(by_all)[0] * 64 / kept.sum()
    torch.testing.assert_close(whole, wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"weights": torch.ones(3)}, "shape of the log-probabilities"),
        ({"weights": -torch.ones(2, 3)}, "finite numbers >= 0"),
        ({"weights": torch.full((2, 3), math.nan)}, "finite numbers >= 0"),
        ({"normalizer": 0}, "above 0"),
        ({"normalizer": -2.0}, "above 0"),
        ({"normalizer": math.nan}, "above 0"),
        ({"normalizer": torch.ones(2)}, "one number"),
    ],
)
def test_weights_and_normalizers_that_do_not_fit_are_refused(settings, words):
    scored = token_log_prob(*batch(2, 3, ignored=0))
    for objective in (Power(1), DCO(2)):
        with pytest.raises(ValueError, match=words) as error:
            objective(scored, **settings)
        assert "\n" not in str(error.value)


def test_a_normalizer_beside_dividing_by_kept_tokens_is_refused():
    scored = token_log_prob(*batch(2, 3))
    with pytest.raises(ValueError, match="divide_by_kept"):
        Threshold(NLL(), 0.2, divide_by_kept=True)(scored, normalizer=3)


@pytest.mark.slow
def test_compiled_whole_each_gives_the_same():
    logits, labels = batch(3, 6, dtype=torch.float32)

    def step(x, weights, normalizer):
        scored = token_log_prob(x, labels, shift=True)
        total = z_loss(scored, weights=weights)
        answer = torch.arange(6).expand(3, 6) // 3
        for objective in (
            Power(1),
            Threshold(NLL(), 0.2),
            Threshold(Unlikelihood(), 0.1, divide_by_kept=True),
        ):
            total = total + objective(scored, weights=weights)
        return total + DCO(8)(scored, answer=answer, weights=weights, normalizer=normalizer)

    found = []
    for call in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        leaf = logits.clone().requires_grad_()
        loss = call(leaf, torch.linspace(0, 1, 18).reshape(3, 6), torch.tensor(9))
        loss.backward()
        found.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-8)
