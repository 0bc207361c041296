"""HunyuanVideo 1.5, text or image to video, as a `BlockModel`: dual blocks only, and three kinds of text tokens.

The text of the blocks consists of the image's tokens, the glyph text's, and the prompt's, in this order. The module
keeps the padding of all three and masks it with a boolean for each pair of tokens. Here, each sample's tokens are
concatenated without padding, and the padding of shorter samples is excluded from the softmax, which is equal up to
rounding. Everything else is as in `hunyuan_video`.

Dimension letters as in `base`; M_2 tokens of glyph text.
"""

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ...parallel.attention import AttentionPlan
from ..base import BlockContext, Conditioning
from ..hunyuan_video.blocks import HunyuanVideoBlockModel

_PROMPT, _GLYPHS, _IMAGE = range(3)  # rows of the module's table of token types


class HunyuanVideo15BlockModel(HunyuanVideoBlockModel):
    """`HunyuanVideo15Transformer3DModel` as embed -> blocks -> project, with tokens sharded in between.

    Replaces the module's attention processors.
    """

    def prepare(
        self, latents: Tensor, timestep: Tensor, conditioning: Conditioning, plan: AttentionPlan
    ) -> BlockContext:
        """See `BlockModel.prepare`. Needs `text_2`, which can have no tokens. Text to video if `image` is None."""
        model, mine = self.transformer, plan.mine
        timestep = timestep.to(self._dtype)  # as the pipeline passes it
        text, lengths = self._trimmed(conditioning.text, conditioning.text_lengths)
        is_text = torch.arange(text.shape[1], device=text.device) < torch.tensor(lengths, device=text.device)[:, None]
        kinds = model.cond_type_embed.weight
        prompt = model.context_embedder(text, timestep, is_text) + kinds[_PROMPT]
        assert conditioning.text_2 is not None
        text_2, lengths_2 = self._trimmed(conditioning.text_2, conditioning.text_2_lengths)
        glyphs = model.context_embedder_2(text_2) + kinds[_GLYPHS]
        image = prompt[:, :0]
        if conditioning.image is not None:
            image = model.image_embedder(conditioning.image.to(self._dtype)) + kinds[_IMAGE]
        joined = [
            torch.cat((image[i], glyphs[i, :length_2], prompt[i, :length]))
            for i, (length_2, length) in enumerate(zip(lengths_2, lengths, strict=True))
        ]
        time = model.time_embed(timestep)
        return BlockContext(
            text=pad_sequence(joined, batch_first=True),
            time=time,
            time_out=time,
            rotary=self._rotary.of(latents, mine, model.rope, dim=0),
            attention=plan,
            latent_shape=(latents.shape[2], latents.shape[3], latents.shape[4]),
            text_lengths=tuple(len(tokens) for tokens in joined),
        )

    def _trimmed(self, text: Tensor, lengths: tuple[int, ...] | None) -> tuple[Tensor, tuple[int, ...]]:
        """Return text in the model's dtype, trimmed to the longest sample, and each sample's length."""
        lengths = lengths or (text.shape[1],) * text.shape[0]
        return text[:, : max(lengths)].to(self._dtype), lengths
