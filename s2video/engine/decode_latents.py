"""`s2video decode`: the video of saved latents."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from ..config.run import RunConfig, build_config
from ..config.sections import FILE_SETTINGS
from ..decoding.decoder import FrameDecoder
from ..errors import InputError
from ..geometry import LatentShape
from ..media.checks import check_spec
from ..media.formats import FORMATS, Codec, VideoSpec, codec_for, place_of
from ..media.output_paths import OutputPaths
from ..media.video_queue import write_video_meanwhile
from ..models.checkpoint import Checkpoint, open_checkpoint
from ..models.loading import load_vae
from ..parallel.mesh import Mesh, resolve_device
from ..records.identity import audio_digest
from ..records.sidecar import SavedLatents, container_metadata, latents_record, load_latents, sidecar_beside
from ..records.sidecar_model import read_sidecar
from ..records.trust import config_from_file
from ..system.claims import Claim
from ..system.files import Beside


def decode_latents(
    path: Path,
    output: Path,
    config: RunConfig | None = None,
    *,
    codec: Codec | Literal["auto"] = "auto",
    own: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda note: None,
) -> Path:
    """Make the video of latents that a run saved. Loads the VAE and nothing else.

    A sidecar that describes a video of this name is renewed together with it.

    Args:
        output: its suffix and `codec` decide the format, which need not be the run's. A timecode or sound that the
            format cannot hold is left out.
        config: model and output settings to use instead of those stored with the latents.
        own: settings that the user named otherwise, such as output.ffmpeg, by dotted key; None: not named.
        say: takes a line about each stored setting that is not used (see `records.trust`).

    Returns:
        The path of the file, or of a sequence's folder.

    Raises:
        InputError: latents or a checkpoint that cannot be used, or do not fit each other; or the sidecar of `output`
            describes a video of other latents or of another VAE.
    """
    saved, own = load_latents(path), {key: value for key, value in (own or {}).items() if value is not None}
    may_download = config is not None or "model.path" in own
    config = _stored_config(saved, path, own, say) if config is None else config.patched(own)
    checkpoint = open_checkpoint(*config.model.source, may_download=may_download)
    info = checkpoint.info
    if saved.latents.shape[1] != info.latent_channels:
        raise InputError(
            f"{path}: expected {info.latent_channels} channels, as the VAE of {config.model.path} has, got "
            f"{saved.latents.shape[1]}: name the right model with --config"
        )
    spec = _spec(config, output, codec)
    height, width = (size * info.spatial_factor for size in saved.latents.shape[3:])
    check_spec(spec, width, height)
    written = config.model_copy(update={"output": config.output.model_copy(update={"codec": spec.codec})})
    beside = _renewed_sidecar(saved, output, written, checkpoint)
    device = resolve_device(config.model.device)
    dtype: torch.dtype = getattr(torch, config.model.vae_dtype)
    decode = FrameDecoder(
        config.parallel.decode,
        Mesh(device),
        LatentShape(*saved.latents.shape[2:]),
        vae_class=info.vae_class,
        load_vae=lambda: load_vae(checkpoint, dtype, device),
        timeout_seconds=config.parallel.timeout_seconds,
    )
    facts = {"prompt": "", "seed": "unknown", "model": config.model.path, **saved.facts}
    metadata = container_metadata(facts, spec.codec)
    files = OutputPaths(output)
    with Claim(files.lock, (files.video,)):
        write_video_meanwhile(decode(saved.latents), output, spec, metadata=metadata, beside=beside)
    return place_of(output)


def _renewed_sidecar(saved: SavedLatents, output: Path, config: RunConfig, checkpoint: Checkpoint) -> Beside | None:
    """The sidecar to write with the video: None if there is none of a video of that name."""
    path = output.with_suffix(".json")
    if not path.is_file():
        return None
    try:
        sidecar = read_sidecar(path)
    except InputError:
        return None
    if sidecar.output.name != place_of(output).name:
        return None
    vae = {file.name: file.sha256 for file in checkpoint.files("vae")}
    is_same_vae = vae.items() <= sidecar.weights.items() and config.model.vae_dtype == sidecar.config.model.vae_dtype
    if latents_record(saved.latents).sha256 != sidecar.latents.sha256 or not is_same_vae:
        raise InputError(
            f"output {output}: expected the latents and the VAE of the video that {path} describes, got "
            f"{'others' if is_same_vae else 'another VAE'}; choose another name"
        )
    settings = config.output.model_dump(mode="json")
    facts = sidecar.as_json() | {"config": sidecar.config.patched({"output": settings}).model_dump(mode="json")}
    return sidecar_beside(output, lambda: facts | {"audio_sha256": audio_digest(config)})


def _stored_config(saved: SavedLatents, path: Path, own: Mapping[str, Any], say: Callable[[str], None]) -> RunConfig:
    """The settings that the file of latents holds, as far as such a file may ask for them."""
    if "config" not in saved.facts:
        raise InputError(f"{path}: no settings are stored with these latents; name the model with --config")
    stored = build_config(saved.facts["config"], str(path))
    # decoding does not need these
    without_inputs = {"image": None, "last_image": None, "model.lora": ()}
    without_inputs |= {f"model.{name}": None for name in FILE_SETTINGS if name != "vae"}
    config, notes = config_from_file(stored.patched(without_inputs), path, own)
    for note in notes.values():
        say(note)
    return config


def _spec(config: RunConfig, output: Path, codec: Codec | Literal["auto"]) -> VideoSpec:
    """The run's output settings in the format of `output`, without what that has no place for."""
    kind = codec_for(output, codec)
    changes: dict[str, Any] = {"codec": kind}
    if not FORMATS[kind].has_timecode:
        changes["timecode"] = None
    if FORMATS[kind].sound is None:
        changes["audio"] = None
    return config.output.model_copy(update=changes).spec(output)
