"""Python imports this first in every process with this folder in PYTHONPATH, which chaos.py and serve_chaos.py set."""

import os
import sys
from pathlib import Path

if "CHAOS_FOLDER" in os.environ or "STEP_TIMES" in os.environ:
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from faults import hooks

    if "CHAOS_FOLDER" in os.environ:
        hooks.install(Path(os.environ["CHAOS_FOLDER"]))
    if "STEP_TIMES" in os.environ:
        hooks.record_steps(Path(os.environ["STEP_TIMES"]))
    sys.path.remove(str(Path(__file__).parents[2]))
