"""Videos with what is known about them: what they are in their batch, and what their sidecars say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from ..batch.picks import JudgedTake, read_takes, shots_of
from ..batch.state_file import has_store
from ..errors import InputError
from ..records.integrity import UNCHANGED, video_state
from ..records.sidecar_model import find_sidecar, is_sequence, read_sidecar, videos_in
from .copies import Facts, facts_of


class FoundVideos(NamedTuple):
    """Videos with the facts of their copies, and sentences for the user."""

    videos: list[tuple[Path, Facts]]
    notes: list[str]


def find_videos(paths: Sequence[Path], *, everything: bool) -> FoundVideos:
    """Return the videos at these paths.

    Args:
        paths: videos; or folders: of a batch, whose used takes count, or of other takes with sidecars.
        everything: of a batch all takes that are made.

    Raises:
        InputError: a path that is neither, or no video at all.
    """
    found = FoundVideos([], [])
    takes_in = cache(takes_at)  # many videos can be of one folder
    for path in paths:
        if path.is_dir() and not is_sequence(path):
            candidates = _of_batch(path, found.notes, everything=everything) if has_store(path) else _in_folder(path)
            for video, take in candidates:
                if video.exists():
                    found.videos.append((video, _facts(video, take, found.notes)))
                else:
                    found.notes.append(f"{video} is missing; it gets no copy")
        elif path.exists():
            found.videos.append((path, _facts(path, takes_in(path.parent).get(path.resolve()), found.notes)))
        else:
            raise InputError(f"{path}: expected a video, or a folder of videos, found none; check the path")
    if not found.videos:
        raise InputError(f"{paths[0]}: expected videos with their sidecars, found none; check the path")
    return found


def takes_at(folder: Path) -> Mapping[Path, JudgedTake]:
    """Return the takes of the batch in a folder by the resolved paths of their videos; none if there is no batch."""
    if not has_store(folder):
        return {}
    return {path.resolve(): take for take in read_takes(folder) if (path := _video(folder, take)) is not None}


def _in_folder(folder: Path) -> Iterator[tuple[Path, None]]:
    """Yield the video of each take; other files of the same frames would give the same copy."""
    yield from ((made.path, None) for made in videos_in(folder) if made.sidecar.take is None)


def _of_batch(folder: Path, notes: list[str], *, everything: bool) -> Iterator[tuple[Path, JudgedTake]]:
    for shot in shots_of(read_takes(folder)):
        used = [shot.used] if shot.used is not None else []
        if not everything and not used:
            notes.append(f"{shot.name}: no take of it is usable; it gets no copy")
        for take in (each for each in shot.takes if each.is_made) if everything else used:
            if (video := _video(folder, take)) is not None:
                yield video, take
            else:
                notes.append(f"{shot.name}: {take.name} has no sidecar; it gets no copy")


def _video(folder: Path, take: JudgedTake) -> Path | None:
    """Return the video of a take where the batch is now; None without a sidecar."""
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
