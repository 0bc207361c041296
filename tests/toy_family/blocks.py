"""The toy as a `BlockModel`."""

from dataclasses import replace

import torch
from einops import rearrange
from torch import Tensor

from s2video.geometry import LatentShape
from s2video.models.base import BlockContext, Conditioning, TokenState
from s2video.models.tokens import embed_shard, gather_latents
from s2video.parallel.attention import AttentionPlan
from toy_family.module import ToyTransformer3DModel

PATCH = (1, 1, 1)


class ToyBlockModel:
    """`ToyTransformer3DModel` as embed -> blocks -> project, with tokens sharded in between."""

    def __init__(self, transformer: ToyTransformer3DModel) -> None:
        self.transformer = transformer

    @property
    def num_blocks(self) -> int:
        return len(self.transformer.blocks)

    def num_tokens(self, latents: Tensor) -> int:
        return LatentShape(*latents.shape[2:]).tokens(PATCH).num_tokens

    def prepare(
        self, latents: Tensor, timestep: Tensor, conditioning: Conditioning, plan: AttentionPlan
    ) -> BlockContext:
        time = self.transformer.time_embedder(timestep[:, None] / 1000)
        text = self.transformer.text_embedder(conditioning.text)
        return BlockContext(text, time, time, None, plan, (latents.shape[2], latents.shape[3], latents.shape[4]))

    def embed(self, latents: Tensor, context: BlockContext) -> TokenState:
        def patchify(frames: Tensor) -> Tensor:
            return self.transformer.embedder(rearrange(frames, "b c t h w -> b (t h w) c"))

        return TokenState(embed_shard(latents, context.attention.mine, PATCH, patchify))

    def run_block(self, index: int, state: TokenState, context: BlockContext) -> TokenState:
        return TokenState(self.transformer.blocks[index](state.video, context.text, context.time))

    def project(self, state: TokenState, context: BlockContext) -> Tensor:
        return gather_latents(self.transformer.head(state.video), context, PATCH, "c pt ph pw")

    def stack(self, contexts: tuple[BlockContext, ...]) -> BlockContext:
        text, time = (torch.cat([getattr(c, name) for c in contexts]) for name in ("text", "time"))
        return replace(contexts[0], text=text, time=time, time_out=time)
