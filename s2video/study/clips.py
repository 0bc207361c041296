"""The clips of a study, paired by name across settings: of a study's folder, or of folders of videos made elsewhere.

Knows files and sidecars, not pixels.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.marks import PIXELS, marked_settings, settings_that_name
from ..config.run import RunConfig
from ..errors import InputError
from ..records.integrity import UNCHANGED, video_state
from ..records.sidecar_model import Sidecar, find_sidecar, read_sidecar
from ..review.sequences import SUFFIXES
from ..system.text_file import read_text_file
from .design import MANIFEST, SUFFIX, read_manifest

_BASES = ("cfg", "base", "baseline", "plain")  # names of folders that are surely meant as the base
_TAKE = re.compile(r"(.+)-\d+")  # {prompt}-{index}, as VBench names videos


@dataclass(frozen=True)
class Video:
    """One clip under one setting; `sidecar` is None if there is none that belongs to this very file."""

    path: Path
    sidecar: Sidecar | None


@dataclass(frozen=True)
class Clip:
    """What is compared: the videos of one prompt and take, by setting; a setting is missing if it has none."""

    name: str
    prompt: str
    videos: Mapping[str, Video]


@dataclass(frozen=True)
class Study:
    """Clips under several settings, of which the first is the base.

    Attributes:
        changes: what each setting changes, by dotted key; empty for videos made elsewhere.
        notes: what a reader of the results should know, as sentences.
    """

    title: str
    settings: tuple[str, ...]
    clips: tuple[Clip, ...]
    changes: Mapping[str, Mapping[str, Any]]
    notes: tuple[str, ...] = ()

    @property
    def base(self) -> str:
        """The setting that the others are compared with."""
        return self.settings[0]

    @property
    def others(self) -> tuple[str, ...]:
        """The settings that are compared with the base."""
        return self.settings[1:]

    @property
    def num_prompts(self) -> int:
        """Number of different prompts."""
        return len({clip.prompt for clip in self.clips})

    def videos(self) -> Iterator[tuple[Clip, str, Video]]:
        """Yield every video there is, with its clip and its setting."""
        for clip in self.clips:
            for setting in self.settings:
                if setting in clip.videos:
                    yield clip, setting, clip.videos[setting]

    def missing(self, setting: str) -> int:
        """Return how many clips have no video under a setting."""
        return sum(setting not in clip.videos for clip in self.clips)


def read_study(folder: Path, *, base: str | None = None, prompts: Path | None = None) -> Study:
    """Return the study of a folder: one that `s2video study` made, or one with a folder of videos for each setting.

    Args:
        base: the setting that the others are compared with; None: the study's first one, or a folder called cfg.
        prompts: a CSV file with the columns video and prompt, for videos without sidecars.

    Raises:
        InputError: a folder without such videos, or a file that cannot be used.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: expected a study file (.yaml) or the folder of a study, found neither")
    if (folder / MANIFEST).is_file():
        if prompts is not None:
            raise InputError(f"--prompts: {folder} was made by s2video study and has its own prompts; leave it out")
        return _read_made(folder, base)
    inner = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    folders = {path.name: path for path in inner if _videos_of(path)}
    if len(folders) < 2:
        raise InputError(
            f"{folder}: expected {MANIFEST} of a study, or two or more folders of videos, one for each setting, with "
            f"the same file names; got {len(folders)} such folders"
        )
    return pair_folders(folders, base=base, prompts=prompts, title=folder.resolve().name)


def pair_folders(
    folders: Mapping[str, Path], *, base: str | None = None, prompts: Path | None = None, title: str = "study"
) -> Study:
    """Pair the videos of folders by file name. See `read_study`.

    The prompt of a clip is that of its sidecar or of `prompts`. Otherwise it is the file's name without a number at the
    end, as in {prompt}-{index}, or the whole name if this would make all clips one prompt.
    """
    found = {name: _videos_of(folder) for name, folder in folders.items()}
    for name, videos in found.items():
        if not videos:
            raise InputError(
                f"{folders[name]}: expected a folder of videos ({', '.join(SUFFIXES)}), found none; check the path"
            )
    settings = _ordered(list(found), base)
    names = sorted({name for videos in found.values() for name in videos})
    paired = [name for name in names if sum(name in videos for videos in found.values()) > 1]
    if not paired:
        raise InputError(
            f"{', '.join(map(str, folders.values()))}: expected videos with the same file name in two folders, got "
            f"none, such as {names[0]} in one only; rename them"
        )
    notes: list[str] = []
    clips = {
        name: {setting: _video(found[setting][name], notes) for setting in settings if name in found[setting]}
        for name in paired
    }
    if len(paired) < len(names):
        notes.append(f"{len(names) - len(paired)} videos are in one folder only and are left out")
    table = {} if prompts is None else read_table(prompts)
    if table and not table.keys() & clips.keys():
        raise InputError(
            f"--prompts {prompts}: expected names of the videos, such as {paired[0]}, got others, such as "
            f"{next(iter(table))}; correct the file"
        )
    texts = _prompts_of(clips, table)
    made = tuple(Clip(name, texts[name], videos) for name, videos in clips.items())
    return Study(title, settings, made, {name: {} for name in settings}, (*notes, *_unpaired(made)))


def _read_made(folder: Path, base: str | None) -> Study:
    manifest = read_manifest(folder)
    settings = _ordered(list(manifest.settings), base, first=True)
    notes: list[str] = []
    clips = []
    for row in manifest.clips:
        places = {setting: folder / setting / f"{row.name}{SUFFIX}" for setting in settings}
        videos = {name: _video(place, notes) for name, place in places.items() if place.is_file()}
        clips.append(Clip(row.name, row.prompt, videos))
    if not any(clip.videos for clip in clips):
        raise InputError(f"{folder}: expected videos of the study, got none so far; run the study first")
    notes += [*_unpaired(clips), *_made_otherwise(clips, manifest.settings)]
    return Study(folder.resolve().name, settings, tuple(clips), manifest.settings, tuple(notes))


def _videos_of(folder: Path) -> dict[str, Path]:
    """Return the videos directly in a folder, by file name without suffix."""
    if not folder.is_dir():
        return {}
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith("."):
            if path.stem in found:
                raise InputError(f"{path}: expected one video of this name, got {found[path.stem].name} too; keep one")
            found[path.stem] = path
    return found


def _video(path: Path, notes: list[str]) -> Video:
    try:
        sidecar = read_sidecar(find_sidecar(path))
    except InputError:
        return Video(path, None)
    if (state := video_state(sidecar.output, path)) != UNCHANGED:
        notes.append(f"{path}: {state}; what its sidecar says is not used")
        return Video(path, None)
    return Video(path, sidecar)


def _ordered(names: Sequence[str], base: str | None, *, first: bool = False) -> tuple[str, ...]:
    """Return the settings with the base first."""
    if base is None and not first:
        base = next((name for known in _BASES for name in names if name.casefold() == known), None)
    if base is None:
        return tuple(names)
    if base not in names:
        raise InputError(f"--base: expected one of {', '.join(names)}, got {base!r}")
    return (base, *(name for name in names if name != base))


def read_table(path: Path) -> dict[str, str]:
    """Return the prompt of each video in a CSV file with the columns video and prompt. Raises InputError."""
    rows = csv.reader(read_text_file(path, "--prompts").splitlines())
    try:
        header = [name.strip() for name in next(rows, [])]
        if header != ["video", "prompt"]:
            raise InputError(f"--prompts {path}: expected a header video,prompt, got {','.join(header)[:60]!r}")
        found = {}
        for number, row in enumerate(rows, 2):
            if row and len(row) != 2:
                raise InputError(f"--prompts {path}, line {number}: expected two cells, got {len(row)}; quote commas")
            if row:
                video = Path(row[0].strip())
                name = video.stem if video.suffix.lower() in SUFFIXES else video.name
                if name in found:
                    raise InputError(f"--prompts {path}, line {number}: expected {name} once, got it again; keep one")
                found[name] = row[1]
    except csv.Error as error:
        raise InputError(f"--prompts {path}: expected CSV, got an error ({error}); correct the file") from None
    return found


def _prompts_of(clips: Mapping[str, Mapping[str, Video]], given: Mapping[str, str]) -> dict[str, str]:
    """Return the prompt of each clip."""
    own = {}
    for name, videos in clips.items():
        said = next((video.sidecar.prompt for video in videos.values() if video.sidecar is not None), None)
        own[name] = given.get(name, said)
    nameless = [name for name, prompt in own.items() if prompt is None]
    stems = {name: match[1] if (match := _TAKE.fullmatch(name)) else name for name in nameless}
    if len(nameless) > 1 and len(set(stems.values())) == 1:
        stems = {name: name for name in nameless}
    return {name: stems[name] if prompt is None else prompt for name, prompt in own.items()}


def _made_otherwise(clips: Sequence[Clip], settings: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield which videos do not have what their setting changes, as after --keep-changed."""
    for setting, changes in settings.items():
        sidecars = {clip.name: clip.videos[setting].sidecar for clip in clips if setting in clip.videos}
        names = [
            name for name, sidecar in sidecars.items() if sidecar is not None and not _has(sidecar.config, changes)
        ]
        if names:
            yield f"{_some(names)}: the videos of {setting} were made before its settings were changed"


def _has(config: RunConfig, changes: Mapping[str, Any]) -> bool:
    """Whether a video has what a setting changes, as far as that decides its pixels and is not the name of a file."""
    values = {key: value for key, value in changes.items() if key not in settings_that_name()}
    try:
        changed = config.patched(values)
    except InputError:
        return False
    before, after = (marked_settings(each.model_dump(mode="json"), PIXELS) for each in (config, changed))
    return before == after


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:3])} and {len(names) - 3} more" if len(names) > 3 else ", ".join(names)


def _unpaired(clips: Sequence[Clip]) -> Iterator[str]:
    """Yield what sidecars say against the pairing."""
    differing: dict[str, list[str]] = {"prompt": [], "seed": []}
    for clip in clips:
        sidecars = [video.sidecar for video in clip.videos.values() if video.sidecar is not None]
        for field, names in differing.items():
            if len({getattr(sidecar, field) for sidecar in sidecars}) > 1:
                names.append(clip.name)
    for field, names in differing.items():
        if names:
            yield (
                f"{_some(names)}: the videos of a clip have different {field}s, so pairs differ by more "
                "than the setting"
            )
