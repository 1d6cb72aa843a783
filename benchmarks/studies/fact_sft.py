"""Does the median choose the better checkpoint, and do other objectives make one? Invented facts, many seeds.

A language model learns 120 facts in two phrasings each and is asked for them in two others. (a) plain
fine-tuning, on all tokens or on completions only: what does each statistic of the validation loss pick, and
what does that checkpoint recall? (b) five objectives, from the untrained model and from one whose mean p on
the training set has passed 0.75. (c) the same where a fifth of the training sentences are wrong. After
arXiv 2605.24667 and 2510.00526.

    python -m benchmarks.studies.fact_sft
    python -m benchmarks.studies.fact_sft --quick
    python -m benchmarks.studies.fact_sft --model Qwen/Qwen2.5-1.5B --processes 1
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.studies.fact_sft_parts.numbers import after_epochs, numbers
from benchmarks.studies.fact_sft_parts.page import section
from benchmarks.studies.fact_sft_parts.pictures import picture
from benchmarks.studies.fact_sft_parts.training import measure_start, run, versions
from benchmarks.studies.fact_sft_parts.units import FULL, PARTS, QUICK, Runs, ready, runs_of, without_weights
from benchmarks.studies.fact_sft_parts.verdicts import verdicts
from benchmarks.studies.markdown import with_section
from benchmarks.studies.numbers_file import write_numbers
from examples.fact_sft import precision
from examples.resumable import check_made_by, results
from lightning_pce.reports.html import report

ROOT = Path(__file__).resolve().parent
# The run of the report page: on all tokens, where mean and median part.
SHOWN = "a_all_seed_0"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--out", type=Path, help="what is there is kept (default: studies_out/fact_sft, with --quick another)"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--model", help="Hugging Face name or path (default: SmolLM2-135M-Instruct, no download)"
    )
    parser.add_argument("--processes", type=int, default=2, help="of one thread each")
    parser.add_argument("--quick", action="store_true", help="too small to show anything")
    parser.add_argument(
        "--write", action="store_true", help="also fact_sft.json, its picture and README.md, of these parts"
    )
    args = parser.parse_args()
    args.out = args.out or Path("studies_out", "fact_sft_quick" if args.quick else "fact_sft")
    if args.write and args.quick:
        parser.error("--write is not for --quick, which shows nothing")
    return args


def main() -> None:
    args = arguments()
    runs = runs_of(tuple(args.parts), args.out, args.model, QUICK if args.quick else FULL)
    train(runs, args.processes)
    found = numbers([*runs.first, *runs.then], runs.starts)
    text = section(found, verdicts(found))
    readme = ROOT / "README.md"
    page = with_section(readme.read_text(encoding="utf-8"), "fact_sft", text)  # before anything is written
    write_numbers(args.out / "fact_sft.json", found)
    (args.out / "fact_sft.md").write_text(text, encoding="utf-8", newline="\n")
    picture(found, args.out / "fact_sft.png")
    print(text)
    shown = args.out / "units" / f"{SHOWN}.jsonl"
    if shown.exists():
        written = report(after_epochs(shown, "all"), args.out / "report.html", task="val_recall")
        print(f"See {written}, a report of {SHOWN}.")
    if args.write:
        write_numbers(ROOT / "fact_sft.json", found)
        picture(found, ROOT / "fact_sft.png")
        readme.write_text(page, encoding="utf-8", newline="\n")


def train(runs: Runs, processes: int) -> None:
    check_made_by([*runs.first, *runs.starts, *runs.then], versions=versions(), precision=precision())
    for unit in without_weights(runs):
        print(f"{unit.settings['name']} is done again: its weights are not there.", flush=True)
        unit.path.unlink()
    results(ready(runs), run, processes)
    results(runs.starts, measure_start, processes)
    results(runs.then, run, processes)


if __name__ == "__main__":
    main()
