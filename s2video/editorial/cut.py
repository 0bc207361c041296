"""The cut of a batch: for each shot the take that is used, with its media, rate, timecode and handles.

Knows batches and sidecars, no format of timelines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from ..batch.picks import JudgedTake, ShotTakes, read_takes, shots_of
from ..config.run import build_config
from ..errors import InputError
from ..media.formats import FORMATS, codec_for
from ..media.output_paths import OutputPaths
from ..media.timecode import Timecode
from ..records.integrity import UNCHANGED, video_state
from ..records.sidecar_model import Sidecar, read_sidecar
from ..system.json_reader import parse_json
from ..system.terminal import printable


@dataclass(frozen=True)
class Media:
    """A finished video as an editor sees it.

    Attributes:
        path: absolute; the file, or the folder of a sequence.
        fps: exact.
        frames: number of frames.
        start: frame number of the first frame: by its timecode, or else of its first file, or else 0.
        timecode: of the first frame; None: it has none.
        first_number: number of the first file of a sequence; None: it is one file.
        facts: from its sidecar, as JSON.
    """

    path: Path
    fps: Fraction
    width: int
    height: int
    frames: int
    start: int
    timecode: str | None
    first_number: int | None
    has_sound: bool
    facts: dict[str, Any]


@dataclass(frozen=True)
class CutShot:
    """A shot in the cut.

    Attributes:
        media: of the take that is used; None if there is none.
        why: why there is none.
        frames: that the shot's video has, or would have.
        notes: sentences for the user.
    """

    name: str
    media: Media | None
    why: str
    frames: int
    fps: Fraction
    notes: tuple[str, ...] = ()


def read_cut(folder: Path) -> list[CutShot]:
    """Return the shots of a batch, in the order of its run file.

    Raises:
        InputError: no batch in the folder, or no shot of it has a video.
    """
    shots = [_shot(folder, shot) for shot in shots_of(read_takes(folder))]
    if not any(shot.media is not None for shot in shots):
        raise InputError(f"{folder}: expected a batch with videos that are made, got none; run s2video batch first")
    return shots


def _shot(folder: Path, shot: ShotTakes) -> CutShot:
    named = shot.used or shot.takes[-1]
    source = f"the settings of {named.name}"
    config = build_config(parse_json(named.record.config, source), source)
    frames, fps = config.sampling.num_frames, config.output.fps
    if shot.used is None:
        states = {each.words or each.record.state for each in shot.takes}
        return CutShot(shot.name, None, f"no take of it is usable ({', '.join(sorted(states))})", frames, fps)
    notes = []
    # where the batch is now: it may have been moved since
    output = folder / Path(shot.used.name)
    files = OutputPaths(output)
    try:
        sidecar = read_sidecar(files.sidecar)
    except InputError as error:
        return CutShot(shot.name, None, str(error), frames, fps)
    if (state := video_state(sidecar.output, files.video)) != UNCHANGED:
        if not files.video.exists():
            return CutShot(shot.name, None, f"{files.video} is missing", frames, fps)
        notes.append(f"{files.video}: {state}; the cut uses it as it is")
    if shot.used.is_stale:
        notes.append(f"{shot.used.name} was picked, and made again with other content since")
    rivals = [o for o in shot.takes if o.is_made and o.take.version == shot.used.take.version and o != shot.used]
    if rivals and shot.used.verdict != "picked":
        notes.append(f"{shot.name}: {len(rivals) + 1} takes of {shot.used.take.label}, none picked: {shot.used.name}")
    media = _media(files, sidecar, shot.used)
    return CutShot(shot.name, media, "", media.frames, media.fps, tuple(map(printable, notes)))


def _media(files: OutputPaths, sidecar: Sidecar, take: JudgedTake) -> Media:
    output, sampling = sidecar.config.output, sidecar.config.sampling
    style = FORMATS[codec_for(files.output, output.codec)]
    timecode = output.timecode if style.has_timecode else None
    first = output.start_number if style.is_sequence else None
    start = Timecode.parse(timecode, output.fps).count if timecode is not None else (first or 0)
    return Media(
        path=files.video.resolve(),
        fps=output.fps,
        width=sampling.width,
        height=sampling.height,
        frames=sampling.num_frames,
        start=start,
        timecode=timecode,
        first_number=first,
        has_sound=(output.audio or sidecar.sound) is not None and style.sound is not None,
        facts=_facts(sidecar, take),
    )


def _facts(sidecar: Sidecar, take: JudgedTake) -> dict[str, Any]:
    """Return what a clip's metadata says about its video, as JSON."""
    guidance, sampling = sidecar.config.guidance, sidecar.config.sampling
    return {
        "shot": take.take.shot,
        "version": take.take.version,
        "take": take.name,
        "verdict": take.words or None,
        "note": take.pick.note if take.pick is not None else "",
        "prompt": sidecar.prompt,
        "negative_prompt": sidecar.negative_prompt,
        "seed": sidecar.seed,
        "mask_seed": sidecar.mask_seed,
        "model": sidecar.model,
        "cfg_scale": guidance.cfg_scale,
        "s2_scale": guidance.s2_scale,
        "num_inference_steps": sampling.num_inference_steps,
        "width": sampling.width,
        "height": sampling.height,
        "num_frames": sampling.num_frames,
        "fps": str(sidecar.config.output.fps),
        "sidecar": take.name.rpartition(".")[0] + ".json",
        "sha256": sidecar.output.sha256,
        "latents_sha256": sidecar.latents.sha256,
        "s2video": sidecar.versions.get("s2video", ""),
    }


def common_rate(shots: Sequence[CutShot]) -> Fraction:
    """Return the frame rate of all shots. Raises InputError if they differ."""
    first = shots[0]
    for shot in shots:
        if shot.fps != first.fps:
            raise InputError(
                f"timeline: expected one frame rate, got {first.fps} ({first.name}) and {shot.fps} ({shot.name}); make "
                "them again with one output.fps"
            )
    return first.fps
