"""`s2video decode`: the videos of saved latents, with the sidecars that say so.

Everything about all files is checked before the first VAE is loaded. `plan_decoding` finds out what has to be written,
and `decode_all` writes it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from torch import Tensor

from ..config.output import CopyConfig
from ..config.run import RunConfig, build_config
from ..config.sections import FILE_SETTINGS
from ..config.text import describe_problems
from ..errors import InputError
from ..geometry import LatentShape
from ..media.checks import check_spec
from ..media.formats import Codec
from ..media.output_paths import OutputPaths, VideoFile
from ..media.sound import wav_of
from ..media.video import Target
from ..media.video_queue import write_videos_meanwhile
from ..models.checkpoint import Checkpoint, open_checkpoint
from ..models.family import CheckpointInfo
from ..models.limits import check_sound_rate
from ..parallel.mesh import Mesh, resolve_device
from ..records.identity import audio_digest
from ..records.sidecar import SavedLatents, latents_record, load_latents, machine, versions, why_not_made
from ..records.sidecar_model import Sidecar, find_sidecar, read_sidecar
from ..records.targets import container_metadata, sidecar_beside
from ..records.trust import config_from_file
from ..system.claims import Claims
from .decoders import Decoders

Say = Callable[[str], None]


@dataclass(frozen=True)
class Decoding:
    """Saved latents, and what has to be written of them.

    Attributes:
        latents: their file.
        digest, shape: SHA-256 of their values, and the shape of the picture's.
        facts: what their file says about the job.
        config: the settings to decode with; `output` has all files to write, the first as its own path.
        videos: these files, each with the sidecar to write, or None if nothing is known that one could say.
    """

    latents: Path
    digest: str
    shape: LatentShape
    facts: Mapping[str, Any]
    config: RunConfig
    checkpoint: Checkpoint
    videos: tuple[tuple[VideoFile, Mapping[str, Any] | None], ...]


def decode_latents(
    path: Path,
    output: Path,
    config: RunConfig | None = None,
    *,
    codec: Codec | Literal["auto"] = "auto",
    also: Sequence[CopyConfig] = (),
    own: Mapping[str, Any] | None = None,
    say: Say = lambda note: None,
) -> Path:
    """Make the video of latents that a run saved. Loads its VAE, and that of the sound, and nothing else.

    The sidecar of X.mov is X.mov.json. If the run's own sidecar X.json describes a video of this name, or if there is
    none and the run was to make it, X.json is written instead.

    Args:
        output: its suffix and `codec` decide the format, which need not be the run's. A timecode or sound that the
            format cannot hold is left out.
        config: model and output settings to use instead of those stored with the latents.
        also: more files of the same frames.
        own: settings that the user named otherwise, such as output.ffmpeg, by dotted key; None: not named.
        say: takes a line about each stored setting that is not used (see `records.trust`).

    Returns:
        The path of the file, or of a sequence's folder.

    Raises:
        InputError: latents or a checkpoint that cannot be used, or do not fit each other; or the sidecar of `output`
            describes a video of other latents or of another VAE.
    """
    planned = plan_decoding(path, output, config, codec=codec, also=also, own=own or {}, say=say)
    return next(decode_all([planned]))[0]


def plan_decoding(
    path: Path,
    output: Path,
    config: RunConfig | None,
    *,
    codec: Codec | Literal["auto"],
    also: Sequence[CopyConfig],
    own: Mapping[str, Any],
    say: Say,
) -> Decoding:
    """Read and check all that `decode_latents` needs, without the VAE. Writes nothing; takes and raises the same."""
    saved, own = load_latents(path), {key: value for key, value in own.items() if value is not None}
    may_download = config is not None or "model.path" in own
    config = _stored_config(saved, path, own, say) if config is None else config.patched(own)
    checkpoint = open_checkpoint(*config.model.source, may_download=may_download)
    info = checkpoint.info
    if saved.latents.shape[1] != info.latent_channels:
        raise InputError(
            f"{path}: expected {info.latent_channels} channels, as the VAE of {config.model.path} has, got "
            f"{saved.latents.shape[1]}: name the right model with --config"
        )
    settings = config.output.fitted(output, codec).model_copy(update={"also": tuple(also)})
    config = config.model_copy(update={"output": settings})
    shape = _picture_shape(saved.latents, info, path)
    if info.sound is not None:
        check_sound_rate(config, info.sound)
    height, width = (size * info.spatial_factor for size in (shape.height, shape.width))
    for spec in settings.specs():
        check_spec(spec, width, height)
    digest = latents_record(saved.latents).sha256
    record = _take_record(saved, path, digest)
    reason = "the file of latents is of an older version, and the sidecar of its take is not next to it"
    if record is not None and not _is_vae_of(checkpoint, record):
        record, reason = None, "its VAE is not the one that the latents were made for"
    if record is None and settings.signer is not None:
        raise InputError(
            f"output.credentials: {path} does not say how it was made, so there is nothing to sign: {reason}"
        )
    if record is None:
        say(f"{output}: gets no sidecar: {reason}")
    videos = tuple(_videos(path, digest, config, checkpoint, record))
    return Decoding(path, digest, shape, saved.facts, config, checkpoint, videos)


def _picture_shape(latents: Tensor, info: CheckpointInfo, path: Path) -> LatentShape:
    """Return the shape of the picture's latents; those of its sound follow them, if the model makes some."""
    _, channels, total, height, width = latents.shape
    if info.sound is None:
        return LatentShape(total, height, width)
    try:
        return LatentShape(info.sound.latent_frames(total, channels * height * width), height, width)
    except ValueError as error:
        raise InputError(f"{path}: {error}: name the right model with --config, or sample them again") from None


def decode_all(plans: Sequence[Decoding], *, resume: bool = False) -> Iterator[list[Path]]:
    """Decode saved latents one after the other, and yield the paths of the files of each when they are complete.

    Args:
        resume: leave files as they are that are unchanged, and of these latents and settings.

    Raises:
        InputError: the latents have changed since they were planned, or cannot be decoded.
    """
    in_use = _DecodersInUse()
    for plan in plans:
        files = [file for file, _ in plan.videos]
        if not (resume and all(_is_made(file, facts) for file, facts in plan.videos)):
            with Claims(OutputPaths(files[0].output, tuple(file.output for file in files[1:])).locks) as claim:
                _decode(plan, in_use, claim)
        yield [file.video for file in files]


def _decode(plan: Decoding, in_use: _DecodersInUse, claim: Claims) -> None:
    saved = load_latents(plan.latents)
    if latents_record(saved.latents).sha256 != plan.digest:
        raise InputError(f"{plan.latents}: changed while this command ran; start it again")
    start = time.monotonic()
    shown = {"prompt": "", "seed": "unknown", "model": plan.config.model.path, **plan.facts}
    shown["config"] = plan.config.model_dump(mode="json")
    decoders, targets = in_use.of(plan), []
    own = decoders.sound(saved.latents) if plan.config.output.audio is None else None
    with wav_of(own) as wav:
        for (file, facts), spec in zip(plan.videos, plan.config.output.specs(), strict=True):
            beside = None if facts is None else sidecar_beside(file, partial(_timed, facts, start, file, claim))
            targets.append(Target(file.output, spec, container_metadata(shown, spec.codec), beside, wav))
        write_videos_meanwhile(decoders.frames(saved.latents, plan.shape), targets)


def _timed(facts: Mapping[str, Any], start: float, file: VideoFile, claim: Claims) -> dict[str, Any]:
    """Return the facts of a file that was decoded since `start`, if no other program has written one of its name."""
    for path in (file.video, file.sidecar):
        claim.check_unchanged(path, "decode to another name")
    seconds = round(time.monotonic() - start, 3)
    return {**facts, "timings": {**facts["timings"], "decode_seconds": seconds}}


class _DecodersInUse:
    """Those of the VAE that was used last, for the latents that follow."""

    def __init__(self) -> None:
        self._source: object = None
        self._decoders: Decoders | None = None

    def of(self, plan: Decoding) -> Decoders:
        """Return the decoders of these latents. They load their VAE if it is another than before."""
        model, parallel = plan.config.model, plan.config.parallel
        device = resolve_device(model.device)
        source = (model.source, model.vae_dtype, device, parallel.decode)
        if self._decoders is None or self._source != source:
            self._decoders = None  # its memory is free before the next one is loaded
            self._decoders, self._source = Decoders(plan.checkpoint, plan.config, Mesh(device)), source
        return self._decoders


def _is_made(file: VideoFile, facts: Mapping[str, Any] | None) -> bool:
    if facts is None or why_not_made(file.sidecar, facts) is not None:
        return False
    sidecar = read_sidecar(file.sidecar)
    return sidecar.output.name == file.video.name and sidecar.latents.sha256 == facts["latents"]["sha256"]


def _videos(
    path: Path, digest: str, config: RunConfig, checkpoint: Checkpoint, record: Mapping[str, Any] | None
) -> Iterator[tuple[VideoFile, Mapping[str, Any] | None]]:
    """Yield each file with what its sidecar will say, except about the file itself."""
    take = path.name.removesuffix(".safetensors").removesuffix(".latents")
    output = Path(config.output.path)
    for number, settings in enumerate((config.output, *config.output.copies())):
        file = VideoFile.copy(output if number == 0 else Path(settings.path))
        master = OutputPaths(file.output).master
        described = _described(master)
        if described is not None:
            _check_described(master, described, digest, config, checkpoint)
        is_master = described is not None or (record is not None and _is_missing_master(master, path, record))
        if is_master:
            file, record_of_file = master, described.as_json() if described is not None else record
        else:
            record_of_file = record
        if record_of_file is None:
            yield file, None
            continue
        makes_sound = checkpoint.info.sound is not None and config.output.audio is None
        yield file, _content(record_of_file, settings, config, None if is_master else take, makes_sound)


def _content(
    record: Mapping[str, Any], settings: Any, config: RunConfig, take: str | None, makes_sound: bool
) -> dict[str, Any]:
    stored = build_config(record["config"], "the record of the take")
    changes = {"output": settings.model_dump(mode="json"), "model.vae_dtype": config.model.vae_dtype}
    written = stored.patched(changes)
    device = resolve_device(config.model.device)
    here = machine(device, record["machine"].get("attention") or "native")
    return {key: value for key, value in record.items() if key not in _OF_THE_FILE} | {
        "config": written.model_dump(mode="json"),
        "audio_sha256": audio_digest(written),
        "sound": "model" if makes_sound and written.output.audio is None else None,
        "take": take,
        "decoded": {"machine": here, "versions": versions()},
    }


_OF_THE_FILE = frozenset({"schema", "output", "record_sha256"})


def _described(master: VideoFile) -> Sidecar | None:
    """Return the sidecar of a take, if it is there and its video has this name."""
    try:
        sidecar = read_sidecar(master.sidecar)
    except InputError:
        return None
    return sidecar if sidecar.output.name == master.video.name else None


def _check_described(
    master: VideoFile, sidecar: Sidecar, digest: str, config: RunConfig, checkpoint: Checkpoint
) -> None:
    is_same_vae = _is_vae_of(checkpoint, sidecar.as_json())
    is_same_vae = is_same_vae and config.model.vae_dtype == sidecar.config.model.vae_dtype
    if digest != sidecar.latents.sha256 or not is_same_vae:
        raise InputError(
            f"output {master.output}: expected the latents and the VAE of the video that {master.sidecar} describes, "
            f"got {'others' if is_same_vae else 'another VAE'}; choose another name"
        )


def _is_missing_master(master: VideoFile, path: Path, record: Mapping[str, Any]) -> bool:
    """Whether a file is the video that the run of the latents was to make, and has not made."""
    same = (
        OutputPaths(master.output).latents.name == path.name and master.output.parent.resolve() == path.parent.resolve()
    )
    return same and not master.sidecar.exists() and Path(record["config"]["output"]["path"]).name == master.output.name


def _is_vae_of(checkpoint: Checkpoint, record: Mapping[str, Any]) -> bool:
    names = ("vae", "audio_vae")
    files = [file for name in names if name in checkpoint.family.components for file in checkpoint.files(name)]
    vae = {file.name: file.sha256 for file in files}
    return vae.items() <= dict(record["weights"]).items()


def _take_record(saved: SavedLatents, path: Path, digest: str) -> Mapping[str, Any] | None:
    """Return what is known about the run that made the latents, as a sidecar says it; None if too little is.

    Raises:
        InputError: the latents are not those that their own file says.
    """
    facts = saved.facts
    if "latents" in facts and "weights" in facts:
        try:
            record = Sidecar.from_facts(facts).as_json()
        except ValidationError as error:
            raise InputError(f"{path}: {describe_problems(error, Sidecar)}") from None
        if record["latents"]["sha256"] != digest:
            raise InputError(
                f"{path}: changed since it was written: expected SHA-256 {record['latents']['sha256']} of its values, "
                f"got {digest}; sample them again"
            )
        return record
    try:
        sidecar = read_sidecar(find_sidecar(path))
    except InputError:
        return None
    return sidecar.as_json() if sidecar.latents.sha256 == digest else None


def _stored_config(saved: SavedLatents, path: Path, own: Mapping[str, Any], say: Say) -> RunConfig:
    """The settings that the file of latents holds, as far as such a file may ask for them."""
    if "config" not in saved.facts:
        raise InputError(f"{path}: no settings are stored with these latents; name the model with --config")
    stored = build_config(saved.facts["config"], str(path))
    # decoding does not need these
    without_inputs: dict[str, Any] = {"image": None, "last_image": None, "model.lora": ()}
    without_inputs |= {"control.video": None, "control.mask": None, "control.references": ()}
    without_inputs |= {f"model.{name}": None for name in FILE_SETTINGS if name != "vae"}
    config, notes = config_from_file(stored.patched(without_inputs), path, own)
    for note in notes.values():
        say(note)
    return config
