"""Validation percentiles in a loop of one's own with torch.distributed, or in one process without it.

    python examples/distributed_loop.py
    torchrun --nproc-per-node 2 examples/distributed_loop.py

A tiny model learns to count: sequences go up by one, and a fifth of the tokens is noise that nobody can
foresee. The checkpoint with the lowest median is kept.
"""

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from lightning_pce import PercentileCrossEntropy

VOCABULARY, LENGTH, BATCH = 64, 24, 16


def make_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Embedding(VOCABULARY, 32), torch.nn.Linear(32, VOCABULARY))


def make_sequences(number, seed):
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(VOCABULARY, (number, 1), generator=generator)
    noise = torch.randint(VOCABULARY, (number, LENGTH), generator=generator)
    is_noise = torch.rand(number, LENGTH, generator=generator) < 0.2
    return torch.where(is_noise, noise, (start + torch.arange(LENGTH)) % VOCABULARY)


def train_epoch(model, optimizer, loader, device):
    model.train()
    for ids in loader:
        ids = ids.to(device)
        loss = F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def validate(model, metric, batches, device):
    """Percentiles over the tokens of all ranks, the same on each; ranks may have fewer batches, or none."""
    model.eval()
    metric.reset()
    for ids in batches:
        ids = ids.to(device)
        metric.update(model(ids), ids)
    return metric.compute()  # on all ranks: the one collective


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--val-sequences", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("distributed_out"))
    args = parser.parse_args()

    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if world > 1:
        if cuda:
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if cuda else "gloo")
    model = make_model().to(device)
    trained = DistributedDataParallel(model) if world > 1 else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    sequences = make_sequences(512, seed=1)
    sampler = DistributedSampler(sequences, num_replicas=world, rank=rank, shuffle=False)
    train_loader = DataLoader(sequences, batch_size=BATCH, sampler=sampler)
    # Without a DistributedSampler, which repeats sequences until all ranks have the same number.
    batches = make_sequences(args.val_sequences, seed=2).split(BATCH)[rank::world]

    metric = PercentileCrossEntropy(percentiles=(50, 95), shift=True).to(device)
    best = float("inf")
    for epoch in range(args.epochs + 1):  # the first time before any training
        if epoch:
            train_epoch(trained, optimizer, train_loader, device)
        # Not `trained`: at the first forward after training DDP sends the model's buffers, if it has any,
        # and would wait for a rank that has no batch.
        result = validate(model, metric, batches, device)
        improved = result["p50"] < best  # on all ranks or on none
        if rank == 0:
            line = " ".join(f"{key}={result[key]:.6f}" for key in ("mean", "p50", "p95"))
            print(f"epoch {epoch}: {line} tokens={int(result['count'])}")
        if improved:
            best = result["p50"]
            if rank == 0:
                args.out.mkdir(parents=True, exist_ok=True)
                torch.save({"model": model.state_dict(), "epoch": epoch}, args.out / "best.pt")
                print(f"saved epoch {epoch}")
    if world > 1:
        dist.barrier()  # no rank leaves while another still needs it
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
