"""What is written of a job: each of its files with its format, its metadata, and its sidecar."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..config.output import OutputConfig
from ..config.run import RunConfig
from ..media.formats import Codec
from ..media.output_paths import OutputPaths, VideoFile
from ..media.video import Target
from ..system.files import Beside
from ..version import __version__
from .identity import audio_digest
from .origin import signed
from .sidecar import make_sidecar

MAX_METADATA_BYTES = 8_000  # of one text in the container


def sidecar_beside(file: VideoFile, facts: Callable[[], Mapping[str, Any]]) -> Beside:
    """Return the sidecar of a video, to be written together with it (see `system.files.atomic_path`).

    Args:
        facts: called when the video is complete.
    """

    def make(made: Path) -> dict[str, Any]:
        content = signed(made, file.output.suffix, facts())  # which changes the file, so before its digest
        return make_sidecar(content, made, name=file.video.name).as_json()

    return Beside(file.sidecar, make)


def targets_of(
    job: RunConfig,
    facts: Mapping[str, Any],
    all_facts: Callable[[VideoFile], Mapping[str, Any]],
    *,
    sound: Path | None = None,
) -> list[Target]:
    """Return what to write of a job, for `media.video.write_videos`: its video, then more files of the same frames.

    Args:
        facts: at least prompt, seed and model, for the files' metadata.
        all_facts: returns the content of the master's sidecar; called for each file when it is complete.
        sound: a file with the model's own sound, which a sound in `output.audio` replaces.
    """
    files = OutputPaths.of(job)

    def copy_facts(file: VideoFile, output: OutputConfig) -> Mapping[str, Any]:
        own = job.model_copy(update={"output": output})
        changed = {"config": own.model_dump(mode="json"), "audio_sha256": audio_digest(own)}
        return {**all_facts(file), **changed, "take": files.sidecar.stem}

    contents = [partial(all_facts, files.master)]
    contents += [partial(copy_facts, *each) for each in zip(files.copies, job.output.copies(), strict=True)]
    targets = []
    for file, output, content in zip(files.videos, (job.output, *job.output.copies()), contents, strict=True):
        spec = output.spec(file.output)
        metadata = container_metadata(facts, spec.codec)
        own = sound if job.output.audio is None else None
        targets.append(Target(file.output, spec, metadata, sidecar_beside(file, content), own))
    return targets


def container_metadata(facts: Mapping[str, Any], codec: Codec) -> dict[str, str]:
    """Return the metadata for the video file, with the standard keys of its format, so that other programs show it.

    A text of over 8,000 bytes is shortened; the sidecar has all of it.
    """
    maker = f"s2video {__version__}: {facts['model']}"
    output = (facts.get("config") or {}).get("output") or {}
    named = {key: output.get(key) or "" for key in ("shot", "version", "reel")}
    if codec == "exr":
        texts = {"prompt": facts["prompt"], "seed": str(facts["seed"]), "ImageDescription": maker}
        # readers take "version" for that of the format, and hide it
        texts |= {"shot": named["shot"], "shotVersion": named["version"], "reelName": named["reel"]}
        texts = {key: text for key, text in texts.items() if text}
    elif codec == "png":
        texts = {"Title": facts["prompt"], "Comment": f"{maker}, seed {facts['seed']}", "Software": maker}
        texts |= {"FrameRate": str(output.get("fps", ""))}
        texts |= {"Shot": named["shot"], "ShotVersion": named["version"], "Reel": named["reel"]}
    else:
        texts = {"title": facts["prompt"], "comment": f"{maker}, seed {facts['seed']}"}
    return {key: _shortened(text) for key, text in texts.items()}


def _shortened(text: str) -> str:
    encoded = text.encode()
    if len(encoded) <= MAX_METADATA_BYTES:
        return text
    return encoded[: MAX_METADATA_BYTES - len("…".encode())].decode(errors="ignore") + "…"
