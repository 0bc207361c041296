"""The interface of a diffusion transformer that is run block by block: embed -> blocks -> project.

Dimension letters: B batch, C latent channels, T H W latent frames, rows, columns, L tokens of the whole video,
L_local tokens on this rank, M and M_2 text tokens, M_image image tokens, D model width.
"""

from abc import ABC, abstractmethod
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
        control: [B, L_local, D], the control stream of a `Controlled` model in cond and uncond; None in sub.
        hint: [B, L_local, D], what control adds to `video` after the next block; None if it adds nothing there.
    """

    video: Tensor
    text: Tensor | None = None
    control: Tensor | None = None
    hint: Tensor | None = None


@dataclass(frozen=True)
class Conditioning:
    """The conditioning of one branch, as the model's pipeline would pass it. A model ignores the fields that it lacks.

    Attributes:
        text: [B, M, D_text], text embeddings.
        text_lengths: number of tokens of each sample that are not padding, 1 … M; padding is at the end. None if there
            is no padding.
        pooled: [B, D_pooled], one embedding of the whole prompt.
        guidance: embedded guidance scale, for models distilled to take it as an input; 1 or more.
        image: [B, M_image, D_image], features of the images.
        given_frames: number of latent frames at the start that images fix; they are clean, so their timestep is 0.
        text_2: [B, M_2, D_text_2], embeddings of a second text (HunyuanVideo 1.5: text to render in the picture); M_2
            can be 0.
        text_2_lengths: the same as `text_lengths` for `text_2`; can be 0.
        control_scales: [K], strength of each of the hints that control gives; None: 1.
    """

    text: Tensor
    text_lengths: tuple[int, ...] | None = None
    pooled: Tensor | None = None
    guidance: float | None = None
    image: Tensor | None = None
    given_frames: int = 0
    text_2: Tensor | None = None
    text_2_lengths: tuple[int, ...] | None = None
    control_scales: Tensor | None = None


@dataclass(frozen=True)
class ImageConditioning:
    """The image conditioning of a whole video, the same in every branch and step; empty without images. B is 1.

    Attributes:
        channels: [B, C', T, H, W], latents and masks, appended to the channels of the noisy latents.
        frames: [B, C, T', H, W], clean latents that replace the first T' noisy frames.
        features: [B, M_image, D_image], output of the image encoder.
        noise_share: share of noise in the initial latents, 0 … 1; the rest is the first of `frames`, repeated in every
            frame.
        num_references: number of latent frames before those of the video, which hold references and are left out of the
            result.
        control_scales: as in `Conditioning`.
    """

    channels: Tensor | None = None
    frames: Tensor | None = None
    features: Tensor | None = None
    noise_share: float = 1.0
    num_references: int = 0
    control_scales: Tensor | None = None

    def start(self, noise: Tensor) -> Tensor:
        """Return the initial latents for noise [B, C, T, H, W]."""
        if self.frames is None or self.noise_share == 1:
            return noise
        return noise * self.noise_share + self.frames[:, :, :1] * (1 - self.noise_share)

    def with_frames(self, latents: Tensor) -> Tensor:
        """Return latents [B, C, T, H, W] with the first frames replaced by the clean ones."""
        if self.frames is None:
            return latents
        frames = self.frames.to(latents.dtype).expand(latents.shape[0], -1, -1, -1, -1)
        return torch.cat((frames, latents[:, :, frames.shape[2] :]), dim=2)

    def finish(self, latents: Tensor) -> Tensor:
        """Return the video's latents [B, C, T, H, W] for denoised ones [B, C, num_references + T, H, W]."""
        latents = self.with_frames(latents)
        return latents[:, :, self.num_references :].contiguous() if self.num_references else latents

    def model_input(self, latents: Tensor) -> Tensor:
        """Return the transformer's input [B, C + C', T, H, W] for latents [B, C, T, H, W]."""
        latents = self.with_frames(latents)
        if self.channels is None:
            return latents
        channels = self.channels.to(latents.dtype).expand(latents.shape[0], -1, -1, -1, -1)
        return torch.cat((latents, channels), dim=1)

    def added_to(self, conditioning: Conditioning) -> Conditioning:
        """Return one branch's conditioning with the features, the number of fixed frames, and control's scales."""
        batch = conditioning.text.shape[0]
        return replace(
            conditioning,
            image=None if self.features is None else self.features.expand(batch, -1, -1),
            given_frames=0 if self.frames is None else self.frames.shape[2],
            control_scales=self.control_scales,
        )


@dataclass(frozen=True)
class BlockContext:
    """Everything that a block needs besides the state. Small; equal on all ranks except for `rotary` and `attention`.

    Attributes:
        text: [B, M, D], projected text, for cross-attention or as the input of block 0 in joint attention.
        time: modulation of the blocks, [B, 6, D], or [B, L_local, 6, D] if per token; [B, D] if each block projects it
            itself.
        time_out: [B, D] (per token: [B, L_local, D]), modulation of the output projection.
        rotary: the model's rotary tables for this rank's tokens.
        attention: which rank holds which tokens, and the axes that share them.
        latent_shape: (T, H, W) of the whole video.
        text_lengths: as in `Conditioning`; never None in joint attention.
        time_given: [B, D], as `time`, for tokens of frames that images fix; None if they are modulated like the others.
        num_given: number of this rank's tokens that belong to such frames; they are its first ones.
        control_scales: as in `Conditioning`.
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
    control_scales: Tensor | None = None


class BlockModel(Protocol):
    """A diffusers transformer with unchanged weights and blocks, whose block loop is run from outside.

    Tokens are sharded in `embed` and gathered in `project`, never in a block, so any block can be skipped. The context
    is cheap and does not depend on tokens, so a rank can build the context of a branch whose tokens it receives later.
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
        """Return the context of one branch for timestep [B] in 0 … 1000; of latents [B, C, T, H, W], only the shape."""
        ...

    def embed(self, latents: Tensor, context: BlockContext) -> TokenState:
        """Return the state of this rank's tokens before block 0, from latents [B, C, T, H, W]."""
        ...

    def run_block(self, index: int, state: TokenState, context: BlockContext) -> TokenState:
        """Return the state after block `index`; `state` itself is not changed."""
        ...

    def project(self, state: TokenState, context: BlockContext) -> Tensor:
        """Return the network's whole prediction [B, C, T, H, W] on every rank of the context's plan."""
        ...

    def stack(self, contexts: tuple[BlockContext, ...]) -> BlockContext:
        """Return one context for several branches that pass a block as one batch; shorter texts are padded."""
        ...


class Controlled(ABC):
    """What a `BlockModel` adds that has a second stream of blocks for control, beside those that S² can drop.

    Each block of control advances the stream by one step and gives a hint, which is added to the video's tokens after a
    certain block. `embed` returns the stream in the state. Blocks of control see the embedded latents, the text and the
    timestep, but no block of the video, so cond's hints are those of sub.

    Attributes:
        hints_at: indices of the blocks after which a hint is added, ascending; the first is 0.
    """

    hints_at: tuple[int, ...]

    @abstractmethod
    def advance(self, number: int, state: TokenState, context: BlockContext) -> TokenState:
        """Return the state with the stream after control block `number`, and with its hint.

        With number 0, `state` is that before block 0.
        """

    @staticmethod
    def add_hint(state: TokenState) -> TokenState:
        """Return the state with its hint added to the video's tokens, if there is one."""
        return state if state.hint is None else state._replace(video=state.video + state.hint, hint=None)
