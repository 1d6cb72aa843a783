"""How good a model is on held-out text, by its losses and by three things that need no judge."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from benchmarks.studies.topk_distillation_parts.text import Text, rows_of
from lightning_pce import PercentileCrossEntropy, token_log_prob

PERCENTILES = (5, 25, 50, 75, 90, 95, 99)
TOP = (1, 2, 5, 10, 20, 50)
ROWS = 32  # of a batch
BLOCK = 4  # rows in a row of the text that are one document
CHOICES = 5
CLOZE = 800  # lines at most
SAMPLES = 200
# The last word of a line of five words or more, of three letters or more, and what comes before it.
LAST_WORD = re.compile(r"^((?:\S+ )*\S+)( [A-Za-z]{3,})[^A-Za-z]*$")


class Measured(NamedTuple):
    result: dict[str, Any]
    """What the unit's file of results holds."""
    metric: PercentileCrossEntropy
    """With the digest and the counts by document of the losses."""


@torch.no_grad()
def measure(model: nn.Module, teacher: nn.Module, text: Text, context: int, seed: int) -> Measured:
    """The losses and tasks of a model, whose samples are judged by a teacher, perhaps itself; how many of the
    next tokens are within its top K.

    Tasks, each with a value of every independent unit: ``top_1``, the share of the tokens of a block that the
    model thinks likeliest; ``cloze``, whether it chooses the last word of a line, see :func:`cloze_of`;
    ``teacher_log_prob``, what the teacher gives to a sample of the model, in nats a token.
    """
    model.eval()
    teacher.eval()
    device = next(model.parameters()).device
    rows = rows_of(text.held_out, context)
    rows = rows[: len(rows) // BLOCK * BLOCK].to(device)
    metric = PercentileCrossEntropy(PERCENTILES, error_bars=True).to(device)
    right, higher = [], []
    for number, batch in enumerate(rows.split(ROWS)):
        logits, _ = model(batch[:, :-1])  # [B, T, V]
        labels = batch[:, 1:]
        blocks = (number * ROWS + torch.arange(len(batch), device=device)) // BLOCK
        metric.update(logits, labels, document=blocks)
        right.append((logits.argmax(-1) == labels).float().mean(1))
        higher.append((logits > logits.gather(-1, labels[..., None])).sum(-1).flatten())
    summaries = {
        name: round(float(value), 6) if value.isfinite() else None for name, value in metric.compute().items()
    }
    samples = sampled(model, SAMPLES, context, text.tokenizer.token_to_id("Ċ"), seed)
    tasks = {
        "top_1": torch.cat(right).view(-1, BLOCK).mean(1),
        "cloze": chosen_rightly(model, cloze_of(text, context, seed)),
        "teacher_log_prob": log_prob_of(teacher, samples),
    }
    result = {
        "ce": summaries,
        "within_top": {str(k): round(float((torch.cat(higher) < k).float().mean()), 5) for k in TOP},
        "tasks": {name: [round(value, 4) for value in values.tolist()] for name, values in tasks.items()},
        "own_log_prob": [round(value, 4) for value in log_prob_of(model, samples).tolist()],
        "sample": text.tokenizer.decode(samples[0].tolist()),
    }
    return Measured(result, metric)


class Cloze(NamedTuple):
    """Each line with its last word, and with four others in its place."""

    ids: Tensor
    """``[lines, 5, context + 1]``: what comes before, and the word; the right one first."""
    lengths: Tensor
    """``[lines]``: how many tokens the words have, the same for all five of a line."""
    lines: Tensor
    """``[lines]``: which line of the text held out it is; with another seed there are partly others."""


def cloze_of(text: Text, context: int, seed: int) -> Cloze:
    """Which word ends the line? Of held-out lines that end in a word (of three letters or more; marks may
    follow, which are left out) the word itself and four others, which end other held-out lines, drawn by how
    often they do and of as many tokens. Before it stands the text before, as much as a model can see.
    """
    rng = random.Random(seed)
    asked = []
    by_length: dict[int, list[str]] = defaultdict(list)
    for number, line in enumerate(text.lines):
        found = LAST_WORD.match(line)
        if found is None or len(found.group(1).split()) < 4:
            continue
        length = len(text.tokenizer.encode(found.group(2)).ids)
        by_length[length].append(found.group(2))
        before = token_ids_before(text.tokenizer, text.lines, number, found.group(1), context + 1 - length)
        if before is not None:
            asked.append((number, before, found.group(2), length))
    kept = [each for each in asked if len(set(by_length[each[-1]])) >= CHOICES]
    kept = [kept[place] for place in sorted(rng.sample(range(len(kept)), min(CLOZE, len(kept))))]
    ids = []
    for _, before, word, length in kept:
        words = [word]
        while len(words) < CHOICES:
            other = rng.choice(by_length[length])
            if other not in words:
                words.append(other)
        ids.append([before + text.tokenizer.encode(each).ids for each in words])
    lengths, lines = [length for *_, length in kept], [number for number, *_ in kept]
    return Cloze(torch.tensor(ids), torch.tensor(lengths), torch.tensor(lines))


def token_ids_before(
    tokenizer: Tokenizer, lines: Sequence[str], number: int, begun: str, count: int
) -> list[int] | None:
    """The last ``count`` tokens of the lines before a line and of its beginning; None if there are fewer."""
    text, first = begun, number
    while first > 0 and len(text.encode()) < 16 * count:
        first -= 1
        text = f"{lines[first]}\n{text}"
    ids: list[int] = tokenizer.encode(text).ids
    return ids[-count:] if len(ids) >= count else None


def chosen_rightly(model: nn.Module, cloze: Cloze) -> Tensor:
    """``[lines]``: 1 where the right word has the highest log-probability of the five."""
    device = next(model.parameters()).device
    rows = cloze.ids.flatten(0, 1)  # [lines * 5, context + 1]
    lengths = cloze.lengths.repeat_interleave(CHOICES)
    place = torch.arange(rows.shape[1] - 1)
    labels = torch.where(place >= rows.shape[1] - 1 - lengths[:, None], rows[:, 1:], -100)
    scores = []
    for ids, label in zip(rows[:, :-1].split(ROWS), labels.split(ROWS), strict=True):
        scored = token_log_prob(model(ids.to(device))[0], label.to(device))
        scores.append(scored.log_prob.sum(1).cpu())
    by_line = torch.cat(scores).view(-1, CHOICES)
    return (by_line[:, 0] > by_line[:, 1:].amax(1)).float()


def sampled(model: nn.Module, count: int, length: int, begin: int, seed: int) -> Tensor:
    """``[count, length + 1]``: drawn at temperature 1 after a token that begins."""
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    ids = [torch.full((count, 1), begin, device=device)]
    state = None
    for _ in range(length):
        logits, state = model(ids[-1], state)
        probabilities = logits[:, -1].float().softmax(-1)
        ids.append(torch.multinomial(probabilities, 1, generator=generator))
    return torch.cat(ids, 1)


def log_prob_of(model: nn.Module, samples: Tensor) -> Tensor:
    """``[count]``: what a model gives to each sample after its first token, in nats a token."""
    return token_log_prob(model(samples[:, :-1])[0], samples[:, 1:]).log_prob.mean(1).cpu()
