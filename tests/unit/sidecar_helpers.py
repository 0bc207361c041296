"""A video of coloured frames with its sidecar, made without a model."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from video_helpers import RED, solid

from s2video.config.run import build_config
from s2video.media.formats import place_of
from s2video.media.video import write_video
from s2video.parallel.mesh import Mesh
from s2video.records.sidecar import job_facts, make_sidecar, run_facts
from s2video.records.sidecar_model import MadeVideo
from s2video.system.files import write_json

NUM_BLOCKS, STEPS = 6, 8


def made_video(
    path: Path,
    *,
    prompt: str = "a red wall",
    seed: int = 7,
    latents: torch.Tensor | None = None,
    images: Any = (),
    **guidance: Any,
) -> MadeVideo:
    """Write `path` and its sidecar."""
    config = build_config(
        {
            "prompt": prompt,
            "sampling": {"num_frames": 5, "num_inference_steps": STEPS, "seed": seed},
            "guidance": guidance,
            "output": {"path": str(path), "fps": 8},
        }
    )
    masks = config.guidance.mask_schedule(num_blocks=NUM_BLOCKS, seed=seed, num_steps=STEPS)
    facts = job_facts(config, images=images, masks=masks)
    if latents is None:
        latents = torch.randn(1, 4, 2, 8, 8, generator=torch.Generator().manual_seed(seed))
    timings = {"load_seconds": 0.5, "denoise_seconds": 1.25}
    facts |= run_facts(
        latents,
        Mesh(torch.device("cpu")),
        weights={"vae/x.safetensors": "0" * 64},
        timings=timings,
        attention="native",
    )
    spec = config.output.spec(path)
    assert spec.fps == Fraction(8)
    write_video([solid(RED, num_frames=5)], path, spec, metadata={"title": prompt})
    sidecar = make_sidecar(facts, place_of(path))
    write_json(path.with_suffix(".json"), sidecar.as_json())
    return MadeVideo(place_of(path), sidecar)
