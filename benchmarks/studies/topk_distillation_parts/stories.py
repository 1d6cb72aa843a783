"""Short stories by a language model: a text that is more predictable than people's."""

from __future__ import annotations

import functools
import json
import os
import random
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from examples.fact_sft import load, precision
from examples.resumable import Unit

RECIPE = 1  # raise it when other code makes other stories
PIECES, STORIES, NEW_TOKENS = 17, 64, 200
ENOUGH = 200_000  # tokens of the model that writes
# At temperature 1 a model of this size loses the thread within a sentence.
TEMPERATURE = 0.7
PROMPT = "Write a short story for small children about {} and {}. Use simple words and short sentences."
WHO = (
    "a dog",
    "a little girl",
    "an old bear",
    "a fox",
    "a boy",
    "a duck",
    "two sisters",
    "a small mouse",
    "a farmer",
    "a grandmother",
    "a cat",
    "a frog",
    "a bird",
    "a rabbit",
    "a king",
    "a teacher",
)
WHAT = (
    "a red ball",
    "the rain",
    "a cake",
    "a lost shoe",
    "a tall tree",
    "a new friend",
    "a small boat",
    "the moon",
    "a garden",
    "a broken toy",
    "a long walk",
    "the snow",
    "a birthday",
    "a big box",
    "a song",
    "the river",
)


def pieces(out: Path) -> list[Unit]:
    """Units of work of some stories each, so that a run which is killed goes on."""
    settings = {"recipe": RECIPE, "stories": STORIES, "tokens": NEW_TOKENS, "temperature": TEMPERATURE}
    return [
        Unit(
            out / "stories" / f"piece_{number:02}.json",
            {"name": f"stories, piece {number}", "seed": number, **settings},
        )
        for number in range(PIECES)
    ]


def write(unit: Unit) -> dict[str, Any]:
    """Stories as SmolLM2-135M-Instruct writes them, each about something else, and the tokens of each."""
    begin, begin_cpu = time.monotonic(), time.process_time()
    settings = unit.settings
    rng = random.Random(settings["seed"])
    asked = [PROMPT.format(rng.choice(WHO), rng.choice(WHAT)) for _ in range(settings["stories"])]
    model, tokenizer = _writer()
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": each}], add_generation_prompt=True, tokenize=False
        )
        for each in asked
    ]
    batch = tokenizer(prompts, return_tensors="pt", padding=True).to(model.device)
    torch.manual_seed(settings["seed"])
    with torch.inference_mode():
        written = model.generate(
            **batch,
            do_sample=True,
            temperature=settings["temperature"],
            top_k=0,
            top_p=1.0,
            max_new_tokens=settings["tokens"],
            pad_token_id=tokenizer.eos_token_id,
        )[:, batch["input_ids"].shape[1] :]  # [stories, tokens]
    return {
        "precision": str(model.dtype),
        "seconds": round(time.monotonic() - begin, 1),
        "cpu_seconds": round(time.process_time() - begin_cpu, 1),
        "tokens": (written != tokenizer.eos_token_id).sum(1).tolist(),
        "stories": tokenizer.batch_decode(written, skip_special_tokens=True),
    }


@functools.lru_cache(maxsize=1)
def _writer() -> tuple[Any, Any]:
    os.environ["TQDM_DISABLE"] = "1"  # a bar of reading a file that is there
    model, tokenizer = load(None)
    tokenizer.padding_side = "left"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.eval().to(device, dtype()), tokenizer


def dtype() -> torch.dtype:
    """Of the weights here."""
    return torch.bfloat16 if precision() == "bf16-mixed" else torch.float32


def first_tokens(paths: Sequence[Path], enough: int = ENOUGH) -> list[str]:
    """As many whole stories, in order, as have so many tokens together."""
    found, tokens = [], 0
    for path in paths:
        piece = json.loads(path.read_text(encoding="utf-8"))
        for story, length in zip(piece["stories"], piece["tokens"], strict=True):
            if tokens < enough:
                found.append(story)
                tokens += length
    return found


def sentences(text: str) -> list[str]:
    """One sentence a line, without blank lines and with one blank between words."""
    return [line for line in re.split(r"(?<=[.!?]) +", re.sub(r"\s+", " ", text).strip()) if line]
