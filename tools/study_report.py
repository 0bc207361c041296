"""Make the tables and pictures of docs/evidence/video.md from what `tools/study.py` has made so far.

    python tools/study_report.py --work runs/study --output tools/results/study.jsonl.gz --figures docs/images
    python tools/study_report.py --show tools/results/study.jsonl.gz

The first writes every number to the result file, draws the pictures and prints the tables as Markdown. The second only
prints the tables of a result file. Incomplete cells are shown as "not run yet". Exit codes: 0 done, 2 there is nothing
to report on.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from evaluate import positive_number
from json_lines import lines_path
from studies.markdown import tables
from studies.plots import draw_all
from studies.summary import summarize
from studies.summary_file import read_summary, write_summary

from s2video.errors import InputError
from s2video.study.bootstrap import RESAMPLES


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/study"), help="folder of the cells")
    parser.add_argument("--output", type=lines_path, metavar="FILE.jsonl.gz", help="result file, with every number")
    parser.add_argument("--figures", type=Path, help="folder for study-*.png")
    parser.add_argument("--resamples", type=positive_number, default=RESAMPLES, help="of the bootstrap")
    parser.add_argument("--show", type=Path, metavar="FILE", help="print the tables of a result file instead")
    args = parser.parse_args(argv)
    if args.show is None and None in (args.output, args.figures):
        parser.error("expected --output and --figures, or --show")
    return args


def report(args: argparse.Namespace) -> None:
    if args.show is not None:
        print(tables(read_summary(args.show)))
        return
    summary = summarize(args.work, resamples=args.resamples)
    write_summary(args.output, summary)
    drawn = draw_all(summary, args.work, args.figures)
    print(tables(summary))
    print("\n".join(["", *(f"drawn: {path}" for path in drawn)]))


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    try:
        report(args)
    except InputError as error:
        print(f"study_report: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
