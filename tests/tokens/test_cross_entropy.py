"""token_cross_entropy: values, gradients, shift."""

import pytest
import torch
import torch.nn.functional as F

from lightning_pce.tokens.statistics import token_cross_entropy
from tests.helpers.token_cases import DTYPES, VIEW_NAMES, VIEWS, V, tokens


def reference(logits, labels, ignore_index=-100):
    flat = F.cross_entropy(
        logits.double().reshape(-1, logits.shape[-1]),
        labels.reshape(-1).long(),
        reduction="none",
        ignore_index=ignore_index,
    )
    return flat.reshape(labels.shape)


def assert_losses(actual, expected):
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected, rtol=1e-6, atol=3e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (33,), (4, 33)])
def test_losses_are_float32_and_those_of_the_logits_as_stored(dtype, shape):
    logits, labels = tokens(*shape, dtype=dtype)
    losses, valid, invalid = token_cross_entropy(logits, labels)
    assert losses.shape == valid.shape == invalid.shape == shape
    assert_losses(losses, reference(logits, labels))
    assert valid.dtype == invalid.dtype == torch.bool
    assert valid.all()
    assert not invalid.any()


def test_bfloat16_logits_do_not_give_losses_of_8_bits():
    logits, labels = tokens(4, 33, dtype=torch.bfloat16)
    losses, _, _ = token_cross_entropy(logits, labels)
    rounded = reference(logits, labels).bfloat16().float()
    assert (losses != rounded).float().mean() > 0.9
    assert_losses(losses, reference(logits, labels))


def test_many_rows_of_a_large_vocabulary_are_all_scored():
    random = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 41, 32_001, generator=random)  # more than one chunk
    labels = torch.randint(0, 32_001, (3, 41), generator=random)
    assert_losses(token_cross_entropy(logits, labels)[0], reference(logits, labels))


def test_losses_of_near_certain_tokens_keep_their_relative_error():
    lead = torch.linspace(0, 45, 91)
    logits = torch.zeros(91, V)
    logits[:, 5] = lead
    losses, _, _ = token_cross_entropy(logits, torch.full((91,), 5))
    expected = torch.log1p((V - 1) * (-lead.double()).exp())
    torch.testing.assert_close(losses.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("ignore_index", [-100, -1, 7, 10_000])
def test_ignored_tokens_are_not_valid_and_have_loss_0(ignore_index, grad):
    logits, labels = tokens(4, 33)
    labels[:, ::3] = ignore_index
    logits.requires_grad_(grad)
    losses, valid, invalid = token_cross_entropy(logits, labels, ignore_index=ignore_index)
    counted = labels != ignore_index
    assert torch.equal(valid, counted)
    assert not invalid.any()
    assert (losses[~counted] == 0).all()
    assert_losses(losses.detach()[counted], reference(logits.detach()[counted], labels[counted]))


@pytest.mark.parametrize("shape", [(12,), (3, 12), (2, 3, 12)])
def test_with_shift_position_t_is_scored_against_label_t_plus_1(shape):
    logits, labels = tokens(*shape, ignored=0.2)
    losses, valid, _ = token_cross_entropy(logits, labels, shift=True)
    assert losses.shape == valid.shape == shape
    assert not valid[..., -1].any()
    assert (losses[..., -1] == 0).all()
    assert torch.equal(valid[..., :-1], labels[..., 1:] != -100)
    assert_losses(losses[..., :-1], reference(logits[..., :-1, :], labels[..., 1:]))


@pytest.mark.parametrize("view", VIEWS, ids=VIEW_NAMES)
@pytest.mark.parametrize("shift", [False, True])
def test_non_contiguous_logits_give_the_same(view, shift):
    logits, labels = tokens(4, 17, ignored=0.2)
    strided = view(logits)
    assert not strided.is_contiguous()
    losses, valid, _ = token_cross_entropy(strided, labels, shift=shift)
    expected_losses, expected_valid, _ = token_cross_entropy(logits, labels, shift=shift)
    torch.testing.assert_close(losses, expected_losses, rtol=1e-6, atol=1e-6)
    assert torch.equal(valid, expected_valid)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("grad", [False, True])
def test_logits_and_labels_are_not_modified(dtype, grad):
    logits, labels = tokens(4, 17, dtype=dtype, ignored=0.2)
    logits_before, labels_before = logits.clone(), labels.clone()
    token_cross_entropy(logits.requires_grad_(grad), labels, shift=True)
    assert torch.equal(logits, logits_before)
    assert torch.equal(labels, labels_before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shift", [False, True])
def test_gradients_are_those_of_cross_entropy(dtype, shift):
    logits, labels = tokens(3, 17, dtype=dtype, ignored=0.2)
    logits.requires_grad_()
    losses, _, _ = token_cross_entropy(logits, labels, shift=shift)
    (gradient,) = torch.autograd.grad(losses.sum(), logits)

    wanted = logits.detach().clone().requires_grad_()
    rows, targets = (wanted[:, :-1], labels[:, 1:]) if shift else (wanted, labels)
    total = F.cross_entropy(rows.float().reshape(-1, V), targets.reshape(-1), reduction="sum")
    (expected,) = torch.autograd.grad(total, wanted)
    assert expected.abs().sum() > 1
    torch.testing.assert_close(gradient, expected)


def test_no_graph_is_kept_when_gradients_are_off():
    logits, labels = tokens(3, 17)
    logits.requires_grad_()
    with torch.no_grad():
        losses, _, _ = token_cross_entropy(logits, labels)
    assert not losses.requires_grad
    assert token_cross_entropy(logits, labels)[0].requires_grad


@pytest.mark.parametrize("shape", [(0,), (0, 5), (2, 0)])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("shift", [False, True])
def test_an_empty_batch_gives_empty_results(shape, grad, shift):
    logits = torch.zeros(*shape, V, requires_grad=grad)
    results = token_cross_entropy(logits, torch.zeros(shape, dtype=torch.long), shift=shift)
    assert [tuple(result.shape) for result in results] == [shape] * 3
    assert results[0].dtype == torch.float32
