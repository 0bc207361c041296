"""Makes small videos' latents in every way there is, and records the SHA-256 of each.

    python tools/latent_digests.py -o before.json
    python tools/latent_digests.py --against before.json

The first writes a file; the second makes the latents again, and names those that differ from the file. It says whether
a change of the code left every bit where it was. Every family of checkpoints takes part with random weights, alone and,
for some, on 2 and 3 ranks; and so do the other ways of guidance. Digests can be compared on the same kind of machine
and under the same versions only: the file holds both, and a difference there is told too.

Exit codes: 0 done or all the same, 1 some differ, 2 the file cannot be used.
"""

import argparse
import hashlib
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import torch

import s2video

sys.path.extend(  # those of the repository that the package lies in
    str(folder / name)
    for folder in Path(s2video.__file__).parents
    if (folder / "pyproject.toml").is_file()
    for name in ("tests", "tools")
)

from families import FAMILIES
from ranks import RankPool, laid_out

from s2video.config.run import build_config
from s2video.engine.engine import Engine

PROMPT, NEGATIVE, SEED = "a small red circle moving left on a gray background", "blue, large", 3
VERSIONS_OF = ("torch", "diffusers", "transformers")


@dataclass(frozen=True)
class Case:
    """Latents to make: of a family, with settings of guidance and of sharing, on so many ranks.

    Attributes:
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
    """SHA-256 of the latents' float32 bytes. Every rank runs it; `mesh` is None for one process alone."""
    torch.set_num_threads(1)
    if mesh is not None:
        ring, ulysses, branch = degrees
        mesh = laid_out(mesh, ring, ulysses, 2 if branch == 2 else 1)
    engine = Engine(config, mesh, progress="none")
    latents = engine.sample([PROMPT], [SEED], negative_prompt=NEGATIVE, images=images)
    return hashlib.sha256(latents.float().cpu().contiguous().numpy().tobytes()).hexdigest()


def make_digests(folder: Path) -> Iterator[tuple[str, str]]:
    """Name and digest of every case. The checkpoints go below `folder`."""

    @cache
    def checkpoint(name: str) -> Path:
        return FAMILIES[name].build_checkpoint(folder / name)

    for world_size in sorted({case.world_size for case in CASES.values()}):
        pool = RankPool(world_size) if world_size > 1 else None
        try:
            for name, case in CASES.items():
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


def circumstances() -> dict[str, str]:
    """What else decides the last bits: the kind of processor, and versions."""
    processor = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return {"processor": processor, **{name: metadata.version(name) for name in VERSIONS_OF}}


def compare(made: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """What differs, a line each."""
    lines = []
    for part in ("circumstances", "digests"):
        before, after = expected[part], made[part]
        for name in {**before, **after}:
            if before.get(name) != after.get(name):
                lines.append(f"{name}: was {before.get(name, 'not there')}, is {after.get(name, 'not there')}")
    return lines


def _read(path: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) and {"circumstances", "digests"} <= values.keys() else None


def main() -> int:
    """Make the digests; write them, or compare them with those of a file."""
    parser = argparse.ArgumentParser(description="SHA-256 of latents made in every way there is.", allow_abbrev=False)
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("-o", "--output", type=Path, metavar="FILE.json", help="write the digests there")
    task.add_argument("--against", type=Path, metavar="FILE.json", help="compare with those digests")
    arguments = parser.parse_args()
    expected = None
    if arguments.against is not None and (expected := _read(arguments.against)) is None:
        print(f"{arguments.against}: expected a file that -o wrote", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    digests: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, value in make_digests(Path(folder)):
            print(f"{value[:16]}  {name}", flush=True)
            digests[name] = value
    made = {"circumstances": circumstances(), "digests": digests}
    if expected is None:
        arguments.output.write_text(json.dumps(made, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return 0
    lines = compare(made, expected)
    print("\n".join(lines) if lines else f"all {len(digests)} are the same")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
