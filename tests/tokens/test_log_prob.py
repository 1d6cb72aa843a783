"""token_log_prob: its values, and its gradients against autograd of the definition in float64."""

import pytest
import torch

from lightning_pce import TokenLogProb, token_log_prob
from lightning_pce.tokens.statistics import token_cross_entropy
from tests.helpers.token_cases import INF, NAN, VIEW_NAMES, VIEWS, V, hard_rows, message_of, reference, tokens

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
VALUES = {torch.float32: (1e-6, 1e-36), torch.float64: (1e-12, 1e-12)}


def gradient(logits, labels, by_log_prob, by_logsumexp=None, **settings):
    """Of the logits, from upstream gradients in the shape of the labels."""
    leaf = logits.detach().requires_grad_()
    scored = token_log_prob(leaf, labels, **settings)
    total = (scored.log_prob * by_log_prob).sum()
    if by_logsumexp is not None:
        total = total + (scored.logsumexp * by_logsumexp).sum()
    total.backward()
    assert leaf.grad.dtype == logits.dtype
    return leaf.grad


def wanted_gradient(logits, labels, by_log_prob, by_logsumexp=0.0):
    """The same in float64, by the definition: ``u ([i = y] - p) + v p``; the label's own from the others."""
    x, valid = logits.double(), labels != -100
    y = torch.where(valid, labels, 0)[..., None]
    p = x.softmax(-1)
    u, v = (
        torch.as_tensor(by).double().expand(labels.shape)[..., None] for by in (by_log_prob, by_logsumexp)
    )
    others = p.scatter(-1, y, 0.0).sum(-1, keepdim=True)  # 1 - p, to the last digit
    entry = u * others + v * p.gather(-1, y)
    return ((v - u) * p).scatter(-1, y, entry).masked_fill(~valid[..., None], 0.0)


@pytest.mark.parametrize("scale_and_offset", [(4.0, 0.0), (30.0, -200.0), (1.0, 1e4), (1.0, -1e4)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_of_hard_rows_are_those_of_float64(dtype, scale_and_offset):
    scale, offset = scale_and_offset
    logits, labels = hard_rows(300, dtype, scale=scale, offset=offset)
    scored = token_log_prob(logits, labels)
    kept = torch.float64 if dtype == torch.float64 else torch.float32
    assert scored.log_prob.dtype == scored.logsumexp.dtype == kept
    expected = reference(logits, labels)["ce"]
    relative, absolute = VALUES[kept]
    torch.testing.assert_close(
        -scored.log_prob.double(), expected, rtol=relative, atol=absolute, equal_nan=True
    )
    logsumexp = torch.where(expected.isnan(), NAN, logits.double().logsumexp(-1))
    logsumexp = torch.where(labels == -100, 0.0, logsumexp)
    torch.testing.assert_close(
        scored.logsumexp.double(),
        logsumexp,
        rtol=1e-6 if kept == torch.float32 else 1e-12,
        atol=1e-6,
        equal_nan=True,
    )
    assert torch.equal(scored.valid, labels != -100)


def test_the_cross_entropy_is_minus_the_log_probability_with_and_without_a_graph():
    logits, labels = tokens(3, 17, ignored=0.2)
    log_prob = token_log_prob(logits, labels, shift=True).log_prob
    for each in (logits, logits.clone().requires_grad_()):
        assert torch.equal(token_cross_entropy(each, labels, shift=True)[0], 0.0 - log_prob)


@pytest.mark.parametrize(
    ("dtype", "relative"), [(torch.float32, 1e-5), (torch.bfloat16, 2**-8), (torch.float64, 1e-11)]
)
def test_gradients_are_those_of_float64_for_every_entry(dtype, relative):
    torch.manual_seed(0)
    logits, labels = (torch.randn(48, 32_000) * 4).to(dtype), torch.randint(0, 32_000, (48,))
    u, v = torch.randn(48), torch.randn(48)
    got, wanted = gradient(logits, labels, u, v).double(), wanted_gradient(logits, labels, u, v)
    counted = wanted.abs() > 1e-12
    assert counted.float().mean() > 0.3
    assert ((got - wanted).abs() / wanted.abs())[counted].max() < relative


def test_the_gradient_at_the_label_keeps_its_digits_where_1_minus_p_is_1e_minus_12():
    logits = torch.zeros(30, 100)
    logits[:, 0] = torch.linspace(0, 45, 30)
    got = gradient(logits, torch.zeros(30, dtype=torch.long), -torch.ones(30)).double()[:, 0]
    wanted = wanted_gradient(logits, torch.zeros(30, dtype=torch.long), -torch.ones(30))[:, 0]
    assert wanted.abs().min() < 1e-12
    torch.testing.assert_close(got, wanted, rtol=2e-6, atol=0)


@pytest.mark.parametrize("offset", [1e4, -1e4])
def test_gradients_keep_their_digits_beside_large_logits(offset):
    logits, labels = tokens(3, 7)
    logits = logits + offset
    u = torch.ones(3, 7)
    torch.testing.assert_close(
        gradient(logits, labels, u).double(), wanted_gradient(logits, labels, u), rtol=5e-6, atol=1e-12
    )


@pytest.mark.parametrize("shift", [False, True])
def test_gradcheck_in_float64(shift):
    logits, labels = tokens(2, 5, dtype=torch.float64, ignored=0.3)
    logits = logits[..., :7].clone().requires_grad_()
    labels = torch.where(labels < 0, labels, labels % 7)
    assert torch.autograd.gradcheck(lambda x: token_log_prob(x, labels, shift=shift)[:2], (logits,))


@pytest.mark.parametrize("view", VIEWS, ids=VIEW_NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_of_any_strides_have_the_same_gradients(view, dtype):
    logits, labels = tokens(4, 33, dtype=dtype, ignored=0.2)
    u = torch.randn(labels.shape)
    wanted = gradient(logits, labels, u)
    assert torch.equal(gradient(view(logits), labels, u), wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("unused", [0.05, 0.5, 1.0])
def test_rows_without_a_gradient_are_exactly_0_whatever_is_in_them(dtype, unused):
    logits, labels = tokens(4, 40, dtype=dtype, ignored=unused / 2)
    u = torch.where(torch.rand(4, 40) < unused / 2, 0.0, torch.randn(4, 40))
    without = (u == 0) | (labels == -100)
    wanted = gradient(logits, labels, u)
    logits[without] = torch.tensor([NAN, INF, -INF, 1.0]).to(dtype)[torch.randint(0, 4, (V,))]
    got = gradient(logits, labels, torch.where(labels == -100, NAN, u))
    assert torch.equal(got[without], torch.zeros_like(got[without]))
    assert torch.equal(got, wanted.masked_fill(without[..., None], 0.0))


def test_masked_logits_have_a_gradient_of_0_and_a_masked_target_has_a_limit():
    logits = torch.tensor([[0.0, -INF, 1.0, 2.0], [-INF, 0.0, 1.0, 2.0]])
    labels = torch.tensor([0, 0])
    scored = token_log_prob(logits, labels)
    assert scored.log_prob[1] == -INF
    got = gradient(logits, labels, -torch.ones(2))  # of -log p
    assert got[0, 1] == 0
    torch.testing.assert_close(got[1], torch.tensor([-1.0, *torch.tensor([0.0, 1, 2]).softmax(0)]))


def test_a_row_that_is_no_distribution_has_nan_and_touches_no_other():
    logits, labels = tokens(6)
    logits[1, 3], logits[2, 5], logits[3] = NAN, INF, -INF
    got = gradient(logits, labels, torch.ones(6))
    assert got[1:4].isnan().all()
    assert got[[0, 4, 5]].isfinite().all()


def test_chunks_along_the_sequence_are_one_sequence():
    logits, labels = tokens(2, 9, ignored=0.2)
    whole, parts = (
        logits.clone().requires_grad_(),
        [p.clone().requires_grad_() for p in logits.split([4, 5], 1)],
    )
    one, several = (token_log_prob(each, labels, shift=True) for each in (whole, parts))
    assert isinstance(several, TokenLogProb)
    for value, other in zip(one, several, strict=True):
        assert torch.equal(value, other)
    one.log_prob.sum().backward()
    several.log_prob.sum().backward()
    assert torch.equal(torch.cat([part.grad for part in parts], 1), whole.grad)


@pytest.mark.parametrize("shape", [(0,), (0, 5), (2, 0), ()])
def test_empty_batches_and_a_single_token(shape):
    logits = torch.zeros(*shape, V, requires_grad=True)
    scored = token_log_prob(logits, torch.zeros(shape, dtype=torch.long))
    scored.log_prob.sum().backward()
    assert scored.log_prob.shape == logits.grad.shape[:-1] == shape


def test_ignore_index_none_and_labels_of_other_dtypes():
    logits, labels = tokens(5)
    for dtype in (torch.int32, torch.uint8, torch.int16):
        scored = token_log_prob(logits, labels.to(dtype), ignore_index=None)
        assert torch.equal(scored.log_prob, token_log_prob(logits, labels).log_prob)
    assert token_log_prob(logits, labels, ignore_index=int(labels[0])).valid[0].item() is False


@pytest.mark.parametrize(
    ("logits", "labels", "words"),
    [
        (torch.zeros(3, V), torch.tensor([0, 1, V]), "outside|others, from 61 to 61"),
        (torch.zeros(3, V), torch.tensor([0, 1]), "to have the shape"),
        (torch.zeros(3, V).long(), torch.tensor([0, 1, 2]), "floating point"),
        (torch.zeros(3, V), torch.zeros(3), "integer token ids"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(logits, labels, words):
    with pytest.raises(ValueError, match=words):
        token_log_prob(logits, labels)
    assert "\n" not in message_of(logits, labels, token_log_prob)
