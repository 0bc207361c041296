"""What two ranks send one another in one step, counted, beside the least that Ulysses and the ring allow.

    torchrun --nproc-per-node 2 tools/traffic.py [--json FILE]

One S² step of a scaled-down Wan 1.3B: cond, uncond, and the sub branch from its fork on. Any number of ranks will do;
counts do not depend on the machine. `tools/bench.py` starts this too.
"""

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from bench import scaled_wan

from s2video.files import write_json
from s2video.forward import predict
from s2video.geometry import split_evenly
from s2video.masks import MaskSpec, dropped_blocks
from s2video.models.base import Conditioning
from s2video.models.wan import WanBlockModel
from s2video.parallel.collectives import gather_objects
from s2video.parallel.mesh import Mesh, build_mesh, init_mesh
from s2video.parallel.traffic import count_traffic, ring_minimum, ulysses_minimum
from s2video.settings import ParallelConfig

LATENT_SHAPE = (5, 26, 32)
FLOAT = 4  # bytes


@dataclass(frozen=True)
class Count:
    """One layout's step: what the rank that sent most sent in its attention layers, and at the end of the branches.

    Attributes:
        calls: collectives of attention, by kind.
        sent, minimum: bytes of attention.
        gathered: bytes of the predictions, which every rank gets whole.
    """

    layout: str
    layers: int
    calls: dict[str, int]
    sent: int
    minimum: int
    gathered: int


@torch.no_grad()
def count(mesh: Mesh, model: WanBlockModel) -> Count:
    config, sequence = model.transformer.config, mesh.sequence
    latents = torch.zeros(1, 16, *LATENT_SHAPE)
    cond, uncond = (Conditioning(torch.zeros(1, 8, config.text_dim)) for _ in range(2))
    mask = dropped_blocks(MaskSpec(), num_blocks=model.num_blocks, seed=0, step=0)
    with count_traffic() as traffic:
        predict(model, latents, torch.tensor([500]), mesh=mesh, cond=cond, uncond=uncond, masks=[mask])
    layers = 3 * model.num_blocks - mask[0] - len(mask)

    shards = [shard.length for shard in split_evenly(model.num_tokens(latents), sequence.whole.size)]
    heads = [shard.length for shard in split_evenly(config.num_attention_heads, sequence.ulysses.size)]
    group = slice(sequence.ring.rank * len(heads), (sequence.ring.rank + 1) * len(heads))
    blocks = [sum(shards[i : i + len(heads)]) for i in range(0, len(shards), len(heads))]
    width = heads[sequence.ulysses.rank] * config.attention_head_dim
    least = ulysses_minimum(shards[group], heads, config.attention_head_dim)[sequence.ulysses.rank]
    least += ring_minimum(blocks, width)[sequence.ring.rank]
    gathered = traffic.sent["all_gather"]
    mine = Count(
        layout=f"ulysses {sequence.ulysses.size}, ring {sequence.ring.size}",
        layers=layers,
        calls={kind: number for kind, number in traffic.calls.items() if kind != "all_gather"},
        sent=traffic.total - gathered,
        minimum=least * layers * FLOAT,
        gathered=gathered,
    )
    return max(gather_objects(mine, mesh.world), key=lambda counted: counted.sent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write everything there")
    args = parser.parse_args()
    with init_mesh(ParallelConfig(backend="gloo"), "cpu") as mesh:
        size, model = mesh.world.size, WanBlockModel(scaled_wan())
        layouts = [ParallelConfig(ulysses=size), ParallelConfig(ring=size)]
        counts = [count(build_mesh(layout, mesh.device), model) for layout in layouts]
    if not mesh.is_main:
        return
    print(f"\nTraffic of one S² step, {size} ranks, Wan 1.3B scaled down, MiB from the rank that sent most")
    print(f"  {'layout':<22}{'layers':>7}{'sent':>9}{'minimum':>9}{'ratio':>7}{'gather':>8}  calls")
    for c in counts:
        calls = ", ".join(f"{number} {kind}" for kind, number in c.calls.items())
        sent, minimum, gathered = (value / 2**20 for value in (c.sent, c.minimum, c.gathered))
        print(f"  {c.layout:<22}{c.layers:>7}{sent:>9.2f}{minimum:>9.2f}{c.sent / c.minimum:>7.3f}", end="")
        print(f"{gathered:>8.2f}  {calls}")
    if args.json:
        write_json(args.json, [asdict(c) for c in counts])


if __name__ == "__main__":
    main()
