"""`s2video plan` and `parallel: auto`, which rank all meshes of a number of ranks by the cost model in `forecast`.

Reads a checkpoint's JSON files and the headers of its weights, but no weights; for published models without a local
checkpoint, the values in `assets/published`. Imports torch and diffusers only to check settings that only they know.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..config.guidance import GuidanceConfig
from ..config.run import RunConfig
from ..config.sections import ParallelConfig
from ..errors import InputError
from ..guidance.reuse import StepPasses
from ..models.checkpoint import ASSETS, EMBEDDED, Checkpoint, find_checkpoint
from ..models.compiled import check_compile
from ..models.limits import check_lora_weights, check_request
from ..models.quantization import check_quantization
from ..models.registry import read_costs
from ..system import ranks
from ..system.files import user_path
from .cards import CARDS, Card, guess_card
from .components import Components, item_bytes
from .forecast import Forecast, forecast
from .passes import kinds, other_ways, planned_passes
from .step import GIGA, Degrees, Step
from .work import SubWork

_PUBLISHED = ASSETS / "published"
_AS_CONFIGURED = "as in the config"


@dataclass(frozen=True)
class Candidate:
    """A legal mesh with its forecast, whether it fits into memory, and notes about its drawbacks."""

    degrees: Degrees
    forecast: Forecast
    fits: bool
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """All meshes of a number of ranks for one run.

    Attributes:
        candidates: legal meshes, best first: those that fit into the card's memory, then by seconds per step.
        refused: meshes that are not legal, and the reason for each.
        published: whether published values were used instead of a local checkpoint.
        computed: the number of steps that compute cond, uncond and sub, by name.
        other_ways: passes of a run under other settings of reuse and λ, over those of plain CFG.
        note: a warning about the settings; empty if there is none.
    """

    world_size: int
    card: Card
    model: str
    published: bool
    step: Step
    num_steps: int
    computed: Mapping[str, int]
    other_ways: Mapping[str, float]
    note: str
    candidates: tuple[Candidate, ...]
    refused: tuple[tuple[str, str], ...]

    @property
    def best(self) -> Candidate:
        return self.candidates[0]


def make_plan(config: RunConfig, world_size: int, card: Card) -> Plan:
    """Rank all meshes of `world_size` ranks.

    Raises:
        InputError: fewer than 1 rank, or a model or setting that `generate` would refuse too.
    """
    if world_size < 1:
        raise InputError(f"--world: expected a number of ranks >= 1, got {world_size}")
    checkpoint, is_published = find_json(config)
    return plan_for(config, world_size, card, checkpoint, is_published)


def resolve_parallel(config: RunConfig, checkpoint: Checkpoint, world_size: int) -> RunConfig:
    """Return the config with `parallel: auto` replaced by the best mesh; return any other config unchanged.

    Every rank gets the same mesh, because it depends only on the config, the checkpoint, the number of ranks, and the
    card, which is guessed from the GPU's name. (If ranks with different GPUs disagree, `build_mesh` stops them.)

    Raises:
        InputError: as in `make_plan`.
    """
    if config.parallel.degrees == "given":
        return config
    best = plan_for(config, world_size, this_card(config.model.device), checkpoint).best
    return config.patched({"parallel": {"degrees": "given", **best.degrees._asdict()}})


def this_card(device: str) -> Card:
    """Return this machine's card for `model.device`, by its name. The node size is torchrun's local world size."""
    local_size = ranks.local_world_size()
    of_cpu = CARDS["cpu"].model_copy(update={"node_size": local_size})
    if device == "cpu":
        return of_cpu
    import torch

    if not torch.cuda.is_available():
        return of_cpu
    properties = torch.cuda.get_device_properties(0)
    return guess_card(properties.name).model_copy(
        update={"node_size": local_size, "memory_gb": properties.total_memory / GIGA}
    )


def find_json(config: RunConfig) -> tuple[Checkpoint, bool]:
    """Return a checkpoint, or a folder of published values of its JSON files, and whether it is the latter."""
    path = config.model.path
    if path in EMBEDDED or user_path(path).is_dir():
        return Checkpoint(find_checkpoint(path), config.model.variant, config.model.source.files), False
    folder = _PUBLISHED / path.replace("/", "--")
    if folder.is_dir():
        return Checkpoint(folder), True
    known = ", ".join(sorted(f.name.replace("--", "/") for f in _PUBLISHED.iterdir()))
    raise InputError(
        f"model.path: expected a local folder or one of {known}, got {path!r}; download the checkpoint and set "
        "model.path to its folder"
    )


def _sub_work(guidance: GuidanceConfig, num_blocks: int) -> SubWork:
    """Return the work of the sub branches in a step that computes them."""
    if guidance.method == "slg":
        return SubWork.of_masks([guidance.slg.layers], num_blocks, share_prefix=guidance.share_prefix)
    return SubWork.expected(guidance.mask_spec(), num_blocks, share_prefix=guidance.share_prefix)


def _kept_predictions(guidance: GuidanceConfig) -> int:
    """Return the number of predictions that forecasts keep (`guidance.forecasts.Forecasts`)."""
    spec = guidance.reuse.spec()
    lines = (spec.cond_every > 1) + (spec.uncond_every > 1 and guidance.cfg_scales != (1, 1))
    return lines * (spec.order + 1) + (spec.sub_every > 1)


def plan_for(
    config: RunConfig, world_size: int, card: Card, checkpoint: Checkpoint, is_published: bool = False
) -> Plan:
    """Return the plan for an opened checkpoint.

    Args:
        is_published: it is a folder of published values, without weights.

    Raises:
        InputError: a setting that the checkpoint cannot serve.
    """
    step, passes = step_of(config, world_size, checkpoint, is_published)
    candidates, refused = [], []
    given = _given_degrees(config.parallel)
    for degrees, reason in _meshes(config, world_size):
        if reason is None:
            candidates.append(_candidate(degrees, step, card, given))
        else:
            refused.append((degrees, reason))
    if given and not any(_AS_CONFIGURED in candidate.notes for candidate in candidates):
        configured = " × ".join(f"{name} {degree}" for name, degree in given.items())
        refused.append((configured, f"the config's degrees form no legal mesh of {world_size} ranks"))
    candidates.sort(key=lambda c: (not c.fits, c.forecast.seconds, c.degrees))
    num_steps, num_blocks = checkpoint.info.num_steps(config.sampling), checkpoint.info.num_blocks
    return Plan(
        world_size=world_size,
        card=card,
        model=config.model.path,
        published=is_published,
        step=step,
        num_steps=num_steps,
        computed=_computed(passes),
        other_ways=other_ways(config.guidance, num_blocks, num_steps, checkpoint.info.control_layers),
        note="; ".join(_notes(config)),
        candidates=tuple(candidates),
        refused=tuple(refused),
    )


def _notes(config: RunConfig) -> Iterator[str]:
    """Yield what a person should know about the settings of a plan."""
    if (warning := config.guidance.reuse_warning()) is not None:
        yield warning
    if config.model.compile == "blocks":
        yield "the time that model.compile saves is not part of the prediction"
    if config.model.quantization is not None:
        yield "quantised weights are counted in memory; the prediction of time is that of plain ones"


def step_of(
    config: RunConfig, world_size: int, checkpoint: Checkpoint, is_published: bool = False
) -> tuple[Step, Sequence[StepPasses]]:
    """Return what a plan computes with, and the passes of each step of the run. Raises as `plan_for`."""
    info = checkpoint.info
    # Check the request without device and mesh: the run may use another machine, and each mesh is checked below. The
    # weights setting restricts other settings; zero3 is checked as fsdp, because it would require DeepSpeed here.
    check_lora_weights(config)
    check_compile(config)
    check_quantization(config)
    model = config.model.model_copy(update={"device": "auto", "lora": ()})  # a LoRA's file need not be here
    weights = "fsdp" if config.parallel.weights == "zero3" else config.parallel.weights
    parallel = ParallelConfig(weights=weights)
    check_request(config.model_copy(update={"parallel": parallel, "model": model}), info)
    num_steps = info.num_steps(config.sampling)
    sub = _sub_work(config.guidance, info.num_blocks)
    passes = planned_passes(
        config.guidance,
        num_blocks=info.num_blocks,
        num_steps=num_steps,
        flow_shift=config.sampling.flow_shift,
        boundary_ratio=info.boundary_ratio,
    )
    sampling = config.sampling
    shape = info.latent_shape(num_frames=sampling.num_frames, height=sampling.height, width=sampling.width)
    denoised = replace(shape, frames=shape.frames + len(config.control.references))
    transformer = checkpoint.config("transformer")
    costs = read_costs(transformer.values | {"expand_timesteps": info.time_per_token}, transformer.path)
    parts = Components(config, checkpoint, is_published)
    step = Step(
        model=costs,
        num_tokens=info.num_tokens(denoised),
        num_text=costs.num_text(sampling.max_sequence_length),
        item_bytes=item_bytes(config.model.dtype),
        has_uncond=config.guidance.cfg_scales != (1, 1),
        sub=sub,
        window_share=_computed(passes)["sub"] / num_steps,
        kinds=() if config.guidance.reuse.spec().is_exact else kinds(passes),
        kept_predictions=_kept_predictions(config.guidance),
        weights=config.parallel.weights,
        weight_bytes=parts.weight_bytes,
        num_transformers=1 if info.boundary_ratio is None or config.model.offload_experts else 2,
        vae_bytes=parts.vae_bytes,
        decoding_bytes=parts.decoding_bytes(shape, world_size),
        text_encoder_bytes=parts.encoder_bytes,
        image_encoding_bytes=parts.image_encoding_bytes,
        keeps_text_encoder=not (config.model.offload_text_encoder or config.model.stream_text_encoder),
    )
    return step, passes


def _computed(passes: Sequence[StepPasses]) -> dict[str, int]:
    """Return the number of steps that compute cond, uncond and sub."""
    return {name: sum(getattr(p, name) == "computed" for p in passes) for name in StepPasses._fields}


def legal_meshes(config: RunConfig, world_size: int) -> list[Degrees]:
    """Return every mesh of `world_size` ranks that this run can have."""
    return [degrees for degrees, reason in _meshes(config, world_size) if reason is None]


def _meshes(config: RunConfig, world_size: int) -> Iterator[tuple[Any, str | None]]:
    """Yield every ring × ulysses × branch of `world_size` ranks, with the reason if it is not legal, otherwise None."""
    from_ring = _ring_refusal(config)
    for branch in (1, 2):
        if world_size % branch:
            yield (
                f"ring × ulysses × {branch}",
                f"ring × ulysses × branch {branch} is never {world_size}; branch must divide the number of ranks",
            )
            continue
        rest = world_size // branch
        for ring in (ring for ring in range(1, rest + 1) if rest % ring == 0):
            degrees = Degrees(ring, rest // ring, branch)
            named = f"ring {ring} × ulysses {degrees.ulysses} × branch {branch} = {world_size}: "
            if branch == 2 and 1 in config.guidance.cfg_scales:
                scale = "cfg_scale" if config.guidance.cfg_scale == 1 else "cfg_scale_2"
                yield degrees, named + f"with guidance.{scale} 1 there is no uncond to run in parallel with cond"
            elif ring > 1 and from_ring is not None:
                yield degrees, named + from_ring
            else:
                yield degrees, None


def _ring_refusal(config: RunConfig) -> str | None:
    if config.model.attention_backend is None and not os.environ.get("DIFFUSERS_ATTN_BACKEND"):
        return None  # without torch
    from ..parallel.ring import check_backend, named_backend

    try:
        check_backend(named_backend(config.model.attention_backend))
    except InputError as error:
        return str(error)
    return None


def _given_degrees(parallel: ParallelConfig) -> dict[str, int]:
    """Return the degrees set in the config; empty if all are left to the number of ranks."""
    given = {name: d for name, d in (("ring", parallel.ring), ("ulysses", parallel.ulysses)) if d is not None}
    return given | {"branch": parallel.branch} if given or parallel.branch > 1 else {}


def _candidate(degrees: Degrees, step: Step, card: Card, given: dict[str, int]) -> Candidate:
    predicted = forecast(degrees, step, card)
    fits = card.memory_gb is None or predicted.memory_bytes <= card.memory_gb * GIGA
    notes = []
    if given and degrees._asdict().items() >= given.items():
        notes.append(_AS_CONFIGURED)
    if not fits:
        notes.append(f"does not fit into {card.memory_gb:g} GB while {predicted.phase}")
    heads = step.model.num_heads
    for ulysses in sorted({degrees.ulysses, degrees.ulysses * degrees.branch}):
        if ulysses > heads:
            notes.append(f"{ulysses - heads} of {ulysses} ranks idle in attention: {heads} heads")
        elif heads % ulysses:
            notes.append(f"{heads} heads on {ulysses} ranks: up to {-(-heads // ulysses)} each")
    if degrees.world_size > card.node_size and card.node_size % (degrees.ulysses * degrees.branch):
        notes.append("all-to-all between nodes")
    return Candidate(degrees, predicted, fits, tuple(notes))
