"""Wan 2.1 and 2.2 as a `BlockModel`, from text or with images.

The transformer is the unchanged diffusers module. This file repeats only what its `forward` does before and after the
block loop, with tokens sharded in between; a test checks bitwise equality. Self-attention uses our processor, which
attends to the tokens of all shards.

Dimension letters as in `base`; p_t, p_h, p_w patch sizes, N_heads heads.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttention
from torch import Tensor, nn

from ...geometry import LatentShape, Shard
from ...parallel.attention import AttentionPlan, set_backend, sharded_attention
from ...parallel.attention_op import attention_of, runs_with
from ..base import BlockContext, Conditioning, TokenState
from ..tokens import RotaryTables, embed_shard, gather_latents

Rotary = tuple[Tensor, Tensor]


class ShardedSelfAttention:
    """Attention processor of the `attn1` of all blocks.

    Blocks cannot pass it further arguments, so `WanBlockModel.run_block` calls `begin` before each block.
    """

    def __init__(self, backend: str | None = None) -> None:
        self.backend = backend
        self.plan: AttentionPlan | None = None

    def begin(self, plan: AttentionPlan) -> None:
        """Attend to the tokens of this plan in the next block of this thread."""
        self.plan = plan
        runs_with(self.attend)

    def attend(self, video: Sequence[Tensor], text: Sequence[Tensor]) -> Tensor:
        assert self.plan is not None and not text
        query, key, value = video
        return sharded_attention(query, key, value, self.plan, backend=self.backend)

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Rotary | None = None,
    ) -> Tensor:
        """Return attention of [B, L_local, D] to all L tokens of the video, in the same shape."""
        assert encoder_hidden_states is None and attention_mask is None and rotary_emb is not None
        if attn.fused_projections:
            query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        query, key = attn.norm_q(query), attn.norm_k(key)
        query, key, value = (x.unflatten(2, (attn.heads, -1)) for x in (query, key, value))
        query, key = rotate(query, rotary_emb), rotate(key, rotary_emb)
        output = attention_of(self.attend, (query, key, value), ())
        output = output.flatten(2, 3).type_as(query)
        for layer in attn.to_out:
            output = layer(output)
        return output


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Apply rotary position embedding to [B, L, N_heads, D]. Pairs of adjacent channels form complex numbers."""
    cos, sin = rotary[0][..., 0::2], rotary[1][..., 1::2]
    real, imaginary = x[..., 0::2], x[..., 1::2]
    rotated = torch.stack((real * cos - imaginary * sin, real * sin + imaginary * cos), dim=-1)
    return rotated.flatten(-2).type_as(x)


def has_equal_rows(device: torch.device) -> bool:
    """Return whether equal rows of a matrix have equal products on this device.

    On a GPU, a kernel adds up each row in the same order. MKL does not: with a width of 60, rows differ in the last bit
    in a quarter of all heights from 1 to 399.
    """
    return device.type == "cuda"


def first_row(rows: Tensor) -> Tensor:
    """Return [B, 1, ...] for equal rows [B, L, ...], which blocks broadcast; frees the others."""
    return rows[:, :1].clone()


class WanBlockModel:
    """`WanTransformer3DModel` as embed -> blocks -> project, with tokens sharded in between.

    Replaces the module's self-attention processors.

    Args:
        time_per_token: whether each token has its own timestep, 0 if an image fixes its frame, as in the pipelines of
            TI2V 5B. Without an image all are equal, and on a GPU one is kept for all.
    """

    def __init__(
        self,
        transformer: WanTransformer3DModel,
        *,
        attention_backend: str | None = None,
        time_per_token: bool = False,
    ) -> None:
        self.transformer = transformer
        self._time_per_token = time_per_token
        self._dtype = transformer.dtype  # stored, because the property searches all modules
        set_backend(transformer, attention_backend)
        self._rotary = RotaryTables()
        self._attention = ShardedSelfAttention(attention_backend)
        for block in transformer.blocks:
            block.attn1.set_processor(self._attention)

    @property
    def num_blocks(self) -> int:
        return len(self.transformer.blocks)

    def num_tokens(self, latents: Tensor) -> int:
        return LatentShape(*latents.shape[2:]).tokens(self.transformer.config.patch_size).num_tokens

    def prepare(
        self, latents: Tensor, timestep: Tensor, conditioning: Conditioning, plan: AttentionPlan
    ) -> BlockContext:
        model, mine = self.transformer, plan.mine
        num_times = None
        if self._time_per_token:
            timestep = self._token_times(timestep, latents, conditioning.given_frames, mine)
            num_times = timestep.shape[1]
        time_out, time, text, image = model.condition_embedder(
            timestep.flatten(),
            conditioning.text.to(self._dtype),
            self._features(conditioning.image),
            timestep_seq_len=num_times,
        )
        if self._time_per_token:
            time_out, time = time_out[:, : mine.length], time[:, : mine.length]
            if not conditioning.given_frames and has_equal_rows(latents.device):
                time_out, time = first_row(time_out), first_row(time)
        if image is not None:
            text = torch.cat((image, text), dim=1)
        return BlockContext(
            text=text,
            time=time.unflatten(-1, (6, -1)),
            time_out=time_out,
            rotary=self._rotary.of(latents, mine, model.rope, dim=1),
            attention=plan,
            latent_shape=(latents.shape[2], latents.shape[3], latents.shape[4]),
            control_scales=conditioning.control_scales,
        )

    def _token_times(self, timestep: Tensor, latents: Tensor, given_frames: int, shard: Shard) -> Tensor:
        """Return the timestep of each token of the shard, [B, L_local]; [B, 1] for an empty shard."""
        given = LatentShape(given_frames, *latents.shape[3:]).tokens(self.transformer.config.patch_size).num_tokens
        tokens = torch.arange(shard.start, max(shard.stop, shard.start + 1), device=latents.device)
        return torch.where(tokens < given, 0, timestep.unsqueeze(1))

    def _features(self, image: Tensor | None) -> Tensor | None:
        """Reshape [B, M_image, D_image] for the embedder; with first and last image, to [2·B, M_image / 2, D_image]."""
        embedder = self.transformer.condition_embedder.image_embedder
        if image is None or embedder is None:
            return None
        if embedder.pos_embed is not None:
            image = image.unflatten(1, (2, -1)).flatten(0, 1)
        return image.to(self._dtype)

    def embed(self, latents: Tensor, context: BlockContext) -> TokenState:
        return TokenState(self._tokens(latents, self.transformer.patch_embedding, context))

    def _tokens(self, latents: Tensor, embedding: nn.Module, context: BlockContext) -> Tensor:
        """Return this rank's tokens [B, L_local, D] of latents [B, C, T, H, W] under a convolution of patches."""

        def patchify(frames: Tensor) -> Tensor:
            tokens: Tensor = embedding(frames)
            return tokens.flatten(2).transpose(1, 2)

        patch_size = self.transformer.config.patch_size
        return embed_shard(latents.to(self._dtype), context.attention.mine, patch_size, patchify)

    def run_block(self, index: int, state: TokenState, context: BlockContext) -> TokenState:
        self._attention.begin(context.attention)
        video = self.transformer.blocks[index](state.video, context.text, context.time, context.rotary)
        return state._replace(video=video)

    def project(self, state: TokenState, context: BlockContext) -> Tensor:
        model = self.transformer
        time = context.time_out.unsqueeze(1) if context.time_out.ndim == 2 else context.time_out  # [B, 1 or L_local, D]
        shift, scale = (model.scale_shift_table + time.unsqueeze(2)).unbind(2)
        video = (model.norm_out(state.video.float()) * (1 + scale) + shift).type_as(state.video)
        return gather_latents(model.proj_out(video), context, model.config.patch_size, "pt ph pw c")

    def stack(self, contexts: tuple[BlockContext, ...]) -> BlockContext:
        return replace(
            contexts[0],
            text=torch.cat([c.text for c in contexts]),
            time=torch.cat([c.time for c in contexts]),
            time_out=torch.cat([c.time_out for c in contexts]),
        )
