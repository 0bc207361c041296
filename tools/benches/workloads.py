"""What the sections run: models, one step of them, clocks, and functions in processes of their own.

A section takes `Options` and returns a `rows.Section`. Random weights do: neither time nor memory depends on values.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from torch import Tensor

import s2video
from s2video.guidance.equations import Predictions
from s2video.guidance.masks import MaskSpec, dropped_blocks
from s2video.models.base import Conditioning
from s2video.models.wan.blocks import WanBlockModel
from s2video.models.weight_files import read_json
from s2video.parallel.mesh import Mesh
from s2video.planning.work import SubWork
from s2video.sampling.forward import Lockstep, predict

CPU = torch.device("cpu")
TOOLS = Path(__file__).resolve().parents[1]
PUBLISHED = Path(s2video.__file__).parent / "assets" / "published"


@dataclass(frozen=True)
class Options:
    """How much to run.

    Attributes:
        masks: drawn for the figures of a step.
        repeats: of each measurement, after one that warms up.
        quick: sizes that take seconds and say nothing about cost.
        device: of the sections for a GPU; the others run on the CPU.
    """

    masks: int = 10
    repeats: int = 5
    quick: bool = False
    device: str = "cpu"


def published(name: str) -> dict[str, Any]:
    """config.json of a published transformer, as this package keeps it for plans."""
    return read_json(PUBLISHED / name / "transformer" / "config.json")


def random_model(config: Mapping[str, Any], device: torch.device = CPU, dtype: torch.dtype = torch.float32) -> Any:
    """A diffusers transformer with the same random weights every time, made on the device, those kept in float32 there.

    Args:
        config: as its config.json has it.
        device: on the meta device there are no weights, and no dtype but float32.
    """
    kind = getattr(diffusers, config["_class_name"])
    with init_empty_weights(include_buffers=False):
        model = kind.from_config(config)
    if device.type == "meta":
        return model.eval()
    in_float32 = set(kind._keep_in_fp32_modules or ())
    generator = torch.Generator(device).manual_seed(0)
    values = {}
    for name, parameter in model.named_parameters():
        value = torch.randn(parameter.shape, device=device, generator=generator)
        if parameter.ndim > 1:
            value *= value[0].numel() ** -0.5
        elif name.endswith(".weight"):
            value = torch.ones_like(value)  # a norm's
        values[name] = value.to(torch.float32 if in_float32 & set(name.split(".")) else dtype)
    model.load_state_dict(values, strict=False, assign=True)
    return model.to(device).eval().requires_grad_(False)  # the rotary tables, which are in no file


def scaled_wan(*, quick: bool = False, dim: int = 16, num_layers: int = 30) -> dict[str, Any]:
    """Wan 1.3B's 30 blocks and 12 heads, with heads of 16 instead of 128 and the feed-forward scaled alike.

    Args:
        dim: channels of a head.
    """
    return {
        "_class_name": "WanTransformer3DModel",
        "num_attention_heads": 2 if quick else 12,
        "attention_head_dim": 12 if quick else dim,
        "ffn_dim": 48 if quick else 70 * dim,
        "num_layers": 6 if quick else num_layers,
        "text_dim": 256,
        "freq_dim": 256,
    }


class OneStep:
    """The predictions of one denoising step from random inputs, the same on every rank.

    Args:
        model: a diffusers transformer as a `BlockModel`, on the device and in the dtype that it is to run in.
        latent_shape: latent frames, rows, columns.
        cond, uncond: as `predict` takes them.
    """

    def __init__(
        self, model: Any, latent_shape: Sequence[int], *, cond: Conditioning, uncond: Conditioning | None
    ) -> None:
        self.model = model
        self.device: torch.device = cond.text.device
        channels = model.transformer.config.in_channels
        self.latents = draw((1, channels, *latent_shape), like=cond.text)
        self.cond, self.uncond = cond, uncond
        self.timestep = torch.full((1,), 500.0, device=self.device)

    @torch.no_grad()
    def __call__(
        self, masks: Sequence[Sequence[int]] = (), *, mesh: Mesh | None = None, lockstep: Lockstep | None = None
    ) -> Predictions:
        return predict(
            self.model,
            self.latents,
            self.timestep,
            mesh=mesh or Mesh(self.device),
            cond=self.cond,
            uncond=self.uncond,
            masks=masks,
            lockstep=lockstep,
        )


def draw(size: Sequence[int], *, like: Tensor) -> Tensor:
    """Normal numbers, on the meta device none."""
    if like.is_meta:
        return like.new_empty(size)
    return torch.randn(size, generator=torch.Generator().manual_seed(sum(size))).to(like)


def wan_step(
    transformer: Any, latent_shape: Sequence[int], *, num_text: int = 64, backend: str | None = None
) -> OneStep:
    """With an uncond pass; in the dtype of the transformer's last layer."""
    size, last = (1, num_text, transformer.config.text_dim), transformer.proj_out.weight
    cond = Conditioning(draw(size, like=last))
    uncond = Conditioning(cond.text.flip(1))
    return OneStep(WanBlockModel(transformer, attention_backend=backend), latent_shape, cond=cond, uncond=uncond)


def scaled_step(*, quick: bool = False, **shape: int) -> OneStep:
    """Of `scaled_wan`, which gets `shape`, with 1040 tokens."""
    return wan_step(random_model(scaled_wan(quick=quick, **shape)), (1, 4, 6) if quick else (5, 26, 32))


def draw_masks(count: int, num_blocks: int) -> list[tuple[int, ...]]:
    """Those of the first steps, as a run with mask seed 0 has them."""
    return [dropped_blocks(MaskSpec(), num_blocks=num_blocks, seed=0, step=step) for step in range(count)]


def s2_over_cfg(num_blocks: int, masks: Sequence[Sequence[int]] | None = None, *, share_prefix: bool = True) -> float:
    """S²/CFG of a step in the window, by arithmetic, all blocks costing alike: for these masks, or else expected."""
    if masks is None:
        return 1 + SubWork.expected(MaskSpec(), num_blocks, share_prefix=share_prefix).passes / 2
    works = [SubWork.of_masks([mask], num_blocks, share_prefix=share_prefix) for mask in masks]
    return 1 + sum(work.passes for work in works) / len(works) / 2


def seconds(run: Callable[[], Any], device: torch.device = CPU) -> float:
    """Of one call, on a GPU by its own clock."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def take_turns(
    ways: Mapping[str, Callable[[], Any]], repeats: int, device: torch.device = CPU
) -> dict[str, list[float]]:
    """Seconds of each way, repeat after repeat, every way once in each, after one that is not counted."""
    for run in ways.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, run in ways.items():
            times[name].append(seconds(run, device))
    return times


def apart(
    function: str, *, num_ranks: int = 1, environment: Mapping[str, str] | None = None, **arguments: Any
) -> list[Any]:
    """What a function of this package returns in processes of its own, on each of `num_ranks` ranks.

    Several ranks have one thread each.

    Args:
        function: "module.name"; it takes the mesh, then `arguments`, and returns what JSON can hold.

    Raises:
        subprocess.CalledProcessError: it failed; what it said is on stderr.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable]
        if num_ranks > 1:
            command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
        command += ["-m", "benches.worker", function, json.dumps(arguments), str(answer)]
        paths = [str(TOOLS), *sys.path]
        settings = {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | (
            {"OMP_NUM_THREADS": "1"} if num_ranks > 1 else {}
        )
        subprocess.run(command, check=True, env={**os.environ, **settings, **(environment or {})})
        answers: list[Any] = json.loads(answer.read_text(encoding="utf-8"))
    return answers
