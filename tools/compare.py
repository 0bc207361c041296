"""Two videos beside each other in one file, with captions: compare.py LEFT RIGHT OUT [--labels CFG S²]"""

import argparse
import sys
from pathlib import Path

from s2video.errors import InputError
from s2video.video import side_by_side


def main() -> int:
    parser = argparse.ArgumentParser(description="Show two videos beside each other, in one file.")
    parser.add_argument("left", type=Path)
    parser.add_argument("right", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--labels", nargs=2, default=("CFG", "S²"), metavar=("LEFT", "RIGHT"))
    arguments = parser.parse_args()
    try:
        side_by_side(arguments.left, arguments.right, arguments.out, labels=tuple(arguments.labels))
    except InputError as error:
        print(f"compare: error: {error}", file=sys.stderr)
        return 2
    print(arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
