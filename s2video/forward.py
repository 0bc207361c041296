"""One step's predictions: cond, uncond and sub in lockstep, block by block.

All branches go through block i before any goes through block i + 1, so one fetch of a block's weights serves them
all. A sub branch equals cond, activation by activation, up to its first dropped block: there it forks from cond's
state, which is free, because blocks never write into a state. Knows no sampling and no particular model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .guidance import Predictions
from .models.base import BlockContext, BlockModel, Conditioning, TokenState


@dataclass
class _Branch:
    context: BlockContext
    state: TokenState
    dropped: frozenset[int] = frozenset()


def predict(
    model: BlockModel,
    latents: Tensor,
    timestep: Tensor,
    *,
    cond: Conditioning,
    uncond: Conditioning | None = None,
    masks: Sequence[Sequence[int]] = (),
    share_prefix: bool = True,
    batch_branches: bool = False,
) -> Predictions:
    """The network's predictions for one step.

    Args:
        latents: [B, C, T, H, W].
        timestep: [B].
        uncond: None leaves that pass out.
        masks: one sub prediction for each, made without the blocks whose indices it holds. An empty mask gives cond.
        share_prefix: False computes every sub branch from block 0, for comparison; the result is the same to the bit.
        batch_branches: send the branches of a block through it as one batch. Changes the last bits, so it is a
            setting that all ranks share, never a decision at run time.

    Raises:
        ValueError: for a block index outside the model.
    """
    for index in (i for mask in masks for i in mask):
        if not 0 <= index < model.num_blocks:
            raise ValueError(f"mask: block indices lie in 0 … {model.num_blocks - 1}, got {index}")

    state, context = model.embed(latents, timestep, cond)
    cond_branch = _Branch(context, state)
    branches = [cond_branch]
    if uncond is not None:
        state, context = model.embed(latents, timestep, uncond)
        branches.append(_Branch(context, state))

    subs: list[_Branch | None] = [None] * len(masks)
    forks = [min(mask, default=model.num_blocks) if share_prefix else 0 for mask in masks]
    for index in range(model.num_blocks):
        for i, fork in enumerate(forks):
            if fork == index:
                subs[i] = _Branch(cond_branch.context, cond_branch.state, frozenset(masks[i]))
        running = [b for b in (*branches, *subs) if b is not None and index not in b.dropped]
        if batch_branches:
            _run_batched(model, index, running)
        else:
            for branch in running:
                branch.state = model.run_block(index, branch.state, branch.context)

    outputs = [model.project(b.state, b.context) for b in branches]
    return Predictions(
        cond=outputs[0],
        uncond=outputs[1] if uncond is not None else None,
        # a mask that drops nothing never forked
        subs=tuple(outputs[0] if b is None else model.project(b.state, b.context) for b in subs),
    )


def _run_batched(model: BlockModel, index: int, running: Sequence[_Branch]) -> None:
    context = model.stack(tuple(b.context for b in running))
    has_text = running[0].state.text is not None
    state = TokenState(
        torch.cat([b.state.video for b in running]),
        torch.cat([b.state.text for b in running if b.state.text is not None]) if has_text else None,
    )
    state = model.run_block(index, state, context)
    videos = state.video.chunk(len(running))
    texts: Sequence[Tensor | None] = state.text.chunk(len(running)) if state.text is not None else [None] * len(running)
    for branch, video, text in zip(running, videos, texts, strict=True):
        branch.state = TokenState(video, text)
