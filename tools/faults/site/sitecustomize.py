"""Python imports this file first in every process with this folder in PYTHONPATH, which tools/chaos.py and tools/serve_chaos.py set."""

import os
import sys
from pathlib import Path

if "CHAOS_FOLDER" in os.environ:
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from faults import hooks

    hooks.install(Path(os.environ["CHAOS_FOLDER"]))
    sys.path.remove(str(Path(__file__).parents[2]))
