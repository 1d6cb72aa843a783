"""Is it unmasked prompts that make the mean of a loss fail? Runs of the fact study, scored with and without.

Half of the runs of its part (a) are trained on all tokens, half on completions only, and all are validated on
both. So each statistic has four choices: trained with prompts or not, scored with prompts or not. What does
the checkpoint recall that it picks, and how much of the mean's rise are prompts? Trains what is not there.

    python -m benchmarks.studies.masking
    python -m benchmarks.studies.masking --quick
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.studies.fact_sft_parts.numbers import after_epochs
from benchmarks.studies.fact_sft_parts.training import run, versions
from benchmarks.studies.fact_sft_parts.units import FULL, QUICK, runs_of
from benchmarks.studies.masking_parts.numbers import numbers
from benchmarks.studies.masking_parts.page import section, write_section
from benchmarks.studies.masking_parts.picture import picture
from benchmarks.studies.numbers_file import write_numbers
from examples.fact_sft import precision
from examples.resumable import check_made_by, results
from lightning_pce.reports.html import report

HERE = Path(__file__).resolve().parent
SHOWN = "a_all_seed_0"  # the first run that was trained on prompts too; its report is of completions alone


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--out", type=Path, help="default: studies_out/masking, with --quick another, as of --runs"
    )
    parser.add_argument("--runs", type=Path, help="--out of the fact study (default: studies_out/fact_sft)")
    parser.add_argument("--model", help="as of the fact study")
    parser.add_argument("--processes", type=int, default=2, help="of one thread each")
    parser.add_argument("--quick", action="store_true", help="on its quick runs: too small to show anything")
    parser.add_argument(
        "--write", action="store_true", help="also masking.json, its picture, and README.md from it"
    )
    args = parser.parse_args()
    if args.write and args.quick:
        parser.error("--write is not for --quick, which shows nothing")
    return args


def main() -> None:
    args = arguments()
    ending = "_quick" if args.quick else ""
    out = args.out or Path("studies_out", f"masking{ending}")
    runs = args.runs or Path("studies_out", f"fact_sft{ending}")
    units = runs_of(("a",), runs, args.model, QUICK if args.quick else FULL).first
    check_made_by(units, versions=versions(), precision=precision())
    results(units, run, args.processes)
    found = numbers(units)
    write_numbers(out / "masking.json", found)
    picture(out / "masking.png", found)
    print(section(found))
    history = after_epochs(runs / "units" / f"{SHOWN}.jsonl", "completion")
    page = report(history, out / "report.html", task="val_recall")
    print(f"See {page}, a report of the completions of {SHOWN}.")
    if args.write:
        write_numbers(HERE / "masking.json", found)
        picture(HERE / "masking.png", found)
        write_section(HERE / "README.md", found)


if __name__ == "__main__":
    main()
