"""Make small videos' latents in many ways and record the SHA-256 of each.

    python tools/latent_digests.py -o before.json
    python tools/latent_digests.py --against before.json

The first command writes a file. The second makes the latents again and names those that differ from the file: it shows
whether a change of the code left every bit as it was. Every family takes part with random weights, in one process and,
for some, on 2 and 3 ranks; so do the other guidance methods. Digests depend on the kind of processor and on versions of
libraries, so the file holds both, and other ones are not compared.

Exit codes: 0 done or all the same, 1 some differ, 2 the file cannot be used here.
"""

import argparse
import hashlib
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

import torch
from families import FAMILIES
from ranks import RankPool, laid_out

from s2video.config.run import build_config
from s2video.engine.engine import Engine
from s2video.errors import InputError
from s2video.system.files import write_json

PROMPT, NEGATIVE, SEED = "a small red circle moving left on a gray background", "blue, large", 3
LIBRARIES = ("torch", "diffusers", "transformers")


@dataclass(frozen=True)
class Case:
    """Latents to make.

    Attributes:
        family: a name of `FAMILIES`.
        guidance, parallel: settings of these sections of the config.
        degrees: ring, ulysses, branch; their product is the number of ranks.
    """

    family: str
    guidance: Mapping[str, Any] = field(default_factory=dict)
    parallel: Mapping[str, Any] = field(default_factory=dict)
    degrees: tuple[int, int, int] = (1, 1, 1)

    @property
    def world_size(self) -> int:
        ring, ulysses, branch = self.degrees
        return ring * ulysses * branch


CASES: dict[str, Case] = {
    **{name: Case(name) for name in FAMILIES},
    "wan, cfg_zero_star": Case("wan", {"method": "cfg_zero_star"}),
    "wan, apg": Case("wan", {"method": "apg", "apg": {"momentum": -0.5, "rescale": 2.0}}),
    "wan, slg": Case("wan", {"method": "slg", "slg": {"layers": [2, 4], "start": 0.0, "stop": 0.7}}),
    "wan, rescale": Case("wan", {"rescale": 0.7}),
    "wan, streamed": Case("wan", parallel={"weights": "streamed"}),
    "wan, ulysses 2": Case("wan", degrees=(1, 2, 1)),
    "wan, ring 2": Case("wan", degrees=(2, 1, 1)),
    "wan, branch 2": Case("wan", degrees=(1, 1, 2)),
    "wan-i2v, branch 2": Case("wan-i2v", degrees=(1, 1, 2)),
    "hunyuan-video, ring 2": Case("hunyuan-video", degrees=(2, 1, 1)),
    "hunyuan-video-1.5, ulysses 2": Case("hunyuan-video-1.5", degrees=(1, 2, 1)),
    "wan, ulysses 3": Case("wan", degrees=(1, 3, 1)),
    "wan-i2v, ring 3": Case("wan-i2v", degrees=(3, 1, 1)),
    "hunyuan-video, ulysses 3": Case("hunyuan-video", degrees=(1, 3, 1)),
    "hunyuan-video-1.5, ring 3": Case("hunyuan-video-1.5", degrees=(3, 1, 1)),
}


def digest(mesh: Any, config: Any, images: Any, degrees: tuple[int, int, int]) -> str:
    """Return the SHA-256 of the latents' float32 bytes. Every rank calls it; `mesh` is None in a single process."""
    torch.set_num_threads(1)
    if mesh is not None:
        ring, ulysses, branch = degrees
        mesh = laid_out(mesh, ring, ulysses, 2 if branch == 2 else 1)
    engine = Engine(config, mesh, progress="none")
    latents = engine.sample([PROMPT], [SEED], negative_prompt=NEGATIVE, images=images)
    return hashlib.sha256(latents.float().cpu().contiguous().numpy().tobytes()).hexdigest()


def make_digests(cases: Mapping[str, Case], folder: Path) -> Iterator[tuple[str, str]]:
    """Yield name and digest of every case, fewest ranks first. The checkpoints are written below `folder`."""

    @cache
    def checkpoint(family: str) -> Path:
        return FAMILIES[family].build_checkpoint(folder / family)

    for world_size in sorted({case.world_size for case in cases.values()}):
        pool = RankPool(world_size) if world_size > 1 else None
        try:
            for name, case in cases.items():
                if case.world_size == world_size:
                    yield name, _digest_of(case, checkpoint(case.family), pool)
        finally:
            if pool is not None:
                pool.close()


def _digest_of(case: Case, checkpoint: Path, pool: RankPool | None) -> str:
    family = FAMILIES[case.family]
    values = family.config(checkpoint, **case.guidance).model_dump(mode="json")
    values["parallel"] |= case.parallel
    config = build_config(values)
    if pool is None:
        return digest(None, config, family.images, case.degrees)
    first, *others = pool.run(digest, config, family.images, case.degrees)
    return first if all(other == first for other in others) else "ranks differ"


def find_circumstances() -> dict[str, str]:
    """Return what else the last bits depend on: the kind of processor, and versions."""
    processor = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return {"processor": processor, **{name: metadata.version(name) for name in LIBRARIES}}


def read_digests(path: Path) -> dict[str, str]:
    """Return the digests of a file.

    Raises:
        InputError: if `-o` did not write the file, or wrote it in other circumstances than these.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        before, digests = values["circumstances"], values["digests"]
    except (OSError, ValueError, TypeError, KeyError):
        raise InputError(f"{path}: expected a file that -o wrote") from None
    changed = differences(before, find_circumstances())
    if changed:
        raise InputError(f"{path} cannot be compared here: {'; '.join(changed)}")
    return dict(digests)


def differences(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Return a line for each name whose values differ."""
    return [
        f"{name}: expected {before.get(name, 'nothing')}, got {after.get(name, 'nothing')}"
        for name in {**before, **after}
        if before.get(name) != after.get(name)
    ]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("-o", "--output", type=Path, metavar="FILE.json", help="write the digests to this file")
    task.add_argument("--against", type=Path, metavar="FILE.json", help="compare with the digests of this file")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    try:
        expected = None if args.against is None else read_digests(args.against)
    except InputError as error:
        print(f"latent_digests: error: {error}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    digests: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, value in make_digests(CASES, Path(folder)):
            print(f"{value[:16]}  {name}", flush=True)
            digests[name] = value
    if expected is None:
        write_json(args.output, {"circumstances": find_circumstances(), "digests": digests})
        return 0
    lines = differences(expected, digests)
    print("\n".join(lines) if lines else f"all {len(digests)} are the same")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
