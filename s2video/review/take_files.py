"""The files of each take in a folder: its master, other files of the same frames, and copies; and which one to play.

Browsers do not play masters such as ProRes or EXR. Knows no page.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..media.signature import is_signed
from ..media.video import VideoInfo
from ..records.sidecar_model import MadeVideo
from .copies import source_of


@dataclass
class TakeFiles:
    """The files of one take.

    Attributes:
        master: the video with the record of the take; or a further file whose master is not here.
        more: files of the same frames, with sidecars of their own.
        copies: made by `s2video copies`.
        proxies: those of the copies that show the frames and nothing else.
    """

    master: MadeVideo
    more: list[MadeVideo] = field(default_factory=list)
    copies: list[Path] = field(default_factory=list)
    proxies: list[Path] = field(default_factory=list)

    @property
    def played(self) -> Path:
        """The file that most browsers play: H.264 if there is one, else another MP4, else the master."""
        videos = [self.master, *self.more]
        everywhere = [*(video.path for video in videos if _is_h264(video)), *self.proxies]
        somewhere = [video.path for video in videos if video.path.suffix == ".mp4"]
        return next(iter([*everywhere, *somewhere]), self.master.path)

    @property
    def has_sound(self) -> bool:
        """Whether the played file has."""
        by_path = {video.path: video for video in (self.master, *self.more)}
        video = by_path.get(self.played)
        if video is None:
            return False
        return video.sidecar.config.output.audio is not None or video.sidecar.sound is not None

    def others(self) -> Iterator[Path]:
        """Yield all files but the master."""
        yield from (video.path for video in self.more)
        yield from self.copies


def files_of_takes(videos: Sequence[MadeVideo]) -> list[TakeFiles]:
    """Put the files of each take together, in the order of their masters.

    A further file belongs to a master of its take's name with the same latents. If several folders have one, it is the
    one in the folder of the file, or else the first.
    """
    found = {video.path: TakeFiles(video) for video in videos if video.sidecar.take is None}
    masters: dict[tuple[str, str], list[TakeFiles]] = {}
    for take in found.values():
        masters.setdefault((_name(take.master), take.master.sidecar.latents.sha256), []).append(take)
    for video in videos:
        if video.sidecar.take is None:
            continue
        candidates = masters.get((video.sidecar.take, video.sidecar.latents.sha256), [])
        nearest = [take for take in candidates if take.master.path.parent == video.path.parent]
        if candidates:
            (nearest or candidates)[0].more.append(video)
        else:
            found[video.path] = TakeFiles(video)
    return list(found.values())


def add_copies(takes: Sequence[TakeFiles], others: Mapping[Path, VideoInfo]) -> list[Path]:
    """Add the copies among `others`, which have no sidecars, to their takes. Return those that are none.

    A copy that was changed since it was made is none.
    """
    by_digest = {video.sidecar.output.sha256: take for take in takes for video in (take.master, *take.more)}
    rest = []
    for path, info in others.items():
        source = source_of(info)
        take = None if source is None else by_digest.get(source.sha256)
        if source is None or take is None or not is_signed(path):
            rest.append(path)
            continue
        take.copies.append(path)
        if source.is_plain:
            take.proxies.append(path)
    return rest


def _name(master: MadeVideo) -> str:
    """Return the name of a take by its master: the file's without its suffix, or that of a sequence's folder."""
    path = master.path
    return path.name if path.is_dir() else path.stem


def _is_h264(video: MadeVideo) -> bool:
    return video.path.suffix == ".mp4" and video.sidecar.config.output.codec in ("auto", "h264")
