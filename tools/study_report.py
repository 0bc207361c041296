"""Tables and pictures of the study of docs/evidence/video.md, from what `tools/study.py` has made so far.

    python tools/study_report.py --work runs/study --output tools/results/study.json --figures docs/images

Prints the tables as Markdown. Cells that are not whole are said to be "not run yet". Exit codes: 0 done, 2 there is
nothing to report on.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from evaluate import positive_number
from studies.bootstrap import RESAMPLES
from studies.markdown import tables
from studies.plots import draw_all
from studies.summary import summarize

from s2video.errors import InputError
from s2video.system.files import write_json


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/study"), help="folder of the cells")
    parser.add_argument("--output", type=Path, required=True, help="JSON with every number of tables and pictures")
    parser.add_argument("--figures", type=Path, required=True, help="folder for study-*.png")
    parser.add_argument("--resamples", type=positive_number, default=RESAMPLES, help="of the bootstrap")
    args = parser.parse_args(argv)
    try:
        summary = summarize(args.work, resamples=args.resamples)
        write_json(args.output, summary)
        drawn = draw_all(summary, args.work, args.figures)
    except InputError as error:
        print(f"study_report: error: {error}", file=sys.stderr)
        return 2
    print(tables(summary))
    print("\n".join(["", *(f"drawn: {path}" for path in drawn)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
