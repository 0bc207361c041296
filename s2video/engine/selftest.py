"""`s2video selftest`: checks of the engine on this machine, as a table with advice.

Runs in one process, or on all ranks under torchrun, with the embedded model, so nothing is downloaded. Each check is a
function of the mesh that all ranks call and that measures; the table has the expected values. Does not use the user's
model.
"""

import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..config.run import RunConfig, build_config
from ..errors import AgreementError
from ..geometry import split_evenly
from ..guidance.equations import Predictions
from ..guidance.masks import step_masks
from ..media.video import VideoSpec, probe_video, read_video, write_video
from ..models.base import Conditioning
from ..models.checkpoint import open_checkpoint
from ..models.loading import load_transformer
from ..models.wan.blocks import WanBlockModel
from ..parallel.collectives import (
    collect_parts,
    gather_objects,
    gather_tokens,
    heads_from_tokens,
    share_tokens,
    tokens_from_heads,
)
from ..parallel.mesh import Mesh, build_mesh
from ..records.sidecar import uses_tf32, versions
from ..sampling.forward import predict
from .engine import Engine
from .kernel_checks import check_kernels

PROMPT = "a small red circle moving left and a large blue square moving up on a gray background"
WORLDS_AGREE = 1e-4  # float32 latents of mean 0 and deviation 1
# Lowest and highest relative error of a prediction against float32. A lower error means that the narrow dtype was not
# used, a higher one that it was used where it must not be, such as in norms. bfloat16 has 8 bits, float16 has 11.
NARROW = {"bfloat16": (1e-3, 5e-2), "float16": (1e-4, 1e-2)}
TF32_ERROR = 1e-2  # of frames in [0, 1]
LEAST_PSNR = 30.0  # dB of luma, H.264 at crf 18; colour is not checked, because it is stored at half the resolution
LUMA = (0.2126, 0.7152, 0.0722)  # BT.709


@dataclass(frozen=True)
class Outcome:
    """A row of the table. `measured` and `expected` are text for the user; `advice` is for a failed check."""

    name: str
    passed: bool
    measured: str
    expected: str
    advice: str


@dataclass(frozen=True)
class _Check:
    name: str
    expected: str
    advice: str
    measure: Callable[[Mesh], tuple[bool, str]]


def run_selftest(mesh: Mesh) -> Iterator[Outcome]:
    """Yield the outcomes, which are equal on all ranks. All ranks of the mesh iterate together."""
    with _plain_float32():
        for check in _checks(mesh):
            try:
                passed, measured = check.measure(mesh)
            except Exception as error:  # any error on this machine is a result of the check
                passed, measured = False, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            everywhere = gather_objects((passed, measured), mesh.world)
            bad = [(rank, text) for rank, (good, text) in enumerate(everywhere) if not good]
            if bad and mesh.world.size > 1:
                measured = f"rank {bad[0][0]}: {bad[0][1]}"
            elif not bad:
                measured = everywhere[0][1]
            yield Outcome(check.name, not bad, measured, check.expected, check.advice)


def format_row(outcome: Outcome) -> str:
    """Return one line of the table; for a failed check, two more with the expected value and advice."""
    width = max(60, shutil.get_terminal_size((110, 24)).columns)
    row = f"{'ok' if outcome.passed else 'FAILED':<7} {outcome.name:<38} {outcome.measured}"
    if not outcome.passed:
        return f"{row}\n        expected: {outcome.expected}\n        advice: {outcome.advice}"
    room = width - len(row) - 3
    return f"{row} ({outcome.expected})" if room >= len(outcome.expected) else row


def _checks(mesh: Mesh) -> Iterator[_Check]:
    yield _Check(
        "ranks, backend, versions",
        "the same versions on every rank",
        "install the same environment on every host; versions change the last bits, and the engine refuses a mix",
        _environment,
    )
    if mesh.world.size > 1:
        yield _Check(
            "collectives",
            "uneven and empty shards arrive complete",
            f"the {mesh.backend} backend returns wrong data; set NCCL_DEBUG=INFO for the reason; with several network "
            "cards, set NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME",
            _collectives,
        )
    yield _Check(
        "attention kernels",
        "outputs and log-sum-exps of the definition, for more keys than queries",
        "do not use the named kernel: set model.attention_backend to another one; update torch and its cuDNN",
        lambda mesh: check_kernels(mesh.device),
    )
    yield _Check(
        "one rank repeats itself",
        "the same bits twice",
        "a kernel is not deterministic; set model.attention_backend native, and CUBLAS_WORKSPACE_CONFIG=:4096:8",
        _repeats,
    )
    for layout in _layouts(mesh.world.size):
        yield _Check(
            " × ".join(f"{name} {degree}" for name, degree in layout.items()) + " against one rank",
            f"within {WORLDS_AGREE:g}, the same bits on every rank",
            "do not use this layout on this machine; set parallel to another one in this table, and report the row",
            partial(_agrees, layout=layout),
        )
    yield _Check(
        "masks and disagreement",
        "the same masks on every rank; another seed on one rank stops all",
        "ranks draw different masks, so videos would be wrong; install the same numpy on every host",
        _masks,
    )
    is_gpu = mesh.device.type == "cuda"
    for dtype in ("bfloat16", "float16") if is_gpu else ("bfloat16",):
        low, high = NARROW[dtype]
        for axis in ("ulysses", "ring") if mesh.world.size > 1 else ("ulysses",):
            where = f" on {axis} {mesh.world.size}" if mesh.world.size > 1 else ""
            yield _Check(
                f"{dtype}{where} against float32",
                f"relative error {low:g} to {high:g}",
                f"do not use model.dtype {dtype} on this machine; use float32 or the other half precision",
                partial(_narrow, dtype=dtype, axis=axis),
            )
    if uses_tf32(mesh.device):
        yield _Check(
            "frames with TF32 against float32",
            f"within {TF32_ERROR:g}",
            "convolutions in TF32 are wrong; set the environment variable NVIDIA_TF32_OVERRIDE=0",
            _tf32,
        )
    yield _Check(
        "MP4 written and read back",
        f"every frame, {LEAST_PSNR:g} dB of luma or more, BT.709 tags",
        "ffmpeg is not the bundled one, or lacks libx264; unset IMAGEIO_FFMPEG_EXE, or reinstall imageio-ffmpeg",
        _video,
    )


def _environment(mesh: Mesh) -> tuple[bool, str]:
    name = torch.cuda.get_device_name(mesh.device) if mesh.device.type == "cuda" else "CPU"
    ranks = gather_objects((platform.node(), name, versions()), mesh.world)
    hosts = {host for host, _, _ in ranks}
    devices = sorted({device for _, device, _ in ranks})
    found = {tuple(sorted(version.items())) for _, _, version in ranks}
    summary = f"{len(ranks)} rank(s) on {len(hosts)} host(s), {' and '.join(devices)}, {mesh.backend or 'no backend'}"
    return len(found) == 1, f"{summary}, torch {torch.__version__}"


def _collectives(mesh: Mesh) -> tuple[bool, str]:
    axis = mesh.world
    for count in (2 * axis.size + 1, axis.size - 1):  # uneven, and one rank without tokens
        whole = torch.arange(count * 5 * 2, dtype=torch.float32, device=mesh.device).view(1, count, 5, 2)
        tokens, heads = split_evenly(count, axis.size), split_evenly(5, axis.size)
        mine, own = tokens[axis.rank], heads[axis.rank]
        local = whole[:, mine.start : mine.stop]
        (exchanged,) = heads_from_tokens((local,), tokens, heads, axis)
        back = tokens_from_heads(exchanged, tokens, heads, axis)
        gathered = gather_tokens(local, tokens, axis)
        shared = share_tokens((whole if mesh.is_main else local).flatten(2), tokens, axis)
        shapes = [[(1, shard.length, 5, 2)] for shard in tokens]
        collected = [part for (part,) in collect_parts([local], shapes, axis)]
        for got, expected in (
            (exchanged, whole[:, :, own.start : own.stop]),
            (back, local),
            (gathered, whole),
            (shared, local.flatten(2)),
            (torch.cat(collected, dim=1) if collected else whole, whole),
        ):
            if not torch.equal(got, expected):
                return False, f"wrong values for {count} tokens"
    reduced = torch.ones(1, device=mesh.device)
    dist.all_reduce(reduced, group=axis.group)
    return reduced.item() == axis.size, "all-to-all, all-gather, all-reduce, send"


def _tf32(mesh: Mesh) -> tuple[bool, str]:
    engine = _alone(mesh)
    latents = engine.sample([PROMPT], [0])
    exact = torch.cat(list(engine.decode(latents)))
    torch.backends.cudnn.allow_tf32 = True
    try:
        error = (torch.cat(list(engine.decode(latents))) - exact).abs().max().item()
    finally:
        torch.backends.cudnn.allow_tf32 = False
    return error <= TF32_ERROR, f"error {error:.1e}"


def _config(mesh: Mesh, **parallel: Any) -> RunConfig:
    return build_config(
        {
            "model": {"device": mesh.device.type},
            "sampling": {"num_inference_steps": 4, "max_sequence_length": 64},
            "guidance": {"cfg_scale": 4.0, "s2_scale": 0.25},
            "parallel": parallel,
        },
        "selftest",
    )


def _alone(mesh: Mesh) -> Engine:
    return Engine(_config(mesh), Mesh(mesh.device), progress="none")


def _repeats(mesh: Mesh) -> tuple[bool, str]:
    engine = _alone(mesh)
    first, second = (engine.sample([PROMPT], [0]) for _ in range(2))
    everywhere = gather_objects(float(first.double().sum()), mesh.world)
    across = "the same on every rank" if len(set(everywhere)) == 1 else "ranks differ in the last bits"
    return torch.equal(first, second), f"bitwise; {across}" if mesh.world.size > 1 else "bitwise"


def _layouts(world_size: int) -> Iterator[dict[str, int]]:
    if world_size == 1:
        return
    yield {"ulysses": world_size}
    yield {"ring": world_size}
    smallest = next(d for d in range(2, world_size + 1) if world_size % d == 0)
    if smallest < world_size:
        yield {"ring": smallest, "ulysses": world_size // smallest}
    if world_size % 2 == 0:
        yield {"ulysses": world_size // 2, "branch": 2}


def _agrees(mesh: Mesh, layout: Mapping[str, int]) -> tuple[bool, str]:
    config = _config(mesh, **layout)
    together = Engine(config, build_mesh(config.parallel, mesh.device), progress="none").sample([PROMPT], [0])
    error = (together - _alone(mesh).sample([PROMPT], [0])).abs().max().item()
    same = len(set(gather_objects(together.cpu().numpy().tobytes(), mesh.world))) == 1
    return error <= WORLDS_AGREE and same, f"error {error:.1e}" if same else "ranks ended with different latents"


def _masks(mesh: Mesh) -> tuple[bool, str]:
    spec = _config(mesh).guidance.mask_spec()
    drawn = [step_masks(spec, num_blocks=12, seed=0, step=step, num_steps=50) for step in range(50)]
    if len(set(gather_objects(str(drawn), mesh.world))) != 1:
        return False, "different masks"
    if mesh.world.size == 1:
        return True, "drawn"
    config = _config(mesh)
    try:
        Engine(config, build_mesh(config.parallel, mesh.device), progress="none").sample(
            [PROMPT], [int(mesh.world.rank == mesh.world.size - 1)]
        )
    except AgreementError:
        return True, "the same on every rank; a rank with another seed was detected"
    return False, "a rank with another seed was not detected"


def _narrow(mesh: Mesh, dtype: str, axis: str) -> tuple[bool, str]:
    if axis == "ring":
        mesh = build_mesh(_config(mesh, ring=mesh.world.size).parallel, mesh.device)
    checkpoint = open_checkpoint("shapes-wan")
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 16, 5, 8, 8, generator=generator).to(mesh.device)
    text = torch.randn(1, 64, 128, generator=generator).to(mesh.device)

    def prediction(name: str, mesh: Mesh) -> Tensor:
        wanted: torch.dtype = getattr(torch, name)
        model = WanBlockModel(load_transformer(checkpoint, wanted, mesh.device))
        with torch.no_grad():
            predictions: Predictions = predict(
                model,
                latents.to(wanted),
                torch.tensor([500], device=mesh.device),
                mesh=mesh,
                cond=Conditioning(text.to(wanted)),
                masks=[(5,)],
            )
        return predictions.subs[0].float()

    exact = prediction("float32", Mesh(mesh.device))
    error = ((prediction(dtype, mesh) - exact).norm() / exact.norm()).item()
    low, high = NARROW[dtype]
    return low <= error <= high, f"relative error {error:.1e}"


def _video(mesh: Mesh) -> tuple[bool, str]:
    if not mesh.is_main:
        return True, ""
    engine = _alone(mesh)
    frames = torch.cat(list(engine.decode(engine.sample([PROMPT], [0]))))
    with tempfile.TemporaryDirectory(prefix="s2video-selftest-") as folder:
        path = Path(folder) / "selftest.mp4"
        write_video([frames], path, VideoSpec(engine.config.output.fps), metadata={"title": PROMPT})
        info, back = probe_video(path), read_video(path).float() / 255
        size = os.path.getsize(path)
    if back.shape != frames.shape:
        return False, f"wrote {tuple(frames.shape)}, read {tuple(back.shape)}"
    psnr = -10 * torch.log10(((back - frames) @ torch.tensor(LUMA)).square().mean()).item()
    tagged = {info.matrix, info.primaries, info.transfer} == {"bt709"}
    return psnr >= LEAST_PSNR and tagged, f"{len(back)} frames, {size / 1024:.0f} KiB, {psnr:.0f} dB" + (
        "" if tagged else ", without BT.709 tags"
    )


@contextmanager
def _plain_float32() -> Iterator[None]:
    """Turn off TF32 in the block, because its 10 bits would hide the errors that the checks look for."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
