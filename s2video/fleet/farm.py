"""A batch as a job bundle of Open Job Description, the format of render farms: a task for each video.

A bundle is a folder with `template.json`, of the schema jobtemplate-2023-09 without extensions, and a file for each
video, which its task reads. Knows what a video needs of a machine, not how it is made.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from ..batch.plan import predict
from ..batch.run_file import BatchJob
from ..config.run import RunConfig
from ..config.text import describe_problems
from ..errors import InputError
from ..models.checkpoint import OpenModel
from ..planning.cards import CARDS
from ..system.files import atomic_folder, check_replaceable, write_json
from ..system.json_reader import read_json
from ..system.terminal import show

TEMPLATE = "template.json"
SCHEMA = "jobtemplate-2023-09"
_JOB = "job-{:06d}.json"
_OURS = re.compile(r"template\.json|job-\d{6}\.json")
_MOST_NAME = 128  # characters of a job's name
_NOTICE = 300  # seconds between the request to stop and the end of a task: a step and its resume point must fit in
_MIB = 2**20


@dataclass(frozen=True)
class FarmJob:
    """A video of a bundle: its path below the output folder, and its settings."""

    name: str
    config: RunConfig


def write_bundle(
    folder: Path, title: str, jobs: Sequence[BatchJob], output: Path, open_model: OpenModel, *, nproc: int
) -> int:
    """Write the bundle of a batch; returns how many steps it has. An older bundle is replaced as a whole.

    Args:
        title: name of the job, which people see.
        jobs: all of the batch; there is at least one.
        output: folder of the videos.
        nproc: ranks that make a video together, on one machine.

    Raises:
        InputError: the folder holds other files, or cannot be written.
    """
    if folder.name in ("", ".."):
        raise InputError(f"{folder}: expected the name of a new folder for the bundle, got none; add one")
    check_replaceable(folder, _is_ours, "files of a bundle")
    forecasts = predict(jobs, open_model, world_size=nproc, card=CARDS["H100"])  # memory is the same on any card
    groups: dict[str, list[BatchJob]] = {}
    for job, forecast in zip(jobs, forecasts, strict=True):
        memory = None if forecast is None else math.ceil(forecast.memory_bytes / _MIB)
        groups.setdefault(json.dumps(requirements(job.config, nproc, memory)), []).append(job)
    ordered = [job for group in groups.values() for job in group]
    steps, first = [], 1
    for number, (needs, group) in enumerate(groups.items(), 1):
        name = "Videos" if len(groups) == 1 else f"Videos {number}"
        steps.append(_step(name, range(first, first + len(group)), json.loads(needs), nproc))
        first += len(group)
    with atomic_folder(folder, _is_ours) as temporary:
        for number, job in enumerate(ordered, 1):
            write_json(
                temporary / _JOB.format(number), {"name": job.name, "config": job.config.model_dump(mode="json")}
            )
        write_json(temporary / TEMPLATE, _template(title, steps, output))
    return len(steps)


def read_job(bundle: Path, number: int) -> FarmJob:
    """Read a video's file. Raises InputError."""
    path = bundle / _JOB.format(number)
    found = read_json(path, remedy="write the bundle again with `s2video farm`")
    if not isinstance(found, dict) or not isinstance(found.get("name"), str) or found.keys() != {"name", "config"}:
        raise InputError(f"{path}: expected the file of a task, with name and config; write the bundle again")
    try:
        config = RunConfig.model_validate(found["config"])
    except ValidationError as error:
        raise InputError(f"{path}: {describe_problems(error, RunConfig)}; write the bundle again") from None
    parts = Path(found["name"]).parts
    if Path(found["name"]).is_absolute() or ".." in parts or not parts:
        raise InputError(f"{path}: name: expected a path below the output folder, got {found['name'][:100]!r}")
    return FarmJob(found["name"], config)


def requirements(config: RunConfig, nproc: int, memory: int | None) -> dict[str, Any]:
    """Return what a machine must have for a video.

    Args:
        memory: of each rank, in MiB, as the planner predicts it; None if it does not know the model.
    """
    if config.model.device == "cpu":
        amounts = {"amount.worker.vcpu": nproc, "amount.worker.memory": memory and memory * nproc}
    else:  # the memory is that of each GPU
        amounts = {"amount.worker.gpu": nproc, "amount.worker.gpu.memory": memory}
    return {"amounts": [{"name": name, "min": least} for name, least in amounts.items() if least]}


def tell(kind: Literal["progress", "status", "fail"], what: object) -> None:
    """Print a line that the farm reads: per cent, what is being done, or why the task failed."""
    show(f"openjd_{kind}: {' '.join(str(what).split())}")


def _template(title: str, steps: Sequence[Mapping[str, Any]], output: Path) -> dict[str, Any]:
    name = re.sub(r"[{}\x00-\x1f\x7f-\x9f]", "", title)[:_MOST_NAME].strip() or "s2video"
    return {
        "specificationVersion": SCHEMA,
        "name": name,
        "description": "Videos with S²-Guidance. A task that is run again continues from the resume point of its "
        "video, and does nothing if the video is there.",
        "parameterDefinitions": [
            {
                "name": "Bundle",
                "type": "PATH",
                "objectType": "DIRECTORY",
                "dataFlow": "IN",
                "default": ".",
                "description": "Folder of this template, with a file for each task.",
            },
            {
                "name": "OutputFolder",
                "type": "STRING",
                "default": str(output.absolute()),
                "description": "Folder of the videos, of their sidecars and resume points. All machines must share it.",
            },
            {
                "name": "WorkingFolder",
                "type": "STRING",
                "default": os.getcwd(),
                "description": "Folder against which relative paths of models and images count.",
            },
            {
                "name": "Python",
                "type": "STRING",
                "default": sys.executable,
                "description": "The Python that has s2video.",
            },
        ],
        "steps": list(steps),
    }


def _step(name: str, numbers: range, needs: Mapping[str, Any], nproc: int) -> dict[str, Any]:
    arguments = ["-m", "s2video", "task", "{{Param.Bundle}}", "{{Task.Param.Video}}"]
    arguments += ["--output-folder", "{{Param.OutputFolder}}", "--working-folder", "{{Param.WorkingFolder}}"]
    return {
        "name": name,
        "hostRequirements": dict(needs),
        "parameterSpace": {
            "taskParameterDefinitions": [{"name": "Video", "type": "INT", "range": f"{numbers[0]}-{numbers[-1]}"}]
        },
        "script": {
            "actions": {
                "onRun": {
                    "command": "{{Param.Python}}",
                    "args": [*arguments, "--nproc", str(nproc)],
                    "cancelation": {"mode": "NOTIFY_THEN_TERMINATE", "notifyPeriodInSeconds": _NOTICE},
                }
            }
        },
    }


def _is_ours(name: str) -> bool:
    return _OURS.fullmatch(name) is not None
