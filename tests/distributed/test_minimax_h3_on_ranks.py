"""MiniMax-H3 on 2 and 3 ranks, beyond the matrix: tiles of its VAE, sharded weights, rings."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ranks import RankPool, laid_out
from tiny_minimax_h3 import CHANNELS, build_vae, tiny_config
from torch import Tensor

from s2video.config.run import RunConfig
from s2video.decoding.decoder import FrameDecoder
from s2video.decoding.kinds import MINIMAX_H3_VAE
from s2video.engine.engine import Engine
from s2video.geometry import LatentShape
from s2video.parallel.mesh import Mesh

PROMPT = "a small red circle moving left on a gray background"


def decode(mesh: Mesh, latents: Tensor) -> tuple[list[Tensor], bool]:
    """Return the chunks, and whether this rank has a VAE."""
    vae = build_vae()
    vae.enable_tiling(96, 96, 32, 32)
    decoder = FrameDecoder(
        "auto",
        mesh,
        LatentShape(*latents.shape[2:]),
        vae_class=MINIMAX_H3_VAE,
        load_vae=lambda: vae,
        timeout_seconds=60,
    )
    return list(decoder(latents)), decoder.vae is not None


@pytest.mark.parametrize("world_size", [2, 3])
def test_tiles_are_shared_to_the_bit(ranks: Callable[[int], RankPool], world_size: int) -> None:
    latents = torch.randn(1, CHANNELS, 12, 10, 14, generator=torch.Generator().manual_seed(0))
    expected, _ = decode(Mesh(torch.device("cpu")), latents)
    (chunks, _), *others = ranks(world_size).run(decode, latents)
    assert len(chunks) == 3 and all(map(torch.equal, chunks, expected))
    assert others == [([], True)] * (world_size - 1)


def sample(mesh: Mesh | None, config: RunConfig) -> Tensor:
    return Engine(config, mesh, progress="none").sample([PROMPT], [3])


def sample_around_a_ring(mesh: Mesh, config: RunConfig) -> Tensor:
    return sample(laid_out(mesh, 2, 1), config)


@pytest.mark.parametrize("kind", ["fsdp", "ring"])
def test_meshes_and_weights(ranks: Callable[[int], RankPool], checkpoint_of: Callable[[str], Path], kind: str) -> None:
    config = tiny_config(checkpoint_of("minimax-h3"))
    alone = sample(None, config)
    if kind == "ring":
        together = ranks(2).run(sample_around_a_ring, config)
    else:
        together = ranks(2).run(sample, config.patched({"parallel.weights": "fsdp"}))
    for latents in together:
        torch.testing.assert_close(latents, alone, atol=1e-4, rtol=0)
        assert torch.equal(latents, together[0])
