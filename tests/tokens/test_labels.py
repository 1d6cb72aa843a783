"""Which tokens count, and what is said of logits and labels that do not fit."""

import pytest
import torch
import torch.distributed as dist

from lightning_pce import (
    distillation,
    linear_token_log_prob,
    token_log_prob,
    topk_distillation,
    topk_log_prob,
)
from lightning_pce.tokens.statistics import token_cross_entropy, token_statistics
from tests.helpers.token_cases import V, message_of, tokens


def test_with_shift_the_last_position_is_not_valid_whatever_ignore_index_is():
    logits, labels = tokens(2, 9)
    _, valid, _ = token_cross_entropy(logits, labels, shift=True, ignore_index=3)
    assert not valid[:, -1].any()
    assert torch.equal(valid[:, :-1], labels[:, 1:] != 3)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
@pytest.mark.parametrize("shift", [False, True])
def test_labels_of_every_integer_dtype_give_the_same(dtype, shift):
    logits, labels = tokens(2, 9)
    losses, valid, _ = token_cross_entropy(logits, labels.to(dtype), shift=shift)
    expected_losses, expected_valid, _ = token_cross_entropy(logits, labels, shift=shift)
    assert torch.equal(valid, expected_valid)
    assert torch.equal(losses, expected_losses)


@pytest.mark.parametrize("shift", [False, True])
def test_every_byte_is_a_token_when_labels_are_uint8(shift):
    labels = torch.arange(256).reshape(1, 256)  # 156 is -100 modulo 256
    logits = torch.randn(1, 256, 256, generator=torch.Generator().manual_seed(0))
    _, valid, _ = token_cross_entropy(logits, labels.byte(), shift=shift)
    assert valid.sum() == (255 if shift else 256)


def test_mismatched_shapes_are_shown():
    message = message_of(torch.zeros(2, 9, V), torch.zeros(3, 9, dtype=torch.long))
    assert "`labels`" in message
    assert f"(2, 9, {V})" in message
    assert "(3, 9)" in message
    assert "shift" not in message


@pytest.mark.parametrize("length", [8, 10])
def test_shapes_off_by_one_position_come_with_a_hint(length):
    message = message_of(torch.zeros(2, 9, V), torch.zeros(2, length, dtype=torch.long))
    assert "`labels`" in message
    assert f"(2, 9, {V})" in message
    assert f"(2, {length})" in message
    assert "shift=True" in message


def test_logits_that_are_integers_are_refused():
    message = message_of(torch.zeros(2, 9, dtype=torch.long), torch.zeros(2, 9, dtype=torch.long))
    assert "`logits`" in message
    assert "int64" in message
    assert "(2, 9)" in message


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_labels_that_are_no_integers_are_refused(dtype):
    message = message_of(torch.zeros(2, 9, V), torch.zeros(2, 9, dtype=dtype))
    assert "`labels`" in message
    assert str(dtype) in message
    assert "(2, 9)" in message


@pytest.mark.parametrize("wrong", [V, V + 1000, -1, -101])
@pytest.mark.parametrize("grad", [False, True])
def test_labels_outside_the_vocabulary_are_refused_and_shown(wrong, grad):
    logits, labels = tokens(2, 9, ignored=0.3)
    labels[1, 4] = wrong
    message = message_of(logits.requires_grad_(grad), labels)
    assert "`labels`" in message
    assert f"{wrong}" in message
    assert f"{V}" in message
    assert "ignore_index=-100" in message


def test_minus_100_is_refused_when_ignore_index_is_another():
    logits, labels = tokens(2, 9)
    labels[0, 0] = -100
    message = message_of(logits, labels, ignore_index=-1)
    assert "-100" in message
    assert "ignore_index=-1" in message


def test_logits_without_a_vocabulary_are_refused():
    assert "`logits`" in message_of(torch.zeros(2, 9, 0), torch.zeros(2, 9, dtype=torch.long))


def test_shift_of_a_single_token_without_a_sequence_is_refused():
    assert "`labels`" in message_of(torch.zeros(V), torch.tensor(1), shift=True)


def test_the_shapes_dtypes_and_labels_of_token_statistics_are_checked():
    assert "(3,)" in message_of(torch.zeros(2, V), torch.tensor([0, 1, 2]), token_statistics)
    assert f"{V}" in message_of(torch.zeros(2, V), torch.tensor([0, V]), token_statistics)
    assert "int64" in message_of(torch.zeros(2, V).long(), torch.tensor([0, 1]), token_statistics)


def test_sharded_logits_are_refused_with_what_to_do(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        try:
            from torch.distributed.tensor import Shard, distribute_tensor
        except ImportError:  # before torch 2.5
            from torch.distributed._tensor import Shard, distribute_tensor
        mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
        logits = distribute_tensor(torch.zeros(2, 9, V), mesh, [Shard(2)])
        for function in (token_statistics, token_cross_entropy):
            message = message_of(logits, torch.zeros(2, 9, dtype=torch.long), function)
            assert "DTensor" in message
            assert "Shard(dim=2)" in message
            assert "full_tensor" in message
    finally:
        dist.destroy_process_group()


LOSSES = {
    "token_statistics": lambda logits, labels, **how: token_statistics(logits, labels, **how),
    "token_log_prob": lambda logits, labels, **how: token_log_prob(logits, labels, **how),
    "linear_token_log_prob": lambda logits, labels, **how: linear_token_log_prob(
        logits[..., :4], torch.ones(300, 4), labels, **how
    ),
    "topk_log_prob": lambda logits, labels, **how: topk_log_prob(
        logits, torch.zeros(2, 3, 1).long(), labels=labels, **how
    ),
    "topk_distillation": lambda logits, labels, **how: topk_distillation(
        logits, torch.zeros(2, 3, 1).long(), -torch.ones(2, 3, 1), labels=labels, **how
    ),
    "distillation": lambda logits, labels, **how: distillation(logits, logits, labels=labels, **how),
}


@pytest.mark.parametrize("name", LOSSES)
def test_unsigned_labels_that_cannot_be_ignored_are_said(name):
    logits, labels = torch.zeros(2, 3, 300), torch.full((2, 3), -100).to(torch.uint8)
    with pytest.warns(UserWarning, match=f"{name}: the labels are torch.uint8") as said:
        LOSSES[name](logits, labels)
    assert len(said) == 1


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("ignored", [False, -100.0, "none"])
def test_what_is_no_label_is_not_ignored(name, ignored):
    with pytest.raises(ValueError, match="None if no token is ignored"):
        LOSSES[name](torch.zeros(2, 3, 300), torch.zeros(2, 3).long(), ignore_index=ignored)
