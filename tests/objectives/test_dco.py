"""DCO: whole answers, by rows and in packed rows, and its numbers where no float holds p."""

import mpmath
import pytest
import torch

from lightning_pce import ExpectedPassAtN, TokenLogProb, token_log_prob
from lightning_pce.objectives import DCO, NLL, dco
from tests.objectives.cases import batch, loss_and_gradient

AT = [-1e5, -3000.0, -745.0, -100.0, -48.5, -48.0, -40.0, -20.0, -8.3, -1.0, -0.693, -1e-3, -1e-9, -1e-20]


@pytest.mark.parametrize("n", [1, 2, 3, 8, 64, 1000, 4096])
def test_loss_and_gradient_factor_are_those_of_mpmath(n):
    mpmath.mp.dps = 700
    log_p = torch.tensor(AT, dtype=torch.float64, requires_grad=True)
    losses = DCO(n).of_answers(log_p)
    (factors,) = torch.autograd.grad(losses.sum(), log_p)
    for at, loss, factor in zip(AT, losses.tolist(), factors.tolist(), strict=True):
        p = mpmath.exp(mpmath.mpf(at))
        hit = -mpmath.expm1(n * mpmath.log1p(-p))  # of exp(-1e5) 1 - p would need 43,000 digits
        assert loss == pytest.approx(float(-mpmath.log(hit)), rel=1e-11, abs=1e-300)
        assert -factor == pytest.approx(float(n * (1 - p) ** (n - 1) * p / hit), rel=1e-10, abs=1e-290)


def test_an_answer_of_probability_1_or_0_has_no_nan():
    at = torch.tensor([0.0, -float("inf")], dtype=torch.float64, requires_grad=True)
    losses = DCO(4).of_answers(at)
    assert losses.tolist() == [0.0, float("inf")]
    (grad,) = torch.autograd.grad(losses.sum(), at)
    assert grad[1] == -1
    assert grad.isfinite().all()
    assert DCO(4).of_answers(torch.tensor([float("nan")])).isnan().all()


def plain(log_prob, valid, answers, n):
    """By loops over answers, each a list of positions ``(row, column)``."""
    losses = []
    for places in answers:
        counted = [log_prob[place] for place in places if valid[place]]
        if counted:
            miss = n * torch.log1p(-torch.stack(counted).sum().exp())
            losses.append(-torch.log(-torch.expm1(miss)))
    return torch.stack(losses)


def test_each_row_is_an_answer_and_the_mean_is_over_answers():
    logits, labels = batch(5, 4, ignored=0.3)
    labels[2] = -100
    scored = token_log_prob(logits, labels)
    rows = [[(i, j) for j in range(4)] for i in range(5)]
    expected = plain(scored.log_prob, scored.valid, rows, 8)
    assert len(expected) == 4
    torch.testing.assert_close(dco(scored, 8), expected.mean(), rtol=1e-12, atol=0)
    torch.testing.assert_close(dco(scored, 8, normalizer=20), expected.sum() / 20, rtol=1e-12, atol=0)


def test_answers_in_packed_rows_are_apart_even_where_rows_use_the_same_numbers():
    logits, labels = batch(2, 6, ignored=0.1)
    answer = torch.tensor([[5, 5, 0, 0, 5, -1], [0, 0, 0, 2**40, 7, 7]])
    scored = token_log_prob(logits, labels)
    places = {}
    for i in range(2):
        for j in range(6):
            if answer[i, j] >= 0:  # else it is of no answer, as for ExpectedPassAtN
                places.setdefault((i, int(answer[i, j])), []).append((i, j))
    expected = plain(scored.log_prob, scored.valid, places.values(), 8)
    assert len(expected) == 5
    torch.testing.assert_close(dco(scored, 8, answer=answer), expected.mean(), rtol=1e-12, atol=0)


def test_an_answers_weight_is_the_mean_of_those_of_its_tokens():
    logits, labels = batch(3, 4, ignored=0)
    labels[0, 2:] = -100
    scored = token_log_prob(logits, labels)
    weights = torch.tensor([[2.0, 4.0, 99.0, 99.0], [1.0] * 4, [0.0] * 4])
    expected = plain(scored.log_prob, scored.valid, [[(i, j) for j in range(4)] for i in range(2)], 3)
    wanted = (3 * expected[0] + expected[1]) / 3
    torch.testing.assert_close(dco(scored, 3, weights=weights), wanted, rtol=1e-12, atol=0)


def test_what_is_of_no_answer_has_no_gradient_even_where_it_is_nan():
    logits, labels = batch(2, 4, ignored=0)
    logits[0, 3] = float("nan")
    answer = torch.tensor([[0, 0, 1, -1], [-1, -1, -7, -1]])
    loss, grad = loss_and_gradient(DCO(3), logits, labels, answer=answer)
    expected_loss, expected_grad = loss_and_gradient(
        DCO(3), logits[:1, :3], labels[:1, :3], answer=torch.tensor([[0, 0, 1]])
    )
    torch.testing.assert_close(loss, expected_loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(grad[:1, :3], expected_grad, rtol=1e-12, atol=1e-14)
    assert (grad[0, 3] == 0).all()
    assert (grad[1] == 0).all()
    loss, grad = loss_and_gradient(DCO(3), logits, labels, answer=-1)
    assert loss.item() == 0
    assert (grad == 0).all()


def test_dco_and_expected_pass_at_n_mean_the_same_answers():
    logits, labels = batch(3, 5)
    scored = token_log_prob(logits, labels)
    answer = torch.tensor([[0, 0, 1, 1, -1], [-1, 4, 4, -2, 4], [-1] * 5])
    metric = ExpectedPassAtN(n=(1,))
    metric.update(losses=-scored.log_prob, answer=answer, mask=scored.valid)
    torch.testing.assert_close(
        dco(scored, 1, answer=answer), -metric.compute()["mean_log_prob"], rtol=1e-12, atol=0
    )


def test_a_flattened_batch_is_refused_unless_it_is_said_to_be_one_answer():
    logits, labels = batch(6, ignored=0)
    with pytest.raises(ValueError, match="do not flatten"):
        DCO(1)(token_log_prob(logits, labels))
    loss, grad = loss_and_gradient(DCO(1), logits, labels, answer=0)
    expected_loss, expected_grad = loss_and_gradient(NLL(), logits, labels, normalizer=1)
    torch.testing.assert_close((loss, grad), (expected_loss, expected_grad), rtol=1e-12, atol=1e-14)


def test_gradcheck():
    logits, labels = batch(2, 4)
    answer = torch.tensor([[0, 0, 1, 1], [3, 2, 2, 2]])
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: dco(token_log_prob(x, labels), 8, answer=answer), logits)


def test_a_long_answer_has_the_gradient_of_its_likelihood():
    log_prob = torch.full((1, 1000), -100.0, requires_grad=True)
    scored = TokenLogProb(log_prob, torch.zeros(1, 1000), torch.ones(1, 1000).bool())
    loss = dco(scored, 64)
    loss.backward()
    assert loss.item() == pytest.approx(1e5 - 4.158883)
    assert torch.equal(log_prob.grad, torch.full((1, 1000), -1.0))


@pytest.mark.parametrize("n", [0, -1, 2.5, True, "8"])
def test_impossible_numbers_of_samples_are_refused(n):
    with pytest.raises(ValueError, match="whole number from 1 on"):
        DCO(n)


def test_answers_that_do_not_fit_are_refused():
    scored = token_log_prob(*batch(2, 3))
    wrong = (torch.zeros(2), torch.zeros(2, 3), torch.zeros(2, 4).long(), torch.zeros(2, 3).bool())
    for answer in wrong:
        with pytest.raises(ValueError, match="argument `answer`"):
            dco(scored, 2, answer=answer)
