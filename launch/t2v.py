"""What torchrun starts: torchrun --nproc-per-node 2 launch/t2v.py --config configs/shapes.yaml

The arguments are those of `s2video generate`.
"""

import sys

from s2video.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["generate", *sys.argv[1:]]))
