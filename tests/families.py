"""Every family of checkpoints in miniature, as the matrix of tests needs it: one entry a family.

The checks stand in `unit/test_family_matrix.py` and `distributed/test_family_matrix_on_ranks.py`. A new family brings a
module `tiny_x.py` with the functions that an entry names, and its line in FAMILIES.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiny
import tiny_hunyuan
import tiny_hunyuan15
import tiny_minimax_h3
import tiny_vace
import tiny_wan22
import tiny_wan_i2v
from torch import Tensor, nn

from s2video.config.run import RunConfig
from s2video.models.base import Conditioning
from s2video.models.control import Pictures


def delete_block(transformer: nn.Module, name: str, index: int) -> None:
    blocks: Any = transformer.get_submodule(name)
    del blocks[index]


@dataclass(frozen=True)
class TinyFamily:
    """A checkpoint with random weights, and what diffusers makes of it.

    Attributes:
        build_checkpoint: fills a folder with it, and returns the folder.
        config: (its folder, settings of guidance) -> a run with it, on the CPU in float32.
        reference: (its folder, a run, prompt, negative prompt, seed) -> the latents of diffusers' own pipeline, with
            `images` and the run's sizes, steps and cfg_scale.
        conditioning: (a transformer, seed) -> random embeddings for a batch of 2, as `Conditioning` takes them.
        forward: (a transformer, latents, timesteps [2], conditioning) -> the module's own forward, called as its
            pipeline calls it. Latents have all channels that the transformer takes.
        images: of the video's size in pixels, for those that need some; or what controls the video.
        leave_out: (a transformer, a list of blocks, an index) -> does nothing any more in that block's place.
        tolerance: of latents and predictions against diffusers'; 0: to the bit.
        has_uncond: whether it takes a cfg_scale other than 1.
        timestep: for `forward`, or one for each kind of row.
        latent_shape: frames, rows and columns of latents for `forward`; with sound, those that carry it included.
    """

    build_checkpoint: Callable[[Path], Path]
    config: Callable[..., RunConfig]
    reference: Callable[[Path, RunConfig, str, str, int], Tensor]
    conditioning: Callable[[nn.Module, int], Conditioning]
    forward: Callable[[nn.Module, Tensor, Tensor, Conditioning], Tensor]
    images: Pictures | None = None
    leave_out: Callable[[nn.Module, str, int], None] = delete_block
    tolerance: float = 0.0
    has_uncond: bool = True
    timestep: float | tuple[float, ...] = 700.0
    latent_shape: tuple[int, int, int] = (5, 10, 14)


FAMILIES: dict[str, TinyFamily] = {
    "wan": TinyFamily(tiny.build_checkpoint, tiny.tiny_config, tiny.reference, tiny.conditioning, tiny.forward),
    "hunyuan-video": TinyFamily(
        tiny_hunyuan.build_checkpoint,
        tiny_hunyuan.tiny_config,
        tiny_hunyuan.reference,
        tiny_hunyuan.conditioning,
        tiny_hunyuan.forward,
        tolerance=1e-5,  # padding is trimmed here, masked there
    ),
    "hunyuan-video-image": TinyFamily(
        tiny_hunyuan.build_image_checkpoint,
        tiny_hunyuan.tiny_config,
        tiny_hunyuan.image_reference,
        tiny_hunyuan.conditioning,
        tiny_hunyuan.forward,
        images=tiny_hunyuan.IMAGES,
        tolerance=1e-5,
    ),
    **{
        name: TinyFamily(
            kind.build_checkpoint,
            kind.config,
            kind.reference,
            kind.conditioning,
            tiny_wan_i2v.forward,
            images=kind.images,
        )
        for name, kind in tiny_wan_i2v.KINDS.items()
    },
    **{
        name: TinyFamily(
            kind.build_checkpoint,
            kind.config,
            kind.reference,
            tiny_vace.conditioning,
            tiny_vace.forward,
            images=kind.control,
            leave_out=tiny_vace.leave_out,
        )
        for name, kind in tiny_vace.KINDS.items()
    },
    "wan2.2-t2v": TinyFamily(
        tiny_wan22.build_a14b, tiny_wan22.a14b_config, tiny.reference, tiny.conditioning, tiny.forward
    ),
    **{
        name: TinyFamily(
            kind.build_checkpoint,
            kind.config,
            kind.reference,
            kind.conditioning,
            tiny_wan22.forward,
            images=kind.images,
        )
        for name, kind in tiny_wan22.TI2V.items()
    },
    **{
        name: TinyFamily(
            build_checkpoint,
            tiny_hunyuan15.tiny_config,
            reference,
            tiny_hunyuan15.conditioning,
            tiny_hunyuan15.forward,
            images=images,
            tolerance=1e-5,
        )
        for name, build_checkpoint, reference, images in (
            ("hunyuan-video-1.5", tiny_hunyuan15.build_checkpoint, tiny_hunyuan15.reference, None),
            (
                "hunyuan-video-1.5-image",
                tiny_hunyuan15.build_image_checkpoint,
                tiny_hunyuan15.image_reference,
                tiny_hunyuan15.IMAGES,
            ),
        )
    },
    "minimax-h3": TinyFamily(
        tiny_minimax_h3.build_checkpoint,
        tiny_minimax_h3.tiny_config,
        tiny_minimax_h3.reference,
        tiny_minimax_h3.conditioning,
        tiny_minimax_h3.forward,
        has_uncond=False,
        timestep=(0.3, 0.55),
        latent_shape=(tiny_minimax_h3.LATENT_FRAMES, 2, 10),
    ),
}
