"""What a study makes: prompts × takes × settings, read from a study file and written as the run file of a batch.

Clips of one prompt and take have the same noise and the same mask seed under every setting. Both are functions of the
prompt's place in the list and the take, so no two prompts share them. Knows neither torch nor how videos are made.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from ..batch.run_file import MAX_JOBS, RESERVED
from ..batch.shots import NAME, Shot, inline_shots, key_problem, read_shots
from ..config.fields import Text, Whole
from ..config.run import RunConfig, build_config, origin, patch, read_values
from ..config.text import describe_problems, read_text, show
from ..errors import InputError
from ..media.formats import suffix_of
from ..models.recipes import with_recipe
from ..system.files import atomic_path, user_path
from ..system.json_reader import read_json

OWN_FILES = RUN_FILE, SHOTS, MANIFEST = "study.batch.yaml", "study.shots.jsonl", "study.json"
SUFFIX = ".mp4"  # of a study's videos, which a browser has to play
MAX_TAKES = 1000
MASK_SEEDS = 500_000_000  # where the seeds of masks begin
SEED, MASK_SEED = "sampling.seed", "guidance.mask_seed"
NO_S2: Mapping[str, Any] = {"guidance.method": "s2", "guidance.s2_scale": 0.0, "guidance.s2_push": None}
_CONTROL = ("control.video", "control.mask", "control.references")
_OWN = ("prompts", "seeds", "settings", "folder")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,39}")

Settings = dict[str, dict[str, Any]]


def _read_prompts(value: Any) -> Any:
    if not isinstance(value, (str, list)) or not value:
        raise ValueError(f"expected a list of prompts, or the path of a .txt, .jsonl or .csv file, got {show(value)}")
    return read_text(value) if isinstance(value, str) else value


def read_settings(value: Any) -> Any:
    """Return the settings of a study by name. Raises ValueError if they have a wrong form or name."""
    if not isinstance(value, dict):
        raise ValueError(
            f"expected names and what each changes, such as {{cfg: {{guidance.s2_scale: 0}}}}, got {show(value)}"
        )
    for name, changes in value.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name.endswith("."):
            raise ValueError(f"expected names of up to 40 letters, digits and . _ + -, for folders, got {show(name)}")
        if not isinstance(changes, dict | None):
            raise ValueError(
                f"{name}: expected the settings that it changes, such as guidance.s2_scale: 0, got {show(changes)}"
            )
    if len({name.casefold() for name in value}) < len(value):
        raise ValueError("expected names that differ in more than case, because folders are called so")
    return {name: changes or {} for name, changes in value.items()}


class StudyFile(RunConfig):
    """A study: the settings of a run, as the base of every clip, its prompts, and the settings that are compared."""

    prompts: Annotated[str | list[Any], BeforeValidator(_read_prompts)] = Field(
        default=[],  # refused
        description="required: a list of prompts or mappings of settings, or a .txt, .jsonl or .csv file",
    )
    seeds: Whole = Field(default=1, ge=1, le=MAX_TAKES, description="number of clips of each prompt and setting")
    settings: Annotated[dict[str, dict[str, Any]], BeforeValidator(read_settings)] = Field(
        default={}, description="names, and the settings that each changes; the first is the base. Default: cfg and s2"
    )
    folder: Text | None = Field(
        default=None, min_length=1, description="folder of all output; null means runs/ and the study file's name"
    )


@dataclass(frozen=True)
class Design:
    """What a study makes.

    Attributes:
        values: settings of a run that all clips have, as plain values.
        prompts: a shot for each prompt, without seeds.
        seeds: number of takes of each prompt and setting.
        settings: name -> changes by dotted key; the first is the base.
    """

    folder: Path
    values: Mapping[str, Any]
    prompts: tuple[Shot, ...]
    seeds: int
    settings: Settings

    @property
    def num_videos(self) -> int:
        """Number of clips of all settings."""
        return len(self.prompts) * self.seeds * len(self.settings)

    def clips(self) -> Iterator[tuple[str, str]]:
        """Yield the name of each clip, such as 003-1 for the first take of the third prompt, and its prompt."""
        for number, shot in enumerate(self.prompts, 1):
            for take in range(1, self.seeds + 1):
                yield clip_name(number, take), str(shot.values.get("prompt", self.values.get("prompt") or ""))


def clip_name(prompt: int, take: int) -> str:
    """Return the name of a clip, the same under every setting; both count from 1."""
    return f"{prompt:03d}-{take}"


def seeds_of(first: int, prompt: int, take: int) -> dict[str, int]:
    """Return the seeds of a clip's noise and masks, which are the same under every setting.

    Args:
        first: `sampling.seed` of the study.
        prompt: place of the prompt, from 1.
        take: from 1 to `MAX_TAKES`.
    """
    seed = first + MAX_TAKES * (prompt - 1) + take - 1
    return {SEED: seed, MASK_SEED: MASK_SEEDS + seed}


def read_design(path: Path, overrides: Sequence[str] = ()) -> Design:
    """Read a study file. Raises InputError, in one line, for anything that cannot be used."""
    source = origin(path, overrides)
    values = read_values(path, overrides, StudyFile)
    try:
        study = StudyFile.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{source}: {describe_problems(error, StudyFile)}") from None
    if "path" in (values.get("output") or {}):
        raise InputError(f"{source}: {key_problem('output.path')}")
    prompts = (
        read_shots(path.parent / user_path(study.prompts, "prompts"))
        if isinstance(study.prompts, str)
        else inline_shots(study.prompts, str(path))
    )
    base = {key: value for key, value in values.items() if key not in _OWN}
    folder = Path("runs") / path.stem if study.folder is None else user_path(study.folder, "folder")
    return make_design(base, prompts, study.seeds, study.settings, folder, source)


def make_design(
    values: Mapping[str, Any], prompts: Sequence[Shot], seeds: int, settings: Settings, folder: Path, source: str
) -> Design:
    """Return a checked design; without settings, it compares plain CFG with S².

    Args:
        values: settings of a run, as plain values.
        source: names their origin in errors.

    Raises:
        InputError: settings or prompts that cannot be used, or that would undo the pairing.
    """
    merged, _ = with_recipe(values)
    base = build_config(merged, source)
    if base.guidance.mask_seed is not None:
        raise InputError(
            f"{source}: {MASK_SEED}: expected null, because a study draws other masks for each prompt; remove it"
        )
    if suffix_of(base.output.codec) != SUFFIX:
        raise InputError(f"{source}: output.codec: expected auto or h264, which browsers play, got {base.output.codec}")
    chosen = {name: _flat(changes) for name, changes in settings.items()} or _default_settings(base)
    if len(chosen) < 2:
        raise InputError(f"{source}: settings: expected at least two to compare, got {', '.join(chosen)}; add the base")
    for name, changes in chosen.items():
        where = f"{source}: settings.{name}"
        for key in changes:
            if problem := _problem(key):
                raise InputError(f"{where}: {problem}")
        build_config(patch(merged, changes), where)
    design = Design(folder, dict(values), tuple(prompts), seeds, chosen)
    if design.num_videos > MAX_JOBS:
        raise InputError(
            f"{source}: expected at most {MAX_JOBS} videos, got {design.num_videos} (prompts x seeds x settings); make "
            "several studies"
        )
    for shot in prompts:
        _check_prompt(shot, merged, {key for changes in chosen.values() for key in changes})
    return design


def _default_settings(base: RunConfig) -> Settings:
    """Return CFG, or the plain model if it has no uncond pass, and S² with the strength of the base."""
    plain = "cfg" if any(scale != 1 for scale in base.guidance.cfg_scales) else "plain"
    return {
        plain: dict(NO_S2),
        "s2": {} if base.guidance.uses_s2 else {"guidance.method": "s2", "guidance.s2_scale": 0.25},
    }


def _flat(changes: Mapping[Any, Any]) -> dict[str, Any]:
    """Return changes by dotted key, from sections as mappings or from dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in changes.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": inner_value for inner, inner_value in value.items()}
        else:
            flat[str(key)] = value
    return flat


def _problem(key: str) -> str | None:
    """Return why a setting cannot change `key`; None if it can."""
    if key in (SEED, MASK_SEED):
        return f"{key}: a study sets it by prompt and take, the same under every setting; remove it"
    if key in ("prompt", "image", "last_image", *_CONTROL, "output.codec"):
        return f"{key}: expected the same under every setting; remove it"
    return key_problem(key)


def _check_prompt(shot: Shot, base: Mapping[str, Any], changed: set[str]) -> None:
    """Raise InputError unless a prompt can be made under every setting."""
    for problem in shot.problems:
        raise InputError(f"{shot.where}: {problem}")
    for key in shot.values:
        if key in (SEED, MASK_SEED, NAME) or key.startswith("fields."):
            raise InputError(f"{shot.where}: {key}: a study sets it by prompt and take; remove it")
        if key in changed:
            raise InputError(f"{shot.where}: {key}: expected one value, got one here and one in settings; keep one")
    config = build_config(patch(base, shot.values), shot.where)
    if config.prompt is None or not config.prompt.strip():
        raise InputError(f"{shot.where}: expected a prompt, got none; write its text")


def write_run_file(design: Design, folder: Path) -> Path:
    """Write the run file of the study's batch and its shots into a folder, which need not be the study's; return it.

    Files that hold the same already are left as they are.
    """
    first = build_config(with_recipe(design.values)[0]).sampling.seed
    rows = [
        {
            NAME: f"{name}-{clip_name(number, take)}",
            **shot.values,
            **changes,
            **seeds_of(first, number, take),
            "fields.setting": name,
            "fields.clip": clip_name(number, take),
        }
        for number, shot in enumerate(design.prompts, 1)
        for take in range(1, design.seeds + 1)
        for name, changes in design.settings.items()
    ]
    values = {
        **design.values,
        "shots": SHOTS,
        "folder": str(design.folder.absolute()),
        "name": f"{{setting}}/{{clip}}{SUFFIX}",
    }
    _write(folder / SHOTS, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))
    _write(folder / RUN_FILE, yaml.safe_dump(values, allow_unicode=True, sort_keys=False, width=1000))
    return folder / RUN_FILE


def _read_clip_name(value: Any) -> str:
    """Return a name as `clip_name` makes it, which can be a part of a path."""
    if not isinstance(value, str) or not re.fullmatch(r"[0-9]{3,9}-[0-9]{1,4}", value):
        raise ValueError(f"expected a clip's name such as 003-1, got {show(value)}")
    return value


class ManifestClip(BaseModel):
    """A clip in the manifest."""

    name: Annotated[str, BeforeValidator(_read_clip_name)]
    prompt: Text


class Manifest(BaseModel):
    """What the folder of a study has to hold, for those who read it later; the first setting is the base."""

    study: Literal[1]
    settings: Annotated[dict[str, dict[str, Any]], BeforeValidator(read_settings), Field(min_length=2)]
    clips: Annotated[list[ManifestClip], Field(min_length=1)]


def write_manifest(design: Design) -> None:
    """Write the manifest into the study's folder."""
    clips = [ManifestClip(name=name, prompt=prompt) for name, prompt in design.clips()]
    text = Manifest(study=1, settings=design.settings, clips=clips).model_dump_json(indent=2)
    _write(design.folder / MANIFEST, f"{text}\n")


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a study's folder. Raises InputError if it cannot be used."""
    path = folder / MANIFEST
    try:
        return Manifest.model_validate(read_json(path, remedy="run the study again, which writes it"))
    except ValidationError as error:
        problem = describe_problems(error, Manifest)
        raise InputError(f"{path}: {problem}; run the study again, which writes it") from None


def _write(path: Path, text: str) -> None:
    assert not path.name.startswith(RESERVED)
    if path.is_file() and path.read_bytes() == text.encode("utf-8"):
        return
    with atomic_path(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))
