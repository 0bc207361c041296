"""Sampling with every method that is compared, at the same noise for the same sample number.

Masks, schedules, forecasts and equations are those of the package. Dimension letters: B samples of one batch, all with
the same step.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from s2video.guidance.equations import Predictions, combine, scale_of_push
from s2video.guidance.forecasts import Forecasts
from s2video.guidance.masks import MaskSpec, step_masks
from s2video.guidance.reuse import PRESETS, Preset, StepPasses, plan_passes

from .data import CLASSES, HIGH, LOW, SIDE
from .transformer import NO_CLASS, DigitTransformer

Direction = Literal["sub", "other", "weak"]
STEPS, BATCH, MASK_SEED = 16, 500, 7


@dataclass(frozen=True)
class Method:
    """One way to sample.

    Attributes:
        cfg_scale: λ; 1 needs no uncond pass.
        push: ω |d| / |cond| of each step and sample, where d is the direction away from which is pushed; 0 for none.
        direction: what d is. "sub": sub − cond, S². "other": that of another sample of the same class, the negative
            control. "weak": the prediction of the network after a fifth of its training, less cond: autoguidance, the
            positive control.
        drop_count: blocks that the sub pass leaves out.
        num_draws: masks per step.
        window: the part of the sampling in which d is used.
        window_in: whether `window` counts steps or noise levels, from 1 to 0.
        steps: number of Euler steps, even in the noise level.
        reuse: which passes are forecast from earlier steps, as in the package.
    """

    cfg_scale: float = 1.0
    push: float = 0.0
    direction: Direction = "sub"
    drop_count: int = 1
    num_draws: int = 1
    window: tuple[float, float] = (0.1, 0.9)
    window_in: Literal["steps", "noise"] = "steps"
    steps: int = STEPS
    reuse: Preset = "exact"

    def passes(self, blocks: int) -> float:
        """Return the cost of a run in forward passes of all blocks. A sub pass counts as the blocks that it has."""
        sub = (1 - self.drop_count / blocks if self.direction != "weak" else 1.0) * self.num_draws
        costs = (1.0, 1.0, sub)
        return sum(cost for step in self.plan() for cost, how in zip(costs, step, strict=True) if how == "computed")

    def plan(self) -> tuple[StepPasses, ...]:
        """Return what each step computes and what it forecasts."""
        return plan_passes(
            PRESETS[self.reuse],
            levels=[1 - step / self.steps for step in range(self.steps)],
            active=[self.push > 0 and self.active(step) for step in range(self.steps)],
            has_uncond=[self.cfg_scale != 1] * self.steps,
        )

    def active(self, step: int) -> bool:
        """Return whether d is used in this step."""
        if self.window_in == "steps":
            return MaskSpec(window=self.window).active(step, self.steps)
        return self.window[0] <= step / self.steps <= self.window[1]  # the noise level is 1 − step / steps


@dataclass
class Sampled:
    """Images [N, 1, 16, 16], their labels [N], and the mean ω that the push meant."""

    images: Tensor
    labels: Tensor
    mean_omega: float


def sample(
    network: DigitTransformer, method: Method, *, count: int, noise_seed: int, weak: DigitTransformer | None = None
) -> Sampled:
    """Return `count` samples, a multiple of 500; classes take turns. `weak` is needed for its direction."""
    batches = [_batch(network, method, noise_seed, index, weak) for index in range(count // BATCH)]
    omegas = [omega for *_, omega in batches]
    images, labels = (torch.cat([batch[part] for batch in batches]) for part in (0, 1))
    return Sampled(images, labels, sum(omegas) / len(omegas))


class _Point(NamedTuple):
    """Where a batch stands: x [B, 1, 16, 16] at noise level t [B], of the batch `index` at the step `step`."""

    x: Tensor
    t: Tensor
    labels: Tensor
    step: int
    index: int


@torch.inference_mode()
def _batch(
    network: DigitTransformer, method: Method, noise_seed: int, index: int, weak: DigitTransformer | None
) -> tuple[Tensor, Tensor, float]:
    generator = torch.Generator().manual_seed(1_000_003 * noise_seed + index)
    x = torch.randn(BATCH, 1, SIDE, SIDE, generator=generator)
    labels = torch.arange(BATCH) % CLASSES
    forecasts = Forecasts(PRESETS[method.reuse])
    omegas: list[float] = []
    for step, passes in enumerate(method.plan()):
        level = 1 - step / method.steps
        point = _Point(x, torch.full((BATCH,), level), labels, step, index)
        computed = _predictions(network, method, point, passes, weak) if passes.cond == "computed" else None
        predictions = forecasts.complete(passes, level, computed)
        omega: float | Tensor = 0.0
        if predictions.subs:
            omega = scale_of_push(predictions, method.push)
            omegas.append(float(omega.mean()))
        x = x - combine(predictions, cfg_scale=method.cfg_scale, s2_scale=omega) / method.steps
    return x.clamp(LOW, HIGH), labels, sum(omegas) / len(omegas) if omegas else 0.0


def _predictions(
    network: DigitTransformer, method: Method, point: _Point, passes: StepPasses, weak: DigitTransformer | None
) -> Predictions:
    x, t, labels, *_ = point
    cond, trace = network.traced(x, t, labels)
    uncond = network(x, t, torch.full_like(labels, NO_CLASS)) if passes.uncond == "computed" else None
    if passes.sub != "computed":
        return Predictions(cond, uncond)
    if method.direction == "weak":
        if weak is None:
            raise ValueError("autoguidance needs the weak twin")
        return Predictions(cond, uncond, (weak(x, t, labels),))
    masks = _masks(network, method, point)
    subs = tuple(network.resumed(trace, mask) for mask in masks)
    if method.direction == "other":
        # Classes take turns, so the sample ten places on has the same class.
        subs = tuple(cond + (sub - cond).roll(CLASSES, 0) for sub in subs)
    return Predictions(cond, uncond, subs)


def _masks(network: DigitTransformer, method: Method, point: _Point) -> tuple[tuple[int, ...], ...]:
    """Return the masks of a step. Every batch draws its own, as every video of a batch does."""
    spec = MaskSpec(drop_count=method.drop_count, window=(0.0, 1.0), num_draws=method.num_draws)
    blocks = network.shape.blocks
    return step_masks(spec, num_blocks=blocks, seed=MASK_SEED + point.index, step=point.step, num_steps=method.steps)
