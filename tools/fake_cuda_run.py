"""Run every published model, whole, on a pretended GPU, and compare the most bytes of its tensors with the plan.

    python tools/fake_cuda_run.py --json tools/results/fake-cuda.jsonl               # takes 40 minutes
    python tools/fake_cuda_run.py --show tools/results/fake-cuda.jsonl               # the table of docs/evidence/gpu.md
    python tools/fake_cuda_run.py --models wan2.1-t2v-1.3b-480p --blocks 2           # takes a minute
    python tools/fake_cuda_run.py --bench --quick --json FILE.jsonl                  # tools/bench.py --device cuda

For each model, guided S² steps at full depth in the sampler's loop (two on one rank, one on each of four meshes of
eight), with whole, sharded and streamed weights; and the decoding of a whole video,
serial and on eight ranks. Needs no GPU and no weights. Every case is written at once; a second call with the same file
runs only the cases that are missing.
"""

import argparse
import json
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fake_cuda.cases import ALLOWED_SYNCS, ALLOWED_UPLOADS, decode, guided_steps, planned, unexpected
from fake_cuda.device import fake_gpu, pretend_cuda
from fake_cuda.published import FakeCheckpoint, published_engine
from fake_cuda.ranks import fake_mesh

from s2video.config.named import config_names, named_config
from s2video.errors import InputError
from s2video.planning.memory import activation_bytes, weight_bytes
from s2video.planning.plan import find_json
from s2video.planning.step import Degrees

GIB = 2**30
MESHES: tuple[dict[str, int], ...] = (
    {},
    {"ulysses": 8},
    {"ring": 8},
    {"ring": 2, "ulysses": 4},
    {"ring": 2, "ulysses": 2, "branch": 2},
)


class Case(NamedTuple):
    """One run: a model's steps on a mesh, or its decoding."""

    model: str
    what: str  # "step", or the setting parallel.decode
    weights: str
    degrees: Degrees

    @property
    def num_steps(self) -> int:
        """Steps of a scheduler that keeps earlier predictions are alike on all meshes: one rank runs two."""
        return 2 if self.degrees.world_size == 1 else 1

    @property
    def key(self) -> str:
        return f"{self.model}, {self.what}, {self.weights}, {self.degrees}"


def cases(models: list[str]) -> Iterator[Case]:
    """Yield all cases, every model once for each mesh, so that a run that is cut off has some of each."""
    different = list(_of_different_steps(models))
    for given in MESHES:
        degrees = Degrees(*(given.get(name, 1) for name in ("ring", "ulysses", "branch")))
        for model in different:
            if degrees.branch == 1 or named_config(model).guidance.cfg_scales != (1, 1):
                yield Case(model, "step", "replicated", degrees)
    for weights, degrees in (("fsdp", Degrees(1, 8, 1)), ("streamed", Degrees(1, 1, 1))):
        for model in different:
            yield Case(model, "step", weights, degrees)
    for degrees in (Degrees(1, 8, 1), Degrees(1, 1, 1)):
        for model in _of_different_videos(different):
            yield Case(model, "auto", "replicated", degrees)


def _of_different_steps(models: list[str]) -> Iterator[str]:
    """Yield the first of the models whose steps have the same tensors: other numbers of steps and LoRAs change none."""
    seen = set()
    for model in models:
        config = named_config(model)
        sampling, guidance = config.sampling, config.guidance
        size = (sampling.width, sampling.height, sampling.num_frames, sampling.max_sequence_length)
        step = (config.model.path, *size, guidance.cfg_scales == (1, 1), guidance.uses_s2, guidance.num_draws)
        if step not in seen:
            yield model
        seen.add(step)


def _of_different_videos(models: list[str]) -> Iterator[str]:
    """Yield the first of the models that have the same VAE, size and number of frames."""
    seen = set()
    for model in models:
        config, checkpoint = named_config(model), FakeCheckpoint(model)
        vae = checkpoint.info.vae_class, checkpoint.config("vae").values.get("is_residual")
        sampling = config.sampling
        video = (*vae, config.model.vae_dtype, sampling.width, sampling.height, sampling.num_frames)
        if video not in seen:
            yield model
        seen.add(video)


def known_models() -> list[str]:
    """Return the configs of published models whose values the package has."""

    def is_known(name: str) -> bool:
        try:
            return find_json(named_config(name))[1]
        except InputError:  # a user's merge, for example
            return False

    return [name for name in config_names() if is_known(name)]


def run(case: Case, num_blocks: int | None) -> dict[str, Any]:
    """Run one case and return its row."""
    start = time.monotonic()
    degrees = {name: d for name, d in case.degrees._asdict().items() if d > 1}
    with (
        fake_mesh(0, **degrees) as mesh,
        fake_gpu() as watchdog,
        published_engine(
            case.model, mesh, num_blocks=2 if case.what != "step" else num_blocks, **{"parallel.weights": case.weights}
        ) as engine,
    ):
        step = planned(engine, case.degrees.world_size)
        if case.what == "step":
            body = guided_steps(engine, case.num_steps)
            expected = {
                "weights": weight_bytes(case.degrees, step),
                "beside": activation_bytes(case.degrees, step),
            }
        else:
            body = decode(engine)
            expected = {"weights": step.vae_bytes, "beside": step.decoding_bytes}
            before = watchdog.live - step.vae_bytes  # of the transformer and the latents
        faults = dict(watchdog.faults)
        watchdog.clear()
        body()
        peak = watchdog.peak - (0 if case.what == "step" else before)
    total = expected["weights"] + expected["beside"]
    return {
        **case._asdict(),
        "degrees": str(case.degrees),
        "peak": peak,
        "planned": total,
        "planned_weights": expected["weights"],
        "faults": faults | dict(watchdog.faults),
        "syncs": unexpected(watchdog.syncs, ALLOWED_SYNCS) if case.what == "step" else dict(watchdog.syncs),
        "uploads": unexpected(watchdog.uploads, ALLOWED_UPLOADS) if case.what == "step" else {},
        "seconds": round(time.monotonic() - start, 1),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows in Markdown."""
    lines = [
        "| model | what | weights | ring × ulysses × branch | peak, GiB | plan, GiB | plan / peak | faults |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        found = len(row["faults"]) + (len(row["syncs"]) + len(row["uploads"]) if row["what"] == "step" else 0)
        what = "step" if row["what"] == "step" else "decoding"
        lines.append(
            f"| {row['model']} | {what} | {row['weights']} | {row['degrees']} | {row['peak'] / GIB:.2f} | "
            f"{row['planned'] / GIB:.2f} | {row['planned'] / row['peak']:.2f} | {found} |"
        )
    return "\n".join(lines)


def read_rows(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = known_models()
    parser.add_argument("--models", nargs="+", choices=names, default=names, metavar="MODEL", help="names of configs")
    parser.add_argument("--blocks", type=int, help="blocks of each list of a transformer; all, if left out")
    parser.add_argument("--json", type=Path, metavar="FILE.jsonl", help="write every row there, and skip those it has")
    parser.add_argument("--show", type=Path, metavar="FILE.jsonl", help="print the table of such a file instead")
    parser.add_argument(
        "--bench", nargs=argparse.REMAINDER, help="run tools/bench.py --device cuda instead, with all that follows"
    )
    args = parser.parse_args(argv)
    if args.show:
        print(table(read_rows(args.show)))
        return 0
    warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
    pretend_cuda()
    if args.bench is not None:
        from fake_cuda.bench import faults_of, run_bench

        code, watchdog = run_bench(args.bench)
        faults = faults_of(watchdog)
        for fault, count in faults.items():
            print(f"fault, {count} times: {fault}", file=sys.stderr)
        return code or int(bool(faults))
    rows = read_rows(args.json) if args.json else []
    done = {", ".join((r["model"], r["what"], r["weights"], r["degrees"])) for r in rows}
    for case in cases(args.models):
        if case.key in done:
            continue
        row = run(case, args.blocks)
        rows.append(row)
        print(f"{case.key}: {row['seconds']} s", file=sys.stderr)
        if args.json:
            with args.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
    print(table(rows))
    return int(any(row["faults"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
