"""Videos with what is known about them: what they are in their batch, and what their sidecars say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..batch.picks import JudgedTake, read_takes, shots_of
from ..batch.run_file import RESERVED
from ..errors import InputError
from ..records.integrity import UNCHANGED, video_state
from ..records.sidecar_model import find_sidecar, read_sidecar, videos_in
from .copies import Facts, facts_of


class ToldVideos(NamedTuple):
    """Videos with the facts of their copies, and sentences for the user."""

    videos: list[tuple[Path, Facts]]
    notes: list[str]


def told_videos(paths: Sequence[Path], *, everything: bool) -> ToldVideos:
    """Return the videos at these paths.

    Args:
        paths: videos; or folders: of a batch, whose used takes count, or of other videos with sidecars.
        everything: of a batch all takes that are made.

    Raises:
        InputError: a path that is neither, or no video at all.
    """
    told = ToldVideos([], [])
    for path in paths:
        is_sequence = path.is_dir() and bool(path.name) and path.with_name(f"{path.name}.json").is_file()
        if path.is_dir() and not is_sequence:
            if any(path.glob(f"{RESERVED}*sqlite")):
                told.videos.extend(_of_batch(path, told.notes, everything=everything))
            else:
                told.videos.extend((video.path, _facts(video.path, None, told.notes)) for video in videos_in(path))
        elif path.exists():
            told.videos.append((path, _facts(path, takes_at(path.parent).get(path.resolve()), told.notes)))
        else:
            raise InputError(f"{path}: expected a video, or a folder of videos, found none; check the path")
    if not told.videos:
        raise InputError(f"{paths[0]}: expected videos with their sidecars, found none; check the path")
    return told


def takes_at(folder: Path) -> Mapping[Path, JudgedTake]:
    """Return the takes of the batch in a folder by the resolved paths of their videos; none if there is no batch."""
    if not any(folder.glob(f"{RESERVED}*sqlite")):
        return {}
    return {path.resolve(): take for take in read_takes(folder) if (path := _video(folder, take)) is not None}


def _of_batch(folder: Path, notes: list[str], *, everything: bool) -> Iterator[tuple[Path, Facts]]:
    for shot in shots_of(read_takes(folder)):
        used = [shot.used] if shot.used is not None else []
        for take in (each for each in shot.takes if each.is_made) if everything else used:
            if (video := _video(folder, take)) is not None and video.exists():
                yield video, _facts(video, take, notes)
            else:
                notes.append(f"{shot.name}: {take.name} is missing; it gets no copy")
        if not everything and not used:
            notes.append(f"{shot.name}: no take of it is usable; it gets no copy")


def _video(folder: Path, take: JudgedTake) -> Path | None:
    """The video of a take where the batch is now; None without a sidecar."""
    sidecar = (folder / take.name).with_suffix(".json")
    try:
        return sidecar.with_name(read_sidecar(sidecar).output.name)
    except InputError:
        return None


def _facts(video: Path, take: JudgedTake | None, notes: list[str]) -> Facts:
    try:
        sidecar = read_sidecar(find_sidecar(video))
    except InputError:
        return Facts(video.stem, "no sidecar", (("video", video.name),))
    if (state := video_state(sidecar.output, video)) != UNCHANGED:
        notes.append(f"{video}: {state}; its copy says nothing of its sidecar")
        return Facts(video.stem, "changed since it was made", (("video", video.name),))
    if take is None:
        return facts_of(video, sidecar)
    return facts_of(video, sidecar, shot=take.take.shot, version=take.take.label, verdict=take.words)
