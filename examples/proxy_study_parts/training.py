"""One unit of work: a model is trained on a mix and measured."""

from __future__ import annotations

import random
import time
import zlib
from collections.abc import Callable, Container, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from proxy_study_parts import tasks
from proxy_study_parts.examiner import Examiner
from proxy_study_parts.models import build, parameters
from proxy_study_parts.population import SEED, Mix, Unit
from proxy_study_parts.text import CHARACTERS, CONTEXT, Corpus, encode

ROWS = 16  # of a batch
WARM_UP = 20  # steps; then the rate is constant, so that a run's curve has no end built into it


def run_unit(unit: Unit, corpora: list[Corpus], examiner: Examiner) -> dict[str, Any]:
    """Train a unit's model and measure it after its checkpoints: what its file of results holds."""
    seed = zlib.crc32(f"{SEED} {unit.name}".encode())
    torch.manual_seed(seed)
    model = build(unit.kind, len(CHARACTERS), unit.width, unit.layers, CONTEXT)
    rows = training_rows(unit.mix, corpora, unit.steps * ROWS, seed, examiner.prompts)
    begin = time.process_time()
    measured = [
        {"step": step, **examiner.measure(model)}
        for step in train(model, rows, unit.rate)
        if step in unit.checkpoints
    ]
    return {
        "parameters": parameters(model),
        "characters": unit.steps * ROWS * CONTEXT,
        "cpu_seconds": round(time.process_time() - begin, 2),
        "checkpoints": measured,
    }


def train(model: nn.Module, rows: np.ndarray, rate: float) -> Iterator[int]:
    """Adam, a batch a step; yields the number of each step when it is done."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    for step, batch in enumerate(torch.from_numpy(rows).split(ROWS), start=1):
        optimizer.param_groups[0]["lr"] = rate * min(1.0, step / WARM_UP)
        ids = batch.long()
        logits, _ = model(ids[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        yield step


def training_rows(
    mix: Mix, corpora: list[Corpus], number: int, seed: int, forbidden: Container[str]
) -> np.ndarray:
    """``[number, CONTEXT + 1]`` uint8. A row is of one source: a piece of text, or items of one family.

    No prompt is one of the ``forbidden``, on which models are measured.
    """
    rng = random.Random(seed)
    texts = {corpus.name: corpus.train for corpus in corpora}
    rows = np.empty((number, CONTEXT + 1), dtype=np.uint8)
    sources = rng.choices(list(mix.sources), list(mix.sources.values()), k=number)
    for row, source in zip(rows, sources, strict=True):
        if source in texts:
            begin = rng.randrange(len(texts[source]) - CONTEXT)
            row[:] = texts[source][begin : begin + CONTEXT + 1]
        else:
            row[:] = encode(_solved(tasks.FAMILIES[source], mix, rng, forbidden))
    return rows


def _solved(
    family: Callable[[random.Random], tasks.Item], mix: Mix, rng: random.Random, forbidden: Container[str]
) -> str:
    lines = "\n"
    while len(lines) <= CONTEXT:
        item = family(rng)
        if item.prompt in forbidden:
            continue
        solved = family(rng) if rng.random() < mix.noise else item  # a wrong solution is that of another item
        [style] = rng.choices(list(mix.styles), list(mix.styles.values()))
        lines += item.prompt + tasks.solution(solved, style)
    return lines[: CONTEXT + 1]
