"""MiniMax-H3, text to video with sound, as a `BlockModel`.

The transformer is the unchanged diffusers module, whose blocks run on one sequence: text, sound, picture. Every rank
has the text and a shard of the rows of sound and picture, so each is attended to once, as in joint attention. There is
no padding in the module; here, the padding of shorter texts in a batch is excluded from the softmax, and the time of
every sample's sound and picture starts where its own text ends.

Latents carry the sound behind the picture (`decoding.sound`), and a timestep is a pair, of picture and sound.

Dimension letters as in `base`; R rows of sound, V of the picture, L = R + V, N_heads heads, D_rope rotated channels.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import MiniMaxH3Transformer3DModel
from diffusers.models.modeling_utils import get_parameter_dtype
from diffusers.modular_pipelines.minimax_h3.before_denoise import MiniMaxH3PrepareLayoutStep
from diffusers.modular_pipelines.minimax_h3.modular_pipeline import MINIMAX_H3_AUDIO_TAG as SOUND
from diffusers.modular_pipelines.minimax_h3.modular_pipeline import MINIMAX_H3_TEXT_TAG as TEXT
from diffusers.modular_pipelines.minimax_h3.modular_pipeline import MINIMAX_H3_VIDEO_TAG as PICTURE
from einops import rearrange
from torch import Tensor

from ...decoding.sound import join_sound, split_sound
from ...geometry import LatentShape, Shard, SoundShape
from ...parallel.attention import AttentionPlan, set_backend, sharded_joint_attention
from ...parallel.attention_op import attention_of, runs_with
from ...parallel.collectives import gather_tokens
from ..base import BlockContext, Conditioning, TokenState
from ..tokens import pad_text
from .costs import NUM_MODALITIES
from .shape import sound_shape

_PATCHES = "b c (t pt) (h ph) (w pw) -> b (t h w) (c pt ph pw)"


class Rows(NamedTuple):
    """What belongs to each row of text and of this rank, in this order.

    Attributes:
        cos, sin: [B, M + L_local, D_rope].
        modulation: [M + L_local], row of the blocks' table of modulations.
        times: [M + L_local], row of the table of timesteps.
    """

    cos: Tensor
    sin: Tensor
    modulation: Tensor
    times: Tensor

    def with_text(self, num_text: int, longest: int) -> "Rows":
        """Return the same with a text of `longest` rows, of which the first `num_text` are as they are here."""
        if num_text == longest:
            return self
        more = longest - num_text
        angles = (
            torch.cat((x[:, :num_text], x[:, :1].expand(-1, more, -1), x[:, num_text:]), dim=1)
            for x in (self.cos, self.sin)
        )
        tables = (torch.cat((x[:num_text], x[:1].expand(more), x[num_text:])) for x in (self.modulation, self.times))
        return Rows(*angles, *tables)


class ShardedPackedAttention:
    """Attention processor of all blocks, for rows of text followed by those of this rank.

    Blocks cannot pass it further arguments, so `MiniMaxH3BlockModel.run_block` calls `begin` before each block.
    """

    def __init__(self, backend: str | None = None) -> None:
        self.backend = backend
        self.plan: AttentionPlan | None = None
        self.text_lengths: Sequence[int] | None = None

    def begin(self, plan: AttentionPlan, text_lengths: Sequence[int] | None) -> None:
        """Attend to these tokens in the next block of this thread."""
        self.plan, self.text_lengths = plan, text_lengths
        runs_with(self.attend)

    def attend(self, rows: Sequence[Tensor], no_text: Sequence[Tensor]) -> Tensor:
        """Return attention [B, M + L_local, N_heads, D_head] for query, key and value of the same shape."""
        assert self.plan is not None
        num_text = rows[0].shape[1] - self.plan.mine.length
        local, text = [x[:, num_text:] for x in rows], [x[:, :num_text] for x in rows]
        joint = sharded_joint_attention(
            local, text, self.plan, text_lengths=self.text_lengths, backend=self.backend, text_first=True
        )
        return torch.cat((joint[:, local[0].shape[1] :], joint[:, : local[0].shape[1]]), dim=1)

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Return attention of rows [B, M + L_local, D] to all rows, in the same shape."""
        assert rotary_emb is not None and attention_mask is None
        query, key, value = (
            project(hidden_states).unflatten(-1, (attn.heads, -1)) for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        query, key = (rotated(x, *rotary_emb) for x in (attn.norm_q(query), attn.norm_k(key)))
        output = attention_of(self.attend, (query, key, value), ()).flatten(2, 3).type_as(query)
        for layer in attn.to_out:
            output = layer(output)
        return output


def rotated(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return heads [B, S, N_heads, D_head], of which the first D_rope channels are turned by angles [B, S, D_rope].

    Channel i is turned together with channel i + D_rope/2.
    """
    dim = cos.shape[-1]
    cos, sin = (x.to(heads.dtype).unsqueeze(2) for x in (cos, sin))
    turned, rest = heads[..., :dim], heads[..., dim:]
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((turned, rest), dim=-1)


def distinct_times(timestep: Tensor) -> tuple[Tensor, list[int]]:
    """Return the distinct ones of the timesteps [2] of picture and sound, and the place of each among them.

    Both are on the CPU. Where they are equal, as at the start, there is one, as in the pipeline, because kernels round
    a table of another height differently.
    """
    times, place = torch.unique(timestep.float(), sorted=True, return_inverse=True)
    return times, place.tolist()


def packed_positions(
    num_text: int, picture: LatentShape, sound: SoundShape, patch_size: tuple[int, int, int]
) -> Tensor:
    """Return positions (t, h, w) [M + R + V, 3] of text, sound and picture, as diffusers plans them, on the CPU."""
    positions, *_ = MiniMaxH3PrepareLayoutStep.build_packed_sequence(
        torch.full((num_text,), TEXT),
        picture.frames,
        picture.height,
        picture.width,
        sound.num_latents(picture.frames),
        patch_size,
        sound.channels,
        SOUND,
        PICTURE,
    )
    return positions


class MiniMaxH3BlockModel:
    """`MiniMaxH3Transformer3DModel` as embed -> blocks -> project, with rows sharded in between.

    Replaces the attention processors of its blocks.
    """

    def __init__(self, transformer: MiniMaxH3Transformer3DModel, *, attention_backend: str | None = None) -> None:
        self.transformer = transformer
        set_backend(transformer, attention_backend)
        self.blocks = list(transformer.transformer_blocks)
        self._patch_size: tuple[int, int, int] = tuple(transformer.config.patch_size)
        self._sound = sound_shape(transformer.config.audio_in_channels)
        parts = ("context_embedder", "proj_in", "audio_proj_in", "time_embedder", "proj_out")
        self._dtypes = {name: get_parameter_dtype(getattr(transformer, name)) for name in parts}
        self._attention = ShardedPackedAttention(attention_backend)
        self._kept: tuple[Any, tuple[Tensor, Tensor]] | None = None  # the angles of the last layout of rows
        for block in self.blocks:
            block.attn.set_processor(self._attention)

    @property
    def num_blocks(self) -> int:
        return len(self.blocks)

    def num_tokens(self, latents: Tensor) -> int:
        picture = self._picture_shape(latents)
        return self._sound.num_rows(picture.frames) + picture.tokens(self._patch_size).num_tokens

    def _picture_shape(self, latents: Tensor) -> LatentShape:
        _, channels, total, height, width = latents.shape
        return LatentShape(self._sound.latent_frames(total, channels * height * width), height, width)

    def prepare(
        self, latents: Tensor, timestep: Tensor, conditioning: Conditioning, plan: AttentionPlan
    ) -> BlockContext:
        """See `BlockModel.prepare`. `timestep` is [B, 2], of picture and sound in 0 … 1, the same for all samples."""
        model, device = self.transformer, conditioning.text.device
        picture = self._picture_shape(latents)
        lengths = conditioning.text_lengths or (conditioning.text.shape[1],) * conditioning.text.shape[0]
        text = self._refined(conditioning.text, lengths)
        times, place = distinct_times(timestep[0])
        time = model.time_proj(times.to(device))
        time = model.time_embedder(time.to(self._dtypes["time_embedder"]))
        return BlockContext(
            text=text,
            time=time,
            time_out=time,
            rotary=self._rows(picture, lengths, place, plan, device),
            attention=plan,
            latent_shape=(picture.frames, picture.height, picture.width),
            text_lengths=lengths,
        )

    def _refined(self, text: Tensor, lengths: Sequence[int]) -> Tensor:
        """Return the text [B, longest, D] as the blocks take it; samples of one length are refined together."""
        model, parts, start = self.transformer, [], 0
        for length, samples in groupby(lengths):
            stop = start + len(list(samples))
            part = text[start:stop, :length].to(self._dtypes["context_embedder"])
            parts.append(pad_text(model.token_refiner(model.context_embedder(part)), max(lengths)))
            start = stop
        return torch.cat(parts)

    def _rows(
        self, picture: LatentShape, lengths: tuple[int, ...], place: Sequence[int], plan: AttentionPlan, device: Any
    ) -> Rows:
        """Return the rows' tables; `place` has the rows of picture and sound in the table of timesteps."""
        key = (picture, lengths, plan.mine, device)
        if self._kept is None or self._kept[0] != key:
            self._kept = key, self._angles(*key)  # the same in all steps, and in cond and sub
        longest, mine, (at_picture, at_sound) = max(lengths), plan.mine, place
        of_sound = torch.arange(mine.start, mine.stop, device=device) < self._sound.num_rows(picture.frames)
        tags = F.pad(torch.where(of_sound, SOUND, PICTURE), (longest, 0), value=TEXT)
        times = F.pad(torch.where(of_sound, at_sound, at_picture), (longest, 0), value=at_picture)
        return Rows(*self._kept[1], times * NUM_MODALITIES + tags, times)

    def _angles(
        self, picture: LatentShape, lengths: tuple[int, ...], mine: Shard, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Return cosines and sines [B, M + L_local, D_rope]. Padding of a text is turned like its first token."""
        angles = {}
        for length in set(lengths):
            positions = packed_positions(length, picture, self._sound, self._patch_size)
            text, local = positions[:length], positions[length + mine.start : length + mine.stop]
            rows = torch.cat((text, text[:1].expand(max(lengths) - length, -1), local))
            angles[length] = self.transformer.rope(rows.to(device))
        cos, sin = (torch.stack([angles[length][i] for length in lengths]) for i in range(2))
        return cos, sin

    def embed(self, latents: Tensor, context: BlockContext) -> TokenState:
        """See `BlockModel.embed`. Rows of sound come first."""
        model, mine, dtype = self.transformer, context.attention.mine, self._dtypes
        picture, sound = split_sound(latents, self._sound)
        num_sound = sound.shape[1]
        pt, ph, pw = self._patch_size
        patches = rearrange(picture, _PATCHES, pt=pt, ph=ph, pw=pw)
        patches = patches[:, max(mine.start - num_sound, 0) : max(mine.stop - num_sound, 0)]
        embedded = (
            model.audio_proj_in(sound[:, mine.start : mine.stop].to(dtype["audio_proj_in"])),
            model.proj_in(patches.to(dtype["proj_in"])),
        )
        return TokenState(torch.cat([x.to(context.text.dtype) for x in embedded], dim=1), context.text)

    def run_block(self, index: int, state: TokenState, context: BlockContext) -> TokenState:
        assert state.text is not None
        rows: Rows = context.rotary
        self._attention.begin(context.attention, context.text_lengths)
        hidden = torch.cat((state.text, state.video), dim=1)
        hidden = self.blocks[index](hidden, context.time, rows.modulation, (rows.cos, rows.sin))
        num_text = state.text.shape[1]
        return TokenState(hidden[:, num_text:], hidden[:, :num_text])

    def project(self, state: TokenState, context: BlockContext) -> Tensor:
        """See `BlockModel.project`. Both heads run over all rows, as in the module, and each row takes its own."""
        assert state.text is not None
        model, plan, rows = self.transformer, context.attention, context.rotary
        num_text = state.text.shape[1]
        picture_shape = LatentShape(*context.latent_shape)
        num_sound = self._sound.num_rows(picture_shape.frames)
        hidden = torch.cat((state.text, state.video), dim=1)
        hidden = model.norm_out(hidden, context.time_out, rows.times).to(self._dtypes["proj_out"])
        heads = [model.audio_proj_out(hidden)[:, num_text:], model.proj_out(hidden)[:, num_text:]]
        widths = [head.shape[-1] for head in heads]
        own = max(0, min(num_sound, plan.mine.stop) - plan.mine.start)
        parts = [
            F.pad(head[:, span], (0, max(widths) - width))
            for head, span, width in zip(heads, (slice(own), slice(own, None)), widths, strict=True)
        ]
        whole = gather_tokens(torch.cat(parts, dim=1), plan.tokens, plan.axes.whole)
        sound, patches = whole[:, :num_sound, : widths[0]], whole[:, num_sound:, : widths[1]]
        grid = picture_shape.tokens(self._patch_size)
        sizes = dict(zip(("t", "h", "w", "pt", "ph", "pw"), (*grid, *self._patch_size), strict=True))
        order = " -> ".join(reversed(_PATCHES.split(" -> ")))
        return join_sound(rearrange(patches, order, **sizes), sound)

    def stack(self, contexts: tuple[BlockContext, ...]) -> BlockContext:
        longest = max(context.text.shape[1] for context in contexts)
        tables = [context.rotary.with_text(context.text.shape[1], longest) for context in contexts]
        return replace(
            contexts[0],
            text=torch.cat([pad_text(context.text, longest) for context in contexts]),
            text_lengths=tuple(length for context in contexts for length in context.text_lengths or ()),
            rotary=tables[0]._replace(
                cos=torch.cat([table.cos for table in tables]), sin=torch.cat([table.sin for table in tables])
            ),
        )
