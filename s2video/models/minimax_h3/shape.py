"""Sizes of MiniMax-H3's videos and their sound, as diffusers' modular pipeline fixes them. Imports no torch."""

from ...geometry import FrameGrid, SoundShape

FPS = 24
CLIP = 17  # frames that the VAE encodes together
CLIP_LATENTS = 5  # latent frames of a clip
DROPPED = 3  # latent frames that the VAE drops at the end
SPATIAL_FACTOR = 16
TEMPORAL_FACTOR = 4
SECONDS = (5, 15)  # of a video, at least and at most
FRAMES = FrameGrid(
    CLIP_LATENTS, CLIP, CLIP_LATENTS - DROPPED, CLIP_LATENTS, least=SECONDS[0] * FPS, most=SECONDS[1] * FPS
)


def sound_shape(width: int) -> SoundShape:
    """Return the shape of the sound; `width` is the transformer's `audio_in_channels`."""
    return SoundShape(FRAMES, fps=FPS, rate=40, channels=2, width=width)
