"""Latents that a run left -> their video: `s2video decode`. Knows no transformer."""

from pathlib import Path
from typing import Any, Literal

import torch

from ..config.run import RunConfig, build_config
from ..decoding.decoder import FrameDecoder
from ..errors import InputError
from ..geometry import LatentShape
from ..media.checks import check_spec
from ..media.formats import FORMATS, Codec, codec_for, place_of
from ..media.video_queue import write_video_meanwhile
from ..models.checkpoint import check_checkpoint, find_checkpoint, read_checkpoint
from ..models.loading import load_vae
from ..parallel.mesh import Mesh, resolve_device
from ..records.sidecar import container_metadata, load_latents


def decode_latents(
    path: Path,
    output: Path,
    config: RunConfig | None = None,
    *,
    codec: Codec | Literal["auto"] = "auto",
    ffmpeg: str | None = None,
) -> Path:
    """Make the video from latents that a run left. Loads the VAE and nothing else.

    Args:
        output: its suffix and `codec` decide the format, whatever the run's was. A timecode or sound that it has no
            place for is left out.
        config: model and output settings to use instead of those stored with the latents.
        ffmpeg: path of the program; None: as the settings say.

    Returns:
        The path of the file, or of a sequence's folder.

    Raises:
        InputError: latents or checkpoint that cannot be used, or do not fit each other.
    """
    saved = load_latents(path)
    if config is None:
        if "config" not in saved.facts:
            raise InputError(f"{path}: no settings are stored with these latents; name the model with --config")
        config = build_config(saved.facts["config"], str(path))
    folder = find_checkpoint(config.model.path, config.model.revision)
    check_checkpoint(folder)
    checkpoint = read_checkpoint(folder)
    channels = checkpoint.latent_channels
    if saved.latents.shape[1] != channels:
        raise InputError(
            f"{path}: {saved.latents.shape[1]} channels, but the VAE of {config.model.path} has {channels}"
        )
    changes: dict[str, Any] = {"codec": codec_for(output, codec), "ffmpeg": ffmpeg or config.output.ffmpeg}
    if not FORMATS[changes["codec"]].has_timecode:
        changes["timecode"] = None
    if FORMATS[changes["codec"]].sound is None:
        changes["audio"] = None
    spec = config.output.model_copy(update=changes).spec(output)
    check_spec(
        spec, saved.latents.shape[4] * checkpoint.spatial_factor, saved.latents.shape[3] * checkpoint.spatial_factor
    )
    device = resolve_device(config.model.device)
    decode = FrameDecoder(
        config.parallel.decode,
        Mesh(device),
        LatentShape(*saved.latents.shape[2:]),
        vae_class=checkpoint.vae_class,
        load_vae=lambda: load_vae(folder, getattr(torch, config.model.vae_dtype), device),
        timeout_seconds=config.parallel.timeout_seconds,
    )
    facts = {"prompt": "", "seed": "unknown", "model": config.model.path, **saved.facts}
    write_video_meanwhile(decode(saved.latents), output, spec, metadata=container_metadata(facts, spec.codec))
    return place_of(output)
