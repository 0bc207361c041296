"""Reading of a run file (settings, shots and a sweep) to the jobs of a batch, each with its whole config and its file.

Jobs are `shots` x `sweep` x `seeds`, in this order, so jobs with the same prompt are adjacent. `checks` tests whether a
checkpoint can serve them.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field, ValidationError

from ..config.fields import Text, Whole
from ..config.run import RunConfig, build_config, origin, parse_override, patch, read_values
from ..config.text import describe_problems, read_text, show
from ..errors import InputError
from ..media.formats import codec_for, suffix_of
from ..media.naming import find_collisions, render_name, slug
from ..media.output_paths import OutputPaths
from ..models.recipes import with_recipe
from ..system.files import user_path
from .shots import FIELDS, NAME, Shot, inline_shots, key_problem, read_shots
from .takes import Take, chosen_shots, version_of

MAX_JOBS = 100_000
RESERVED = "batch."  # prefix of the batch's own files in its folder
TIMELINES = (".otio", ".edl", ".xml")  # suffixes of timelines, which can list shots
Overlap = Literal["auto", "always", "never"]  # whether a video is decoded while the next one is denoised
_SEED = "sampling.seed"
_NAME_TEMPLATE = "{shot}{variant}_s{seed}.{ext}"


def _read_shot_source(value: Any) -> Any:
    if not isinstance(value, (str, list)) or not value:
        raise ValueError(f"expected a list of shots, or the path of a .jsonl, .csv or .txt file, got {show(value)}")
    return read_text(value) if isinstance(value, str) else value


def _read_grid(value: Any) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"expected settings and lists, such as {{guidance.s2_scale: [0, 0.25]}}, got {show(value)}")
    for key, choices in value.items():
        if (problem := key_problem(key)) is not None:
            raise ValueError(problem)
        if not isinstance(choices, list) or not choices:
            raise ValueError(f"{key}: expected a list of values, got {show(choices)}")
    return value


def _read_fields(value: Any) -> Any:
    if not isinstance(value, dict) or not all(isinstance(key, str) and key.isidentifier() for key in value):
        raise ValueError(f"expected names and values, such as {{show: abc, version: 3}}, got {show(value)}")
    return value


class RunFile(RunConfig):
    """A batch: the settings of a run, as the base of every job, and the shots and what varies."""

    shots: Annotated[str | list[Any], BeforeValidator(_read_shot_source)] = Field(
        default=[],  # refused
        description="required: a list of prompts or mappings of settings, or a .jsonl, .csv or .txt file",
    )
    sweep: Annotated[dict[str, list[Any]], BeforeValidator(_read_grid)] = Field(
        default={}, description="lists of values by setting; every shot is made with every combination"
    )
    seeds: Whole = Field(
        default=1, ge=1, description="number of videos of each combination, with sampling.seed and the numbers after it"
    )
    folder: Text | None = Field(
        default=None, min_length=1, description="folder of all output; null means runs/ and the run file's name"
    )
    name: Text = Field(
        default=_NAME_TEMPLATE,
        min_length=1,
        description="template of a file's name, with the fields run, shot, prompt, variant (the values of sweep), the "
        "last part of each key of sweep, index, seed, take (1 to seeds), ext, and those of `fields`",
    )
    fields: Annotated[dict[str, Any], BeforeValidator(_read_fields)] = Field(
        default={},
        description="more fields for name, such as show and version; a shot can override them as fields.version",
    )
    overlap: Overlap = Field(
        default="auto",
        description="decode a video while the next one is denoised; auto: if memory holds both",
    )


@dataclass(frozen=True)
class BatchJob:
    """One video of a batch: its path below the batch's folder, where its shot is defined, its config, and its take."""

    name: str
    where: str
    config: RunConfig
    take: Take | None = None


@dataclass(frozen=True)
class Batch:
    """The jobs of a run file.

    Attributes:
        folder: folder of the videos and the state.
        problems: errors in shots, a sentence each; `jobs` lacks the jobs of these shots.
        recipe: name of the config whose values replace missing settings of the run file; None if there is none.
        shots: names of all shots in the run file, also of those that are not made.
        is_partial: only some shots, or one version, are made; the other videos of the folder stay as they are.
    """

    folder: Path
    overlap: Overlap
    jobs: tuple[BatchJob, ...]
    problems: tuple[str, ...]
    recipe: str | None = None
    shots: tuple[str, ...] = ()
    is_partial: bool = False


class ListedShots(NamedTuple):
    """Shots from somewhere else than the run file, as it would list them, and the name of their source."""

    source: str
    shots: list[dict[str, Any]]


def load_batch(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    version: int | None = None,
    only: Sequence[str] = (),
    listed: ListedShots | None = None,
) -> Batch:
    """Read a run file and expand it to its jobs.

    Args:
        version: of all shots that are made, in place of `fields.version`; None: that of each shot.
        only: names or patterns of the shots to make; empty: all.
        listed: the shots, if the run file lists none. Then `path` may be their source, and all settings are defaults.

    Raises:
        InputError: if the run file, or the file of shots, is invalid as a whole, or `only` names no shot of it.
    """
    source = origin(path, overrides)
    values = _read(path, overrides)
    if listed is not None:
        values["shots"] = listed.shots
    try:
        run = RunFile.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{source}: {describe_problems(error, RunFile)}") from None
    if "path" in (values.get("output") or {}):
        raise InputError(f"{source}: {key_problem('output.path')}")
    base, recipe = _base(values)
    shots = (
        read_shots(path.parent / user_path(run.shots, "shots"))
        if isinstance(run.shots, str)
        else inline_shots(run.shots, str(path) if listed is None else listed.source)
    )
    if run.seeds > 1 and _SEED in run.sweep:
        raise InputError(f"{source}: expected seeds or a sweep of {_SEED}, got both; keep one")
    count = len(shots) * math.prod(map(len, run.sweep.values())) * run.seeds
    if count > MAX_JOBS:
        raise InputError(
            f"{source}: expected at most {MAX_JOBS} videos, got {count} (shots x sweep x seeds); split the run file"
        )
    folder = user_path(run.folder, "folder") if run.folder is not None else Path("runs") / path.stem
    names = tuple(dict.fromkeys(_shot_name(shot, number) for number, shot in enumerate(shots, 1)))
    chosen = chosen_shots(only, names) if only else frozenset(names)
    run = _with_version(run, version, source)
    made = [(number, shot) for number, shot in enumerate(shots, 1) if _shot_name(shot, number) in chosen]
    jobs: list[BatchJob] = []
    problems = [f"{shot.where}: {problem}" for _, shot in made for problem in shot.problems]
    count_of_each = math.prod(map(len, run.sweep.values())) * run.seeds
    for number, shot in made:
        if not shot.problems:
            first = (number - 1) * count_of_each  # of the whole run file, whatever part of it is made
            try:
                jobs += _expand(run, base, shot, number, first, folder, path.stem, version)
            except InputError as error:
                problems.append(str(error))
    problems += _collisions(jobs)
    is_partial = bool(only) or version is not None
    return Batch(folder, run.overlap, tuple(jobs), tuple(problems), recipe, names, is_partial)


def base_settings(path: Path, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], RunConfig]:
    """Return what a run file without shots sets, and the settings that all shots begin with.

    Args:
        path: the run file, or a file of another kind, which sets nothing.

    Raises:
        InputError: an invalid file, or one that lists shots.
    """
    values = _read(path, overrides)
    if "shots" in values:
        raise InputError(f"{path}: expected shots from here or from the timeline, got both; leave one of them out")
    return values, build_config(_base(values)[0], origin(path, overrides))


def _read(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    if not is_timeline(path):
        return read_values(path, overrides, RunFile)
    values: dict[str, Any] = {}
    for item in overrides:
        values = patch(values, parse_override(item, RunFile))
    return values


def is_timeline(path: Path) -> bool:
    """Return whether a file is a timeline, by its name."""
    return path.suffix.lower() in TIMELINES


def _base(values: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Return the settings of every shot, with those of the model's recipe, and its name if it adds any."""
    base = {key: value for key, value in values.items() if key in RunConfig.model_fields}
    if base.get("parallel") == "auto":
        base["parallel"] = {"degrees": "auto"}
    # a batch can be interrupted at any time and must resume
    base["checkpoint"] = {"every_seconds": 300} | (base.get("checkpoint") or {})
    merged, recipe = with_recipe(base)
    return merged, recipe if merged != base else None


def _shot_name(shot: Shot, number: int) -> str:
    return str(shot.values.get(NAME, f"{number:03d}"))


def _with_version(run: RunFile, version: int | None, source: str) -> RunFile:
    """Return the run file with names that tell a version from the others. Raises InputError if its own do not."""
    if version is None:
        return run
    if "name" not in run.model_fields_set:
        first, rest = _NAME_TEMPLATE.split("_s", 1)
        return run if version == 1 else run.model_copy(update={"name": f"{first}_v{{version:03d}}_s{rest}"})
    if re.search(r"\{version[:}]", run.name) is None:
        raise InputError(
            f"{source}: name: expected the field version, which --version sets, got {run.name!r}; write, for example, "
            "{shot}_v{version:03d}_s{seed}.{ext}"
        )
    return run


def output_path(folder: Path, template: str, fields: Mapping[str, object]) -> Path:
    """Return the path of a job's video. Raises InputError if template and fields make no valid file name."""
    name = render_name(template, fields)
    if name.parts[0].casefold().startswith(RESERVED):  # case does not count on every file system
        raise InputError(
            f"name: expected no name that begins with {RESERVED}, which the batch uses itself, got {name}; change it"
        )
    return folder / name


def _expand(
    run: RunFile,
    base: dict[str, Any],
    shot: Shot,
    number: int,
    first: int,
    folder: Path,
    run_name: str,
    version: int | None,
) -> Iterator[BatchJob]:
    """Yield the jobs of a shot, which is number `number` in the run file, and whose first job is number `first`."""
    if twice := run.sweep.keys() & shot.values.keys():
        raise InputError(f"{shot.where}: {min(twice)}: expected one value, got one here and one in sweep; keep one")
    own = {key: value for key, value in shot.values.items() if key != NAME and not key.startswith(FIELDS)}
    naming = {**run.fields, **{k.removeprefix(FIELDS): v for k, v in shot.values.items() if k.startswith(FIELDS)}}
    if version is not None:
        naming["version"] = version
    index = itertools.count(first)
    name = shot.values.get(NAME, f"{number:03d}")
    if not isinstance(name, str):
        raise InputError(f'{shot.where}: {NAME}: expected text, got {show(name)}; quote it, "like this"')
    for choice in itertools.product(*run.sweep.values()):
        swept = dict(zip(run.sweep, choice, strict=True))
        config = build_config(patch(base, own | swept), shot.where)
        if config.prompt is None or not config.prompt.strip():
            raise InputError(
                f"{shot.where}: prompt: expected text, got none; set it for the shot, or a default in the run file"
            )
        for take in range(run.seeds):
            seed = config.sampling.seed + take
            fields = {
                **_swept_fields(swept),
                **naming,
                "run": run_name,
                "shot": name,
                "prompt": slug(config.prompt),
                "variant": _variant(swept),
                "index": (place := next(index)) + 1,
                "seed": seed,
                "take": take + 1,
                "ext": suffix_of(config.output.codec).removeprefix("."),
            }
            try:
                output = output_path(folder, run.name, fields)
                codec_for(output, config.output.codec)
            except InputError as error:
                raise InputError(f"{shot.where}: {error}") from None
            changes = {_SEED: seed, "output.path": str(output), **_headers(config, name, naming.get("version"))}
            finished = config.patched(changes, shot.where)
            try:
                finished.output.specs()
                _check_copies(finished, folder)
            except InputError as error:
                raise InputError(f"{shot.where}: {error}") from None
            video = Take(name, number, version_of(naming.get("version")) or 1, place)
            yield BatchJob(PurePath(output.relative_to(folder)).as_posix(), shot.where, finished, video)


def _headers(config: RunConfig, shot: str, version: object) -> dict[str, Any]:
    """Return what the headers of a take's files say about it, unless the run file says it."""
    number = version_of(version)
    said = {"shot": shot, "version": None if number is None else f"v{number:03d}"}
    return {f"output.{key}": text for key, text in said.items() if text and getattr(config.output, key) is None}


def _check_copies(config: RunConfig, folder: Path) -> None:
    """Raise InputError if another format of a video would have a name that the batch uses itself."""
    for path in OutputPaths.of(config).also:
        if (name := path.relative_to(folder)).parts[0].casefold().startswith(RESERVED):
            raise InputError(f"output.also: expected no name that begins with {RESERVED}, got {name}; change it")


def _swept_fields(swept: Mapping[str, Any]) -> dict[str, Any]:
    return {key.rpartition(".")[2]: value for key, value in swept.items()}


def _variant(swept: Mapping[str, Any]) -> str:
    """Return the values of one combination of a sweep as a part of a file's name, such as _s2_scale-0.25."""
    parts = (f"{key.rpartition('.')[2]}-{value}" for key, value in swept.items())
    return "".join("_" + re.sub(r"[^A-Za-z0-9_.+-]+", "-", part).strip("-") for part in parts)


def _collisions(jobs: Sequence[BatchJob]) -> Iterator[str]:
    """Yield a message for each video whose files would overwrite those of another one, on any file system."""
    for first, later, path in find_collisions(OutputPaths.of(job.config).all for job in jobs):
        job, other = jobs[later], jobs[first]
        at = "" if path.name in (job.name, other.name) else f" at {path.name}"
        yield (
            f"{job.where}: {job.name} would overwrite {other.name} ({other.where}){at}; change name, or name each shot"
        )
