"""`s2video reproduce`: a video made again from its sidecar, and whether it is the same.

On the same ranks, machine and versions the latents must be the same to the bit; otherwise rounding can differ, and the
values that the sidecar keeps must agree within `TOLERANCE`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import InputError, S2VideoError
from ..records.sidecar_model import LatentsRecord, Sidecar
from ..records.trust import FromFile, config_from_file

if TYPE_CHECKING:  # the command line answers bad input before torch is imported
    from ..engine.engine import Engine

TOLERANCE = 1e-3


class Remade(NamedTuple):
    """The latents of a second run, and what computed them: sections named as in the sidecar."""

    latents: LatentsRecord
    circumstances: dict[str, dict[str, Any]]


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
    """Raise InputError if an image that the video was made from is missing, or is another picture."""
    from ..models.images import read_images

    first, last = (*(Path(image.path) for image in sidecar.images), None, None)[:2]
    images = read_images(first, last)
    for image, digest in zip(sidecar.images, [] if images is None else images.digests(), strict=True):
        if image.digest != digest:
            raise InputError(
                f"image {image.path}: expected the picture that the video was made from, got another one: restore it"
            )


def make_again(engine: Engine, sidecar: Sidecar, output: Path | None) -> Remade | None:
    """Denoise once more; with `output` make the video and its sidecar too. All ranks call it together.

    Args:
        engine: the models, under the config from `job_again`.

    Returns:
        On the main rank, what to compare; None on the others.

    Raises:
        InputError: on all ranks, if the weights or the images are not those that made the video.
    """
    from ..engine.make_video import denoise, denoise_in_memory, finish
    from ..parallel.collectives import gather_objects
    from ..records.sidecar import latents_record, machine, versions

    mesh = engine.mesh
    problem = _other_weights(engine.weight_digests(), sidecar.weights) if mesh.is_main else None
    problem = gather_objects(problem, mesh.world)[0]
    if problem is not None:
        raise InputError(problem)
    check_images_again(sidecar)
    if output is None:
        latents = denoise_in_memory(engine, engine.config).latents
    else:
        denoised = denoise(engine, engine.config.patched({"output.path": str(output)}))
        assert denoised is not None, "a job is always made without `resume`"
        latents = denoised.latents
        finish(denoised)
    if not mesh.is_main:
        return None
    return Remade(
        latents_record(latents),
        {
            "mesh": {**mesh.describe()},
            "machine": {**machine(mesh.device, engine.attention_kernel)},
            "versions": {**versions()},
        },
    )


def judge(sidecar: Sidecar, remade: Remade) -> str:
    """Return a sentence on how the second run agrees with the first. Raises S2VideoError if it does not."""
    before, after = sidecar.latents, remade.latents
    recorded = {name: dict(getattr(sidecar, name)) for name in remade.circumstances}
    changes = [
        f"{section}.{key} was {recorded[section].get(key)} and is {value}"
        for section, values in remade.circumstances.items()
        for key, value in values.items()
        if recorded[section].get(key) != value and not (section == "machine" and recorded[section].get(key) is None)
    ]
    if before.shape != after.shape:
        raise S2VideoError(f"not reproduced: latents of shape {list(before.shape)} became {list(after.shape)}")
    if before.sha256 == after.sha256:
        though = f", although {'; '.join(changes)}" if changes else ": same ranks, machine and versions"
        return f"reproduced: the latents are the same to the bit (sha256 {after.sha256}){though}"
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
    return f"reproduced: {found}; {because}"


def _other_weights(here: Mapping[str, str], recorded: Mapping[str, str]) -> str | None:
    different = sorted(name for name in here.keys() | recorded.keys() if here.get(name) != recorded.get(name))
    if not different:
        return None
    return (
        f"the checkpoint is not the one that made the video: {', '.join(different[:3])} "
        f"{'differs' if len(different) == 1 else 'differ'} by SHA-256; name the right one with --model"
    )
