"""Wan VACE as a `BlockModel` with control.

The transformer is the unchanged diffusers module. Its `vace_blocks` turn the control latents into hints, which are
added to the tokens after some of its `blocks`. diffusers computes all hints before block 0. Here each is computed right
before the block after which it is added, so only one is in memory, and the result is the same to the bit, because no
block of control sees what the blocks have made. S² drops `blocks` only, never `vace_blocks`, and a hint is added after
a dropped block, too.

Dimension letters as in `base`; C_control channels of the control latents.
"""

import torch
from diffusers import WanVACETransformer3DModel
from torch import Tensor

from ..base import BlockContext, Controlled, TokenState
from ..wan.blocks import WanBlockModel


class WanVaceBlockModel(WanBlockModel, Controlled):
    """`WanVACETransformer3DModel` as embed -> blocks with hints -> project.

    Latents are [B, C + C_control, T, H, W]: noisy ones, then those of the control. Control tokens are sharded as the
    video's. Replaces the self-attention processors of both lists of blocks.
    """

    transformer: WanVACETransformer3DModel

    def __init__(self, transformer: WanVACETransformer3DModel, *, attention_backend: str | None = None) -> None:
        super().__init__(transformer, attention_backend=attention_backend)
        for block in transformer.vace_blocks:
            block.attn1.set_processor(self._attention)
        self.hints_at = tuple(transformer.config.vace_layers)

    def embed(self, latents: Tensor, context: BlockContext) -> TokenState:
        model = self.transformer
        noisy, control = latents.split((model.config.in_channels, model.config.vace_in_channels), dim=1)
        return TokenState(
            self._tokens(noisy, model.patch_embedding, context),
            control=self._tokens(control, model.vace_patch_embedding, context),
        )

    def advance(self, number: int, state: TokenState, context: BlockContext) -> TokenState:
        assert state.control is not None, "control is computed in cond and uncond only"
        self._attention.begin(context.attention)
        block = self.transformer.vace_blocks[number]
        hint, control = block(state.video, context.text, state.control, context.time, context.rotary)
        if context.control_scales is not None:
            hint = hint * torch.unbind(context.control_scales)[number]
        return state._replace(control=control, hint=hint)
