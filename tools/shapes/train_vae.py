"""Stage 1 of an embedded model: the video autoencoder, in the residual, patch-size-2 form of Wan 2.2.

Trained on random crops, then on longer and larger clips, so that neither the last frames nor the borders drift.

Dimension letters: B clips, C channels, T frames, H rows, W columns.
"""

import random
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify
from torch import Tensor

from .designs import Curriculum, Design
from .loop import TrainState, autocast, train
from .world import render, sample_scene

VAE_CONFIG = dict(
    z_dim=16,
    dim_mult=[1, 2, 2],
    num_res_blocks=1,
    temperal_downsample=[True, True],
    is_residual=True,
    in_channels=12,
    out_channels=12,
    patch_size=2,
    scale_factor_spatial=8,
    scale_factor_temporal=4,
)

KL_WEIGHT = 1e-4


def build_vae(design: Design, **statistics: list[float]) -> AutoencoderKLWan:
    """Return a VAE with random weights. `statistics`: mean and deviation of its latents per channel, if known."""
    return AutoencoderKLWan(**VAE_CONFIG, **design.vae, **statistics)


def decode_unclamped(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Latents [B, 16, T, H, W] -> video [B, 3, 4T-3, 8H, 8W]; `vae.decode` clamps, and a clamp stops gradients."""
    vae.clear_cache()
    hidden = vae.post_quant_conv(latents)
    chunks = []
    for i in range(hidden.shape[2]):
        vae._conv_idx = [0]
        chunks.append(
            vae.decoder(hidden[:, :, i : i + 1], feat_cache=vae._feat_map, feat_idx=vae._conv_idx, first_chunk=i == 0)
        )
    vae.clear_cache()
    return unpatchify(torch.cat(chunks, 2), patch_size=vae.config.patch_size)


def batches(seed: int, start: int, num_steps: int, curriculum: Curriculum) -> Iterator[tuple[Tensor, Tensor]]:
    """Crops and their coverage; a pure function of (seed, step), so that a resumed run sees what it would have."""
    for step in range(start, num_steps):
        rng = random.Random(f"{seed}-vae-{step}")
        progress = step / num_steps
        _, clips, lengths, side = next(row for row in curriculum if progress < row[0])
        length = rng.choice(lengths)
        scenes = [sample_scene(rng, num_things=rng.choice((1, 2))) for _ in range(clips)]
        video, coverage = render(scenes)
        first = rng.randint(0, video.shape[2] - length)
        crops = []
        for i, scene in enumerate(scenes):
            thing = rng.choice(scene.things)  # a crop near a shape: empty background is learnt soon enough
            row = min(max(int(thing.y + rng.uniform(-1, 1) * side / 2 - side / 2), 0), video.shape[3] - side)
            column = min(max(int(thing.x + rng.uniform(-1, 1) * side / 2 - side / 2), 0), video.shape[4] - side)
            window = (slice(None), slice(first, first + length), slice(row, row + side), slice(column, column + side))
            crops.append((video[i][window], coverage[i][window]))
        yield torch.stack([v for v, _ in crops]), torch.stack([c for _, c in crops])


def edge_weights(coverage: Tensor, weight: float) -> Tensor:
    """1 away from outlines, 1 + `weight` within two pixels of one."""
    size, pad = (1, 5, 5), (0, 2, 2)
    spread = F.max_pool3d(coverage, size, 1, pad) + F.max_pool3d(-coverage, size, 1, pad)
    return 1 + weight * spread


@torch.no_grad()
def reconstruction_errors(vae: AutoencoderKLWan, *, seed: int, count: int = 8) -> dict[str, float]:
    """Return the mean absolute error of whole clips, of 2 from black to white, by where it is.

    Returns:
        "edges": within two pixels of an outline; "inside": of shapes, elsewhere; "background".
    """
    rng = random.Random(f"{seed}-vae-errors")
    sums = {"edges": [0.0, 0], "inside": [0.0, 0], "background": [0.0, 0]}
    for number in range(count):
        video, coverage = render([sample_scene(rng, num_things=1 + number % 2, held_out=True)])
        device = next(vae.parameters()).device
        latents = vae.encode(video.to(device)).latent_dist.mean
        error = (vae.decode(latents).sample.cpu() - video).abs().mean(1, keepdim=True)
        edges = edge_weights(coverage, 1.0) > 1.1
        places = {"edges": edges, "inside": ~edges & (coverage > 0.5), "background": ~edges & (coverage < 0.5)}
        for name, place in places.items():
            sums[name][0] += float(error[place].sum())
            sums[name][1] += int(place.sum())
    return {name: total / pixels for name, (total, pixels) in sums.items()}


def train_vae(
    design: Design, work: Path, *, seed: int, num_steps: int, learning_rate: float, device: str
) -> tuple[AutoencoderKLWan, TrainState]:
    """The autoencoder, trained or resumed, and the state of its training."""
    torch.manual_seed(seed)
    vae = build_vae(design).to(device)
    state = TrainState.create(vae, work / "vae.pt", num_steps=num_steps, learning_rate=learning_rate, weight_decay=0.0)

    def loss(batch: tuple[Tensor, Tensor], step: int) -> tuple[Tensor, dict[str, float]]:
        video, coverage = (x.to(device) for x in batch)
        generator = torch.Generator(device).manual_seed(seed * 1_000_003 + step)
        with autocast(device):
            posterior = vae.encode(video).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator, device=device)
            latents = posterior.mean + posterior.std * noise
            output = decode_unclamped(vae, latents).float()
        error = output - video
        squared = error.square()
        weights = edge_weights(coverage, design.edge_weight)
        reconstruction = (weights * (squared + design.absolute_weight * error.abs())).mean()
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        return reconstruction + KL_WEIGHT * kl, {"mse": squared.mean().item(), "kl": kl.item()}

    train(state, batches(seed, state.step, num_steps, design.curriculum), loss, name="vae")
    return vae.eval(), state
