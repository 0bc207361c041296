"""A step of a run and the meshes that can share it: what `forecast` and `memory` compute with. Knows no card."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

from ..geometry import split_evenly
from ..models.costs import Share, TransformerCosts, all_parameters
from ..parallel.traffic import ring_minimum, ulysses_minimum
from .passes import Kind
from .work import SubWork

Weights = Literal["replicated", "fsdp", "zero3", "streamed"]

GIGA = 1e9


class Degrees(NamedTuple):
    """The sizes of a mesh's axes, slowest varying first."""

    ring: int
    ulysses: int
    branch: int

    @property
    def world_size(self) -> int:
        return self.ring * self.ulysses * self.branch

    def __str__(self) -> str:
        return " × ".join(map(str, self))


@dataclass(frozen=True)
class Step:
    """The properties of a step, apart from mesh and card, that determine its cost.

    Attributes:
        num_tokens, num_text: L and M.
        item_bytes: bytes of one number in the transformer's dtype.
        has_uncond: whether there is an uncond pass; with two transformers, whether at least one has it.
        sub: the sub branches of a step in the window.
        window_share: fraction of the steps that are in the window.
        kinds: the steps of a run that forecasts some of its predictions; empty if every step computes all that it uses.
        kept_predictions: predictions that are kept for forecasts.
        weights: the setting `parallel.weights`.
        weight_bytes: bytes of one parameter of a block; None: item_bytes.
        num_transformers: transformers on the device at a time, one of which is active.
        vae_bytes, decoding_bytes: weights of the VAE, and further memory for decoding, on the main rank.
        text_encoder_bytes: weights of the text encoder, on the main rank.
        image_encoding_bytes: memory to encode images, with the weights of the image encoder, on the main rank.
        keeps_text_encoder: whether they stay on the device while denoising.
    """

    model: TransformerCosts
    num_tokens: int
    num_text: int
    item_bytes: int
    has_uncond: bool
    sub: SubWork
    window_share: float = 1.0
    kinds: tuple[Kind, ...] = ()
    kept_predictions: int = 0
    weights: Weights = "replicated"
    weight_bytes: float | None = None
    num_transformers: int = 1
    vae_bytes: float = 0.0
    decoding_bytes: float = 0.0
    text_encoder_bytes: float = 0.0
    image_encoding_bytes: float = 0.0
    keeps_text_encoder: bool = False

    @property
    def carried_text(self) -> int:
        """The number of text tokens that run through the blocks with the video."""
        return self.num_text if self.model.joint_text else 0

    @property
    def prediction_bytes(self) -> int:
        """The bytes of one branch's whole prediction."""
        return self.num_tokens * self.model.patch_channels * self.item_bytes

    def full_passes(self, degrees: Degrees) -> int:
        """Return the passes of one rank: cond and uncond, or one of them if they run in parallel."""
        return 2 if self.has_uncond and degrees.branch == 1 else 1

    @property
    def kinds_of_run(self) -> tuple[Kind, ...]:
        """All steps by what they compute; without reuse, outside and inside the window."""
        outside, inside = 1 - self.window_share, self.window_share
        uncond = self.has_uncond
        return self.kinds or (Kind(outside, True, uncond, False), Kind(inside, True, uncond, True))


@dataclass(frozen=True)
class Layout:
    """Ranks that share the tokens of one branch, as in the engine: ulysses varies fastest, shards may be uneven."""

    ring: int
    ulysses: int
    tokens: tuple[int, ...]
    heads: tuple[int, ...]

    @cached_property
    def groups(self) -> tuple[int, ...]:
        """The number of tokens of each Ulysses group, in ring order."""
        return tuple(sum(self.tokens[i : i + self.ulysses]) for i in range(0, len(self.tokens), self.ulysses))

    @cached_property
    def busiest(self) -> Share:
        return Share(max(self.tokens), max(self.heads), max(self.groups), sum(self.tokens))

    def block_bytes(self, rank: int, step: Step) -> dict[str, int]:
        """Return the bytes that a rank of this layout sends in one block of one branch, by kind."""
        model, (group, member) = step.model, divmod(rank, self.ulysses)
        own = self.tokens[group * self.ulysses : (group + 1) * self.ulysses]
        width = self.heads[member] * model.head_dim
        exchanged = ulysses_minimum(own, self.heads, model.head_dim, shared=step.carried_text)[member]
        return {
            "all_to_all": exchanged * step.item_bytes,
            "send": ring_minimum(self.groups, width)[group] * step.item_bytes,
            # the text's outputs and log-sum-exps, in float32
            "all_gather": step.carried_text * (width + self.heads[member]) * 4 * (self.ring - 1),
        }

    def gather_bytes(self, step: Step) -> int:
        """Return the bytes that a rank sends to gather a branch's prediction: the longest shard, to each other rank."""
        return max(self.tokens) * step.model.patch_channels * step.item_bytes * (len(self.tokens) - 1)


def layouts(degrees: Degrees, step: Step) -> tuple[Layout, Layout]:
    """Return the layouts of cond (and uncond) and of sub; they are the same without a branch axis."""
    shards = [shard.length for shard in split_evenly(step.num_tokens, degrees.ring * degrees.ulysses)]
    parts = [part.length for shard in shards for part in split_evenly(shard, degrees.branch)]

    def layout(ulysses: int, tokens: list[int]) -> Layout:
        heads = split_evenly(step.model.num_heads, ulysses)
        return Layout(degrees.ring, ulysses, tuple(tokens), tuple(shard.length for shard in heads))

    return layout(degrees.ulysses, shards), layout(degrees.ulysses * degrees.branch, parts)


def block_weights(step: Step) -> float:
    """Return the bytes of all blocks of one transformer, with those of control."""
    size = step.item_bytes if step.weight_bytes is None else step.weight_bytes
    return sum(all_parameters(step.model)) * size
