"""The sentences about invented facts, as tokens: the demo's, with the completion of each marked."""

from __future__ import annotations

import random
from typing import Any, TypeAlias

import torch
from torch import Tensor

from examples.fact_sft import SENTENCES, make_facts

Fact: TypeAlias = tuple[str, str, str]
Example: TypeAlias = dict[str, Any]

LEARNED, HELD_OUT = (0, 1), (2, 3)
RECALL = 3  # the sentence whose prompt asks for the object
PROMPT, COMPLETION = 0, 1  # numbers of groups


def facts_of(count: int, seed: int) -> list[Fact]:
    """(relation, subject, object), the same as the demo's of this seed."""
    return make_facts(count, random.Random(seed))


def training_examples(facts: list[Fact], wrong: float, seed: int, tokenizer: Any) -> list[Example]:
    """Two sentences a fact; a share ``wrong`` of all, drawn by chance, has the object of some other fact."""
    rng = random.Random(seed + 1_000_000)
    places = [(fact, number) for fact in range(len(facts)) for number in LEARNED]
    replaced = set(rng.sample(range(len(places)), round(wrong * len(places))))
    examples = []
    for place, (number, which) in enumerate(places):
        relation, subject, right = facts[number]
        if place in replaced:
            others = sorted({each for _, _, each in facts} - {right})
            example = _example(number, (relation, subject, rng.choice(others)), which, tokenizer)
        else:
            example = _example(number, facts[number], which, tokenizer)
        examples.append({**example, "wrong": place in replaced})
    return examples


def validation_examples(facts: list[Fact], tokenizer: Any) -> list[Example]:
    """Two other sentences a fact, the second of which begins with the recall prompt."""
    return [
        {**_example(number, fact, which, tokenizer), "wrong": False}
        for number, fact in enumerate(facts)
        for which in HELD_OUT
    ]


def collate(examples: list[Example]) -> dict[str, Tensor]:
    """Pad on the right.

    ``input_ids``, ``labels`` (-100 where padded), ``group`` (0 prompt, 1 completion) and ``object``, each
    ``[B, T]``; ``fact``, ``asked`` (whether it is the sentence of the recall prompt) and ``wrong`` ``[B]``.
    """
    length = max(len(example["input_ids"]) for example in examples)

    def padded(name: str, value: int) -> Tensor:
        return torch.tensor([row[name] + [value] * (length - len(row[name])) for row in examples])

    ids, group = padded("input_ids", 0), padded("group", PROMPT)
    return {
        "input_ids": ids,
        "labels": padded("input_ids", -100),
        "group": group,
        "object": padded("object", 0).bool(),
        "fact": torch.tensor([row["fact"] for row in examples]),
        "asked": torch.tensor([row["asked"] for row in examples]),
        "wrong": torch.tensor([row["wrong"] for row in examples]),
    }


def completion_only(batch: dict[str, Tensor]) -> Tensor:
    """``[B, T]``: the labels of completions; those of prompts are -100."""
    return torch.where(batch["group"] == COMPLETION, batch["labels"], -100)


def _example(number: int, fact: Fact, which: int, tokenizer: Any) -> Example:
    """A sentence and the token that ends it; its completion is the object and what follows."""
    relation, subject, answer = fact
    sentence = SENTENCES[relation][which]
    before, after = sentence.format(s=subject, o="\0").split("\0")
    prompt = tokenizer(before.rstrip())["input_ids"]
    through = tokenizer(before + answer)["input_ids"]
    ids = tokenizer(before + answer + after)["input_ids"]
    if ids[: len(prompt)] != prompt or ids[: len(through)] != through:
        raise ValueError(f"The tokens of the parts of {sentence!r} are not those of the whole.")
    ids = [*ids, tokenizer.eos_token_id]
    known = len(ids) - len(prompt)
    return {
        "input_ids": ids,
        "group": [PROMPT] * len(prompt) + [COMPLETION] * known,
        "object": [0] * len(prompt) + [1] * (len(through) - len(prompt)) + [0] * (len(ids) - len(through)),
        "fact": number,
        "asked": which == RECALL,
    }
