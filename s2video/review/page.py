"""A run's folder as one HTML page: videos, prompts, seeds, settings, masks, failures.

Collects what the page shows; `templates/run.html` shows it. Videos are part of the page up to a size, and links beyond
it.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..batch.picks import JudgedTake
from ..batch.state_file import has_store
from ..batch.store import find_stores
from ..errors import InputError, S2VideoError
from ..media.signature import sign
from ..media.video import VideoInfo, probe_video
from ..records.integrity import UNCHANGED, video_state
from ..records.sidecar_model import MadeVideo, Sidecar
from ..system.files import atomic_path
from .groups import Settings, group_videos, settings_of, split_settings
from .html import data_url, relative_link, render
from .sheet import strip
from .take_files import TakeFiles, add_copies, files_of_takes

POSTER_WIDTH = 640  # px
SMALL = 256  # px; narrower videos are shown with their pixels as squares
MAX_NAMED = 4  # differing settings under a video of a group; with more, the table below it has the others
_NAMED_BY_TAKES = ("output.shot", "output.version")  # settings that a group of versions is called by
_KINDS = {".mp4": "video/mp4", ".webm": "video/webm"}  # what browsers play


class Failure(NamedTuple):
    """A video that was not made, and why."""

    name: str
    error: str


@dataclass(frozen=True)
class Media:
    """A video as a page shows it: in the page, linked with its first frame, or, if browsers do not play it, a still."""

    plays: bool
    embedded: bool
    source: str  # URL of the video, of the still if it does not play
    poster: str | None  # URL of the first frame
    width: int  # px
    height: int  # px
    num_frames: int
    fps: float
    has_sound: bool

    @property
    def look(self) -> str:
        """Name of its look in the style sheet."""
        return "small" if self.width < SMALL else "tall" if self.height > self.width else "large"


class Size(NamedTuple):
    """What a player has to know of a video: pixels, frames, rate, sound."""

    width: int
    height: int
    num_frames: int
    fps: float
    has_sound: bool


class MaskPicture(NamedTuple):
    """The blocks that sub passes left out, each (step, block) once."""

    num_steps: int
    num_blocks: int
    marks: list[tuple[int, int]]


class FileLink(NamedTuple):
    """A further file of a take; `is_played` if the page plays it in place of the master."""

    name: str
    link: str
    is_played: bool


@dataclass(frozen=True)
class Card:
    """One take with what is said about it. Name and link are those of its master."""

    name: str
    link: str
    media: Media
    files: list[FileLink]
    prompt: str
    seeds: str
    named: Settings  # under the video: what differs from the others of its group
    settings: Settings  # below it, as a table
    masks: MaskPicture | None
    record: Settings
    is_rejected: bool = False

    @property
    def side(self) -> str:
        """What it is called where two of its group are chosen."""
        return ", ".join(self.named.values()) or self.name


class Group(NamedTuple):
    """Videos that play in step, or a single one; `settings` are common to them and not to all of the page."""

    prompt: str
    seed: int | None
    cards: list[Card]
    settings: Settings
    shot: str = ""  # whose versions they are

    @property
    def has_wipe(self) -> bool:
        """Whether one can be wiped over another."""
        return len(self.cards) > 1 and all(card.media.plays for card in self.cards)


@dataclass(frozen=True)
class _Page:
    """The page that is made.

    Attributes:
        shared: settings that all videos have in common.
        takes: see `write_page`.
        files: of each take, by the path of its master.
    """

    path: Path
    embed_below: int
    shared: Settings
    takes: Mapping[Path, JudgedTake]
    files: Mapping[Path, TakeFiles]


def read_failures(folder: Path) -> list[Failure]:
    """Return the failures in the state of a batch, of all its shards; none if there is no batch in the folder."""
    if not has_store(folder):
        return []
    records = [record for store in find_stores(folder) for record in store.records()]
    return [Failure(r.name, f"{r.place}: {r.error}") for r in records if r.state == "failed"]


def write_page(
    videos: Sequence[MadeVideo],
    failures: Sequence[Failure],
    path: Path,
    *,
    title: str,
    embed_below: int = 8_000_000,
    others: Sequence[Path] = (),
    takes: Mapping[Path, JudgedTake] | None = None,
) -> None:
    """Write the page. A video that is missing, or was changed, although its sidecar exists, counts as failed.

    The files of one take are shown once: its master, or in its place another one that browsers play.

    Args:
        others: video files without a sidecar, shown by their names. One that cannot be read counts as failed.
        embed_below: bytes; a video file below this size is part of the page, others are linked, relative to it.
        takes: what videos of a batch are, by resolved path (`takes.takes_at`); the versions of a shot form a group.

    Raises:
        InputError: nothing to show, or a path that cannot be used.
    """
    states = [video_state(video.sidecar.output, video.path) for video in videos]
    failures = [
        *failures,
        *(
            Failure(video.path.name, f"its sidecar exists, the video is {state}")
            for video, state in zip(videos, states, strict=True)
            if state != UNCHANGED
        ),
    ]
    videos = [video for video, state in zip(videos, states, strict=True) if state == UNCHANGED]
    infos, unread = _probed(others)
    failures = [*failures, *unread]
    files = files_of_takes(videos)
    foreign = add_copies(files, infos)
    if not videos and not foreign and not failures:
        raise InputError(f"no videos for {path}: expected a folder of videos with their sidecars next to them")
    masters = [take.master for take in files]
    shared, _ = split_settings([settings_of(video.sidecar) for video in masters])
    page = _Page(path, embed_below, shared, takes or {}, {take.master.path: take for take in files})
    by_shot, rest = _versions(masters, page.takes)
    groups = [_group(members, page, shot) for shot, members in by_shot.items()]
    groups += [_group(members, page) for members in group_videos(rest)]
    cards = [_foreign(infos[other], page) for other in foreign]
    groups += [Group(card.name, None, [card], {}) for card in cards if isinstance(card, Card)]
    failures = [*failures, *(card for card in cards if isinstance(card, Failure))]
    text = render(
        "run.html",
        title=title,
        num_videos=sum(len(group.cards) for group in groups),
        failures=failures,
        groups=[group for group in groups if len(group.cards) > 1],
        singles=[group for group in groups if len(group.cards) == 1],
        shared=shared,
    )
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        sign(temporary)


def mask_picture(sidecar: Sidecar) -> MaskPicture | None:
    """Return what the picture of a video's masks shows; None without S²-Guidance."""
    if not sidecar.masks:
        return None
    marks = sorted({(mask.step, block) for mask in sidecar.masks for block in mask.dropped})
    return MaskPicture(sidecar.steps_taken, sidecar.num_blocks, marks)


def _versions(
    videos: Sequence[MadeVideo], takes: Mapping[Path, JudgedTake]
) -> tuple[dict[str, list[MadeVideo]], list[MadeVideo]]:
    """Return the videos of each shot with several versions, in order of shots and versions, and all other videos."""
    shots: dict[str, list[tuple[JudgedTake, MadeVideo]]] = {}
    for video in videos:
        if (take := takes.get(video.path.resolve())) is not None:
            shots.setdefault(take.take.shot, []).append((take, video))
    several = {shot: own for shot, own in shots.items() if len({take.take.version for take, _ in own}) > 1}
    ordered = sorted(several.items(), key=lambda item: item[1][0][0].take.shot_number)
    found = {
        shot: [video for _, video in sorted(own, key=lambda pair: (pair[0].take.version, pair[0].take.number))]
        for shot, own in ordered
    }
    grouped = {video.path for own in found.values() for video in own}
    return found, [video for video in videos if video.path not in grouped]


def _group(videos: Sequence[MadeVideo], page: _Page, shot: str = "") -> Group:
    known = {*page.shared, *(_NAMED_BY_TAKES if shot else ())}
    own = [{k: v for k, v in settings_of(video.sidecar).items() if k not in known} for video in videos]
    common, differing = split_settings(own) if len(videos) > 1 else ({}, own)
    is_single = len(videos) == 1
    cards = [_card(video, differs, page, is_single=is_single) for video, differs in zip(videos, differing, strict=True)]
    first = videos[0].sidecar
    seed = first.seed if all(video.sidecar.seed == first.seed for video in videos) else None
    return Group(first.prompt, seed, cards, common, shot)


def _card(video: MadeVideo, differs: Settings, page: _Page, *, is_single: bool) -> Card:
    sidecar, take = video.sidecar, page.takes.get(video.path.resolve())
    files = page.files[video.path]
    said = [] if take is None else [take.title]
    if take is not None and take.pick is not None and take.pick.note:
        said.append(take.pick.note)
    seeds = [*said, f"seed {sidecar.seed}"] if is_single or said else []
    title = {} if take is None or is_single else {"version": " · ".join(filter(None, [take.take.label, take.words]))}
    if sidecar.masks and sidecar.mask_seed != sidecar.seed:
        seeds.append(f"masks {sidecar.mask_seed}")
    num_named = 0 if is_single else MAX_NAMED
    record = {f"seconds: {key.removesuffix('_seconds')}": f"{value:g}" for key, value in sidecar.timings.items()}
    record |= {f"image {number}": image.path for number, image in enumerate(sidecar.images, 1)}
    record |= {f"control {number}, {part.kind}": part.path for number, part in enumerate(sidecar.control, 1)}
    record |= {"SHA-256 of the file": sidecar.output.sha256, "SHA-256 of the latents": sidecar.latents.sha256}
    return Card(
        name=video.path.name,
        link=relative_link(video.path, page.path),
        media=media_of(files.played, _size_of(files), page.path, page.embed_below),
        files=[
            FileLink(other.name, relative_link(other, page.path), other == files.played) for other in files.others()
        ],
        prompt=sidecar.prompt,
        seeds=", ".join(seeds),
        named=title | dict(list(differs.items())[:num_named]),
        settings=dict(list(differs.items())[num_named:]),
        masks=mask_picture(sidecar),
        record=record,
        is_rejected=take is not None and take.verdict == "rejected",
    )


def _size_of(files: TakeFiles) -> Size:
    config = files.master.sidecar.config
    sampling = config.sampling
    return Size(sampling.width, sampling.height, sampling.num_frames, float(config.output.fps), files.has_sound)


def _probed(others: Sequence[Path]) -> tuple[dict[Path, VideoInfo], list[Failure]]:
    """Return what the files without sidecars are, and those that cannot be read."""
    found, failures = {}, []
    for path in others:
        try:
            found[path] = probe_video(path)
        except (InputError, S2VideoError) as error:
            failures.append(_unreadable(path, error))
    return found, failures


def _unreadable(path: Path, error: Exception) -> Failure:
    return Failure(path.name, " ".join(str(error).split()))


def _foreign(info: VideoInfo, page: _Page) -> Card | Failure:
    """Return the card of a video without a sidecar, with what the file itself says."""
    path = info.path
    size = Size(info.width, info.height, info.num_frames, float(info.fps), has_sound=True)
    try:
        media = media_of(path, size, page.path, page.embed_below)
    except (InputError, S2VideoError) as error:
        return _unreadable(path, error)
    about = {"size": f"{info.width}x{info.height} px", "frames": str(info.num_frames), "fps": str(info.fps)}
    return Card(
        name=path.name,
        link=relative_link(path, page.path),
        media=media,
        files=[],
        prompt=path.name,
        seeds="no sidecar",
        named={},
        settings=about,
        masks=None,
        record={},
    )


def media_of(path: Path, size: Size, page: Path, embed_below: int) -> Media:
    """Return a video as the file `page` shows it.

    Args:
        embed_below: bytes; a smaller file is part of the page, a larger one is linked.

    Raises:
        InputError: a file whose first frame is needed and cannot be read.
    """
    kind = _KINDS.get(path.suffix)
    embedded = kind is not None and path.stat().st_size < embed_below
    poster = None if embedded else _first_frame(path, min(POSTER_WIDTH, size.width))
    if kind is None:
        source, poster = poster or "", None
    else:
        source = data_url(kind, path.read_bytes()) if embedded else relative_link(path, page)
    return Media(
        plays=kind is not None,
        embedded=embedded,
        source=source,
        poster=poster,
        width=size.width,
        height=size.height,
        num_frames=size.num_frames,
        fps=size.fps,
        has_sound=size.has_sound,
    )


def _first_frame(path: Path, width: int) -> str:
    still = io.BytesIO()
    strip(path, columns=1, width=width).save(still, "JPEG", quality=85)
    return data_url("image/jpeg", still.getvalue())
