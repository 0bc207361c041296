"""The interface of a diffusion transformer that is run block by block: embed -> blocks -> project.

Dimension letters: B batch, C latent channels, T H W latent frames, rows, columns, L tokens of the whole video,
L_local tokens on this rank, M and M_2 text tokens, M_image image tokens, D model width.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..parallel.attention import AttentionPlan


class TokenState(NamedTuple):
    """The state between blocks. Blocks never write into it, so a fork is a second reference and costs nothing.

    Attributes:
        video: [B, L_local, D].
        text: [B, M, D] if text takes part in joint attention; None if it is only attended to.
    """

    video: Tensor
    text: Tensor | None = None


@dataclass(frozen=True)
class Conditioning:
    """The conditioning of one branch, as the model's pipeline would pass it. A model uses the fields that it knows.

    Attributes:
        text: [B, M, D_text], text embeddings.
        text_lengths: of each sample, how many of the M tokens are not padding, 1 … M; padding is at the end. None:
            there is none.
        pooled: [B, D_pooled], one embedding of the whole prompt.
        guidance: embedded guidance scale, for models distilled to take it as an input; 1 or more.
        image: [B, M_image, D_image], features of the images.
        given_frames: number of latent frames at the start that images fix: clean, so at time 0.
        text_2: [B, M_2, D_text_2], embeddings of a second kind of text (HunyuanVideo 1.5: text to be written in the
            picture); M_2 can be 0.
        text_2_lengths: as `text_lengths`, of `text_2`; 0 is possible.
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
class ImageConditioning:
    """What images, or their absence, fix for a whole video: the same in every branch and step. B is 1.

    Attributes:
        channels: [B, C', T, H, W], latents and masks that follow the noisy latents' own channels.
        frames: [B, C, T', H, W], clean latents that replace the first T' noisy frames.
        features: [B, M_image, D_image], output of the image encoder.
        noise_share: share of noise in the latents that denoising starts from, 0 … 1; the rest is the first of `frames`,
            in every frame.
    """

    channels: Tensor | None = None
    frames: Tensor | None = None
    features: Tensor | None = None
    noise_share: float = 1.0

    def start(self, noise: Tensor) -> Tensor:
        """Return the latents that denoising starts from, from noise [B, C, T, H, W]."""
        if self.frames is None or self.noise_share == 1:
            return noise
        return noise * self.noise_share + self.frames[:, :, :1] * (1 - self.noise_share)

    def with_frames(self, latents: Tensor) -> Tensor:
        """Return latents [B, C, T, H, W] with the clean frames in their place."""
        if self.frames is None:
            return latents
        frames = self.frames.to(latents.dtype).expand(latents.shape[0], -1, -1, -1, -1)
        return torch.cat((frames, latents[:, :, frames.shape[2] :]), dim=2)

    def model_input(self, latents: Tensor) -> Tensor:
        """Return the transformer's input [B, C + C', T, H, W] for latents [B, C, T, H, W]."""
        latents = self.with_frames(latents)
        if self.channels is None:
            return latents
        channels = self.channels.to(latents.dtype).expand(latents.shape[0], -1, -1, -1, -1)
        return torch.cat((latents, channels), dim=1)

    def added_to(self, conditioning: Conditioning) -> Conditioning:
        """Return one branch's conditioning with the features and the number of frames that images fix."""
        batch = conditioning.text.shape[0]
        return replace(
            conditioning,
            image=None if self.features is None else self.features.expand(batch, -1, -1),
            given_frames=0 if self.frames is None else self.frames.shape[2],
        )


@dataclass(frozen=True)
class BlockContext:
    """Everything that a block needs besides the state; small, and, except `rotary` and `attention`, equal on all ranks.

    Attributes:
        text: [B, M, D], projected text: for cross-attention, or as it enters block 0 in joint attention.
        time: [B, 6, D] (per-token forms: [B, L_local, 6, D]), modulation of the blocks; [B, D] if each block
            projects it itself.
        time_out: [B, D] ([B, L_local, D]), modulation of the output projection.
        rotary: the model's own rotary tables for this rank's tokens.
        attention: which rank holds which tokens, and the axes that share them.
        latent_shape: (T, H, W) of the whole video.
        text_lengths: as in `Conditioning`; in joint attention never None.
        time_given: [B, D], as `time`, for tokens of frames that images fix; None if these are modulated like others.
        num_given: number of this rank's tokens, its first ones, that belong to such frames.
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
    """A diffusers transformer, its weights and blocks unchanged, run from outside its block loop.

    Tokens are sharded in `embed` and gathered in `project`, never in a block: any block can be left out. The context
    is cheap and depends on no tokens, so a rank can make the context of a branch whose tokens it receives later.
    """

    @property
    def num_blocks(self) -> int: ...

    def num_tokens(self, latents: Tensor) -> int:
        """Return the number of video tokens of latents [B, C, T, H, W].

        Here and below, C includes the channels that `ImageConditioning` adds.
        """
        ...

    def prepare(
        self, latents: Tensor, timestep: Tensor, conditioning: Conditioning, plan: AttentionPlan
    ) -> BlockContext:
        """Return the context of one branch, for latents [B, C, T, H, W] (their shape) and timestep [B] in 0 … 1000."""
        ...

    def embed(self, latents: Tensor, context: BlockContext) -> TokenState:
        """Return the state before block 0, of this rank's tokens, from latents [B, C, T, H, W]."""
        ...

    def run_block(self, index: int, state: TokenState, context: BlockContext) -> TokenState:
        """Return the state after block `index`; `state` itself is not changed."""
        ...

    def project(self, state: TokenState, context: BlockContext) -> Tensor:
        """Return the network's prediction [B, C, T, H, W], whole on every rank of the context's plan."""
        ...

    def stack(self, contexts: tuple[BlockContext, ...]) -> BlockContext:
        """Return one context for several branches that go through a block as one batch; shorter texts are padded."""
        ...
