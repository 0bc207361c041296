"""Whether the files that a sidecar describes, and the sidecar itself, are still as they were written.

Imports neither torch nor diffusers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from ..errors import InputError
from ..system.files import sha256, size
from ..system.json_reader import parse_json, read_json
from .sidecar_model import METADATA_KEY, LatentsRecord, OutputRecord, Sidecar, has_own_digest, read_sidecar

UNCHANGED = "unchanged"


def video_of(file: Path, path: Path, sidecar: Sidecar) -> Path:
    """Return the video that is meant by `file`, which is a video, its latents, or the sidecar at `path`.

    A video is meant by its own name even if the sidecar names another: then it was renamed, or is another one.
    """
    is_record = file.name == path.name or file.name.endswith(".safetensors")
    return path.with_name(sidecar.output.name) if is_record else file


def problems(path: Path, sidecar: Sidecar, video: Path) -> Iterator[str]:
    """Yield a sentence for each of the files of a video that is not as its sidecar says.

    Args:
        path: X.json, which `sidecar` was read from.
        video: from `video_of`.
    """
    if not is_as_written(path):
        yield f"{path}: changed since it was written: its record_sha256 is another"
    if (state := video_state(sidecar.output, video)) != UNCHANGED:
        other = "" if video.name == sidecar.output.name else f" (the sidecar is of {sidecar.output.name})"
        yield f"{video}: {state}{other}"
    if (state := take_state(sidecar, path.parent)) != UNCHANGED:
        yield f"{video}: {state}"
        return
    latents = saved_latents(video, sidecar)
    if latents.exists() and (state := latents_state(sidecar.latents, latents)) != UNCHANGED:
        yield f"{latents}: {state}"


def is_as_written(path: Path) -> bool:
    """Return whether the sidecar at `path` has the digest of its own content; older sidecars have none."""
    return has_own_digest(read_json(path))


def latents_of(path: Path) -> Path:
    """Return the name of the saved latents next to the sidecar X.json of a take, which need not exist."""
    return path.with_suffix(".latents.safetensors")


def saved_latents(video: Path, sidecar: Sidecar) -> Path:
    """Return the name of the saved latents of a take, which need not exist, next to any of its videos."""
    own = video.name if video.is_dir() else video.stem
    return video.with_name(f"{own if sidecar.take is None else sidecar.take}.latents.safetensors")


def take_state(sidecar: Sidecar, folder: Path) -> str:
    """Return UNCHANGED unless the take of a further file was made again, so that its master in `folder` is another.

    A master, and a file without the record of its take next to it, are unchanged.
    """
    path = folder / f"{sidecar.take}.json"
    if sidecar.take is None or not path.is_file():
        return UNCHANGED
    try:
        master = read_sidecar(path)
    except InputError as error:
        return f"its take cannot be read ({error})"
    if master.take is None and master.latents.sha256 != sidecar.latents.sha256:
        return f"of an earlier take: {path} has other latents; s2video decode makes it again from the present ones"
    return UNCHANGED


def video_state(record: OutputRecord, video: Path) -> str:
    """Return UNCHANGED, or in words how a file, or the frames of a sequence's folder, differ from their record."""
    try:
        if (got := size(video)) != record.bytes:
            return f"changed since it was written: expected {record.bytes} bytes, got {got}"
        digest = sha256(video)
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if digest != record.sha256:
        return f"changed since it was written: expected SHA-256 {record.sha256}, got {digest}"
    return UNCHANGED


def latents_state(record: LatentsRecord, path: Path) -> str:
    """Return UNCHANGED, or in words how a file of latents differs from its record."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            values = file.get_tensor("latents")
            facts = parse_json((file.metadata() or {}).get(METADATA_KEY, "{}"), str(path))
    except FileNotFoundError:
        return "missing"
    except InputError:
        facts = None
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        return f"changed since it was written: not the latents of a run ({error})"
    digest = hashlib.sha256(values.astype("<f4").tobytes()).hexdigest()
    if tuple(values.shape) != record.shape or digest != record.sha256:
        return f"changed since it was written: expected SHA-256 {record.sha256} of its values, got {digest}"
    if not isinstance(facts, dict) or not has_own_digest(facts):
        return "changed since it was written: what it says about its run is not as it was"
    return UNCHANGED
