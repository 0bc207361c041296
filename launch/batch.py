"""What torchrun starts for a batch: torchrun --nproc-per-node 2 launch/batch.py --config configs/batch-shapes.yaml

Its ranks are one replica. The arguments are those of `s2video batch`, which starts torchrun by itself, and again where
it died.
"""

import sys

from s2video.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["batch", *sys.argv[1:]]))
