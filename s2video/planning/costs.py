"""What a transformer computes and weighs, from its config.json: FLOPs and parameters of embed, each block and project.

FLOPs are those of matrix products, convolutions and attention, two for a multiplication with its addition, as torch's
`flop_counter` counts them; norms, activations and rotary embeddings are not in them. Whatever is done for text and
timestep is done on every rank. Three families: Wan, HunyuanVideo 1.0 and 1.5. Knows no mesh, no card, and no torch.

Dimension letters: L_local video tokens on this rank, L of the video, M text tokens (padding included, so an upper
bound where a model trims it), D width, D_mlp of the feed-forward.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from ..errors import InputError
from ..masks import MaskSpec

_TOKENS_OF_AN_IMAGE = 257  # 16 x 16 and one for all, of CLIP ViT-H/14 at 224 pixels: Wan's only image encoder


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


def read_costs(config: Mapping[str, Any], source: object = "config.json") -> TransformerCosts:
    """From a transformer's config.json; `source` names it in the error. Raises InputError for another family."""
    known: dict[Any, type[WanCosts | HunyuanVideoCosts | HunyuanVideo15Costs]] = {
        "WanTransformer3DModel": WanCosts,
        "HunyuanVideoTransformer3DModel": HunyuanVideoCosts,
        "HunyuanVideo15Transformer3DModel": HunyuanVideo15Costs,
    }
    name = config.get("_class_name")
    if name not in known:
        raise InputError(f"{source}: costs are known for {' and '.join(known)}, came {name!r}")
    return known[name].from_config(config)


class _Derived:
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


@dataclass(frozen=True)
class WanCosts(_Derived):
    """`WanTransformer3DModel`, from text or with images.

    Attributes:
        image_dim, num_images: D_image of the image encoder's features, and of how many images the transformer sees
            them; 0, 0 where it sees none.
    """

    num_blocks: int
    num_heads: int
    head_dim: int
    mlp_width: int
    text_dim: int
    freq_dim: int
    in_channels: int
    out_channels: int
    patch_size: tuple[int, int, int]
    cross_attn_norm: bool
    time_per_token: bool
    image_dim: int
    num_images: int
    joint_text = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> WanCosts:
        """Defaults are those of diffusers' constructor: a config.json may leave them out.

        `expand_timesteps` is a setting of the pipeline, so it stands in model_index.json.
        """
        channels = config.get("in_channels", 16)
        return cls(
            num_blocks=config.get("num_layers", 40),
            num_heads=config.get("num_attention_heads", 40),
            head_dim=config.get("attention_head_dim", 128),
            mlp_width=config.get("ffn_dim", 13824),
            text_dim=config.get("text_dim", 4096),
            freq_dim=config.get("freq_dim", 256),
            in_channels=channels,
            out_channels=config.get("out_channels") or channels,
            patch_size=tuple(config.get("patch_size", (1, 2, 2))),
            cross_attn_norm=config.get("cross_attn_norm", True),
            time_per_token=bool(config.get("expand_timesteps", False)),
            image_dim=config.get("image_dim") or 0,
            num_images=0 if config.get("image_dim") is None else 1 if config.get("pos_embed_seq_len") is None else 2,
        )

    @property
    def num_image_tokens(self) -> int:
        return _TOKENS_OF_AN_IMAGE * self.num_images

    def embed(self, tokens: int, num_text: int) -> Work:
        """Patches of L_local tokens; the timestep, once or for each of them, and its modulation of 6·D; the text and
        the images' features, through two layers each."""
        width = self.width
        patches = tokens * math.prod(self.patch_size) * self.in_channels
        time = (self.freq_dim + 7 * width) * (tokens if self.time_per_token else 1)
        images = self.num_image_tokens * self.image_dim * (self.image_dim + width)
        return Work(2 * width * (patches + time + num_text * (self.text_dim + width)) + 2 * images)

    def block(self, index: int, share: Share, num_text: int) -> Work:
        """Linear: Q, K, V, out of self-attention, Q and out of cross-attention, feed-forward; K and V of the text, and
        others of the images."""
        width, tokens, told = self.width, share.tokens, num_text + self.num_image_tokens
        return Work(
            linear=2 * width * (tokens * (6 * width + 2 * self.mlp_width) + told * 2 * width),
            attention=4 * tokens * told * width,
            exchanged=4 * share.group * share.total * share.heads * self.head_dim,
        )

    def project(self, tokens: int) -> Work:
        return Work(2 * tokens * self.width * self.patch_channels)

    def block_parameters(self, index: int) -> int:
        width, mlp = self.width, self.mlp_width
        attention = 4 * _linear(width, width) + 2 * width  # with the norms of Q and K
        norms_and_tables = (2 * width if self.cross_attn_norm else 0) + 6 * width
        of_images = 2 * _linear(width, width) + width if self.num_images else 0
        return 2 * attention + of_images + _linear(width, mlp) + _linear(mlp, width) + norms_and_tables

    def root_parameters(self) -> int:
        width = self.width
        embedders = (
            _linear(math.prod(self.patch_size) * self.in_channels, width)
            + _linear(self.freq_dim, width)
            + _linear(width, width)
            + _linear(width, 6 * width)
            + _linear(self.text_dim, width)
            + _linear(width, width)
        )
        if self.num_images:
            of_images, norms = self.image_dim, 2 * (self.image_dim + width)
            embedders += _linear(of_images, of_images) + _linear(of_images, width) + norms
        if self.num_images == 2:
            embedders += self.num_image_tokens * self.image_dim  # what tells the first image from the last
        return embedders + _linear(width, self.patch_channels) + 2 * width


class _JointAttention(_Derived):
    """Dual blocks, then single ones, over video and text: what both versions of HunyuanVideo compute alike.

    Attributes:
        token_replace: the tokens of a given frame have a timestep, and so a modulation, of their own.
    """

    token_replace: bool
    num_dual: int
    mlp_ratio: float
    num_refiner: int
    text_dim: int
    joint_text = True
    time_per_token = False

    @property
    def mlp_width(self) -> int:
        return int(self.width * self.mlp_ratio)

    def refine(self, num_text: int) -> Work:
        """The prompt's projection and its refiner, whose feed-forward is 4·D wide."""
        width = self.width
        each = num_text * (4 * width + 8 * width) + 2 * width
        return Work(
            linear=2 * width * (num_text * self.text_dim + self.num_refiner * each),
            attention=self.num_refiner * 4 * num_text**2 * width,
        )

    def refiner_parameters(self) -> int:
        width = self.width
        each = 4 * width + 4 * _linear(width, width) + _linear(width, 2 * width)
        each += _linear(width, 4 * width) + _linear(4 * width, width)
        return _linear(self.text_dim, width) + self.num_refiner * each

    def block(self, index: int, share: Share, num_text: int) -> Work:
        """Q, K, V, out and feed-forward of both streams. The text's queries meet the keys that a ring group holds,
        and the text's own."""
        width = self.width
        modulation = 12 + 6 * self.token_replace if index < self.num_dual else 3 + 3 * self.token_replace
        video, text = share.group * (share.total + num_text), num_text * (share.group + num_text)
        return Work(
            linear=2 * width * ((share.tokens + num_text) * (4 * width + 2 * self.mlp_width) + modulation * width),
            exchanged=4 * (video + text) * share.heads * self.head_dim,
        )

    def project(self, tokens: int) -> Work:
        return Work(2 * self.width * (tokens * self.patch_channels + 2 * self.width))

    def block_parameters(self, index: int) -> int:
        width, mlp = self.width, self.mlp_width
        if index < self.num_dual:
            stream = _linear(width, 6 * width) + 4 * _linear(width, width) + 2 * self.head_dim
            return 2 * (stream + _linear(width, mlp) + _linear(mlp, width))
        attention = 3 * _linear(width, width) + 2 * self.head_dim
        return attention + _linear(width, 3 * width) + _linear(width, mlp) + _linear(width + mlp, width)


@dataclass(frozen=True)
class HunyuanVideoCosts(_JointAttention):
    """`HunyuanVideoTransformer3DModel`: dual blocks, then single ones, all with joint attention over video and text."""

    num_dual: int
    num_single: int
    num_refiner: int
    num_heads: int
    head_dim: int
    mlp_ratio: float
    text_dim: int
    pooled_dim: int
    guidance_embeds: bool
    token_replace: bool
    in_channels: int
    out_channels: int
    patch_size: tuple[int, int, int]

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> HunyuanVideoCosts:
        """Defaults are those of diffusers' constructor: a config.json may leave them out."""
        channels, patch = config.get("in_channels", 16), config.get("patch_size", 2)
        return cls(
            num_dual=config.get("num_layers", 20),
            num_single=config.get("num_single_layers", 40),
            num_refiner=config.get("num_refiner_layers", 2),
            num_heads=config.get("num_attention_heads", 24),
            head_dim=config.get("attention_head_dim", 128),
            mlp_ratio=config.get("mlp_ratio", 4.0),
            text_dim=config.get("text_embed_dim", 4096),
            pooled_dim=config.get("pooled_projection_dim", 768),
            guidance_embeds=config.get("guidance_embeds", True),
            token_replace=config.get("image_condition_type") == "token_replace",
            in_channels=channels,
            out_channels=config.get("out_channels") or channels,
            patch_size=(config.get("patch_size_t", 1), patch, patch),
        )

    @property
    def num_blocks(self) -> int:
        return self.num_dual + self.num_single

    def num_text(self, max_sequence_length: int) -> int:
        """Before cond's text stands every fourth of the image's 576 tokens; four of the template's are cut out."""
        return max_sequence_length + (576 // 4 - 4 if self.token_replace else 0)

    def embed(self, tokens: int, num_text: int) -> Work:
        """Patches; three to five small vectors (256 is the width of a timestep's sinusoids); the text's refiner."""
        width = self.width
        timesteps = (2 + self.guidance_embeds + self.token_replace) * (256 + width)
        pooled = self.text_dim + self.pooled_dim + 2 * width
        patches = tokens * math.prod(self.patch_size) * self.in_channels
        refined = self.refine(num_text)
        return refined._replace(linear=refined.linear + 2 * width * (patches + timesteps + pooled))

    def root_parameters(self) -> int:
        width = self.width
        timestep = _linear(256, width) + _linear(width, width)
        vectors = (3 if self.guidance_embeds else 2) * timestep
        vectors += sum(_linear(dim, width) + _linear(width, width) for dim in (self.text_dim, self.pooled_dim))
        patches = _linear(math.prod(self.patch_size) * self.in_channels, width)
        output = _linear(width, 2 * width) + _linear(width, self.patch_channels)
        return patches + vectors + self.refiner_parameters() + output


@dataclass(frozen=True)
class HunyuanVideo15Costs(_JointAttention):
    """`HunyuanVideo15Transformer3DModel`: dual blocks only. Text is the prompt's, of glyphs and of an image.

    Attributes:
        num_glyphs, num_image: tokens of the last two, as many as the pipelines have at most.
    """

    num_dual: int
    num_refiner: int
    num_heads: int
    head_dim: int
    mlp_ratio: float
    text_dim: int
    glyph_dim: int
    image_dim: int
    in_channels: int
    out_channels: int
    patch_size: tuple[int, int, int]
    num_glyphs: int
    num_image: int
    token_replace = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> HunyuanVideo15Costs:
        """Defaults are those of diffusers' constructor: a config.json may leave them out."""
        channels, patch = config.get("in_channels", 65), config.get("patch_size", 1)
        return cls(
            num_dual=config.get("num_layers", 54),
            num_refiner=config.get("num_refiner_layers", 2),
            num_heads=config.get("num_attention_heads", 16),
            head_dim=config.get("attention_head_dim", 128),
            mlp_ratio=config.get("mlp_ratio", 4.0),
            text_dim=config.get("text_embed_dim", 3584),
            glyph_dim=config.get("text_embed_2_dim", 1472),
            image_dim=config.get("image_embed_dim", 1152),
            in_channels=channels,
            out_channels=config.get("out_channels", 32) or channels,
            patch_size=(config.get("patch_size_t", 1), patch, patch),
            num_glyphs=256,
            num_image=729 if config.get("task_type", "i2v") == "i2v" else 0,
        )

    @property
    def num_blocks(self) -> int:
        return self.num_dual

    def num_text(self, max_sequence_length: int) -> int:
        return max_sequence_length + self.num_glyphs + self.num_image

    def embed(self, tokens: int, num_text: int) -> Work:
        """Patches; the timestep, twice, and the pooled prompt; the prompt's refiner; three layers of the glyphs and two
        of the image."""
        width, glyphs, image = self.width, self.glyph_dim, self.image_dim
        refined = self.refine(num_text - self.num_glyphs - self.num_image)
        patches = tokens * math.prod(self.patch_size) * self.in_channels
        linear = width * (patches + 2 * (256 + width) + self.text_dim + width)
        linear += self.num_glyphs * _GLYPH_WIDTH * (glyphs + _GLYPH_WIDTH + width)
        linear += self.num_image * image * (image + width)
        return refined._replace(linear=refined.linear + 2 * linear)

    def root_parameters(self) -> int:
        width, glyphs, image = self.width, self.glyph_dim, self.image_dim
        vectors = 2 * _linear(256, width) + 3 * _linear(width, width) + _linear(self.text_dim, width) + 3 * width
        text_2 = 2 * glyphs + _linear(glyphs, _GLYPH_WIDTH) + _linear(_GLYPH_WIDTH, _GLYPH_WIDTH)
        text_2 += _linear(_GLYPH_WIDTH, width)
        images = 2 * image + _linear(image, image) + _linear(image, width) + 2 * width
        patches = _linear(math.prod(self.patch_size) * self.in_channels, width)
        output = _linear(width, 2 * width) + _linear(width, self.patch_channels)
        return patches + vectors + self.refiner_parameters() + text_2 + images + output


_GLYPH_WIDTH = 2048  # of the layers between the glyphs' embeddings and the model


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


@dataclass(frozen=True)
class SubWork:
    """What the sub branches of one step run, or are expected to.

    Attributes:
        runs: for each block, how many sub branches go through it.
        forks: at how many different blocks they leave cond.
        count: how many there are, those left out that drop nothing and so equal cond.
    """

    runs: tuple[float, ...]
    forks: float
    count: float

    @property
    def passes(self) -> float:
        """In passes through all blocks, blocks counting alike."""
        return math.fsum(self.runs) / len(self.runs)

    @classmethod
    def of_masks(cls, masks: Sequence[Sequence[int]], num_blocks: int, *, share_prefix: bool = True) -> SubWork:
        """Of the masks that one step has drawn."""
        masks = [mask for mask in masks if mask]
        starts = [min(mask) if share_prefix else 0 for mask in masks]
        runs = tuple(
            float(sum(start <= index and index not in mask for start, mask in zip(starts, masks, strict=True)))
            for index in range(num_blocks)
        )
        return cls(runs, len(set(starts)), len(masks))

    @classmethod
    def expected(cls, spec: MaskSpec, num_blocks: int, *, share_prefix: bool = True) -> SubWork:
        """Of a step in the window, on average over the uniform draws of `spec.count` blocks among the eligible; exact.

        With n eligible blocks, d dropped, and k eligible ones before block i, none of those is dropped with
        probability C(n − k, d) / C(n, d). A sub branch runs block i if it has forked by then and i is not dropped.
        """
        eligible, dropped = spec.eligible(num_blocks), spec.count(num_blocks)
        if dropped == 0:
            return cls((0.0,) * num_blocks, 0.0, 0.0)

        def undropped(of: int) -> float:
            return math.comb(len(eligible) - of, dropped) / math.comb(len(eligible), dropped)

        runs, forks, before = [], [], 0
        for index in range(num_blocks):
            drawn = index in eligible
            kept = undropped(1) if drawn else 1.0
            runs.append(spec.num_draws * (kept - undropped(before + drawn) if share_prefix else kept))
            first = undropped(before) - undropped(before + drawn)
            forks.append(1 - (1 - first) ** spec.num_draws)
            before += drawn
        return cls(tuple(runs), math.fsum(forks) if share_prefix else 1.0, float(spec.num_draws))
