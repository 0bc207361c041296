"""HunyuanVideo 1.0, text-to-video and image-to-video (token_replace), as a `BlockModel`.

The transformer is the unchanged diffusers module. This file repeats only what its `forward` does before and after the
block loops, with tokens sharded in between. The dual blocks, followed by the single blocks, form one list, and any of
them can be skipped. Attention, over video and text as one sequence, uses our processor. The module masks the text's
padding; here, text is trimmed to the batch's longest prompt, and the remaining padding is excluded from the softmax.
The result is equal up to rounding, and every attention kernel can be used. In image-to-video, the tokens of the image's
frame have their own modulation.

Dimension letters as in `base`; N_heads heads.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from diffusers import HunyuanVideoTransformer3DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor

from ...geometry import LatentShape
from ...parallel.attention import AttentionPlan, set_backend, sharded_joint_attention
from ...parallel.attention_op import attention_of, runs_with
from ..base import BlockContext, Conditioning, TokenState
from ..tokens import RotaryTables, embed_shard, gather_latents, pad_text

Rotary = tuple[Tensor, Tensor]


class ShardedJointAttention:
    """Attention processor of all blocks.

    Blocks cannot pass it further arguments, so `HunyuanVideoBlockModel.run_block` calls `begin` before each block.
    """

    def __init__(self, backend: str | None = None) -> None:
        self.backend = backend
        self.plan: AttentionPlan | None = None
        self.text_lengths: Sequence[int] | None = None

    def begin(self, plan: AttentionPlan, text_lengths: Sequence[int] | None) -> None:
        """Attend to these tokens in the next block of this thread."""
        self.plan, self.text_lengths = plan, text_lengths
        runs_with(self.attend)

    def attend(self, video: Sequence[Tensor], text: Sequence[Tensor]) -> Tensor:
        assert self.plan is not None
        return sharded_joint_attention(video, text, self.plan, text_lengths=self.text_lengths, backend=self.backend)

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Rotary | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return attention of video [B, L_local, D] and text [B, M, D] to all tokens of both, in the same shapes."""
        assert encoder_hidden_states is not None and image_rotary_emb is not None and attention_mask is None
        video, text = hidden_states, encoder_hidden_states
        query, key, value = (p(video).unflatten(2, (attn.heads, -1)) for p in (attn.to_q, attn.to_k, attn.to_v))
        query, key = attn.norm_q(query), attn.norm_k(key)
        query, key = (apply_rotary_emb(x, image_rotary_emb, sequence_dim=1) for x in (query, key))
        if attn.add_q_proj is None:  # single blocks project text and video with the same layers
            projections, norms = (attn.to_q, attn.to_k, attn.to_v), (attn.norm_q, attn.norm_k)
        else:
            projections = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
            norms = (attn.norm_added_q, attn.norm_added_k)
        text_query, text_key, text_value = (p(text).unflatten(2, (attn.heads, -1)) for p in projections)
        text_query, text_key = norms[0](text_query), norms[1](text_key)
        joint = attention_of(self.attend, (query, key, value), (text_query, text_key, text_value))
        joint = joint.flatten(2, 3).type_as(query)
        video, text = joint[:, : query.shape[1]], joint[:, query.shape[1] :]
        if attn.to_out is not None:  # single blocks project later, together with their feed-forward
            for layer in attn.to_out:
                video = layer(video)
            text = attn.to_add_out(text)
        return video, text


class HunyuanVideoBlockModel:
    """`HunyuanVideoTransformer3DModel` as embed -> blocks -> project, with tokens sharded in between.

    Replaces the module's attention processors.

    Attributes:
        blocks: the dual blocks, followed by the single ones if the module has any.
    """

    def __init__(self, transformer: HunyuanVideoTransformer3DModel, *, attention_backend: str | None = None) -> None:
        self.transformer = transformer
        self._dtype = transformer.dtype  # stored, because the property searches all modules
        set_backend(transformer, attention_backend)
        self.blocks = [*transformer.transformer_blocks, *getattr(transformer, "single_transformer_blocks", ())]
        self._patch_size = (transformer.config.patch_size_t, *[transformer.config.patch_size] * 2)
        self._rotary = RotaryTables()
        self._attention = ShardedJointAttention(attention_backend)
        for block in self.blocks:
            block.attn.set_processor(self._attention)

    @property
    def num_blocks(self) -> int:
        return len(self.blocks)

    def num_tokens(self, latents: Tensor) -> int:
        return LatentShape(*latents.shape[2:]).tokens(self._patch_size).num_tokens

    def prepare(
        self, latents: Tensor, timestep: Tensor, conditioning: Conditioning, plan: AttentionPlan
    ) -> BlockContext:
        """See `BlockModel.prepare`. Needs `pooled`, and `guidance` if the model was distilled to take it."""
        model, mine = self.transformer, plan.mine
        text, pooled = conditioning.text.to(self._dtype), conditioning.pooled
        assert pooled is not None
        lengths = conditioning.text_lengths or (text.shape[1],) * text.shape[0]
        text = text[:, : max(lengths)]
        is_text = torch.arange(text.shape[1], device=text.device) < torch.tensor(lengths, device=text.device)[:, None]
        guidance = None
        if model.config.guidance_embeds:
            assert conditioning.guidance is not None
            # in thousandths and in the model's dtype, as in HunyuanVideoPipeline
            guidance = text.new_full((text.shape[0],), conditioning.guidance) * 1000.0
        time, time_given = model.time_text_embed(timestep, pooled.to(self._dtype), guidance)
        grid = LatentShape(*latents.shape[2:]).tokens(self._patch_size)
        num_given = conditioning.given_frames * grid.height * grid.width
        return BlockContext(
            text=model.context_embedder(text, timestep, is_text),
            time=time,
            time_out=time,
            rotary=self._rotary.of(latents, mine, model.rope, dim=0),
            attention=plan,
            latent_shape=(latents.shape[2], latents.shape[3], latents.shape[4]),
            text_lengths=lengths,
            time_given=time_given,
            num_given=max(0, min(num_given, mine.stop) - mine.start),
        )

    def embed(self, latents: Tensor, context: BlockContext) -> TokenState:
        model = self.transformer
        local = embed_shard(latents.to(self._dtype), context.attention.mine, self._patch_size, model.x_embedder)
        return TokenState(local, context.text)

    def run_block(self, index: int, state: TokenState, context: BlockContext) -> TokenState:
        self._attention.begin(context.attention, context.text_lengths)
        # blocks of text-to-video ignore these arguments
        given = context.time_given, context.num_given
        video, text = self.blocks[index](state.video, state.text, context.time, None, context.rotary, *given)
        return TokenState(video, text)

    def project(self, state: TokenState, context: BlockContext) -> Tensor:
        model = self.transformer
        patches = model.proj_out(model.norm_out(state.video, context.time_out))
        return gather_latents(patches, context, self._patch_size, "c pt ph pw")

    def stack(self, contexts: tuple[BlockContext, ...]) -> BlockContext:
        longest = max(context.text.shape[1] for context in contexts)
        time = torch.cat([context.time for context in contexts])
        given = [context.time_given for context in contexts if context.time_given is not None]
        return replace(
            contexts[0],
            text=torch.cat([pad_text(context.text, longest) for context in contexts]),
            time=time,
            time_out=time,
            text_lengths=tuple(length for context in contexts for length in context.text_lengths or ()),
            time_given=torch.cat(given) if given else None,
        )
