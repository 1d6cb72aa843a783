"""Where do proxies from expert solutions help, and where not? Tiny models are trained, ranked and forecast.

Text of Shakespeare and of the King James Bible competes with six families of little tasks for what a model
reads. Then three questions are asked, each beside simpler ways and with an interval: which model is better at
a task that nobody ran; which of ten corpora makes the better model, said by small ones; and where will a run
end. What came out is in docs/proxies.md. Run it with `make proxy-study`, or

    python examples/proxy_study.py --out proxy_study_out
    python examples/proxy_study.py --quick

The ideas are those of arXiv 2605.18607, of which we know descriptions; models, tasks and protocol are ours.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from proxy_study_parts import page, population
from proxy_study_parts.pictures import picture
from proxy_study_parts.quick import quick_units
from proxy_study_parts.running import results
from proxy_study_parts.summary import summary
from resumable import write_json

ROOT = Path(__file__).resolve().parents[1]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("proxy_study_out"), help="what is there is kept")
    parser.add_argument("--processes", type=int, default=2, help="of one thread each")
    parser.add_argument("--quick", action="store_true", help="too small to show anything; no network")
    parser.add_argument(
        "--write", action="store_true", help="also benchmarks/proxy_study.json, and docs/proxies.md from it"
    )
    args = parser.parse_args()
    if args.write and args.quick:
        parser.error("--write is not for --quick, which shows nothing")
    return args


def main() -> None:
    args = arguments()
    begin = time.monotonic()
    units = quick_units() if args.quick else population.all_units()
    found = results(units, args.out, None if args.quick else args.out / "packages", args.processes)
    study = summary(units, found, args.out)
    write_json(args.out / "results.json", study.numbers)
    picture(args.out / "proxies.png", study.table, study.series)
    print(page.section(study.numbers))
    if args.write:
        write_json(ROOT / "benchmarks" / "proxy_study.json", study.numbers)
        page.write_section(ROOT / "docs" / "proxies.md", study.numbers)
        picture(ROOT / "docs" / "proxies.png", study.table, study.series)
    print(
        f"{time.monotonic() - begin:.0f} s. See {args.out / 'results.json'} and {args.out / 'proxies.png'}."
    )


if __name__ == "__main__":
    main()
