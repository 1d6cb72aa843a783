"""Each objective of tokens: its value and gradient by the definition and in closed form."""

import mpmath
import pytest
import torch
import torch.nn.functional as F

from lightning_pce import objectives, token_log_prob
from lightning_pce.objectives import NLL, Power, Threshold, Unlikelihood
from lightning_pce.objectives._logarithms import log_one_minus_exp, one_minus_exp
from tests.objectives.cases import FAMILY, batch, by_autograd, loss_and_gradient

INF, NAN = float("inf"), float("nan")
of_family = pytest.mark.parametrize("name", FAMILY)


@of_family
@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_the_loss_and_its_gradient_are_those_of_the_definition(name, dtype, near):
    objective, of_tokens, _ = FAMILY[name]
    logits, labels = batch(4, 9, dtype=dtype)
    loss, grad = loss_and_gradient(objective, logits, labels)
    expected_loss, expected_grad = by_autograd(of_tokens, logits, labels)
    assert loss.dtype == dtype
    assert abs(expected_loss) > 0.01
    torch.testing.assert_close(loss.double(), expected_loss, rtol=near, atol=0)
    torch.testing.assert_close(grad.double(), expected_grad, rtol=near, atol=near / 10)


@of_family
def test_the_gradient_in_closed_form(name):
    objective, _, s = FAMILY[name]
    logits, labels = batch(40, ignored=0)
    _, grad = loss_and_gradient(objective, logits, labels, normalizer=1)
    p = logits.softmax(-1)
    own = p.gather(-1, labels[:, None])
    closed = -s(own) * (F.one_hot(labels, logits.shape[-1]) - p)
    torch.testing.assert_close(grad, closed, rtol=0, atol=1e-12)


@of_family
def test_gradcheck(name):
    logits, labels = batch(2, 4, vocabulary=5)
    objective = FAMILY[name][0]
    weights = torch.rand(2, 4).round() + 1

    def loss(x):
        return objective(token_log_prob(x, labels, shift=True), weights=weights)

    assert torch.autograd.gradcheck(loss, logits.requires_grad_())


def test_gradcheck_of_the_z_loss():
    logits, labels = batch(2, 4)
    check = torch.autograd.gradcheck
    assert check(lambda x: objectives.z_loss(token_log_prob(x, labels)), logits.requires_grad_())


def test_the_gradient_of_1_minus_p_is_that_of_dft():
    """trl's loss_type="dft": the cross-entropy times the detached probability."""
    logits, labels = batch(4, 9, dtype=torch.float32)
    leaf = logits.clone().requires_grad_()
    own = leaf.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    valid = labels != -100
    dft = -(own.detach().exp() * own)[valid].sum() / valid.sum()
    dft.backward()
    loss, grad = loss_and_gradient(Power(1), logits, labels)
    torch.testing.assert_close(grad, leaf.grad, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(loss, (1 - own.detach().exp())[valid].mean(), rtol=1e-6, atol=0)


def test_functions_are_the_modules():
    scored = token_log_prob(*batch(3, 5))
    settings = {"weights": torch.rand(3, 5), "normalizer": 7}
    pairs = [
        (objectives.nll(scored, **settings), NLL()),
        (objectives.power(scored, 2, **settings), Power(2)),
        (objectives.unlikelihood(scored, 0.1, **settings), Unlikelihood(0.1)),
        (objectives.threshold(scored, Power(1), 0.3, "below", **settings), Threshold(Power(1), 0.3, "below")),
    ]
    for value, module in pairs:
        assert torch.equal(value, module(scored, **settings)), module


def test_the_z_loss_is_the_mean_square_of_the_logsumexp_beside_another():
    logits, labels = batch(3, 5)
    leaf, other = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    scored = token_log_prob(leaf, labels)
    (objectives.nll(scored) + 0.1 * objectives.z_loss(scored)).backward()
    square = other.logsumexp(-1)[labels != -100].square().mean()
    (F.cross_entropy(other.flatten(0, 1), labels.flatten()) + 0.1 * square).backward()
    torch.testing.assert_close(leaf.grad, other.grad, rtol=1e-10, atol=1e-12)


def test_values_and_derivatives_far_from_and_close_to_probability_1():
    mpmath.mp.dps = 700
    at = [-1e5, -700.0, -50.0, -30.0, -1.0, -0.694, -0.693, -1e-3, -1e-10, -1e-20]
    x = torch.tensor(at, dtype=torch.float64, requires_grad=True)
    for function, exact in (
        (one_minus_exp, lambda x: -mpmath.expm1(x)),
        (log_one_minus_exp, lambda x: mpmath.log1p(-mpmath.exp(x))),
    ):
        value = function(x)
        (slope,) = torch.autograd.grad(value.sum(), x)
        for i, each in enumerate(at):
            m = mpmath.exp(each)
            wanted = -m if function is one_minus_exp else -m / (1 - m)
            assert value[i].item() == pytest.approx(float(exact(each)), rel=1e-14, abs=0)
            assert slope[i].item() == pytest.approx(float(wanted), rel=1e-14, abs=0)


@pytest.mark.parametrize("name", FAMILY)
def test_large_and_masked_logits_give_finite_gradients(name):
    objective = FAMILY[name][0]
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0], [-INF, 0.0, 1.0], [0.0, -INF, 1.0]])
    labels = torch.zeros(4, dtype=torch.long)
    for rows in ([0, 1, 3], [2]):
        loss, grad = loss_and_gradient(objective, logits[rows], labels[rows])
        assert grad.isfinite().all(), name
        assert loss.isfinite() or (rows == [2] and name == "nll")


@pytest.mark.parametrize("name", FAMILY)
def test_a_row_that_is_no_distribution_is_seen_unless_it_does_not_count(name):
    objective = FAMILY[name][0]
    logits, labels = batch(4, ignored=0)
    logits[1] = NAN
    assert loss_and_gradient(objective, logits, labels)[0].isnan()
    labels[1] = -100
    loss, grad = loss_and_gradient(objective, logits, labels)
    assert loss.isfinite()
    assert torch.equal(grad[1], torch.zeros(7, dtype=torch.float64))
    assert grad.isfinite().all()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Power(0), "NLL"),
        (lambda: Power(-1), "above 0"),
        (lambda: Unlikelihood(0), "above 0"),
        (lambda: Threshold(NLL(), 1.5), "probability"),
        (lambda: Threshold(NLL(), NAN), "probability"),
        (lambda: Threshold(NLL(), 0.2, "over"), "'above' or 'below'"),
        (lambda: Threshold(F.cross_entropy, 0.2), "objective of tokens"),
    ],
)
def test_impossible_settings_are_refused(make, words):
    with pytest.raises(ValueError, match=words) as error:
        make()
    assert "\n" not in str(error.value)


def test_modules_say_what_they_are():
    assert repr(Power(2)) == "Power(2)"
    assert "0.2, keep='above'" in repr(Threshold(NLL(), 0.2))
