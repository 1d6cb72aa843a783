"""study"""

from __future__ import annotations

import argparse
from pathlib import Path

from proxy_study_parts import population
from proxy_study_parts.running import results


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("proxy_study_out"))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    units = population.quick_units() if args.quick else population.all_units()
    found = results(units, args.out, None if args.quick else args.out / "packages", args.processes)


if __name__ == "__main__":
    main()
