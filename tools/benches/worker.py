"""One process of `workloads.apart`: python -m benches.worker MODULE.FUNCTION ARGUMENTS FILE, also under torchrun."""

import importlib
import json
import sys
from pathlib import Path

from s2video.config.sections import ParallelConfig
from s2video.parallel.collectives import gather_objects
from s2video.parallel.mesh import init_mesh
from s2video.system.files import write_json


def main() -> None:
    function, arguments, answer = sys.argv[1:]
    module, name = function.split(".")
    run = getattr(importlib.import_module(f"benches.{module}"), name)
    with init_mesh(ParallelConfig(), "cpu") as mesh:
        answers = gather_objects(run(mesh, **json.loads(arguments)), mesh.world)
        if mesh.is_main:
            write_json(Path(answer), answers)


if __name__ == "__main__":
    main()
