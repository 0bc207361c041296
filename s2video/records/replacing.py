"""Which files a command may replace: one rule for all commands.

An existing file is replaced only if s2video made it and it has not changed since. A video's sidecar proves that by
its name and its digest. An empty file may be replaced, and so may the video of a run that was interrupted while it
wrote, because that run has kept this rule. Everything else is refused before anything is computed, unless the user says
--overwrite. A file that the command reads is never replaced. Imports neither torch nor diffusers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..config.run import RunConfig
from ..errors import InputError
from ..media.output_paths import OutputPaths, VideoFile
from ..models.weight_files import read_header
from ..system.files import user_path
from ..system.json_reader import parse_json
from .integrity import UNCHANGED, video_state
from .sidecar_model import METADATA_KEY, Sidecar, find_sidecar, read_sidecar

REMEDY = "choose another name, or replace it with --overwrite"


class Replaced(NamedTuple):
    """A video that a run will replace, and a sentence about it for the user."""

    video: Path
    sentence: str


def check_replacing(files: OutputPaths, *, overwrite: bool = False) -> Replaced | None:
    """Check that the files of a job may replace those that are there.

    Args:
        overwrite: the user wants everything replaced that has these names.

    Returns:
        What will be replaced, to be said before the run; None if there is no video yet.

    Raises:
        InputError: a file of one of these names is not known to be s2video's own, or was changed.
    """
    interrupted = was_interrupted(files)
    own = {file.video.name for file in files.videos}
    found = [
        check_replacing_video(file, overwrite=overwrite, was_interrupted=interrupted, own_names=own)
        for file in files.videos
    ]
    if not overwrite:
        for path in (files.latents, files.resume_point):
            if not _is_free(path) and _facts(path) is None:
                raise InputError(f"output {path}: expected no file, or one of s2video, got another one; {REMEDY}")
    replaced = [each for each in found if each is not None]
    return Replaced(replaced[0].video, "; ".join(each.sentence for each in replaced)) if replaced else None


def check_replacing_video(
    file: VideoFile,
    *,
    overwrite: bool = False,
    was_interrupted: bool = False,
    own_names: Iterable[str] = (),
) -> Replaced | None:
    """Check one video and its sidecar as `check_replacing` does.

    Args:
        was_interrupted: the run that wrote the video did not end.
        own_names: of videos that are replaced together with this one, so that their sidecars are not lost.
    """
    video = file.video
    if overwrite:
        return None if _is_free(video) else Replaced(video, f"{video} will be replaced (--overwrite)")
    _check_sidecar(file, {video.name, *own_names})
    if _is_free(video):
        return None
    sidecar = _sidecar_of(video)
    if sidecar is not None and (state := video_state(sidecar.output, video)) == UNCHANGED:
        return Replaced(video, f"{video}, which s2video made with seed {sidecar.seed}, will be replaced")
    if was_interrupted:
        return Replaced(video, f"{video} will be replaced: the run that wrote it was interrupted")
    got = f"one without its sidecar {file.sidecar.name}" if sidecar is None else f"one that is {state}"
    raise InputError(f"output {video}: expected no file, or an unchanged video of s2video, got {got}; {REMEDY}")


def sentences(replaced: Sequence[Replaced], most: int = 3) -> Iterator[str]:
    """Yield what to say about the videos that a run will replace: of many, one sentence."""
    if len(replaced) <= most:
        yield from (each.sentence for each in replaced)
    else:
        names = ", ".join(str(each.video) for each in replaced[:most])
        yield f"{len(replaced)} videos will be replaced: {names}, ..."


def check_unsigned(path: Path, is_signed: Callable[[Path], bool], *, overwrite: bool = False) -> None:
    """Raise InputError if a report (a sheet, a page, a comparison) would replace a file that is no unchanged report.

    Args:
        is_signed: whether s2video made the file at a path, and it has not been changed since.
    """
    if not overwrite and not _is_free(path) and not is_signed(path):
        raise InputError(f"output {path}: expected no file, or an unchanged one of s2video, got another one; {REMEDY}")


def check_inputs_kept(outputs: Iterable[Path], inputs: Mapping[str, Path | None]) -> None:
    """Raise InputError if a command would replace a file that it reads. --overwrite does not change that.

    Args:
        outputs: all files that it writes or removes.
        inputs: files that it reads, by what the user calls them; None: not given. A folder stands for all its
            files.
    """
    names: dict[object, str] = {}
    around: dict[object, str] = {}  # folders that hold an input, such as a sequence with the first image
    for name, given in inputs.items():
        if given is not None:
            path = Path(os.path.realpath(given))
            names |= dict.fromkeys((path, _identity(path)), name)
            around |= dict.fromkeys(path.parents, name)
    for output in outputs:
        if not os.path.lexists(output):
            continue
        written = Path(os.path.realpath(output))
        same = [names[key] for key in (written, *written.parents, _identity(written)) if key in names]
        if same or written in around:
            what = f"is the file of {same[0]}" if same else f"holds the file of {around[written]}"
            raise InputError(
                f"output {output}: expected a new name, but this {what}, which is read; choose another output path"
            )


def inputs_of(config: RunConfig) -> dict[str, Path | None]:
    """Return the files that a job reads, by setting."""
    named: dict[str, str | Path | None] = {
        "image": config.image,
        "last_image": config.last_image,
        "output.audio": config.output.audio,
        "output.ffmpeg": config.output.ffmpeg,
        "output.credentials": config.output.credentials,
        "output.credentials_key": config.output.credentials_key,
        "model.path": config.model.path,
    }
    named |= {f"{file.setting} ({file.path.name})": file.path for file in config.control.files}
    named |= {f"model.lora, number {number}": lora.path for number, lora in enumerate(config.model.lora, 1)}
    return {name: None if path is None else user_path(path) for name, path in named.items()}


def latents_were_kept(path: Path) -> bool:
    """Return whether there are latents that a run was asked to keep."""
    return _keeps_latents(_facts(path)) is True


def was_interrupted(files: OutputPaths) -> bool:
    """Return whether there are latents that a run saved before decoding, and removes when the video is complete."""
    return _keeps_latents(_facts(files.latents)) is False


def _is_free(path: Path) -> bool:
    """Whether nothing is lost if a file or a sequence's folder of this name is replaced."""
    try:
        return not any(path.iterdir()) if path.is_dir() else path.stat().st_size == 0
    except FileNotFoundError:
        return True


def _check_sidecar(file: VideoFile, names: Collection[str]) -> None:
    path = file.sidecar
    if _is_free(path):
        return
    try:
        name = read_sidecar(path).output.name
    except InputError:
        raise InputError(
            f"output {path}: expected no file, or the sidecar of {file.video.name}, got another one; {REMEDY}"
        ) from None
    if name not in names:
        raise InputError(
            f"output {path}: expected no file, or the sidecar of {file.video.name}, got that of {name}, which would "
            f"lose it; {REMEDY}"
        )


def _sidecar_of(video: Path) -> Sidecar | None:
    try:
        sidecar = read_sidecar(find_sidecar(video))
    except InputError:
        return None
    return sidecar if sidecar.output.name == video.name else None


def _facts(path: Path) -> dict[str, Any] | None:
    """What s2video has written into the header of a safetensors file; None if it has not made the file."""
    try:
        metadata = parse_json(read_header(path), str(path), max_bytes=100_000_000).get("__metadata__")
        facts = parse_json(metadata[METADATA_KEY], str(path))
    except (InputError, OSError, KeyError, TypeError, AttributeError):
        return None
    return facts if isinstance(facts, dict) else None


def _keeps_latents(facts: dict[str, Any] | None) -> bool | None:
    try:
        return bool(facts["config"]["output"]["keep_latents"]) if facts is not None else None
    except (KeyError, TypeError):
        return None


def _identity(path: Path) -> object:
    """Return what is equal for two names of one file, as hard links are, or names in another case on some systems."""
    try:
        found = os.stat(path)
    except OSError:
        return path
    return found.st_dev, found.st_ino
