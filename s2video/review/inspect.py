"""A sidecar as text, for `s2video inspect`."""

import json
from collections.abc import Iterable
from pathlib import Path

from ..errors import InputError, S2VideoError
from ..media.credentials import SOURCE_TYPE, Found, read_credentials
from ..records.integrity import UNCHANGED, latents_state, saved_latents, take_state, video_state
from ..records.sidecar_model import Sidecar
from ..system.terminal import printable

_WIDTH = 16  # width of the column of names
_MOST_CELLS = 200_000  # blocks × steps of a grid of masks


def describe(sidecar: Sidecar, video: Path, *, credentials: str | None = None) -> str:
    """Return how the video was made, all masks as a grid, and whether the file has changed since.

    Args:
        credentials: `credentials_line` of the video; None: it was made without.
    """
    config = sidecar.config
    lines = {
        "video": f"{video}: {_state(sidecar, video)}",
        **_take(sidecar, video),
        "prompt": sidecar.prompt,
        "negative prompt": sidecar.negative_prompt or "(none)",
        "images": ", ".join(image.path for image in sidecar.images) or "(none)",
        **({"control": ", ".join(f"{part.kind} {part.path}" for part in sidecar.control)} if sidecar.control else {}),
        "seeds": f"noise {sidecar.seed}, masks {sidecar.mask_seed}",
        "model": f"{sidecar.model}, {len(sidecar.weights)} weight files",
        "picture": f"{config.sampling.width}x{config.sampling.height} px, {config.sampling.num_frames} frames, "
        f"{config.output.fps} a second",
    }
    if (sound := "of the model" if sidecar.sound is not None else config.output.audio) is not None:
        lines["sound"] = sound
    for component, how in sidecar.conversions.items():
        lines[component] = how
    for number, lora in enumerate(sidecar.loras, 1):
        left_out = "".join(f"; not applied: {len(names)} {reason}" for reason, names in lora.not_applied.items())
        lines[f"LoRA {number}"] = (
            f"{lora.applied} of {lora.tensors} tensors on {lora.component}, scale {lora.scale:g}{left_out}"
        )
    for section in ("sampling", "guidance", "parallel"):
        lines[section] = ", ".join(f"{key} {_short(value)}" for key, value in _settings(sidecar, section))
    lines["mesh"] = ", ".join(f"{key} {_short(value)}" for key, value in sidecar.mesh.model_dump().items())
    lines["machine"] = f"{sidecar.machine.device}, {sidecar.machine.threads} threads"
    lines["versions"] = ", ".join(f"{name} {version}" for name, version in sidecar.versions.items())
    lines["seconds"] = ", ".join(
        f"{name.removesuffix('_seconds')} {seconds:g}" for name, seconds in sidecar.timings.items()
    )
    if credentials is not None:
        lines["credentials"] = credentials
    if sidecar.resumed_after_step is not None:
        lines["resumed"] = f"after step {sidecar.resumed_after_step}"
    lines["latents"] = f"{list(sidecar.latents.shape)}, sha256 {sidecar.latents.sha256}"
    latents = saved_latents(video, sidecar)
    if latents.exists():
        lines["latents"] += f"; {latents}: {latents_state(sidecar.latents, latents)}"
    if sidecar.s2_scales:
        lines["s2_scale"] = "by step: " + ", ".join(f"{s.step}: {s.s2_scale:.3g}" for s in sidecar.s2_scales)
    text = [f"{name:<{_WIDTH}}{printable(value)}" for name, value in lines.items()]
    return "\n".join([*text, *_computed(sidecar), *_drawn_masks(sidecar)])


def credentials_line(video: Path) -> str:
    """Return in words who signed a file, and whether it is as it was signed."""
    try:
        return _in_words(read_credentials(video))
    except (InputError, OSError) as error:
        return f"not verified: {error}"


def _in_words(found: Found | None) -> str:
    if found is None:
        return "none: the file has no credentials any more"
    if not found.is_valid:
        return f"not valid: {', '.join(found.problems) or 'the file is not as it was signed'}"
    kind = ", made by a trained model" if found.source_type == SOURCE_TYPE else ""
    return f"valid: signed by {found.signer}, issued by {found.issuer}{kind}"


def describe_credentials(video: Path) -> str | None:
    """Return what the credentials of a file without a sidecar say; None if it has none.

    Raises:
        InputError: c2pa-python is missing.
        S2VideoError: they are not valid.
    """
    found = read_credentials(video)
    if found is None:
        return None
    if not found.is_valid:
        raise S2VideoError(f"{video}: its credentials are {_in_words(found)}")
    lines = {"video": f"{video}: no sidecar next to it", "credentials": _in_words(found)}
    lines |= {f"  {name}": json.dumps(value, ensure_ascii=False) for name, value in found.statement.items()}
    return "\n".join(f"{name:<{_WIDTH}}{printable(value)}" for name, value in lines.items())


def _state(sidecar: Sidecar, video: Path) -> str:
    state = video_state(sidecar.output, video)
    return f"unchanged (sha256 {sidecar.output.sha256})" if state == UNCHANGED else state


def _take(sidecar: Sidecar, video: Path) -> dict[str, str]:
    """Return lines about a file that is not the master of its take, or was decoded later."""
    lines = {}
    if sidecar.take is not None:
        state = take_state(sidecar, video.parent)
        lines["take"] = sidecar.take if state == UNCHANGED else f"{sidecar.take}: {state}"
    if sidecar.decoded is not None:
        versions = ", ".join(f"{name} {version}" for name, version in sidecar.decoded.versions.items())
        lines["decoded later"] = f"{sidecar.decoded.machine.device}, {versions}"
    return lines


def _settings(sidecar: Sidecar, section: str) -> Iterable[tuple[str, object]]:
    return getattr(sidecar.config, section).model_dump(mode="json").items()


def _short(value: object) -> str:
    return "–" if value is None else str(value)


def _computed(sidecar: Sidecar) -> list[str]:
    """Return a row for each kind of pass, with a # for each step (column) that computed it; nothing without reuse."""
    if sidecar.computed is None:
        return []
    rows = [f"{'computed':<{_WIDTH}}passes, by step; the others were forecast, or not used"]
    for name, steps in sidecar.computed.model_dump().items():
        marks = "".join("#" if step in steps else "·" for step in range(sidecar.steps_taken))
        rows.append(f"{name:>{_WIDTH - 2}}  {marks}  {len(steps)}")
    return rows


def _drawn_masks(sidecar: Sidecar) -> list[str]:
    """Return a grid of blocks (rows) and steps (columns); a digit counts the draws of the step that skip the block."""
    if not sidecar.masks:
        return [f"{'masks':<{_WIDTH}}none: no S²-Guidance"]
    if sidecar.num_blocks * sidecar.steps_taken > _MOST_CELLS:
        return [f"{'masks':<{_WIDTH}}{len(sidecar.masks)}, of {sidecar.num_blocks} blocks: too many to draw"]
    steps = range(sidecar.steps_taken)
    count = {(block, step): 0 for block in range(sidecar.num_blocks) for step in steps}
    for mask in sidecar.masks:
        for block in mask.dropped:
            count[block, mask.step] += 1
    rows = (
        f"{f'block {block}':>{_WIDTH - 2}}  " + "".join("·123456789"[min(9, count[block, step])] for step in steps)
        for block in range(sidecar.num_blocks)
    )
    return [f"{'masks':<{_WIDTH}}skipped blocks; rows are blocks, columns are steps", *rows]
