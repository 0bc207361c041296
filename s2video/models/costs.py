"""The costs of a transformer: FLOPs by kind, and parameters. Each family implements the counts.

FLOPs include matrix products, convolutions and attention, two for each multiply-add, as torch's `flop_counter` counts
them; they exclude norms, activations and rotary embeddings. Work on text and timestep is repeated on every rank. Knows
neither mesh nor card, and does not import torch.

Dimension letters: L_local video tokens on this rank, L of the video, M text tokens (with padding, so an upper bound if
a model trims it), D width, D_mlp width of the feed-forward.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol


class Share(NamedTuple):
    """One rank's share of a pass: `tokens` of the video's `total`; in attention, `heads` heads for `group` tokens."""

    tokens: int
    heads: int
    group: int
    total: int


class Work(NamedTuple):
    """FLOPs of a pass or a part of it, by kind of kernel.

    Attributes:
        linear: matrix products and convolutions.
        attention: attention over local tokens (cross-attention, HunyuanVideo's text refiner).
        exchanged: attention over tokens of all ranks, exchanged by all-to-all or around the ring.
    """

    linear: float = 0.0
    attention: float = 0.0
    exchanged: float = 0.0

    @property
    def total(self) -> float:
        return sum(self)


class TransformerCosts(Protocol):
    """Counts of one transformer's FLOPs and parameters.

    Attributes:
        width, mlp_width: D and D_mlp.
        in_channels: latent channels, C.
        patch_channels: channels of one token's prediction, p_t·p_h·p_w·C_out.
        joint_text: whether text passes through the blocks together with the video.
        num_single: number of blocks that compute attention and feed-forward side by side (HunyuanVideo 1.0).
        time_per_token: whether the timestep is embedded for each token.
        hints_at: indices of the blocks before which a block of control runs, in passes with all blocks.
    """

    @property
    def num_blocks(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def mlp_width(self) -> int: ...
    @property
    def in_channels(self) -> int: ...
    @property
    def patch_channels(self) -> int: ...
    @property
    def joint_text(self) -> bool: ...
    @property
    def num_single(self) -> int: ...
    @property
    def time_per_token(self) -> bool: ...
    @property
    def hints_at(self) -> tuple[int, ...]: ...
    def num_text(self, max_sequence_length: int) -> int:
        """Return M for prompts of at most `max_sequence_length` tokens."""
        ...

    def embed(self, tokens: int, num_text: int) -> Work: ...
    def block(self, index: int, share: Share, num_text: int) -> Work: ...
    def project(self, tokens: int) -> Work: ...
    def block_parameters(self, index: int) -> int: ...
    def control_block(self, number: int, share: Share, num_text: int) -> Work: ...
    def control_parameters(self, number: int) -> int: ...
    def root_parameters(self) -> int:
        """Return the number of parameters outside the blocks."""
        ...


def whole_pass(model: TransformerCosts, num_tokens: int, num_text: int) -> Work:
    """Return the FLOPs of one forward pass of the whole model on one rank."""
    share = Share(num_tokens, model.num_heads, num_tokens, num_tokens)
    parts = [model.embed(num_tokens, num_text), model.project(num_tokens)]
    parts += [model.block(index, share, num_text) for index in range(model.num_blocks)]
    parts += [model.control_block(number, share, num_text) for number in range(len(model.hints_at))]
    return Work(*(math.fsum(kind) for kind in zip(*parts, strict=True)))


class Derived:
    """Sizes that every family derives in the same way, and no control."""

    num_heads: int
    head_dim: int
    out_channels: int
    patch_size: tuple[int, int, int]
    hints_at: tuple[int, ...] = ()

    @property
    def width(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def patch_channels(self) -> int:
        return math.prod(self.patch_size) * self.out_channels

    def num_text(self, max_sequence_length: int) -> int:
        return max_sequence_length

    def control_block(self, number: int, share: Share, num_text: int) -> Work:
        return Work()

    def control_parameters(self, number: int) -> int:
        return 0


def all_parameters(model: TransformerCosts) -> list[int]:
    """Return the number of parameters of every block, those of control last."""
    blocks = [model.block_parameters(index) for index in range(model.num_blocks)]
    return blocks + [model.control_parameters(number) for number in range(len(model.hints_at))]


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs
