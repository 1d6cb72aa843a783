"""How a model is measured: on held-out text, on expert solutions, and by what it answers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_pce import PercentileCrossEntropy, TokenProxies
from proxy_study_parts import tasks
from proxy_study_parts.text import CHARACTERS, CONTEXT, Corpus, decode, encode

END = CHARACTERS.index("\n")  # and the beginning
IGNORED = -100


class Examiner:
    """Holds the held-out text and items, encoded once."""

    def __init__(self, corpora: list[Corpus], seed: int) -> None:
        self.items = tasks.held_out(seed)
        self.prompts = {item.prompt for parts in self.items.values() for part in parts for item in part}
        self.text = []
        for corpus in corpora:
            whole = len(corpus.held_out) // (CONTEXT + 1) * (CONTEXT + 1)
            self.text.append(torch.from_numpy(corpus.held_out[:whole].reshape(-1, CONTEXT + 1)).long())
        self.experts = {
            (family, style): _expert(parts[1], style)
            for family, parts in self.items.items()
            for style in tasks.STYLES
        }

    @torch.no_grad()
    def measure(self, model: nn.Module) -> dict[str, Any]:
        """Text CE, the truth of each family, and the proxies of each family and style."""
        proxies: dict[str, dict[str, dict[str, float]]] = {family: {} for family in self.items}
        for (family, style), (ids, labels) in self.experts.items():
            metric = TokenProxies()
            metric.update(model(ids)[0], labels)
            proxies[family][style] = {name: float(value) for name, value in metric.compute().items()}
        return {"text_ce": self.text_ce(model), "truth": self.truth(model), "proxies": proxies}

    def text_ce(self, model: nn.Module) -> float:
        """Mean cross-entropy of the held-out text, in nats a character."""
        metric = PercentileCrossEntropy()
        for rows in self.text:
            metric.update(model(rows[:, :-1])[0], rows[:, 1:])
        return float(metric.compute()["mean"])

    def truth(self, model: nn.Module) -> dict[str, float]:
        """Greedy exact match: the share of items whose answer is right, whatever the style it is told in."""
        items = [(family, item) for family, parts in self.items.items() for item in parts[0]]
        written = write(model, [item.prompt for _, item in items])
        right = dict.fromkeys(self.items, 0)
        for (family, item), text in zip(items, written, strict=True):
            right[family] += tasks.answer_of(text) == item.answer
        return {family: number / tasks.ITEMS for family, number in right.items()}


def _expert(items: list[tasks.Item], style: str) -> tuple[Tensor, Tensor]:
    """Inputs and labels ``[items, T]`` of solved items; prompts and padding are not scored."""
    solved = [(encode("\n" + item.prompt), encode(tasks.solution(item, style))) for item in items]
    longest = max(len(prompt) + len(solution) for prompt, solution in solved)
    ids = torch.full((len(items), longest), END)
    labels = torch.full((len(items), longest), IGNORED)
    for row, (prompt, solution) in enumerate(solved):
        ids[row, : len(prompt) + len(solution)] = torch.tensor(prompt + solution)
        labels[row, len(prompt) : len(prompt) + len(solution)] = torch.tensor(solution)
    return ids[:, :-1], labels[:, 1:]


def write(model: nn.Module, prompts: list[str]) -> list[str]:
    """What a model writes after each prompt, greedily, to the end of the line or of its context.

    All are read together, a character at a time: a row that is still in its prompt reads on in it.
    """
    given = torch.full((len(prompts), CONTEXT), -1)
    for row, prompt in enumerate(prompts):
        given[row, : len(prompt) + 1] = torch.tensor(encode("\n" + prompt))
    ids, state = given.clamp(min=END), None
    ended = torch.zeros(len(prompts), dtype=torch.bool)
    for place in range(1, CONTEXT):
        logits, state = model(ids[:, place - 1 : place], state)
        own = given[:, place] < 0
        ids[:, place] = torch.where(own, logits[:, 0].argmax(-1), given[:, place])
        ended |= own & (ids[:, place] == END)
        if bool(ended.all()):
            break
    return [decode(row)[len(prompt) + 1 :] for row, prompt in zip(ids.tolist(), prompts, strict=True)]
