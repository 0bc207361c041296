"""`python -m s2video`, which is what `s2video launch` has torchrun start."""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
