"""What a transformer computes and weighs: FLOPs by kind and parameters, as each family counts them.

FLOPs are those of matrix products, convolutions and attention, two for a multiplication with its addition, as torch's
`flop_counter` counts them; norms, activations and rotary embeddings are not in them. Whatever is done for text and
timestep is done on every rank. Knows no mesh, no card, and no torch.

Dimension letters: L_local video tokens on this rank, L of the video, M text tokens (padding included, so an upper
bound where a model trims it), D width, D_mlp of the feed-forward.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol


class Share(NamedTuple):
    """What one rank holds of a pass: `tokens` of the video's `total`; in attention, `heads` for `group` tokens."""

    tokens: int
    heads: int
    group: int
    total: int


class Work(NamedTuple):
    """FLOPs of a pass or of a part of it, by the kind of kernel.

    Attributes:
        linear: matrix products and convolutions.
        attention: attention over what this rank has at hand: cross-attention, the refiner of HunyuanVideo's text.
        exchanged: attention over tokens of all ranks: its keys come by all-to-all or round the ring.
    """

    linear: float = 0.0
    attention: float = 0.0
    exchanged: float = 0.0

    @property
    def total(self) -> float:
        return sum(self)


class TransformerCosts(Protocol):
    """One transformer: counts of FLOPs and parameters.

    Attributes:
        width, mlp_width: D and D_mlp.
        in_channels: latent channels, C.
        patch_channels: channels of one token's prediction, p_t·p_h·p_w·C_out.
        joint_text: text travels through the blocks with the video.
        time_per_token: the timestep is embedded for each token.
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
    def time_per_token(self) -> bool: ...
    def num_text(self, max_sequence_length: int) -> int:
        """M, where a prompt may have so many tokens."""
        ...

    def embed(self, tokens: int, num_text: int) -> Work: ...
    def block(self, index: int, share: Share, num_text: int) -> Work: ...
    def project(self, tokens: int) -> Work: ...
    def block_parameters(self, index: int) -> int: ...
    def root_parameters(self) -> int:
        """All that is in no block."""
        ...


def whole_pass(model: TransformerCosts, num_tokens: int, num_text: int) -> Work:
    """One forward pass of the whole model on one rank."""
    share = Share(num_tokens, model.num_heads, num_tokens, num_tokens)
    parts = [model.embed(num_tokens, num_text), model.project(num_tokens)]
    parts += [model.block(index, share, num_text) for index in range(model.num_blocks)]
    return Work(*(math.fsum(kind) for kind in zip(*parts, strict=True)))


class Derived:
    """What follows from the sizes of every family."""

    num_heads: int
    head_dim: int
    out_channels: int
    patch_size: tuple[int, int, int]

    @property
    def width(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def patch_channels(self) -> int:
        return math.prod(self.patch_size) * self.out_channels

    def num_text(self, max_sequence_length: int) -> int:
        return max_sequence_length


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs
