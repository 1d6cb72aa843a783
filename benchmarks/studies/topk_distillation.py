"""How does the median turn when a student learns only its teacher's K most probable tokens?

A small language model learns a text. Students learn from it instead, each from its K most probable next
tokens, K = 1, 2, 5, 10, 20, 50 or all; they differ in nothing else. The smaller K, the more of a student's
losses are very small or very large. What becomes of mean and percentiles, and which of them orders the
students as three tasks do? Three seeds on two texts: a hard one, Shakespeare, and a predictable one, stories
that SmolLM2 writes once. After arXiv 2605.24667.

    python -m benchmarks.studies.topk_distillation
    python -m benchmarks.studies.topk_distillation --quick
    python -m benchmarks.studies.topk_distillation --text bible --layers 8 --width 512 --context 256 \\
        --vocabulary 16384 --batch 64 --steps 10000 --processes 1     # 34 million parameters: for a GPU
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.studies.numbers_file import write_numbers
from benchmarks.studies.topk_distillation_parts import stories
from benchmarks.studies.topk_distillation_parts.kept import prepare_models, prepare_stories
from benchmarks.studies.topk_distillation_parts.numbers import numbers, records_of
from benchmarks.studies.topk_distillation_parts.page import section, write_section
from benchmarks.studies.topk_distillation_parts.pictures import picture
from benchmarks.studies.topk_distillation_parts.text import QUICK_TEXTS, TEXTS
from benchmarks.studies.topk_distillation_parts.training import run
from benchmarks.studies.topk_distillation_parts.units import (
    DEFAULT_SEEDS,
    DEFAULT_TEXTS,
    QUICK,
    Models,
    Size,
    models_of,
)
from examples.resumable import Unit, results
from lightning_pce.reports.html import report

ROOT = Path(__file__).resolve().parent


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--out",
        type=Path,
        help="what is there is kept (default: studies_out/topk_distillation, with --quick another)",
    )
    parser.add_argument("--text", nargs="+", choices=TEXTS, default=list(DEFAULT_TEXTS))
    parser.add_argument("--seeds", type=int, default=DEFAULT_SEEDS)
    default = Size()
    parser.add_argument("--layers", type=int, default=default.layers)
    parser.add_argument("--width", type=int, default=default.width, help="a multiple of 16, a head each")
    parser.add_argument("--context", type=int, default=default.context, help="tokens that a model sees")
    parser.add_argument("--vocabulary", type=int, default=default.vocabulary, help="256 or more")
    parser.add_argument("--batch", type=int, default=default.batch)
    parser.add_argument("--steps", type=int, default=default.steps, help="of a student; a teacher has twice")
    parser.add_argument("--processes", type=int, default=2, help="of one thread each")
    parser.add_argument("--quick", action="store_true", help="too small to show anything; no network")
    parser.add_argument(
        "--write", action="store_true", help="also topk_distillation.json, its picture, and README.md from it"
    )
    args = parser.parse_args()
    if args.write and args.quick:
        parser.error("--write is not for --quick, which shows nothing")
    return args


def main() -> None:
    args = arguments()
    out = args.out or Path("studies_out", "topk_distillation_quick" if args.quick else "topk_distillation")
    texts, size, seeds = tuple(args.text), Size(*(getattr(args, name) for name in Size._fields)), args.seeds
    if args.quick:
        texts, size, seeds = QUICK_TEXTS, QUICK, 1
    pieces = stories.pieces(out) if "stories" in texts else []
    prepare_stories(pieces)
    results(pieces, stories.write, args.processes)
    units = train([models_of(texts, seed, out, size) for seed in range(seeds)], args.processes)
    found = numbers(units, pieces)
    text = section(found)
    write_numbers(out / "topk_distillation.json", found)
    (out / "topk_distillation.md").write_text(text, encoding="utf-8", newline="\n")
    picture(found, out / "topk_distillation.png")
    print(text)
    shown = [unit for unit in units if (unit.settings["text"], unit.settings["seed"]) == (texts[-1], 0)]
    students = records_of([unit for unit in shown if unit.settings["kind"] == "student"])
    page = report(students, out / "report.html", task="cloze")
    print(f"See {page}, a report of the students on {texts[-1]}, seed 0.")
    if args.write:
        write_numbers(ROOT / "topk_distillation.json", found)
        picture(found, ROOT / "topk_distillation.png")
        write_section(ROOT / "README.md", found)


def train(families: Sequence[Models], processes: int) -> list[Unit]:
    """The models of each seed, one seed after the other."""
    units = [unit for family in families for unit in (*family.teachers, *family.students)]
    prepare_models(units)
    for family in families:
        results(family.teachers, run, processes)
        results(family.students, run, processes)
    return units


if __name__ == "__main__":
    main()
