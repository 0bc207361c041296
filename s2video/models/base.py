"""What a diffusion transformer must offer to be run block by block: embed -> blocks -> project.

Knows no sampling, no guidance, and no particular model.

Dimension letters: B batch, C latent channels, T H W latent frames, rows, columns, L tokens of the whole video,
L_local tokens on this rank, M and M_2 text tokens, M_image image tokens, D model width.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..parallel.attention import AttentionPlan


class TokenState(NamedTuple):
    """What flows through the blocks. Blocks never write into it, so a fork is a second reference and costs nothing.

    Attributes:
        video: [B, L_local, D].
        text: [B, M, D] where text takes part in joint attention; None where it is only attended to.
    """

    video: Tensor
    text: Tensor | None = None


@dataclass(frozen=True)
class Conditioning:
    """What one branch is told, as the model's pipeline would hand it over. A model takes what it knows of it.

    Attributes:
        text: [B, M, D_text], text embeddings.
        text_lengths: of each sample, how many of the M tokens are no padding, 1 … M; padding stands at the end. None:
            all of them count.
        pooled: [B, D_pooled], one embedding of the whole prompt.
        guidance: embedded guidance scale, for models distilled to take it as an input; 1 or more.
        image: [B, M_image, D_image], features of the images given.
        given_frames: latent frames at the start that are given: clean, so at time 0.
        text_2: [B, M_2, D_text_2], embeddings of a second kind of text (HunyuanVideo 1.5: what is to be written in the
            picture); perhaps no tokens at all.
        text_2_lengths: as `text_lengths`, of `text_2`, and may be 0.
    """

    text: Tensor
    text_lengths: tuple[int, ...] | None = None
    pooled: Tensor | None = None
    guidance: float | None = None
    image: Tensor | None = None
    given_frames: int = 0
    text_2: Tensor | None = None
    text_2_lengths: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Given:
    """What images, or the lack of them, fix for a whole video, the same in every branch and step. B is 1.

    Attributes:
        channels: [B, C', T, H, W], latents and masks that stand behind the noisy latents' own channels.
        frames: [B, C, T', H, W], clean latents in place of the first T' noisy frames.
        features: [B, M_image, D_image], what the image encoder says.
        noise_share: of the latents that denoising starts from, 0 … 1; the rest is the first of `frames`, everywhere.
    """

    channels: Tensor | None = None
    frames: Tensor | None = None
    features: Tensor | None = None
    noise_share: float = 1.0

    def start(self, noise: Tensor) -> Tensor:
        """Noise [B, C, T, H, W] -> the latents that denoising starts from."""
        if self.frames is None or self.noise_share == 1:
            return noise
        return noise * self.noise_share + self.frames[:, :, :1] * (1 - self.noise_share)

    def held(self, latents: Tensor) -> Tensor:
        """Latents [B, C, T, H, W] with the given frames in their place."""
        if self.frames is None:
            return latents
        frames = self.frames.to(latents.dtype).expand(latents.shape[0], -1, -1, -1, -1)
        return torch.cat((frames, latents[:, :, frames.shape[2] :]), dim=2)

    def model_input(self, latents: Tensor) -> Tensor:
        """Latents [B, C, T, H, W] -> what the transformer sees, [B, C + C', T, H, W]."""
        latents = self.held(latents)
        if self.channels is None:
            return latents
        channels = self.channels.to(latents.dtype).expand(latents.shape[0], -1, -1, -1, -1)
        return torch.cat((latents, channels), dim=1)

    def told(self, conditioning: Conditioning) -> Conditioning:
        """One branch's conditioning, with what it has to know of the images."""
        batch = conditioning.text.shape[0]
        return replace(
            conditioning,
            image=None if self.features is None else self.features.expand(batch, -1, -1),
            given_frames=0 if self.frames is None else self.frames.shape[2],
        )


@dataclass(frozen=True)
class BlockContext:
    """All that a block needs beside the state; small, and the same on every rank but for `rotary` and `attention`.

    Attributes:
        text: [B, M, D], projected text: for cross-attention, or as it enters block 0 in joint attention.
        time: [B, 6, D] (per-token forms: [B, L_local, 6, D]), modulation of the blocks; [B, D] where each block
            projects it itself.
        time_out: [B, D] ([B, L_local, D]), modulation of the output projection.
        rotary: the model's own rotary tables for this rank's tokens.
        attention: who holds which tokens, and the axes that share them.
        latent_shape: (T, H, W) of the whole video.
        text_lengths: as in `Conditioning`; in joint attention never None.
        time_given: [B, D], as `time`, for tokens of given frames; None where these are modulated like all others.
        num_given: how many of this rank's tokens, the first ones, are of given frames.
    """

    text: Tensor
    time: Tensor
    time_out: Tensor
    rotary: Any
    attention: AttentionPlan
    latent_shape: tuple[int, int, int]
    text_lengths: tuple[int, ...] | None = None
    time_given: Tensor | None = None
    num_given: int = 0


class BlockModel(Protocol):
    """A diffusers transformer, its weights and blocks unchanged, seen from outside its block loop.

    Tokens are sharded in `embed` and gathered in `project`, never in a block: any block can be left out. The context
    is cheap and knows no tokens, so that a rank can make that of a branch whose tokens it takes over later.
    """

    @property
    def num_blocks(self) -> int: ...

    def num_tokens(self, latents: Tensor) -> int:
        """Video tokens of latents [B, C, T, H, W]; here and below, C counts the channels that `Given` adds."""
        ...

    def prepare(
        self, latents: Tensor, timestep: Tensor, conditioning: Conditioning, plan: AttentionPlan
    ) -> BlockContext:
        """Latents [B, C, T, H, W] (for their shape), timestep [B] in 0 … 1000 -> the context of one branch."""
        ...

    def embed(self, latents: Tensor, context: BlockContext) -> TokenState:
        """Latents [B, C, T, H, W] -> state before block 0, of this rank's tokens."""
        ...

    def run_block(self, index: int, state: TokenState, context: BlockContext) -> TokenState:
        """State after block `index`; `state` itself stays as it was."""
        ...

    def project(self, state: TokenState, context: BlockContext) -> Tensor:
        """State after the last block -> the network's prediction, whole on every rank of the context's plan:
        [B, C, T, H, W]."""
        ...

    def stack(self, contexts: tuple[BlockContext, ...]) -> BlockContext:
        """One context for several branches that go through a block as one batch; shorter texts are padded."""
        ...
