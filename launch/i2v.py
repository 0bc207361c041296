"""What torchrun starts: torchrun --nproc-per-node 2 launch/i2v.py --config C.yaml --image I.png --output X.mp4

The arguments are those of `s2video generate`.
"""

import sys

from s2video.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["generate", *sys.argv[1:]]))
