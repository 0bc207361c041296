"""The memory of one rank: bytes of tensors by what they are for, and by the phase of a run that needs them.

The factors are peaks of the project's own code on fake tensors of the published sizes (`tools/fake_cuda`), which
`tests/cuda` compares with these numbers. Excluded are workspaces inside kernels, buffers of NCCL and fragments of the
allocator, for which a card reserves a part of its memory. Dimension letters as in `models.costs`. Batch size is 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from ..models.costs import all_parameters
from .step import Degrees, Layout, Step, block_weights, layouts

Phase = Literal["text encoding", "image encoding", "denoising", "decoding"]


class Memory(NamedTuple):
    """The bytes of the main rank's tensors.

    Attributes:
        transformers: weights of all transformers that are on the device, with the buffers of fetched ones.
        vae: weights of the VAE.
        phases: what each phase needs in addition.
    """

    transformers: float
    vae: float
    phases: Mapping[Phase, float]

    @property
    def phase(self) -> Phase:
        """The phase of the peak."""
        return max(self.phases, key=lambda name: self.phases[name])

    @property
    def peak(self) -> float:
        return self.transformers + self.vae + self.phases[self.phase]


def memory_of(degrees: Degrees, step: Step) -> Memory:
    """Return the memory of the main rank, which also encodes text and decodes."""
    kept = step.text_encoder_bytes if step.keeps_text_encoder else 0.0
    phases: dict[Phase, float] = {
        "denoising": kept + activation_bytes(degrees, step),
        "text encoding": step.text_encoder_bytes,
        "image encoding": kept + step.image_encoding_bytes,
        "decoding": kept + step.decoding_bytes,
    }
    return Memory(weight_bytes(degrees, step), step.vae_bytes, phases)


def weight_bytes(degrees: Degrees, step: Step) -> float:
    """Return the bytes of all transformers on one rank.

    Of fetched weights, two blocks are whole at a time: streamed ones in buffers that each transformer has, sharded ones
    in memory that is freed after a block.
    """
    root, blocks = step.model.root_parameters() * step.item_bytes, block_weights(step)
    if step.weights == "replicated":
        return step.num_transformers * (root + blocks)
    two = 2 * max(all_parameters(step.model)) * step.item_bytes
    if step.weights == "streamed":
        return step.num_transformers * (root + two)
    return step.num_transformers * (root + blocks / degrees.world_size) + two


def activation_bytes(degrees: Degrees, step: Step) -> float:
    """Return the bytes of states, one block's working set, rotary tables, and predictions in float32.

    The branches of a step share the rotary tables of their tokens. (In MiniMax-H3 a table has rows for the text, too,
    and uncond's is another one if its text is longer or shorter: less than 1 % of the whole.) A scheduler of several
    steps keeps up to four predictions of the latents' size.
    """
    model, size, text = step.model, step.item_bytes, step.carried_text
    full, merged = layouts(degrees, step)
    passes, own = step.full_passes(degrees), max(full.tokens) + text
    states = passes * own + step.sub.count * (max(merged.tokens) + text)
    if model.hints_at:  # the stream of control and a hint in each pass, and with a branch axis sub's part of a hint
        states += 2 * passes * own + (max(merged.tokens) if degrees.branch == 2 and step.sub.count else 0)
    turned = max(full.tokens)  # tokens for which there are rotary tables
    modulation = 0.0
    if model.time_per_token:  # 6·D in the blocks and D at the end, for each token; 24 for the block that runs
        modulation = (7 * passes * size + 24) * max(full.tokens)
    if degrees.branch == 2 and step.sub.count:
        turned += max(merged.tokens)
        modulation += 7 * size * max(merged.tokens) if model.time_per_token else 0.0
    rotary = 2 * turned * model.head_dim * 4
    predictions = (4 + step.kept_predictions) * step.num_tokens * model.patch_channels * 4
    return (states * size + own * _working_set(full, step) + modulation) * model.width + rotary + predictions


def _working_set(layout: Layout, step: Step) -> float:
    """Return the largest working set of a block in bytes per token and channel.

    With b bytes per number: (2·D_mlp/D + 3.4)·b in the feed-forward. In attention, 12 + 5b around the rotary embedding
    of Q and K; 13b around an all-to-all; 12 + 6b in a ring, where partial outputs are float32, 3b more if blocks of
    keys also arrive ahead, and 3b more if an all-to-all comes first. Joint attention adds b for the concatenated
    tokens. A single block, which computes its feed-forward before attention, holds that and two copies of the state.
    """
    model, size = step.model, step.item_bytes
    attention = 13.0 * size if layout.ulysses > 1 else 12 + 5.0 * size
    if layout.ring > 1:
        attention = 12 + 6.0 * size + 3 * size * (layout.ring > 2) + 3 * size * (layout.ulysses > 1)
    attention *= model.num_heads * model.head_dim / model.width  # heads are wider than D in MiniMax-H3
    ratio = model.mlp_width / model.width
    if model.num_single:
        attention += (ratio + 2) * size
    elif model.joint_text:
        attention += size
    return max(attention, (2 * ratio + 3.4) * size)
