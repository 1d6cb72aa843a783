"""Validation percentiles in a loop of one's own with Lightning Fabric.

    python examples/fabric_loop.py --devices 2

A tiny model learns to count: sequences go up by one, and a fifth of the tokens is noise that nobody can
foresee. The checkpoint with the lowest median is kept.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from lightning.fabric.loggers import CSVLogger
from torch.utils.data import DataLoader

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


def train_epoch(fabric, model, optimizer, loader):
    model.train()
    for ids in loader:
        loss = F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        fabric.backward(loss)
        optimizer.step()


@torch.no_grad()
def validate(fabric, model, metric, loader):
    """Percentiles over the tokens of all ranks, the same on each; ranks may have fewer batches, or none."""
    model.eval()
    metric.reset()
    for ids in loader:
        # Not model(ids): at the first forward after training DDP sends the model's buffers, if it has any,
        # and would wait for a rank that has no batch.
        with fabric.autocast():
            logits = model.module(ids)
        metric.update(logits, ids)
    return metric.compute()  # on all ranks: the one collective


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--val-sequences", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("fabric_out"))
    args = parser.parse_args()

    fabric = Fabric(
        devices=args.devices,
        precision=args.precision,
        loggers=CSVLogger(args.out, flush_logs_every_n_steps=1),
    )
    fabric.launch()
    model = make_model()
    model, optimizer = fabric.setup(model, torch.optim.AdamW(model.parameters(), lr=1e-2))
    train_loader = fabric.setup_dataloaders(DataLoader(make_sequences(512, seed=1), batch_size=BATCH))
    # Without a DistributedSampler, which repeats sequences until all ranks have the same number.
    batches = make_sequences(args.val_sequences, seed=2).split(BATCH)[fabric.global_rank :: fabric.world_size]
    val_loader = fabric.setup_dataloaders(DataLoader(batches, batch_size=None), use_distributed_sampler=False)

    metric = fabric.to_device(PercentileCrossEntropy(percentiles=(50, 95), shift=True))
    best = float("inf")
    for epoch in range(args.epochs + 1):  # the first time before any training
        if epoch:
            train_epoch(fabric, model, optimizer, train_loader)
        result = validate(fabric, model, metric, val_loader)
        fabric.log_dict({f"val_ce_{key}": value for key, value in result.items()}, step=epoch)
        line = " ".join(f"{key}={result[key]:.6f}" for key in ("mean", "p50", "p95"))
        fabric.print(f"epoch {epoch}: {line} tokens={int(result['count'])}")
        if result["p50"] < best:
            best = result["p50"]
            fabric.save(args.out / "best.pt", {"model": model, "epoch": epoch})
            fabric.print(f"saved epoch {epoch}")


if __name__ == "__main__":
    main()
