"""Latents that a run left -> their video: `s2video decode`. Knows no transformer."""

from pathlib import Path

import torch

from .config import RunConfig, build_config
from .errors import InputError
from .geometry import LatentShape
from .models import loading
from .models.decoder import FrameDecoder
from .parallel.mesh import Mesh, resolve_device
from .requests import read_checkpoint
from .sidecar import container_metadata, load_latents
from .video import VideoSpec
from .video_queue import write_video_meanwhile


def decode_latents(path: Path, output: Path, config: RunConfig | None = None) -> Path:
    """Make the video from latents that a run left. Loads the VAE and nothing else.

    Args:
        config: model and output settings to use instead of those stored with the latents.

    Raises:
        InputError: latents or checkpoint that cannot be used, or do not fit each other.
    """
    saved = load_latents(path)
    if config is None:
        if "config" not in saved.facts:
            raise InputError(f"{path}: no settings are stored with these latents; name the model with --config")
        config = build_config(saved.facts["config"], str(path))
    folder = loading.find_checkpoint(config.model.path, config.model.revision)
    loading.check_checkpoint(folder)
    checkpoint = read_checkpoint(folder)
    channels = checkpoint.latent_channels
    if saved.latents.shape[1] != channels:
        raise InputError(
            f"{path}: {saved.latents.shape[1]} channels, but the VAE of {config.model.path} has {channels}"
        )
    device = resolve_device(config.model.device)
    decode = FrameDecoder(
        config.parallel.decode,
        Mesh(device),
        LatentShape(*saved.latents.shape[2:]),
        vae_class=checkpoint.vae_class,
        load_vae=lambda: loading.load_vae(folder, getattr(torch, config.model.vae_dtype), device),
        timeout_seconds=config.parallel.timeout_seconds,
    )
    spec = VideoSpec(config.output.fps, config.output.crf)
    facts = {"prompt": "", "seed": "unknown", "model": config.model.path, **saved.facts}
    write_video_meanwhile(decode(saved.latents), output, spec, metadata=container_metadata(facts))
    return output
