"""The VAE classes that can be decoded, by their names in diffusers, and how each of them can be shared out."""

from dataclasses import dataclass

WAN_VAE = "AutoencoderKLWan"
HUNYUAN_VAE = "AutoencoderKLHunyuanVideo"
HUNYUAN15_VAE = "AutoencoderKLHunyuanVideo15"
MINIMAX_H3_VAE = "AutoencoderKLMiniMaxH3"


@dataclass(frozen=True)
class VaeKind:
    """What the decoder has to know of a VAE's class.

    Attributes:
        is_causal: decodes a latent frame at a time through a feature cache, so it can be cut into strips exactly.
        tile_frames: frames of a tile in time at most; None: tiles last as long as the video.
    """

    is_causal: bool = False
    tile_frames: int | None = None


VAES = {
    WAN_VAE: VaeKind(is_causal=True),
    HUNYUAN_VAE: VaeKind(tile_frames=17),
    HUNYUAN15_VAE: VaeKind(),
    MINIMAX_H3_VAE: VaeKind(tile_frames=28),
}
