"""Training the toys' networks, and sampling from them through the package's own masks, guidance and sampler.

Dimension letters: S seeds, N points, D dimensions, T steps.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from s2video.guidance.equations import Predictions, combine
from s2video.guidance.masks import MaskSpec, step_masks
from s2video.sampling.sampler import sample

from .mixtures import Mixture
from .network import ResidualNetworks

NUM_BLOCKS, WIDTH = 10, 48
NUM_STEPS = 40
NO_CLASS_SHARE = 0.15
BATCH = 256


@dataclass(frozen=True)
class Method:
    """One way of guidance.

    Attributes:
        name: as figures and tables show it.
        cfg_scale: λ, of cond against the weaker prediction: that of no class, or of the weaker network.
        s2_scale: ω.
        num_draws: N of Eq. 3.
        autoguidance: the weaker prediction comes from a smaller, less trained network.
        never_drop: blocks that stay.
    """

    name: str
    cfg_scale: float = 1.0
    s2_scale: float = 0.0
    num_draws: int = 1
    autoguidance: bool = False
    never_drop: tuple[int, ...] = (0,)
    band: tuple[int, int] | None = None


@dataclass(frozen=True)
class Networks:
    """The networks of all seeds, and their smaller, less trained sisters."""

    full: ResidualNetworks
    weak: ResidualNetworks


def train_networks(mixture: Mixture, *, num_seeds: int, num_steps: int, seed: int = 0) -> Networks:
    """Networks of `num_seeds` seeds; the weak ones have a third of the blocks and a tenth of the steps."""
    full = _train(mixture, num_seeds, NUM_BLOCKS, num_steps, seed)
    weak = _train(mixture, num_seeds, NUM_BLOCKS // 3, num_steps // 10, seed + 1)
    return Networks(full, weak)


def _train(mixture: Mixture, num_seeds: int, num_blocks: int, num_steps: int, seed: int) -> ResidualNetworks:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    networks = ResidualNetworks(num_seeds, mixture.dim, mixture.num_classes, num_blocks=num_blocks, width=WIDTH)
    optimizer = torch.optim.Adam(networks.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    shape = (num_seeds, BATCH)
    for _ in range(num_steps):
        labels = torch.randint(mixture.num_classes, shape, generator=generator)
        clean = mixture.draw(labels, generator)
        noise = torch.randn(clean.shape, generator=generator)
        sigma = torch.rand(shape, generator=generator)
        noisy = (1 - sigma).unsqueeze(-1) * clean + sigma.unsqueeze(-1) * noise
        told = torch.where(torch.rand(shape, generator=generator) < NO_CLASS_SHARE, mixture.num_classes, labels)
        loss = (networks(noisy, sigma, told) - (noise - clean)).square().mean(dim=(1, 2)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return networks.eval().requires_grad_(False)


@torch.no_grad()
def guided(networks: Networks, method: Method, x: Tensor, sigma: Tensor, labels: Tensor, step: int) -> Tensor:
    """The guided velocity of each seed's network at step `step` of `NUM_STEPS`, [S, N, D]."""
    full = networks.full
    cond = full(x, sigma, labels)
    uncond = None
    if method.cfg_scale != 1:
        if method.autoguidance:
            uncond = networks.weak(x, sigma, labels)
        else:
            uncond = full(x, sigma, torch.full_like(labels, full.num_classes))
    subs: list[Tensor] = []
    if method.s2_scale:
        spec = MaskSpec(never_drop=method.never_drop, band=method.band, num_draws=method.num_draws)
        of_seeds = [
            step_masks(spec, num_blocks=full.num_blocks, seed=seed, step=step, num_steps=NUM_STEPS)
            for seed in range(full.num_seeds)
        ]
        subs = [full(x, sigma, labels, dropped) for dropped in zip(*of_seeds, strict=True)]
    return combine(Predictions(cond, uncond, tuple(subs)), cfg_scale=method.cfg_scale, s2_scale=method.s2_scale)


def sample_points(
    networks: Networks, mixture: Mixture, method: Method, labels: Tensor, *, seed: int, path: list[Tensor] | None = None
) -> Tensor:
    """Points [S, N, D] of the classes `labels` [S, N]; the noise is the same for every method.

    Args:
        path: where given, the points after each step are appended to it.
    """
    return integrate(
        lambda x, sigma, step: guided(networks, method, x, sigma.expand(labels.shape), labels, step),
        mixture,
        labels,
        seed=seed,
        path=path,
    )


def integrate(
    velocity: Callable[[Tensor, Tensor, int], Tensor],
    mixture: Mixture,
    labels: Tensor,
    *,
    seed: int,
    path: list[Tensor] | None = None,
) -> Tensor:
    """From seeded noise along velocity(points, σ, step), by diffusers' Euler scheduler."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(NUM_STEPS)
    scheduler.set_begin_index(0)
    noise = torch.randn((*labels.shape, mixture.dim), generator=torch.Generator().manual_seed(seed))

    def denoise(x: Tensor, timestep: Tensor, step: int) -> Tensor:
        return velocity(x, timestep / 1000, step)

    def on_step(done: int, total: int, x: Tensor) -> None:
        if path is not None:
            path.append(x)

    return sample(denoise, noise, scheduler, on_step=on_step)


def _visited(
    mixture: Mixture, num_seeds: int, sigmas: Sequence[float], seed: int
) -> Iterator[tuple[float, Tensor, Tensor, int]]:
    """At each σ: points [S, N, D] of the exact process, their labels [S, N], and the step that stands there."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(mixture.num_classes).repeat(256).expand(num_seeds, -1)
    for sigma in sigmas:
        clean = mixture.draw(labels, generator)
        noisy = (1 - sigma) * clean + sigma * torch.randn(clean.shape, generator=generator)
        yield sigma, noisy, labels, min(NUM_STEPS - 1, int((1 - sigma) * NUM_STEPS))


def field_errors(networks: Networks, mixture: Mixture, method: Method, sigmas: Sequence[float], *, seed: int) -> Tensor:
    """Root mean square distance of the guided velocity from the exact conditional one, [S, len(sigmas)].

    The points are those that the exact process visits at each σ, so a perfect network without guidance has error 0.
    Masks are those of the step that stands at this σ.
    """
    errors = []
    for sigma, noisy, labels, step in _visited(mixture, networks.full.num_seeds, sigmas, seed):
        got = guided(networks, method, noisy, torch.full(labels.shape, sigma), labels, step)
        gap = got - mixture.velocity(noisy, sigma, labels)
        errors.append(gap.square().sum(dim=-1).mean(dim=-1).sqrt())
    return torch.stack(errors, dim=-1)


@torch.no_grad()
def best_omegas(
    networks: Networks, mixture: Mixture, cfg_scale: float, sigmas: Sequence[float], *, seed: int
) -> tuple[Tensor, Tensor]:
    """The ω at which the field comes nearest to the exact conditional one, and what is then left of CFG's error.

    At points of the exact process, let g be CFG's error and p what S² adds to CFG's field at ω = 1. The mean of
    |g + ω·p|² is least at ω = −⟨g, p⟩ / ⟨p, p⟩: below 0 where S² pushes away from the truth.

    Args:
        sigmas: inside the window, for outside it p is 0.
    Returns:
        ω and |g + ω·p| / |g|, each [S, len(sigmas)].
    """
    omegas, left = [], []
    for sigma, noisy, labels, step in _visited(mixture, networks.full.num_seeds, sigmas, seed):
        told = torch.full(labels.shape, sigma)
        cfg, s2 = (
            guided(networks, Method("", cfg_scale, omega), noisy, told, labels, step).flatten(1) for omega in (0.0, 1.0)
        )
        error, push = cfg - mixture.velocity(noisy, sigma, labels).flatten(1), s2 - cfg
        omega = -(error * push).sum(dim=1) / push.square().sum(dim=1)
        omegas.append(omega)
        left.append((error + omega.unsqueeze(1) * push).norm(dim=1) / error.norm(dim=1))
    return torch.stack(omegas, dim=-1), torch.stack(left, dim=-1)
