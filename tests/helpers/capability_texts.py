"""Data that a small language model knows more and less well, as rows for ``--data``."""

import heapq
import inspect
import json
import random
from pathlib import Path

import torch

from examples.fact_sft import SENTENCES, make_facts

MATHS = [
    ("What is 7 times 8?", "7 times 8 is 56."),
    (
        "A shirt costs $20 and is 25% off. What does it cost?",
        "25% of 20 is 5, and 20 - 5 = 15. It costs $15.",
    ),
    ("Solve 2x + 3 = 11.", "Subtract 3 from both sides: 2x = 8. Divide by 2: x = 4."),
    ("What is the area of a 6 by 9 rectangle?", "The area is length times width: 6 * 9 = 54."),
    ("Tom has 12 apples and gives away 5. How many are left?", "12 - 5 = 7, so 7 apples are left."),
    ("What is the sum of the numbers from 1 to 10?", "The sum is 10 * 11 / 2 = 110 / 2 = 55."),
    (
        "A train goes 60 miles an hour for 3 hours. How far?",
        "Distance is speed times time: 60 * 3 = 180 miles.",
    ),
    ("What is 3/4 + 1/8?", "3/4 is 6/8, and 6/8 + 1/8 = 7/8."),
    ("Find the average of 4, 8 and 15.", "The sum is 4 + 8 + 15 = 27. Divide by 3: 27 / 3 = 9."),
    ("What is 15% of 80?", "10% of 80 is 8 and 5% is 4, so 15% is 8 + 4 = 12."),
    ("Solve x^2 = 49 for positive x.", "Take the square root of both sides: x = 7."),
    ("What is the perimeter of a square of side 5?", "The perimeter is 4 times the side: 4 * 5 = 20."),
]


def facts():
    """Invented facts in two phrasings; those of a fact are one document."""
    return [
        {"document": s, "text": SENTENCES[relation][number].format(s=s, o=o)}
        for relation, s, o in make_facts(24, random.Random(0))
        for number in (0, 1)
    ]


def maths():
    """Small problems, and their solutions as completions."""
    return [{"prompt": f"Question: {q}\nAnswer:", "completion": f" {a}"} for q, a in MATHS]


def source_code():
    """Functions of the standard library, as one document."""
    functions = (heapq.merge, heapq._siftdown, heapq._siftup)
    return [{"text": "\n\n".join(map(inspect.getsource, functions))[:1500]}]


def prose():
    """The beginning of the licence, as one document."""
    return [{"text": "\n".join(_licence_lines())}]


def reversed_prose():
    """Its lines from the last to the first: what no model can know, as each line says nothing of the next."""
    return [{"text": "\n".join(_licence_lines()[::-1])}]


def _licence_lines():
    text = (Path(__file__).parents[2] / "LICENSE").read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip()][3:30]


def own_samples(model, tokenizer, temperature):
    """What the model says by itself at a temperature after the first word, which is the prompt."""
    starts = ["The", "In", "She", "A", "Water", "My", "This", "Most"]
    ids = torch.tensor([tokenizer(start)["input_ids"][:1] for start in starts])
    torch.manual_seed(0)
    said = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        temperature=temperature,
        top_k=0,
        max_new_tokens=32,
        pad_token_id=tokenizer.eos_token_id,
    )
    texts = tokenizer.batch_decode(said, skip_special_tokens=True)
    return [
        {"prompt": start, "completion": text.removeprefix(start)}
        for start, text in zip(starts, texts, strict=True)
    ]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
