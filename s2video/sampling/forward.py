"""The predictions of one step: cond, uncond and sub in lockstep, block by block.

All branches run block i before any runs block i + 1, so each block's weights are fetched once. Up to its first dropped
block, a sub branch has the same activations as cond. There it forks from cond's state without a copy, because blocks
never change a state in place. If cond and uncond run in parallel, each on half of the ranks, the other half joins at
the fork: cond's ranks send half of their tokens to their partners, and the rest of the sub branch runs on all ranks.

Models with control (`Controlled`) compute hints before some blocks, in cond and uncond. Sub takes those of cond. After
a dropped block, its hint is added as after any other, because the block does not make it. Knows neither sampling nor a
particular model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from ..geometry import Shard
from ..guidance.equations import Predictions
from ..models.base import BlockContext, BlockModel, Conditioning, Controlled, TokenState
from ..models.stages import stages_of
from ..models.tokens import pad_text
from ..parallel.attention import AttentionPlan
from ..parallel.collectives import gather_parts, share_tokens
from ..parallel.mesh import Mesh
from ..parallel.weights import WHOLE, BlockWeights


@dataclass
class _Branch:
    context: BlockContext
    state: TokenState
    dropped: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Lockstep:
    """How the branches of a step go through the blocks.

    Attributes:
        weights: fetches the model's blocks, one at a time, each once.
        share_prefix: False computes every sub branch from block 0, for comparison; the result is bitwise the same.
            Hints of control are those of cond in either case.
        batch_branches: run branches on the same ranks through a block as one batch. This changes the last bits, so it
            is a setting that all ranks share, not a decision at run time.
    """

    weights: BlockWeights = WHOLE
    share_prefix: bool = True
    batch_branches: bool = False


def predict(
    model: BlockModel,
    latents: Tensor,
    timestep: Tensor,
    *,
    mesh: Mesh,
    cond: Conditioning,
    uncond: Conditioning | None = None,
    masks: Sequence[Sequence[int]] = (),
    lockstep: Lockstep | None = None,
) -> Predictions:
    """Return the network's predictions for one step, bitwise the same on every rank.

    Args:
        latents: [B, C, T, H, W], whole on every rank.
        timestep: [B], or [B, N] for a model whose rows have N timesteps.
        mesh: the ranks that take part. A branch axis requires `uncond`, which half of the ranks run.
        uncond: None skips this pass.
        masks: block indices to drop; one sub prediction is made for each mask. An empty mask gives cond.
        lockstep: how branches go through the blocks; None: weights are whole, and each branch runs by itself.

    Raises:
        ValueError: a block index outside the model, or a branch axis without `uncond`.
    """
    lockstep = lockstep or Lockstep()
    for index in (i for mask in masks for i in mask):
        if not 0 <= index < model.num_blocks:
            raise ValueError(f"mask: expected block indices in 0 … {model.num_blocks - 1}, got {index}")
    if mesh.branch.size > 1 and uncond is None:
        raise ValueError("uncond: expected a conditioning, got None; with a branch axis half of the ranks run uncond")

    plan = AttentionPlan.even(mesh.sequence, model.num_tokens(latents))
    conditionings = [cond] if uncond is None else [cond, uncond]
    mine = conditionings if mesh.branch.size == 1 else [conditionings[mesh.branch.rank]]
    contexts = [model.prepare(latents, timestep, conditioning, plan) for conditioning in mine]
    branches = [_Branch(context, model.embed(latents, context)) for context in contexts]
    if mesh.branch.size == 1 or not any(masks):
        sub_context = contexts[0]
    else:
        sub_context = model.prepare(latents, timestep, cond, plan.divided(mesh.merged))

    subs: list[_Branch | None] = [None] * len(masks)
    # a mask that drops nothing never forks
    forks = [(min(mask) if lockstep.share_prefix else 0) if mask else model.num_blocks for mask in masks]
    hints_at = model.hints_at if isinstance(model, Controlled) else ()
    for number, stage in enumerate(stages_of(model.num_blocks, hints_at)):
        with lockstep.weights.block(number):
            if starting := [i for i, at in enumerate(forks) if at == stage.block and subs[i] is None]:
                fork = _fork(branches[0].state, plan, sub_context, mesh)
                for i in starting:
                    subs[i] = _Branch(sub_context, fork, frozenset(masks[i]))
                del fork  # otherwise cond's state at this block would stay in memory until the end of the step
            forked = [branch for branch in subs if branch is not None]
            if stage.hint is None:
                _run_block(model, stage.block, [*branches, *forked], lockstep)
                continue
            _advance(model, stage.hint, branches, lockstep)
            if forked:
                hint = branches[0].state.hint
                assert hint is not None, "control gives a hint at each of its stages"
                hint = _in_sub(hint, plan, sub_context, mesh)
                for branch in forked:
                    branch.state = branch.state._replace(hint=hint)
                del hint

    outputs = [model.project(b.state, b.context) for b in branches]
    if mesh.branch.size > 1:
        outputs = list(gather_parts(outputs[0], mesh.branch))
    return Predictions(
        cond=outputs[0],
        uncond=outputs[1] if uncond is not None else None,
        subs=tuple(outputs[0] if b is None else model.project(b.state, b.context) for b in subs),
    )


def _fork(state: TokenState, plan: AttentionPlan, context: BlockContext, mesh: Mesh) -> TokenState:
    """Return cond's state at this block for the tokens that this rank has in the sub branch, without cond's control.

    With a branch axis, uncond's ranks pass their own `state`, of which only the shape is used.
    """
    if state.text is None or mesh.branch.size == 1:
        return TokenState(_in_sub(state.video, plan, context, mesh), state.text)
    num_text = context.text.shape[1]  # uncond's own text may have another length
    shards = _shards_in_sub(plan, context, mesh)
    both = share_tokens(torch.cat((state.video, state.text), dim=1), shards, mesh.branch, shared=num_text)
    video, text = both.split((both.shape[1] - num_text, num_text), dim=1)
    return TokenState(video, text)


def _in_sub(tokens: Tensor, plan: AttentionPlan, context: BlockContext, mesh: Mesh) -> Tensor:
    """Return cond's [B, L_local, D] for the tokens that this rank has in the sub branch; otherwise as `_fork`."""
    if mesh.branch.size == 1:
        return tokens
    return share_tokens(tokens, _shards_in_sub(plan, context, mesh), mesh.branch)


def _shards_in_sub(plan: AttentionPlan, context: BlockContext, mesh: Mesh) -> tuple[Shard, ...]:
    """Return the parts of cond's tokens on this rank that each partner has in the sub branch."""
    first = mesh.sequence.whole.rank * mesh.branch.size
    partners = context.attention.tokens[first : first + mesh.branch.size]
    return tuple(Shard(shard.start - plan.mine.start, shard.length) for shard in partners)


def _run_block(model: BlockModel, index: int, branches: Sequence[_Branch], lockstep: Lockstep) -> None:
    """Run a block in the branches that do not drop it, and add its hint, if it has one, in all of them."""
    running = [branch for branch in branches if index not in branch.dropped]
    if lockstep.batch_branches:
        for _, together in groupby(running, key=lambda branch: branch.context.attention):
            _run_batched(model, index, list(together))
    else:
        for branch in running:
            branch.state = model.run_block(index, branch.state, branch.context)
    if isinstance(model, Controlled):
        for branch in branches:
            branch.state = model.add_hint(branch.state)


def _run_batched(model: BlockModel, index: int, running: Sequence[_Branch]) -> None:
    context = model.stack(tuple(b.context for b in running))
    longest = context.text.shape[1]  # prompts differ in length
    padded = [pad_text(b.state.text, longest) for b in running if b.state.text is not None]
    state = TokenState(torch.cat([b.state.video for b in running]), torch.cat(padded) if padded else None)
    state = model.run_block(index, state, context)
    videos = state.video.chunk(len(running))
    texts: Sequence[Tensor | None] = state.text.chunk(len(running)) if state.text is not None else [None] * len(running)
    for branch, video, text in zip(running, videos, texts, strict=True):
        text = None if text is None else text[:, : branch.context.text.shape[1]]
        branch.state = branch.state._replace(video=video, text=text)


def _advance(model: BlockModel, number: int, branches: Sequence[_Branch], lockstep: Lockstep) -> None:
    """Run a block of control in each branch."""
    assert isinstance(model, Controlled)
    if not lockstep.batch_branches:
        for branch in branches:
            branch.state = model.advance(number, branch.state, branch.context)
        return
    streams = [branch.state.control for branch in branches if branch.state.control is not None]
    stacked = TokenState(torch.cat([branch.state.video for branch in branches]), control=torch.cat(streams))
    stacked = model.advance(number, stacked, model.stack(tuple(branch.context for branch in branches)))
    assert stacked.control is not None and stacked.hint is not None
    halves = zip(branches, stacked.control.chunk(len(branches)), stacked.hint.chunk(len(branches)), strict=True)
    for branch, control, hint in halves:
        branch.state = branch.state._replace(control=control, hint=hint)
