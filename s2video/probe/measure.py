"""What a checkpoint's sub predictions look like along the trajectory of plain CFG: figures for advice, no videos.

At a few points of the run, three steps in a row make cond, uncond, a sub prediction without each single block, and some
with the masks that S² would draw. All are compared in float32 on the CPU of the main rank; ranks send nothing more than
they do in any run.

Letters: P points, L blocks, n numbers of a prediction. d is a deviation, sub − cond.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from ..config.run import RunConfig
from ..engine.engine import Engine
from ..guidance.equations import Predictions
from ..guidance.forecasts import History
from ..guidance.masks import MaskSpec, dropped_blocks
from ..models.control import Pictures
from ..sampling.denoiser import Denoiser
from ..system.progress import Progress

IN_A_ROW = 3  # steps at each point: two from which a third one can be forecast
TOGETHER = 4  # sub branches in one pass through the model; each takes memory

Mask = tuple[int, ...]


@dataclass(frozen=True)
class BlockFigures:
    """What dropping one block does, as means over points and prompts.

    Attributes:
        effect: |d| / |cond|.
        to_uncond: cosine between d and uncond − cond; None without an uncond pass.
        to_others: mean cosine between d and those of the other blocks.
        held_1, held_2: |d − d of one or two steps earlier| / |d|, the error if it is held.
    """

    block: int
    effect: float
    to_uncond: float | None
    to_others: float
    held_1: float
    held_2: float


@dataclass(frozen=True)
class CountFigures:
    """What masks of one number of dropped blocks do.

    Attributes:
        effect: |d| / |cond|.
        cosine: mean cosine between the deviations of two masks.
        common: mean inner product of two masks' deviations over the mean of |d|²: 1 if all err alike, 0 if none do.
        apart: |d − d of another mask| / |cond|, which the luck of the draw decides.
        held_1, held_2: as of a block.
    """

    dropped: int
    effect: float
    cosine: float
    common: float
    apart: float
    held_1: float
    held_2: float


@dataclass(frozen=True)
class ForecastFigures:
    """Relative errors of a prediction that is held for one or two steps, or extrapolated linearly for one."""

    held_1: float
    held_2: float
    linear: float


@dataclass(frozen=True)
class Figures:
    """All figures of a probe. `difference` is cond − uncond over cond, with its errors; None without an uncond pass."""

    cfg_scale: float
    steps: tuple[tuple[int, ...], ...]
    blocks: tuple[BlockFigures, ...]
    counts: tuple[CountFigures, ...]
    cond: ForecastFigures
    difference: ForecastFigures | None
    difference_effect: float | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def probe(
    engine: Engine, prompts: Sequence[str], *, points: int, draws: int, images: Pictures | None
) -> Figures | None:
    """Run plain CFG for every prompt, and return the figures; None on ranks other than the main one.

    Args:
        points: points of the run at which predictions are compared, at least 1.
        draws: masks of each number of dropped blocks, at least 2.
    """
    guidance = {"method": "s2", "s2_scale": 0.0, "s2_push": None, "form": "deviation", "reuse": "exact"}
    plain = engine.with_guidance(**guidance)
    seed = engine.config.sampling.seed
    schedule = plain.mask_schedule([seed])
    steps = point_steps(schedule.num_steps, points, schedule.restart)
    masks = probe_masks(engine.config, engine.num_blocks, draws)
    samples: list[dict[str, Any]] = []
    with Progress("prompts", "auto" if engine.mesh.is_main else "none") as progress:
        for number, prompt in enumerate(prompts):
            look = _Look(masks, steps, schedule.levels, samples if engine.mesh.is_main else None)
            plain.sample([prompt], [seed + number], mask_seed=seed, images=images, around=look)
            progress(number + 1, len(prompts))
    return _figures(engine, masks, steps, samples) if engine.mesh.is_main else None


def probe_masks(config: RunConfig, num_blocks: int, draws: int) -> dict[str, list[Mask]]:
    """Return the masks to try: each block alone as "blocks", and drawn ones by their number of blocks ("2")."""
    spec, seed = config.guidance.mask_spec(), config.sampling.seed
    counts = sorted({count for count in (1, 2, spec.count(num_blocks)) if 0 < count <= len(spec.eligible(num_blocks))})
    found: dict[str, list[Mask]] = {"blocks": [(block,) for block in range(num_blocks)]}
    for count in counts:
        found[str(count)] = list(_different(spec, count, num_blocks, seed, draws))
    return found


def _different(spec: MaskSpec, count: int, num_blocks: int, seed: int, draws: int) -> Iterator[Mask]:
    """Yield up to `draws` different masks of `count` blocks, as S² draws them in its steps."""
    drawn: dict[Mask, None] = {}
    counted = MaskSpec(drop_count=count, never_drop=spec.never_drop, band=spec.band)
    for step in range(20 * draws):
        drawn.setdefault(dropped_blocks(counted, num_blocks=num_blocks, seed=seed, step=step))
        if len(drawn) == draws:
            break
    yield from drawn


def point_steps(num_steps: int, points: int, restart: int | None = None) -> tuple[tuple[int, ...], ...]:
    """Return the steps of each point, in a row and of one transformer, spread over the run; fewer in a short run."""
    parts = [(0, num_steps)] if restart is None else [(0, restart), (restart, num_steps)]
    starts = set()
    for index in range(points):
        middle = int((index + 0.5) * num_steps / points)
        first, end = next(part for part in parts if part[0] <= middle < part[1])
        if end - first >= IN_A_ROW:
            starts.add(min(max(middle - 1, first), end - IN_A_ROW))
    chosen: list[tuple[int, ...]] = []
    for start in sorted(starts):
        if not chosen or start > chosen[-1][-1]:
            chosen.append(tuple(range(start, start + IN_A_ROW)))
    return tuple(chosen)


class _Look:
    """Stands in the denoiser's place: makes further predictions at the points, and returns what the denoiser would."""

    def __init__(
        self,
        masks: Mapping[str, Sequence[Mask]],
        steps: Sequence[Sequence[int]],
        levels: Sequence[float],
        samples: list[dict[str, Any]] | None,
    ) -> None:
        self._masks = masks
        self._steps = steps
        self._levels = levels
        self._samples = samples
        self._point: list[dict[str, Tensor]] = []

    def __call__(self, denoiser: Denoiser, latents: Tensor, timestep: Tensor, step: int) -> Tensor:
        point = next((point for point in self._steps if step in point), None)
        if point is None:
            return denoiser(latents, timestep, step)
        made = self._predictions(denoiser, latents, timestep)
        if self._samples is not None:
            self._point.append(made)
            if step == point[-1]:
                self._samples.append(_compare(self._point, [self._levels[s] for s in point]))
                self._point = []
        plain = Predictions(made["cond"].view_as(latents).to(latents.device), _uncond(made, latents))
        return denoiser.guide(plain, timestep, step)

    def _predictions(self, denoiser: Denoiser, latents: Tensor, timestep: Tensor) -> dict[str, Tensor]:
        """Return cond and uncond [n], and the deviations of each kind of masks [masks, n], float32 on the CPU."""
        made: dict[str, Tensor] = {}
        for name, masks in self._masks.items():
            deviations = []
            for first in range(0, len(masks), TOGETHER):
                found = denoiser.predictions(latents, timestep, masks[first : first + TOGETHER])
                cond = found.cond.float()
                if "cond" not in made:
                    made["cond"] = cond.flatten().cpu()
                    if found.uncond is not None:
                        made["uncond"] = found.uncond.float().flatten().cpu()
                if self._samples is not None:
                    deviations += [(sub.float() - cond).flatten().cpu() for sub in found.subs]
            if deviations:
                made[name] = torch.stack(deviations)
        return made


def _uncond(made: Mapping[str, Tensor], latents: Tensor) -> Tensor | None:
    return made["uncond"].view_as(latents).to(latents.device) if "uncond" in made else None


def _compare(point: Sequence[Mapping[str, Tensor]], levels: Sequence[float]) -> dict[str, Any]:
    """Return the figures of one point: of its last step for what is compared within a step, else of all three."""
    last = point[-1]
    norm = float(last["cond"].norm())
    found: dict[str, Any] = {"cond": _forecast_errors([made["cond"] for made in point], levels)}
    difference = None
    if "uncond" in last:
        differences = [made["cond"] - made["uncond"] for made in point]
        difference = differences[-1]
        found["difference"] = _forecast_errors(differences, levels)
        found["difference_effect"] = float(difference.norm()) / norm
    for name in last.keys() - {"cond", "uncond"}:
        found[name] = _of_masks([made[name] for made in point], difference, norm)
    return found


def _of_masks(deviations: Sequence[Tensor], difference: Tensor | None, norm: float) -> dict[str, Any]:
    """Return figures of deviations [masks, n] of three steps, next to cond's norm."""
    before, newer, last = deviations
    gram = last @ last.T
    norms = gram.diagonal().sqrt()
    cosines = gram / (norms[:, None] * norms[None, :])
    pairs = list(combinations(range(len(last)), 2))
    found: dict[str, Any] = {
        "effect": (norms / norm).tolist(),
        "to_others": ((cosines.sum(dim=1) - 1) / max(1, len(last) - 1)).tolist(),
        "held_1": ((last - newer).norm(dim=1) / norms).tolist(),
        "held_2": ((last - before).norm(dim=1) / norms).tolist(),
        "cosine": fmean(float(cosines[pair]) for pair in pairs) if pairs else 1.0,
        "common": fmean(float(gram[pair]) for pair in pairs) / float(norms.square().mean()) if pairs else 1.0,
        "apart": fmean(float((last[a] - last[b]).norm()) for a, b in pairs) / norm if pairs else 0.0,
    }
    if difference is not None:
        found["to_uncond"] = (-(last @ difference) / (norms * difference.norm())).tolist()
    return found


def _forecast_errors(values: Sequence[Tensor], levels: Sequence[float]) -> dict[str, float]:
    """Return the relative errors of the last value, held or extrapolated from those before it."""
    before, newer, last = values
    line = History(1)
    line.add(levels[0], before)
    line.add(levels[1], newer)
    norm = last.norm()
    guesses = {"held_1": newer, "held_2": before, "linear": line.forecast(levels[2])}
    return {name: float((guess - last).norm() / norm) for name, guess in guesses.items()}


def _figures(
    engine: Engine,
    masks: Mapping[str, Sequence[Mask]],
    steps: tuple[tuple[int, ...], ...],
    samples: Sequence[Mapping[str, Any]],
) -> Figures:
    """Return means over points and prompts."""

    def mean(*keys: str | int) -> float:
        return fmean(_at(sample, keys) for sample in samples)

    has_uncond = "difference" in samples[0]
    blocks = tuple(
        BlockFigures(
            block,
            effect=mean("blocks", "effect", block),
            to_uncond=mean("blocks", "to_uncond", block) if has_uncond else None,
            to_others=mean("blocks", "to_others", block),
            held_1=mean("blocks", "held_1", block),
            held_2=mean("blocks", "held_2", block),
        )
        for block in range(engine.num_blocks)
    )
    counts = []
    for name, drawn in masks.items():
        if name != "blocks":
            draws = range(len(drawn))
            each = {key: fmean(mean(name, key, d) for d in draws) for key in ("effect", "held_1", "held_2")}
            pairs = {key: mean(name, key) for key in ("cosine", "common", "apart")}
            counts.append(CountFigures(int(name), **each, **pairs))
    errors = ("held_1", "held_2", "linear")
    return Figures(
        cfg_scale=max(engine.config.guidance.cfg_scales),
        steps=steps,
        blocks=blocks,
        counts=tuple(counts),
        cond=ForecastFigures(*(mean("cond", error) for error in errors)),
        difference=ForecastFigures(*(mean("difference", error) for error in errors)) if has_uncond else None,
        difference_effect=mean("difference_effect") if has_uncond else None,
    )


def _at(sample: Any, keys: Sequence[str | int]) -> float:
    for key in keys:
        sample = sample[key]
    return float(sample)
