"""Metrics inside a module that Fabric sets up, in one process and in two."""

import math
import os

import pytest
import torch
import torch.nn.functional as F
from lightning.fabric import Fabric

from lightning_pce import BitsPerByte, PercentileCrossEntropy
from tests.helpers.distributions import exact_quantile
from tests.helpers.ranks import counted_collectives, run_function_on_ranks
from tests.helpers.token_batches import losses_of

V = 13
PRECISIONS = ["32-true", "bf16-true", "bf16-mixed", "64-true"]


class HoldsMetrics(torch.nn.Module):
    """A model with a buffer, as rotary embeddings have one, and its metrics as submodules."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embedding = torch.nn.Embedding(V, 8)
            self.head = torch.nn.Linear(8, V)
        self.register_buffer("scale", torch.tensor(3.0), persistent=False)
        self.ce = PercentileCrossEntropy(percentiles=(50, 95))
        self.bits = BitsPerByte([1 + token % 3 for token in range(V)])

    def forward(self, ids):
        return self.head(self.embedding(ids)) * self.scale


def batches_of(rank, number):
    generator = torch.Generator().manual_seed(rank)
    return list(torch.randint(V, (number, 2, 4, 40), generator=generator).unbind())


def train(fabric, model, optimizer):
    ids, labels = batches_of(9, 1)[0]
    optimizer.zero_grad()
    fabric.backward(F.cross_entropy(model(ids).float().flatten(0, 1), labels.flatten()))
    optimizer.step()


def validate(fabric, model, batches):
    with torch.no_grad():
        for ids, labels in batches:
            with fabric.autocast():
                logits = model.module(ids)
            model.ce.update(logits, labels)
            model.bits.update(losses_of(logits, labels), labels)


def all_losses(fabric, model, everything):
    with torch.no_grad(), fabric.autocast():
        logits = [model.module(ids) for ids, _ in everything]
    pairs = zip(logits, everything, strict=True)
    return torch.cat([losses_of(each, labels).flatten() for each, (_, labels) in pairs])


def two_rounds(rank, world, precision, numbers):
    """Setup, training, and twice a validation with other batches on every rank."""
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    fabric = Fabric(accelerator="cpu", devices=world, strategy="ddp", precision=precision)
    fabric.launch()
    with fabric.init_module():
        model = HoldsMetrics()
    model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.1))
    outcome = []
    for round_ in range(2):
        train(fabric, model, optimizer)
        model.ce.reset()
        model.bits.reset()
        validate(fabric, model, batches_of(10 * round_ + rank, numbers[rank]))
        with counted_collectives() as calls:
            result, bits = model.ce.compute(), model.bits.compute()
        everything = [each for r in range(world) for each in batches_of(10 * round_ + r, numbers[r])]
        outcome.append(
            {
                "result": result,
                "bits": bits,
                "calls": calls,
                "dtypes": [*model.ce.metric_state.values(), *model.bits.metric_state.values()],
                "losses": all_losses(fabric, model, everything),
                "labels": torch.cat([labels.flatten() for _, labels in everything]),
            }
        )
    outcome[0]["saved"] = list(model.state_dict())
    return outcome


@pytest.mark.parametrize(
    ("precision", "numbers"), [("32-true", [3, 1]), ("bf16-true", [0, 3]), ("bf16-mixed", [2, 0])]
)
def test_two_ranks_with_other_numbers_of_batches_agree_on_all_tokens(precision, numbers):
    both = run_function_on_ranks(two_rounds, 2, precision, numbers, timeout=90)
    for outcome in both:
        check_rounds(outcome, sum(numbers))
    for one, other in zip(*both, strict=True):
        assert one["result"] == other["result"]
        assert one["calls"] == ["all_gather"] * 2


def check_rounds(outcome, number):
    for round_ in outcome:
        assert [state.dtype for state in round_["dtypes"]] == [torch.float64] * 2
        result, losses = round_["result"], round_["losses"]
        assert result["count"] == len(losses) == 160 * number
        assert float(result["mean"]) == pytest.approx(float(losses.double().mean()), rel=1e-6)
        for p in (50, 95):
            exact = exact_quantile(losses, p / 100)
            torch.testing.assert_close(result[f"p{p}"], exact, rtol=1e-5, atol=1e-6)
        size = int((1 + round_["labels"] % 3).sum())
        assert float(round_["bits"]) == pytest.approx(float(losses.double().sum()) / math.log(2) / size)
    assert outcome[0]["saved"] == ["embedding.weight", "head.weight", "head.bias"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_precision_casts_the_state(precision):
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    model = fabric.setup(HoldsMetrics())
    alone = fabric.to_device(PercentileCrossEntropy())
    batches = batches_of(0, 4)
    validate(fabric, model, batches)
    for metric in (model.ce, model.bits, alone):
        assert [state.dtype for state in metric.metric_state.values()] == [torch.float64]
    assert model.ce.compute()["count"] == 640  # bfloat16 stops counting at 256
    losses = all_losses(fabric, model, batches)
    torch.testing.assert_close(model.ce.compute()["p50"], exact_quantile(losses, 0.5), rtol=1e-5, atol=1e-6)
