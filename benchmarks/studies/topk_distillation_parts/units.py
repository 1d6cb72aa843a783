"""Which models there are: students of one text and seed differ only in K."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.studies.topk_distillation_parts.measuring import TOP
from benchmarks.studies.topk_distillation_parts.text import text_of
from examples.resumable import Unit

RECIPE = 2  # raise it when other code makes other results
DEFAULT_TEXTS, DEFAULT_SEEDS = ("shakespeare", "stories"), 3
TEACHER, FULL = "teacher", "full"  # labels


class Size(NamedTuple):
    """Of models and of their training."""

    layers: int = 3
    width: int = 128
    context: int = 64
    vocabulary: int = 1024
    batch: int = 32
    steps: int = 600
    """Of a student; a teacher has twice as many."""


QUICK = Size(layers=1, width=32, context=32, vocabulary=320, batch=8, steps=20)


class Models(NamedTuple):
    """Of one seed: the teachers of all texts, then their students."""

    teachers: list[Unit]
    students: list[Unit]


def models_of(texts: tuple[str, ...], seed: int, out: Path, size: Size) -> Models:
    """The units of a seed; the texts are there, or are made here."""
    teachers, students = [], []
    for text in texts:
        teacher = name_of(text, seed, TEACHER)
        shared: dict[str, Any] = {"recipe": RECIPE, "text": text, "seed": seed, "teacher": teacher}
        shared |= {"data": text_of(text, out, size.vocabulary).digest, **size._asdict()}

        def unit(label: str, shared: dict[str, Any] = shared, **more: Any) -> Unit:
            name = name_of(shared["text"], shared["seed"], label)
            return Unit(out / "units" / f"{name}.json", {"name": name, "label": label, **shared, **more})

        teachers.append(unit(TEACHER, kind="teacher", steps=2 * size.steps, k=None))
        students += [unit(label_of(k), kind="student", k=k) for k in (*TOP, None)]
    return Models(teachers, students)


def label_of(k: int | None) -> str:
    """What a student is called: by its K, or ``full``."""
    return FULL if k is None else f"K = {k}"


def name_of(text: str, seed: int, label: str) -> str:
    """Of a unit and its files."""
    return f"{text}_seed_{seed}_{label}".replace(" = ", "_").replace(" ", "_").lower()
