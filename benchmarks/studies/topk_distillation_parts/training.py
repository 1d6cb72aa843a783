"""One unit of work: a teacher, or a student that has learned from a teacher's K most probable tokens."""

from __future__ import annotations

import importlib.metadata
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.studies.topk_distillation_parts.measuring import ROWS, Measured, measure
from benchmarks.studies.topk_distillation_parts.text import rows_of, text_of
from examples.proxy_study_parts.models import build, parameters
from examples.resumable import Unit, whole
from lightning_pce import distillation, store_topk, topk_distillation
from lightning_pce.runs.fingerprint import fingerprint
from lightning_pce.runs.history import write_validation

RATE = 2e-3
STORED = 50  # of the teacher's most probable tokens
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # of logits [B, T, V], rows [B, T + 1] and their numbers


def run(unit: Unit) -> dict[str, Any]:
    """Train and measure a model as the settings say: what the unit's file of results holds.

    Beside it lies its line of a history. A teacher also leaves its weights, and its most probable tokens at
    each token of the training text, for the students of its text and seed.
    """
    settings = unit.settings
    warnings.filterwarnings("ignore", message=".*error bars.*")  # the verdict says that, too
    text = text_of(settings["text"], unit.path.parents[1], settings["vocabulary"])
    begin, begin_cpu = time.monotonic(), time.process_time()
    teaching = settings["kind"] == "teacher"
    model = new_model(settings)
    rows = rows_of(text.train, settings["context"]).to(device())
    if teaching:
        teacher = model
        curve = train(model, rows, settings, cross_entropy)
        save(model.state_dict(), weights_path(unit))
        save(stored(model, rows), topk_path(unit))
    else:
        teacher = new_model(settings)
        teacher.load_state_dict(torch.load(weights_path(unit), map_location=device(), weights_only=True))
        curve = train(model, rows, settings, loss_of(settings["k"], teacher.eval(), topk_path(unit)))
    trained = time.process_time()
    found = measure(model, teacher, text, settings["context"], settings["seed"])
    write_history(unit, found)
    return {
        "versions": versions(),
        "parameters": parameters(model),
        "training_tokens": len(text.train),
        "held_out_tokens": int(found.result["ce"]["count"]),
        "seconds": round(time.monotonic() - begin, 1),
        "cpu_seconds": {
            "training": round(trained - begin_cpu, 1),
            "measuring": round(time.process_time() - trained, 1),
        },
        "training_loss": curve,
        **found.result,
    }


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def new_model(settings: dict[str, Any]) -> nn.Module:
    """Of random weights, by the seed and by whether it is a teacher: all students of a seed begin alike."""
    torch.manual_seed(2 * settings["seed"] + (settings["kind"] == "teacher"))
    shape = (settings["vocabulary"], settings["width"], settings["layers"], settings["context"])
    model = build("GPT", *shape)
    # Places begin at N(0, 1), which drowns the tokens: in 150 steps such a model learns how often each comes.
    nn.init.normal_(model.get_submodule("place").weight, std=0.02)
    return model.to(device())


def train(model: nn.Module, rows: Tensor, settings: dict[str, Any], loss_of_batch: Loss) -> list[float]:
    """AdamW with one cycle of its rate; the mean loss of each tenth of the steps."""
    model.train()
    steps = settings["steps"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    losses = torch.empty(steps, device=device())  # one tensor: many small ones kept would scatter the heap
    for step, numbers in enumerate(batches(len(rows), steps, settings["batch"], settings["seed"])):
        batch = rows[numbers]
        loss = loss_of_batch(model(batch[:, :-1])[0], batch, numbers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses[step] = loss.detach()
    parts = losses.cpu().tensor_split(min(10, steps))
    return [round(float(part.mean()), 4) for part in parts]


def batches(rows: int, steps: int, size: int, seed: int) -> Iterator[Tensor]:
    """Numbers of rows ``[size]`` for each step: all rows in one random order after another."""
    generator = torch.Generator().manual_seed(seed)
    epochs = -(-steps * size // rows)
    order = torch.cat([torch.randperm(rows, generator=generator) for _ in range(epochs)])
    yield from order[: steps * size].split(size)


def cross_entropy(logits: Tensor, batch: Tensor, numbers: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def loss_of(k: int | None, teacher: nn.Module, path: Path) -> Loss:
    """From the K most probable tokens that were stored, or from the teacher's whole distribution."""
    if k is None:

        def whole(logits: Tensor, batch: Tensor, numbers: Tensor) -> Tensor:
            with torch.no_grad():
                teacher_logits, _ = teacher(batch[:, :-1])
            return distillation(logits, teacher_logits)

        return whole
    kept = torch.load(path, mmap=True, weights_only=True)

    def few(logits: Tensor, batch: Tensor, numbers: Tensor) -> Tensor:
        token_ids, log_prob = (kept[name][numbers, :, :k] for name in ("token_ids", "log_prob"))
        return topk_distillation(logits, token_ids.to(logits.device), log_prob.to(logits.device))

    return few


@torch.no_grad()
def stored(teacher: nn.Module, rows: Tensor) -> dict[str, Tensor]:
    """The teacher's most probable tokens at each token of all rows: each ``[R, T, 50]``."""
    teacher.eval()
    shape = (len(rows), rows.shape[1] - 1, min(STORED, vocabulary_of(teacher)))
    token_ids, log_prob = torch.empty(shape, dtype=torch.int32), torch.empty(shape, dtype=torch.float16)
    for numbers in torch.arange(len(rows)).split(ROWS):
        kept = store_topk(teacher(rows[numbers, :-1])[0], shape[-1])
        token_ids[numbers], log_prob[numbers] = kept.token_ids.cpu(), kept.log_prob.cpu()
    return {"token_ids": token_ids, "log_prob": log_prob}


def write_history(unit: Unit, found: Measured) -> None:
    """One line, which our own tools read: the models of a text and a seed are candidates of one run."""
    path = unit.path.with_suffix(".jsonl")
    path.unlink(missing_ok=True)  # of a unit with other settings, or that was killed here
    settings = unit.settings
    metadata = {"data": f"{settings['text']}, {settings['data']}"}
    digests = {"": found.metric.digest}
    write_validation(
        path,
        run=f"{settings['text']}, seed {settings['seed']}",
        name="val",
        step=None,
        function="score",
        values={f"ce_{name}": value for name, value in found.result["ce"].items() if value is not None},
        scalars={name: sum(each) / len(each) for name, each in found.result["tasks"].items()},
        fingerprint=fingerprint(digests, metadata),
        metadata=metadata,
        checkpoint=settings["label"],
        digests={"ce": digests},
        documents={"ce": {"": found.metric.documents}},
    )


def vocabulary_of(model: nn.Module) -> int:
    return model.get_submodule("embed").weight.shape[0]


def weights_path(unit: Unit) -> Path:
    """Of the teacher of a unit's text and seed."""
    return unit.path.with_name(f"{unit.settings['teacher']}.pt")


def topk_path(unit: Unit) -> Path:
    return unit.path.with_name(f"{unit.settings['teacher']}_top_{STORED}.pt")


def save(content: dict[str, Tensor], path: Path) -> None:
    with whole(path) as part:
        torch.save(content, part)


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("lightning-pce", "tokenizers", "torch")}
