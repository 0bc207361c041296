"""`s2video reproduce`: a video made again from its sidecar, and whether it is the same.

On the same ranks, machine and versions the latents must be the same to the bit; otherwise rounding can differ, and the
values that the sidecar keeps must agree within `TOLERANCE`. Then the frames of the file are compared with frames that
are decoded again (`frames.py`), because right latents do not show that they were decoded right.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import InputError, S2VideoError
from ..records.sidecar_model import LatentsRecord, Sidecar
from ..records.trust import FromFile, config_from_file

if TYPE_CHECKING:  # the command line answers bad input before torch is imported
    from ..engine.engine import Engine
    from ..engine.make_video import Denoised

TOLERANCE = 1e-3


class Remade(NamedTuple):
    """A second run.

    Attributes:
        latents: its latents.
        circumstances: what computed them: sections named as in the sidecar.
        frames: in words, how the frames of the file agree with it; None if they were not compared.
    """

    latents: LatentsRecord
    circumstances: dict[str, dict[str, Any]]
    frames: str | None = None


def job_again(
    sidecar: Sidecar, *, world_size: int, own: Mapping[str, Any] | None = None, source: object = "the sidecar"
) -> FromFile:
    """Return the job that makes the video again: on the recorded mesh, or, on other ranks, on their default one.

    Args:
        own: settings that the user named, by dotted key, such as model.path if the checkpoint has moved.
        source: names the sidecar in messages.

    Raises:
        InputError: something that a sidecar may not ask for (see `records.trust`), or that cannot be used.
    """
    mesh, images = sidecar.mesh, [image.path for image in sidecar.images]
    degrees: dict[str, Any] = {"ring": None, "ulysses": None, "branch": 1}
    if mesh.world_size == world_size:
        degrees = {"ring": mesh.ring, "ulysses": mesh.ulysses, "branch": mesh.branch}
    changes = {
        "prompt": sidecar.prompt,
        "negative_prompt": sidecar.negative_prompt,
        "image": images[0] if images else None,
        "last_image": images[1] if len(images) > 1 else None,
        "sampling.seed": sidecar.seed,
        "parallel": {"degrees": "given", **degrees},
        "checkpoint.every_seconds": None,
        "output.codec": "auto",
        "model.path": sidecar.model,
    }
    return config_from_file(sidecar.config.patched(changes, f"{source}: config"), source, own)


def check_images_again(sidecar: Sidecar) -> None:
    """Raise InputError if an image or control that the video was made from is missing, or is another picture."""
    from ..models.control import read_control
    from ..models.images import read_images

    first, last = (*(Path(image.path) for image in sidecar.images), None, None)[:2]
    images = read_images(first, last)
    for image, digest in zip(sidecar.images, [] if images is None else images.digests(), strict=True):
        if image.digest != digest:
            raise InputError(
                f"image {image.path}: expected the picture that the video was made from, got another one: restore it"
            )
    settings = sidecar.config.control
    if len(settings.files) != len(sidecar.control):
        raise InputError("the sidecar contradicts itself: its control is not that of its config")
    control = read_control(sidecar.config).records(settings) if settings.files else []
    for part, now in zip(sidecar.control, control, strict=True):
        if part.sha256 != now["sha256"]:
            raise InputError(
                f"control, {part.kind} {part.path}: expected the pictures that the video was made from, got others: "
                "restore them"
            )


def make_again(engine: Engine, sidecar: Sidecar, output: Path | None, *, video: Path | None = None) -> Remade | None:
    """Denoise once more, and decode if there are frames to compare. All ranks call it together.

    Args:
        engine: the models, under the config from `job_again`.
        output: where to write the video and its sidecar too.
        video: the file whose frames are compared with those that are decoded again. Only the main rank's counts.

    Returns:
        On the main rank, what to compare; None on the others.

    Raises:
        InputError: on all ranks, if the weights, settings files or images are not those that made the video, or the
            masks are not those of the sidecar.
        S2VideoError: the frames of the video do not agree.
    """
    from ..engine.make_video import denoise, denoise_in_memory, finish
    from ..parallel.agreement import require_agreement
    from ..parallel.collectives import gather_objects
    from ..records.sidecar import latents_record, machine, versions

    mesh = engine.mesh
    require_agreement({"--output": output is not None}, mesh.world)
    problem = _other_model(engine, sidecar) if mesh.is_main else None
    problem = gather_objects(problem, mesh.world)[0]
    if problem is not None:
        raise InputError(problem)
    check_images_again(sidecar)
    if output is None:
        denoised = denoise_in_memory(engine, engine.config)
    else:
        made = denoise(engine, engine.config.patched({"output.path": str(output)}))
        assert made is not None, "a job is always made without `resume`"
        denoised = made
        finish(denoised)
    remade = Remade(
        latents_record(denoised.latents),
        {
            "mesh": {**mesh.describe()},
            "machine": {**machine(mesh.device, engine.attention_kernel)},
            "versions": {**versions()},
        },
    )
    if gather_objects(video is not None and _agrees(sidecar, remade), mesh.world)[0]:
        remade = remade._replace(frames=_frames_again(denoised, sidecar, remade, output, video))
    return remade if mesh.is_main else None


def _frames_again(
    denoised: Denoised, sidecar: Sidecar, remade: Remade, output: Path | None, video: Path | None
) -> str | None:
    """How the frames of the video agree with those of the second run, which `output` has if it is given."""
    from ..media.formats import place_of
    from ..media.video import Target
    from ..media.video_queue import write_videos_meanwhile
    from .frames import compare_frames, spec_again

    if video is None:  # another rank, which helps to decode
        if output is None:
            list(denoised.engine.decode(denoised.latents))
        return None
    same = remade.latents.sha256 == sidecar.latents.sha256 and not _changes(sidecar, remade)
    same = same and not _decoding_changes(sidecar, remade)
    if output is not None:
        return compare_frames(video, place_of(output), to_the_bit=same and output.suffix == video.suffix)
    spec = spec_again(video, sidecar.config.patched({"output.ffmpeg": denoised.engine.config.output.ffmpeg}))
    with tempfile.TemporaryDirectory(prefix="s2video-") as folder:
        again = Path(folder) / f"again{spec.format.suffix}"
        write_videos_meanwhile(denoised.engine.decode(denoised.latents), [Target(again, spec, {})])
        return compare_frames(video, place_of(again), to_the_bit=same)


def judge(sidecar: Sidecar, remade: Remade) -> str:
    """Return a sentence on how the second run agrees with the first. Raises S2VideoError if it does not."""
    before, after = sidecar.latents, remade.latents
    changes, frames = _changes(sidecar, remade), "" if remade.frames is None else f"; {remade.frames}"
    if before.shape != after.shape:
        raise S2VideoError(f"not reproduced: latents of shape {list(before.shape)} became {list(after.shape)}")
    if before.sha256 == after.sha256:
        though = f", although {'; '.join(changes)}" if changes else ": same ranks, machine and versions"
        return f"reproduced: the latents are the same to the bit (sha256 {after.sha256}){though}{frames}"
    largest = max(abs(a - b) for a, b in zip(before.probes, after.probes, strict=True))
    if not changes:
        raise S2VideoError(
            "not reproduced: ranks, machine and versions are the same, so the latents should be, to the bit; their "
            f"SHA-256 was {before.sha256} and is {after.sha256}; of {len(before.probes)} values the largest "
            f"difference is {largest:.2g}"
        )
    found = f"{len(before.probes)} values compared, largest difference {largest:.2g}, allowed {TOLERANCE:g}"
    because = f"not compared to the bit, because {'; '.join(changes)}"
    if not largest <= TOLERANCE:
        raise S2VideoError(f"not reproduced: {found}; {because}")
    return f"reproduced: {found}; {because}{frames}"


def _agrees(sidecar: Sidecar, remade: Remade) -> bool:
    try:
        judge(sidecar, remade)
    except S2VideoError:
        return False
    return True


def _changes(sidecar: Sidecar, remade: Remade) -> list[str]:
    """What computed the second run that is not as for the first."""
    recorded = {name: dict(getattr(sidecar, name)) for name in remade.circumstances}
    return [
        f"{section}.{key} was {recorded[section].get(key)} and is {value}"
        for section, values in remade.circumstances.items()
        for key, value in values.items()
        if recorded[section].get(key) != value and not (section == "machine" and recorded[section].get(key) is None)
    ]


def _decoding_changes(sidecar: Sidecar, remade: Remade) -> bool:
    """Whether something else decoded the file than decodes it now."""
    if sidecar.decoded is None:
        return False
    now = remade.circumstances
    return (dict(sidecar.decoded.machine), sidecar.decoded.versions) != (now["machine"], now["versions"])


def _other_model(engine: Engine, sidecar: Sidecar) -> str | None:
    """Why the loaded models, or the masks that they get, are not those of the sidecar; None if they are."""
    here, recorded = engine.digests.weights(), dict(sidecar.weights)
    if sidecar.model_files:
        here, recorded = here | engine.checkpoint.settings_digests(), recorded | sidecar.model_files
    different = sorted(name for name in here.keys() | recorded.keys() if here.get(name) != recorded.get(name))
    if different:
        return (
            f"the checkpoint is not the one that made the video: {', '.join(different[:3])} "
            f"{'differs' if len(different) == 1 else 'differ'} by SHA-256; name the right one with --model"
        )
    masks = engine.mask_schedule([sidecar.seed])
    if sidecar.num_steps is None and masks.num_steps != sidecar.steps_taken:
        return None  # an older sidecar of a scheduler that takes more steps than it is asked for
    drawn = [mask.model_dump(mode="json") for mask in sidecar.masks]
    if (masks.seed, masks.num_blocks, masks.num_steps) != (sidecar.mask_seed, sidecar.num_blocks, sidecar.steps_taken):
        return "the sidecar contradicts itself: mask_seed, num_blocks or num_steps are not those of its config"
    if drawn != masks.records():
        return "the sidecar contradicts itself: its masks are not those that its config draws"
    return None
