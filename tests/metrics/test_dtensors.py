"""DTensors: replicated ones are taken for what they are, others refused before anything waits."""

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh

from lightning_pce import BitsPerByte, PercentileCrossEntropy, StreamingQuantiles, TokenProxies
from tests.helpers.ranks import run_function_on_ranks

tensor = pytest.importorskip("torch.distributed.tensor", reason="public from torch 2.5 on")


def refusal(function, *arguments, **keywords):
    try:
        function(*arguments, **keywords)
    except ValueError as error:
        return str(error)
    return None


def norms_of_fsdp(rank, world_size):
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    net = torch.nn.Linear(8, 8)
    fully_shard(net, mesh=init_device_mesh("cpu", (world_size,)))
    net(torch.randn(4, 8)).square().sum().backward()
    norm = torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)  # replicated or partial, as torch likes
    metric = StreamingQuantiles((50,))
    refused = refusal(metric.update, norm)
    if refused is not None:
        metric.update(norm.full_tensor())
    mesh = init_device_mesh("cpu", (world_size,))
    part = tensor.DTensor.from_local(torch.tensor(1.0 + rank), mesh, [tensor.Partial()])
    said = [refusal(metric.update, part), refusal(metric.forward, part)]
    return {"said": said, "norm": norm.full_tensor(), "result": metric.compute()}


def test_a_norm_under_fsdp_is_right_and_a_partial_sum_is_refused_and_poisons_nothing():
    for notes in run_function_on_ranks(norms_of_fsdp, 2):
        for said in notes["said"]:
            assert "`values`" in said
            assert "values.full_tensor() on all ranks" in said
        assert notes["result"]["count"] == 2
        assert notes["result"]["p50"] == notes["norm"].double()


def sharded_and_replicated(rank, world_size):
    mesh = init_device_mesh("cpu", (world_size,))
    logits = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.ones(2, 3).long()
    split = [tensor.distribute_tensor(logits, mesh, [tensor.Shard(dim)]) for dim in (0, 2)]
    whole = [tensor.distribute_tensor(part, mesh, [tensor.Replicate()]) for part in (logits, labels)]
    said, results = [], []
    for make in (PercentileCrossEntropy, TokenProxies):
        metric, plain = make(), make()
        said += [refusal(metric.update, part, labels) for part in split]
        said.append(refusal(metric.update, labels=labels, logits=split[0]))
        metric.update(*whole)
        plain.update(logits, labels)
        results.append((metric.compute(), plain.compute()))
    losses = tensor.distribute_tensor(torch.ones(2, 3), mesh, [tensor.Shard(1)])
    said += [
        refusal(PercentileCrossEntropy().update, losses=losses),
        refusal(PercentileCrossEntropy().update, losses=torch.ones(2, 3), weights=losses),
        refusal(BitsPerByte([1, 2]).update, losses, labels),
        refusal(StreamingQuantiles().update, [losses, losses]),
    ]
    return {"said": said, "results": results}


def test_every_sharded_argument_is_refused_by_name_and_a_replicated_one_is_taken():
    for notes in run_function_on_ranks(sharded_and_replicated, 2):
        names = ["logits"] * 6 + ["losses", "weights", "losses", "values"]
        for name, said in zip(names, notes["said"], strict=True):
            assert f"argument `{name}` to be a plain tensor but got a DTensor" in said
        for whole, plain in notes["results"]:
            torch.testing.assert_close(whole, plain, rtol=0, atol=0, equal_nan=True)
