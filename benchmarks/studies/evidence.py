"""How often does a verdict from the loss alone keep the best checkpoint? Over all choices of the studies.

A choice is one run and its checkpoints, or one family of students. The task, which the verdict has not seen,
says which of them is best; the shortlist is right if it holds one that is not surely worse. Beside it stand
the lowest mean, median, p75 and p95, the last checkpoint, and chance. Reads what the studies have written.

    python -m benchmarks.studies.evidence
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.studies.evidence_parts.counts import Choice, fact_choices, student_choices
from benchmarks.studies.evidence_parts.page import in_short, section, write
from benchmarks.studies.evidence_parts.what_came_out import what_came_out

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--fact-sft", type=Path, default=HERE / "fact_sft.json")
    parser.add_argument("--distillation", type=Path, default=HERE / "topk_distillation.json")
    parser.add_argument("--write", action="store_true", help="also this folder's README.md and the project's")
    return parser.parse_args()


def read(path: Path) -> dict[str, Any] | None:
    """A study's numbers, if they are there."""
    found: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    return found


def choices_in(fact_sft: Path, distillation: Path) -> list[Choice]:
    """Those of the files that are there."""
    facts, students = read(fact_sft), read(distillation)
    return [*(fact_choices(facts) if facts else []), *(student_choices(students) if students else [])]


def main() -> None:
    args = arguments()
    choices = choices_in(args.fact_sft, args.distillation)
    if not choices:
        raise SystemExit(f"There is neither {args.fact_sft} nor {args.distillation}: run the studies first.")
    print(section(choices))
    if args.write:
        said = what_came_out(read(args.fact_sft), read(args.distillation), choices)
        write(HERE / "README.md", said, "what came out")
        write(HERE / "README.md", section(choices))
        write(ROOT / "README.md", in_short(choices))


if __name__ == "__main__":
    main()
