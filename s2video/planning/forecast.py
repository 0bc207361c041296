"""The cost model: predicted work, bytes, memory and seconds of a denoising step for one mesh and card.

These are predictions, not measurements. Work and time are those of the busiest rank: shards are uneven if tokens or
heads do not divide, and ranks wait for each other in every block. Bytes are counted as in `parallel.traffic` and agree
with it exactly, except for "weights", which omits padding and parameters that stay in float32. Neither counts the
broadcasts and objects exchanged once per job. Only ring blocks and prefetched weights overlap with computation.

Comparison with published figures (H100, bfloat16, per step; only those include text encoding and decoding):

- Wan 2.1 14B, 480p, 81 frames, CFG, one card: 9.5 s predicted; diffusers 9.77, others 5.18 to 8.93 with faster
  kernels. On 8 cards with Ulysses: 1.3 s predicted; published 0.75 to 2.94, so predicted scaling is optimistic.
- The same on 2 cards: cond and uncond in parallel are predicted to beat Ulysses by 3 %; published (SGLang, H200) 11 %.
- HunyuanVideo, 720p, 129 frames, no uncond pass, xDiT on 1, 2, 4, 8 cards: 38.1, 18.5, 10.3, 6.8 s;
  predicted 38.9, 19.7, 9.9, 5.0. The published ones contain a part that does not scale.

The H100's two shares in `cards` are fitted to the first figure of each model; this project measured none of them.

Dimension letters as in `models.costs`. Batch size is 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ..models.costs import Work, whole_pass
from .cards import Card
from .memory import Phase, memory_of
from .passes import Kind
from .step import GIGA, Degrees, Layout, Step, block_weights, layouts
from .work import SubWork

_TRANSFER_SLOWDOWN = 1.05  # an estimate; sending and receiving use a part of the card


@dataclass(frozen=True)
class Forecast:
    """The predictions for one mesh. Values per step are means over all steps of the run.

    Attributes:
        passes: work of the busiest rank, in forward passes of the whole model.
        sent_bytes: bytes sent by the rank that sends most.
        memory_bytes: peak memory of the rank that needs most, which it reaches in `phase`.
        seconds, seconds_in_window: time of a step, on average and in the window, with all branches.
    """

    passes: float
    sent_bytes: float
    memory_bytes: float
    phase: Phase
    seconds: float
    seconds_in_window: float


def sent_bytes(degrees: Degrees, step: Step, rank: int) -> dict[str, float]:
    """Return the bytes that a rank of the world sends in one step with these sub branches, by kind of collective."""
    model, sub = step.model, step.sub
    full, merged = layouts(degrees, step)
    passes = step.full_passes(degrees)
    once, again = full.block_bytes(rank // degrees.branch, step), merged.block_bytes(rank, step)
    in_full = passes * (model.num_blocks + len(model.hints_at))
    sent: dict[str, float] = {kind: in_full * once[kind] + sum(sub.runs) * again[kind] for kind in once}
    sent["all_gather"] += passes * full.gather_bytes(step) + sub.count * merged.gather_bytes(step)
    if degrees.branch == 2:
        sent["all_gather"] += step.prediction_bytes
        if rank % 2 == 0:  # cond's ranks send tokens to their partners
            sent["send"] += sub.forks * _fork_bytes(merged.tokens[rank + 1], step)
            sent["send"] += _shared_hints(step) * merged.tokens[rank + 1] * model.width * step.item_bytes
    if step.weights in ("fsdp", "zero3"):
        sent["weights"] = block_weights(step) * (degrees.world_size - 1) / degrees.world_size
    return sent


def _shared_hints(step: Step) -> float:
    """Return how many hints of cond sub gets in a step; all its branches get the same ones."""
    return math.fsum(step.sub.started[index] for index in step.model.hints_at) if step.sub.count else 0.0


def _fork_bytes(tokens: int, step: Step) -> int:
    return (tokens + step.carried_text) * step.model.width * step.item_bytes


def forecast(degrees: Degrees, step: Step, card: Card) -> Forecast:
    """Return the predictions for one mesh of `degrees.world_size` such cards."""
    fetched = _fetch_seconds(degrees, step, card)
    means, longest = [0.0, 0.0, 0.0], 0.0
    for kind in step.kinds_of_run:
        if not kind.cond:  # nothing is computed, so no weights are fetched
            continue
        computed, mesh = of_kind(kind, degrees, step)
        cost = _step_cost(mesh, computed, card)
        sent = max(sum(sent_bytes(mesh, computed, rank).values()) for rank in range(degrees.world_size))
        seconds = max(cost.seconds, fetched)
        longest = max(longest, seconds)
        means = [mean + kind.share * x for mean, x in zip(means, (cost.work, sent, seconds), strict=True)]
    memory = memory_of(degrees, step)
    return Forecast(
        passes=means[0] / whole_pass(step.model, step.num_tokens, step.num_text).total,
        sent_bytes=means[1],
        memory_bytes=card.reserved_gb * GIGA + memory.peak,
        phase=memory.phase,
        seconds=means[2],
        seconds_in_window=longest,
    )


def of_kind(kind: Kind, degrees: Degrees, step: Step) -> tuple[Step, Degrees]:
    """Return a step of one kind, and its mesh: without uncond, all ranks of a branch axis share cond's tokens."""
    sub = step.sub if kind.sub else SubWork((0.0,) * step.model.num_blocks, 0.0, 0.0)
    if step.has_uncond and not kind.uncond:
        degrees = Degrees(degrees.ring, degrees.ulysses * degrees.branch, 1)
    return replace(step, has_uncond=kind.uncond, sub=sub), degrees


class _Cost(NamedTuple):
    """The FLOPs and seconds of the busiest rank."""

    work: float = 0.0
    seconds: float = 0.0


def _sum(costs: Iterable[_Cost]) -> _Cost:
    return _Cost(*(math.fsum(kind) for kind in zip(*costs, strict=True)))


def _step_cost(degrees: Degrees, step: Step, card: Card) -> _Cost:
    full, merged = layouts(degrees, step)
    model, sub, passes = step.model, step.sub, step.full_passes(degrees)
    costs = [
        _pass_cost(degrees, full, (float(passes),) * model.num_blocks, passes, step, card),
        _pass_cost(degrees, merged, sub.runs, sub.count, step, card),
        _control_cost(degrees, full, passes, step, card),
        _local_cost(model.embed(full.busiest.tokens, step.num_text), passes, step, card),
    ]
    if degrees.branch == 2:
        partners = _link(card, 2, degrees)
        forks = sub.forks * _transfer(_fork_bytes(merged.busiest.tokens, step), partners, card)
        hint = merged.busiest.tokens * model.width * step.item_bytes
        forks += _shared_hints(step) * _transfer(hint, partners, card)
        costs.append(_Cost(0.0, forks + _transfer(step.prediction_bytes, partners, card)))
        if sub.count:  # text and timestep are embedded again, with the rotary embedding of other tokens
            costs.append(_local_cost(model.embed(0, step.num_text), 1, step, card))
    return _sum(costs)


def _pass_cost(
    degrees: Degrees, layout: Layout, runs: Sequence[float], projections: float, step: Step, card: Card
) -> _Cost:
    """Return the cost of running block i `runs[i]` times, and of projections gathered on all ranks of the layout."""
    model, busiest, most = step.model, layout.busiest, _most_sent(layout, step)
    blocks = []
    for index, times in enumerate(runs):
        part = model.block(index, busiest, step.num_text)
        blocks.append(_Cost(times * part.total, times * _block_seconds(degrees, layout, part, most, step, card)))
    gathered = _transfer(layout.gather_bytes(step), _link(card, degrees.world_size, degrees), card)
    local = _local_cost(model.project(busiest.tokens), projections, step, card)
    return _sum([*blocks, local, _Cost(0.0, projections * gathered)])


def _control_cost(degrees: Degrees, layout: Layout, passes: int, step: Step, card: Card) -> _Cost:
    """Return the cost of all blocks of control in cond and uncond."""
    most, costs = _most_sent(layout, step), []
    for number in range(len(step.model.hints_at)):
        part = step.model.control_block(number, layout.busiest, step.num_text)
        costs.append(_Cost(passes * part.total, passes * _block_seconds(degrees, layout, part, most, step, card)))
    return _sum([_Cost(), *costs])


def _most_sent(layout: Layout, step: Step) -> dict[str, int]:
    """Return the most bytes that a rank sends in a block, by kind."""
    sent = [layout.block_bytes(rank, step) for rank in range(len(layout.tokens))]
    return {kind: max(s[kind] for s in sent) for kind in sent[0]}


def _local_cost(part: Work, times: float, step: Step, card: Card) -> _Cost:
    linear, attention = _rates(step, card)
    return _Cost(times * part.total, times * (part.linear / linear + part.attention / attention))


def _rates(step: Step, card: Card) -> tuple[float, float]:
    """Return FLOP/s outside attention and in attention."""
    peak = (card.tflops_half if step.item_bytes == 2 else card.tflops_float32) * 1e12
    return peak * card.matmul_share, peak * card.attention_share


def _block_seconds(degrees: Degrees, layout: Layout, part: Work, sent: dict[str, int], step: Step, card: Card) -> float:
    local = _local_cost(part, 1, step, card).seconds
    if layout.ulysses > 1:  # two all-to-alls; each of four tensors is copied into a buffer and out of one
        group = _link(card, degrees.ulysses * degrees.branch, degrees)
        local += _transfer(sent["all_to_all"], group, card) + card.latency_us * 1e-6
        heads = step.model.num_heads * step.model.head_dim
        copied = 16 * layout.busiest.tokens * heads * step.item_bytes
        local += copied / (card.memory_gbs * GIGA)
    shared = part.exchanged / _rates(step, card)[1]
    if layout.ring == 1:
        return local + shared
    # all blocks of keys but the last are computed while the next one is received
    everyone = _link(card, degrees.world_size, degrees)
    passing = _transfer(sent["send"] / (layout.ring - 1), everyone, card)
    block = shared / layout.ring
    around = (layout.ring - 1) * max(block * _TRANSFER_SLOWDOWN, passing) + block
    # each block's output is converted to float32 and merged, which reads and writes about 20 bytes per number
    outputs = layout.busiest.group * layout.busiest.heads * step.model.head_dim
    merging = layout.ring * 20 * outputs / (card.memory_gbs * GIGA)
    return local + around + merging + _transfer(sent["all_gather"], everyone, card)


def _link(card: Card, span: int, degrees: Degrees) -> float:
    """Return the bandwidth in bytes/s between `span` neighbouring ranks, which is that of the slowest link."""
    inside = degrees.world_size <= card.node_size or card.node_size % span == 0
    return (card.intra_gbs if inside else card.inter_gbs) * GIGA * card.link_share


def _transfer(count: float, bandwidth: float, card: Card) -> float:
    return count / bandwidth + card.latency_us * 1e-6 if count else 0.0


def _fetch_seconds(degrees: Degrees, step: Step, card: Card) -> float:
    """Return the seconds to fetch a step's weights; each block is fetched while the previous one is computed."""
    weights = block_weights(step)
    if step.weights == "replicated":
        return 0.0
    if step.weights == "streamed":
        return weights / (card.host_gbs * GIGA * card.link_share)
    others = (degrees.world_size - 1) / degrees.world_size
    return _transfer(weights * others, _link(card, degrees.world_size, degrees), card)
