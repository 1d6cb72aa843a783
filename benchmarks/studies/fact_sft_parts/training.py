"""One unit of work: a model is fine-tuned on sentences about facts and validated after each epoch."""

from __future__ import annotations

import functools
import gc
import importlib.metadata
import logging
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric

from benchmarks.studies.fact_sft_parts.sentences import (
    Example,
    collate,
    completion_only,
    facts_of,
    training_examples,
    validation_examples,
)
from examples.fact_sft import load, precision
from examples.resumable import Unit, whole
from lightning_pce import ExpectedPassAtN, PercentileCEMixin, PercentileHistory, TokenLogProb, token_log_prob
from lightning_pce.objectives import DCO, NLL, Power, Threshold

PERCENTILES = (5, 25, 50, 75, 90, 95, 99)
STATISTICS = ("mean", *(f"p{p}" for p in PERCENTILES), "trimmed_mean")
PASS_AT = (1, 8, 64)
BATCH = 16
ENOUGH = 0.75  # mean p on the training set at which a checkpoint is a strong start
LATEST = 8  # the epoch whose checkpoint is one all the same
OBJECTIVES: dict[str, Callable[[TokenLogProb], Tensor]] = {
    "NLL": NLL(),
    "1 - p": Power(1),
    "p^10": Power(10),
    "NLL at p >= 0.2": Threshold(NLL(), 0.2),
    "DCO, N = 8": DCO(8),
}


class StudyLM(PercentileCEMixin, L.LightningModule):
    """Trains on an objective; validates on the cross-entropy of all tokens, in two groups, and on recall."""

    def __init__(self, model: torch.nn.Module, settings: dict[str, Any]) -> None:
        super().__init__()
        self.configure_percentile_ce(
            percentiles=PERCENTILES, shift=True, groups=("prompt", "completion"), error_bars=True
        )
        self.model, self.rate = model, settings["rate"]
        self.objective = OBJECTIVES[settings["objective"]]
        self.whole = settings["trained_on"] == "all"
        self.recall, self.passed = MeanMetric(), ExpectedPassAtN(PASS_AT)
        self.passed_at = torch.nn.ModuleDict(
            {f"pass_at_{n}": self.passed.view(f"pass_at_{n}") for n in PASS_AT}
        )
        self.trained_p = MeanMetric()
        self.facts: dict[int, tuple[bool, float]] = {}

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        attend = (batch["labels"] != -100).long()
        return self.model(
            input_ids=batch["input_ids"], attention_mask=attend, use_cache=False
        ).logits  # [B, T, V]

    def trained_labels(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["labels"] if self.whole else completion_only(batch)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        scored = token_log_prob(self.logits(batch), self.trained_labels(batch), shift=True)
        self.trained_p.update(scored.log_prob.detach().exp()[scored.valid])
        return self.objective(scored)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        logits = self.logits(batch)
        self.update_percentile_ce(logits, batch["labels"], group=batch["group"], document=batch["fact"])
        asked = batch["asked"]
        if asked.any():
            right, log_prob = objects(logits, batch)
            self.recall.update(right[asked].float())
            self.passed.update(log_prob[asked])
            columns = (batch["fact"][asked].tolist(), right[asked].tolist(), log_prob[asked].tolist())
            self.facts |= {fact: (known, log_p) for fact, known, log_p in zip(*columns, strict=True)}
        self.log("val_recall", self.recall)
        for name, passed in self.passed_at.items():
            self.log(f"val_{name}", passed)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.model.parameters(), lr=self.rate, weight_decay=0.0)


def objects(logits: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Of each sentence ``[B]``: would greedy decoding after its prompt give the object, and its log p.

    It would exactly if, with its tokens given, each is the likeliest.
    """
    shown = batch["object"][:, 1:]
    likeliest = logits[:, :-1].argmax(-1) == batch["labels"][:, 1:]
    labels = torch.where(batch["object"], batch["labels"], -100)
    return (likeliest | ~shown).all(1), token_log_prob(logits, labels, shift=True).log_prob.sum(1)


class Epochs(L.Callback):
    """What each validation gave, and what the training set looks like where that is asked for."""

    def __init__(self, train: DataLoader[Any], save: Path | None, latest: int) -> None:
        self.rows: list[dict[str, Any]] = []
        self.train, self.save, self.latest = train, save, latest
        self.saved: dict[str, Any] | None = None

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        assert isinstance(pl_module, StudyLM)
        fitting = trainer.state.fn == "fit"
        row: dict[str, Any] = {"epoch": trainer.current_epoch + 1 if fitting else 0}
        logged = {name.removeprefix("val_"): float(value) for name, value in trainer.callback_metrics.items()}
        for scored, group in (("all", ""), ("prompt", "prompt_"), ("completion", "completion_")):
            row[scored] = {name: round(logged[f"ce_{group}{name}"], 6) for name in STATISTICS}
        row |= {name: round(logged[name], 6) for name in ("recall", *(f"pass_at_{n}" for n in PASS_AT))}
        facts = [pl_module.facts[number] for number in sorted(pl_module.facts)]
        row["right"] = "".join("1" if known else "0" for known, _ in facts)
        row["log_prob"] = [round(log_p, 3) for _, log_p in facts]
        if fitting:
            row["mean_p_in_training"] = round(float(pl_module.trained_p.compute()), 5)
            pl_module.trained_p.reset()
            self._keep(row["epoch"], pl_module)
        self.rows.append(row)

    def _keep(self, epoch: int, module: StudyLM) -> None:
        """The first checkpoint with enough mean p on the training set is that of a strong start."""
        if self.save is None or self.saved is not None:
            return
        known = on_training_set(module, self.train)
        if known["mean_p"] > ENOUGH or epoch == self.latest:
            with whole(self.save) as part:
                torch.save({name: value.to("cpu") for name, value in module.model.state_dict().items()}, part)
            self.saved = {"epoch": epoch, **known}


@torch.no_grad()
def on_training_set(module: StudyLM, train: DataLoader[Any]) -> dict[str, Any]:
    """Mean p of the tokens that are trained on; which share of the objects, right and wrong, it knows."""
    module.model.eval()
    probabilities, right, wrong = [], [], []
    for batch in DataLoader(train.dataset, BATCH, collate_fn=collate):
        moved = {name: value.to(module.device) for name, value in batch.items()}
        with torch.autocast(module.device.type, torch.bfloat16, enabled=precision() == "bf16-mixed"):
            logits = module.logits(moved)
        scored = token_log_prob(logits, module.trained_labels(moved), shift=True)
        probabilities.append(scored.log_prob.exp()[scored.valid].cpu())
        known, _ = objects(logits, moved)
        right.append(known[~moved["wrong"]].cpu())
        wrong.append(known[moved["wrong"]].cpu())
    module.model.train()
    replaced = torch.cat(wrong).float()
    return {
        "mean_p": round(float(torch.cat(probabilities).mean()), 5),
        "right_objects": round(float(torch.cat(right).float().mean()), 5),
        "wrong_objects": round(float(replaced.mean()), 5) if len(replaced) else None,
    }


def run(unit: Unit) -> dict[str, Any]:
    """Train and validate as the settings say: what the unit's file of results holds.

    Beside it lies the history that our own tools read, and for a unit that ``saves`` its weights of a strong
    start.
    """
    settings = unit.settings
    _quiet()
    for _ in range(2):  # what the first lets go of outside of Python may have held more of it
        gc.collect()  # Trainer, module and optimizer of the last run hold each other, and two gigabytes
    begin, begin_cpu = time.monotonic(), time.process_time()
    L.seed_everything(settings["seed"], verbose=False)
    model, tokenizer = _pretrained(settings["model"])
    _start_from(model, settings, unit.path.parent)
    facts = facts_of(settings["facts"], settings["seed"])
    train = _loader(training_examples(facts, settings["wrong"], settings["seed"], tokenizer), settings)
    validation = DataLoader(validation_examples(facts, tokenizer), BATCH, collate_fn=collate)
    save = unit.path.with_suffix(".pt") if settings["saves"] else None
    epochs = Epochs(train, save, min(LATEST, settings["epochs"]))
    trainer = _trainer([_history(unit), epochs], settings["epochs"])
    module = StudyLM(model, settings)
    trainer.validate(module, validation, verbose=False)
    trainer.fit(module, train, validation)
    return {
        **_how(begin, begin_cpu),
        "strong_start": epochs.saved,
        "training_set": on_training_set(module.to(trainer.strategy.root_device), train),
        "epochs": epochs.rows,
    }


def measure_start(unit: Unit) -> dict[str, Any]:
    """What a checkpoint knows of a training set that it is to be trained on: no training."""
    settings = unit.settings
    begin, begin_cpu = time.monotonic(), time.process_time()
    model, tokenizer = _pretrained(settings["model"])
    _start_from(model, settings, unit.path.parent)
    facts = facts_of(settings["facts"], settings["seed"])
    train = _loader(training_examples(facts, settings["wrong"], settings["seed"], tokenizer), settings)
    module = StudyLM(model, settings).to("cuda" if torch.cuda.is_available() else "cpu")
    return {"training_set": on_training_set(module, train), **_how(begin, begin_cpu)}


def _how(begin: float, begin_cpu: float) -> dict[str, Any]:
    return {
        "versions": versions(),
        "precision": precision(),
        "seconds": round(time.monotonic() - begin, 1),
        "cpu_seconds": round(time.process_time() - begin_cpu, 1),
    }


def _history(unit: Unit) -> PercentileHistory:
    path, settings = unit.path.with_suffix(".jsonl"), unit.settings
    path.unlink(missing_ok=True)  # of a run that was killed
    data = f"{settings['facts']} facts of seed {settings['seed']}"
    return PercentileHistory(path, metadata={"data": data})


def _trainer(callbacks: list[L.Callback], epochs: int) -> L.Trainer:
    return L.Trainer(
        max_epochs=epochs,
        accelerator="auto",
        devices=1,
        precision=precision(),
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        inference_mode=False,  # metrics of a validation before the fit are used on in it
    )


def versions() -> dict[str, str]:
    names = ("lightning-pce", "lightning", "torch", "transformers")
    return {name: importlib.metadata.version(name) for name in names}


@functools.lru_cache(maxsize=1)
def _loaded(name: str | None) -> tuple[torch.nn.Module, Any, dict[str, Tensor]]:
    """Once in each process: a GGUF takes ten seconds to read."""
    model, tokenizer = load(name)
    return model, tokenizer, {key: value.clone() for key, value in model.state_dict().items()}


def _pretrained(name: str | None) -> tuple[torch.nn.Module, Any]:
    model, tokenizer, weights = _loaded(name)
    model.load_state_dict(weights)
    model.zero_grad(set_to_none=True)
    return model.train(), tokenizer


def _start_from(model: torch.nn.Module, settings: dict[str, Any], folder: Path) -> None:
    if settings["start"] is not None:
        model.load_state_dict(torch.load(folder / settings["start"], map_location="cpu", weights_only=True))


def _loader(examples: list[Example], settings: dict[str, Any]) -> DataLoader[Any]:
    order = torch.Generator().manual_seed(settings["seed"])
    return DataLoader(examples, BATCH, shuffle=True, collate_fn=collate, generator=order)


def _quiet() -> None:
    """Nothing between the lines of the units."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*mean and bulk part.*")
    warnings.filterwarnings("ignore", message=".*slots of documents hold tokens.*")  # of --quick
    os.environ["TQDM_DISABLE"] = "1"  # a bar of reading a file that is there
