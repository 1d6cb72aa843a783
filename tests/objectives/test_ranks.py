"""Objectives under DistributedDataParallel: two ranks as one batch, and a rank without a token."""

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from lightning_pce import token_log_prob
from lightning_pce.objectives import DCO, NLL, Power, Threshold
from tests.helpers.ranks import run_function_on_ranks

OBJECTIVES = {"nll": NLL(), "power": Power(1), "threshold": Threshold(NLL(), 0.2), "dco": DCO(4)}
WIDTH, VOCABULARY, ROWS, LENGTH = 6, 9, 16, 5


def model():
    random = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(WIDTH, VOCABULARY)
    head.weight.data = torch.randn(VOCABULARY, WIDTH, generator=random)
    head.bias.data.zero_()
    return head


def data(empty_rank):
    """Hidden states and labels of 16 rows; the first 8 belong to rank 0."""
    random = torch.Generator().manual_seed(1)
    hidden = torch.randn(ROWS, LENGTH, WIDTH, generator=random)
    labels = torch.randint(0, VOCABULARY, (ROWS, LENGTH), generator=random)
    labels[torch.rand(ROWS, LENGTH, generator=random) < 0.4] = -100
    labels[:, 0] = 1
    if empty_rank:
        labels[8:] = -100
    return hidden, labels


def count_of(name, labels):
    counted = labels != -100
    return counted.any(-1).sum() if name == "dco" else counted.sum()


def of_one_batch(name, empty_rank):
    hidden, labels = data(empty_rank)
    head = model()
    OBJECTIVES[name](token_log_prob(head(hidden), labels)).backward()
    return head.weight.grad


def of_a_rank(rank, world_size):
    """The gradients after four micro-batches, of every objective, also where rank 1 has no token."""
    found = {}
    for name, objective in OBJECTIVES.items():
        for empty_rank in (False, True):
            hidden, labels = data(empty_rank)
            wrapped = DistributedDataParallel(model())
            normalizer = count_of(name, labels) / world_size
            mine = slice(8 * rank, 8 * rank + 8)
            micro = list(zip(hidden[mine].split(2), labels[mine].split(2), strict=True))
            for index, (states, targets) in enumerate(micro):
                wrapped.require_backward_grad_sync = index == len(micro) - 1
                objective(token_log_prob(wrapped(states), targets), normalizer=normalizer).backward()
            found[name, empty_rank] = wrapped.module.weight.grad.clone()
    return found


@pytest.mark.slow
def test_two_ranks_of_four_micro_batches_give_the_gradient_of_one_batch_and_none_waits():
    for found in run_function_on_ranks(of_a_rank, 2):
        for (name, empty_rank), grad in found.items():
            torch.testing.assert_close(grad, of_one_batch(name, empty_rank), rtol=1e-6, atol=1e-7)
