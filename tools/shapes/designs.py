"""The embedded models that can be trained: the sizes of their networks, and what their recipes differ in."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

# (share of training until which this holds, clips, frames, side): pixels a step stay about the same
Curriculum = tuple[tuple[float, int, tuple[int, ...], int], ...]


@dataclass(frozen=True)
class Design:
    """One embedded model.

    Attributes:
        vae, transformer: arguments of `AutoencoderKLWan` and `WanTransformer3DModel`, beside those that all have.
        curriculum: crops that the VAE is trained on.
        edge_weight: how much more an error within two pixels of an outline counts. Outlines are few pixels, and all
            that tells a small circle from a small square.
        absolute_weight: of the absolute error beside the squared one. The median that it asks for is sharp, where the
            mean of two outlines is soft.
        places_block: the block whose output the heads of places read; those after it are free to make pixels of it.
        max_bytes: of the weights in float16.
        vae_steps, word_steps, steps, clips, family_clips: the recipe's defaults.
    """

    name: str
    vae: Mapping[str, Any]
    transformer: Mapping[str, Any]
    curriculum: Curriculum
    edge_weight: float
    absolute_weight: float
    places_block: int
    max_bytes: int
    vae_steps: int
    word_steps: int
    steps: int
    clips: int
    family_clips: int


SHAPES_WAN = Design(
    name="shapes-wan",
    vae=MappingProxyType(dict(base_dim=32)),
    transformer=MappingProxyType(dict(num_attention_heads=4, attention_head_dim=32, ffn_dim=512, num_layers=12)),
    curriculum=((0.70, 16, (5, 9), 32), (0.85, 6, (13, 17), 48), (1.0, 3, (17,), 64)),
    edge_weight=4.0,
    absolute_weight=0.1,
    places_block=6,
    max_bytes=16_000_000,
    vae_steps=2200,
    word_steps=2500,
    steps=4900,
    clips=12000,
    family_clips=12000,
)

# Twice the blocks, so that a tenth of them is a choice among many; its VAE spends its parameters where pixels are made.
SHAPES_WAN_24 = Design(
    name="shapes-wan-24",
    vae=MappingProxyType(dict(base_dim=20, decoder_base_dim=28)),
    transformer=MappingProxyType(dict(num_attention_heads=4, attention_head_dim=24, ffn_dim=256, num_layers=24)),
    curriculum=((0.60, 16, (5, 9), 32), (0.80, 6, (13, 17), 48), (1.0, 3, (17,), 64)),
    edge_weight=6.0,
    absolute_weight=0.3,
    places_block=12,
    max_bytes=11_000_000,
    vae_steps=3600,
    word_steps=2500,
    steps=13000,
    clips=8000,
    family_clips=14000,
)

DESIGNS = {design.name: design for design in (SHAPES_WAN, SHAPES_WAN_24)}
