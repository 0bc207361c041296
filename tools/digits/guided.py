"""Sampling with every method that is compared, at the same noise for the same sample number.

Masks are those of the package. Dimension letters: B samples of one batch, all with the same step.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from s2video.guidance.masks import MaskSpec, step_masks

from .data import CLASSES, SIDE
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
    """

    cfg_scale: float = 1.0
    push: float = 0.0
    direction: Direction = "sub"
    drop_count: int = 1
    num_draws: int = 1
    window: tuple[float, float] = (0.1, 0.9)
    window_in: Literal["steps", "noise"] = "steps"
    steps: int = STEPS

    def passes(self, blocks: int) -> float:
        """Return the cost of a run in forward passes of all blocks."""
        in_window = sum(self.active(step) for step in range(self.steps))
        extra = (1 - self.drop_count / blocks if self.direction != "weak" else 1.0) * self.num_draws
        return self.steps * (2 if self.cfg_scale != 1 else 1) + (in_window * extra if self.push else 0)

    def active(self, step: int) -> bool:
        """Return whether d is used in this step."""
        if self.window_in == "steps":
            return MaskSpec(window=self.window).active(step, self.steps)
        return self.window[0] <= step / self.steps <= self.window[1]  # the noise level is 1 − step / steps


@dataclass
class Sampled:
    """Images [N, 1, 28, 28], their labels [N], and the mean ω that the push meant."""

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
    """Where a batch stands: x [B, 1, 28, 28] at noise level t [B], of the batch `index` at the step `step`."""

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
    omegas: list[float] = []
    for step in range(method.steps):
        point = _Point(x, torch.full((BATCH,), 1 - step / method.steps), labels, step, index)
        velocity, cond = _cfg(network, method, point)
        if method.push and method.active(step):
            direction = _direction(network, method, point, cond, weak)
            omega = method.push * _norm(cond) / _norm(direction).clamp_min(1e-12)
            velocity = velocity - omega * direction
            omegas.append(float(omega.mean()))
        x = x - velocity / method.steps
    return x.clamp(-1, 1), labels, sum(omegas) / len(omegas) if omegas else 0.0


def _cfg(network: DigitTransformer, method: Method, point: _Point) -> tuple[Tensor, Tensor]:
    """Return Eq. 1's velocity and cond."""
    x, t, labels, *_ = point
    cond = network(x, t, labels)
    if method.cfg_scale == 1:
        return cond, cond
    uncond = network(x, t, torch.full_like(labels, NO_CLASS))
    return uncond + method.cfg_scale * (cond - uncond), cond


def _direction(
    network: DigitTransformer, method: Method, point: _Point, cond: Tensor, weak: DigitTransformer | None
) -> Tensor:
    """Return d [B, 1, 28, 28], the mean over the draws."""
    x, t, labels, step, index = point
    if method.direction == "weak":
        if weak is None:
            raise ValueError("autoguidance needs the weak twin")
        return weak(x, t, labels) - cond
    spec = MaskSpec(drop_count=method.drop_count, window=(0.0, 1.0), num_draws=method.num_draws)
    blocks = network.shape.blocks
    # Every batch draws its own masks, as every video of a batch does.
    masks = step_masks(spec, num_blocks=blocks, seed=MASK_SEED + index, step=step, num_steps=method.steps)
    direction = torch.stack([network(x, t, labels, mask) for mask in masks]).mean(0) - cond
    # Classes take turns, so the sample ten places on has the same class.
    return direction.roll(CLASSES, 0) if method.direction == "other" else direction


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
