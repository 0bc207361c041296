"""What only a GPU can settle: models of the published sizes, with random weights, in bfloat16.

Every function takes the device from `Options`, so that all of it also runs in miniature on a CPU, where its figures say
nothing.
"""

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline
from torch import Tensor

from benches.rows import Row, Section, counted, measured
from benches.step import peak_bytes, step_rows, time_step
from benches.weight_fetching import save_transformer, streamed
from benches.whole_runs import reuse_of
from benches.workloads import (
    OneStep,
    Options,
    draw,
    draw_masks,
    published,
    random_model,
    scaled_wan,
    take_turns,
    wan_step,
)
from s2video.config.named import named_config
from s2video.decoding.whole import decode_frames, denormalize, to_frames
from s2video.engine.selftest import run_selftest
from s2video.guidance.equations import Predictions, combine
from s2video.guidance.reuse import LEAST_STEPS
from s2video.models import compiled as block_compiler
from s2video.models.base import Conditioning
from s2video.models.hunyuan_video.blocks import HunyuanVideoBlockModel
from s2video.parallel.mesh import Mesh
from s2video.planning.memory import activation_bytes, weight_bytes
from s2video.planning.plan import find_json, step_of
from s2video.planning.step import Degrees
from s2video.planning.work import SubWork

SMALL, LARGE = "Wan-AI--Wan2.1-T2V-1.3B-Diffusers", "Wan-AI--Wan2.1-T2V-14B-Diffusers"
HUNYUAN = "hunyuanvideo-community--HunyuanVideo"
# names that diffusers' dispatcher knows; not every machine has all of them
BACKENDS = ("native", "_native_cudnn", "_native_flash", "_native_efficient", "flash", "_flash_3", "sage", "xformers")
TINY_HUNYUAN = {
    **{"_class_name": "HunyuanVideoTransformer3DModel", "num_attention_heads": 2, "attention_head_dim": 8},
    **{"num_layers": 3, "num_single_layers": 3, "num_refiner_layers": 1, "rope_axes_dim": (2, 2, 4)},
    **{"text_embed_dim": 6, "pooled_projection_dim": 4, "guidance_embeds": True},
}
TINY_VAE = {"base_dim": 8, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}


def sized_wan(
    options: Options, checkpoint: str, latent_shape: tuple[int, int, int], *, dtype: torch.dtype = torch.bfloat16
) -> OneStep:
    config = scaled_wan(quick=True) if options.quick else published(checkpoint)
    transformer = random_model(config, torch.device(options.device), dtype)
    return wan_step(transformer, (1, 4, 6) if options.quick else latent_shape, num_text=512)


def require_finite(predictions: Predictions) -> None:
    made = [p for p in (predictions.cond, predictions.uncond, *predictions.subs) if p is not None]
    assert all(bool(p.isfinite().all()) for p in made), "NaN or infinity in a prediction: its time means nothing"


def diffusers_step(step: OneStep, original: dict[str, Any]) -> Callable[[], Any]:
    """One step of CFG in diffusers' pipeline, with the same transformer under its own attention processors."""
    transformer = step.model.transformer
    ours = dict(transformer.attn_processors)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipeline = WanPipeline(tokenizer=None, text_encoder=None, vae=None, scheduler=scheduler, transformer=transformer)
    pipeline.set_progress_bar_config(disable=True)
    frames, rows, columns = step.latents.shape[2:]
    assert step.uncond is not None
    texts = {"prompt_embeds": step.cond.text, "negative_prompt_embeds": step.uncond.text}

    def run() -> Any:
        transformer.set_attn_processor(dict(original))
        size = {"num_frames": 4 * (frames - 1) + 1, "height": 8 * rows, "width": 8 * columns}
        latents = pipeline(**texts, **size, num_inference_steps=1, guidance_scale=5.0, output_type="latent").frames
        transformer.set_attn_processor(dict(ours))
        return latents

    return run


def wan(options: Options, name: str, checkpoint: str, shape: tuple[int, int, int], draws: int, repeats: int) -> Section:
    """S² against CFG, here and in diffusers' pipeline; then a run's end: decoding while the transformer is there."""
    device = torch.device(options.device)
    config = scaled_wan(quick=True) if options.quick else published(checkpoint)
    transformer = random_model(config, device, torch.bfloat16)
    original = dict(transformer.attn_processors)
    step = wan_step(transformer, (1, 4, 6) if options.quick else shape, num_text=512)
    masks = draw_masks(draws, step.model.num_blocks)
    require_finite(step([masks[0]]))
    theirs = diffusers_step(step, original)
    times = time_step(step, masks, repeats, {"diffusers": lambda mask: theirs()})
    peaks = {
        "cfg": peak_bytes(lambda: step(), device),
        "s2": peak_bytes(lambda: step([masks[0]]), device),
    }
    vae = random_vae(options)

    def run() -> None:
        step([masks[0]])
        for _ in decode_frames(vae, step.latents.float()):
            pass

    peaks["run"] = peak_bytes(run, device)
    sums = {way: [sum(repeat) for repeat in by_repeat] for way, by_repeat in times.items()}
    rows = [
        *step_rows(name, step.model.num_blocks, masks, times),
        measured(
            f"CFG here / diffusers' `WanPipeline`, a step, {name}", sums["cfg"], sums["diffusers"], "at most 1.02"
        ),
        counted(f"S²/CFG, peak memory of a step, {name}", peaks["s2"] / peaks["cfg"], "the paper: unchanged"),
        counted(f"Run with decoding / CFG step, peak memory, {name}", peaks["run"] / peaks["cfg"], "1: decoding fits"),
    ]
    return Section(rows, {"masks": masks, "seconds": times, "peak_bytes": peaks})


def self_test(options: Options) -> Section:
    """`s2video selftest` on this GPU, whose checks use the kernels of production."""
    outcomes = list(run_selftest(Mesh(torch.device(options.device))))
    passed = sum(outcome.passed for outcome in outcomes)
    row = counted(f"Checks of the self-test that passed / all {len(outcomes)}", passed / len(outcomes), "1")
    return Section([row], {"outcomes": [asdict(outcome) for outcome in outcomes]})


def memory(options: Options) -> Section:
    """The most that torch's allocator has in use in an S² step of Wan 1.3B, against the plan's tensors."""
    step = sized_wan(options, SMALL, (21, 60, 104))
    (mask,) = draw_masks(1, step.model.num_blocks)
    peak = peak_bytes(lambda: step([mask]), step.device)
    config = named_config("wan2.1-t2v-1.3b-480p")
    planned, _ = step_of(config, 1, *find_json(config))
    degrees = Degrees(1, 1, 1)
    expected = weight_bytes(degrees, planned) + activation_bytes(degrees, planned)
    row = counted("Peak memory of an S² step / the plan, Wan 1.3B, 832x480x81", peak / expected, "1 ± 0.1")
    return Section([row], {"peak_bytes": peak, "planned_bytes": expected})


def wan_small(options: Options) -> Section:
    draws, repeats = (2, 1) if options.quick else (20, 2)
    return wan(options, "Wan 1.3B, 832x480x81", SMALL, (21, 60, 104), draws, repeats)


def wan_large(options: Options) -> Section:
    return wan(options, "Wan 14B, 1280x720x81", LARGE, (21, 90, 160), draws=2, repeats=1)


def hunyuan(options: Options) -> Section:
    """One step each, at 1280x720x129: there is no uncond pass, so S² is compared with cond alone."""
    device = torch.device(options.device)
    transformer = random_model(TINY_HUNYUAN if options.quick else published(HUNYUAN), device, torch.bfloat16)
    config, last = transformer.config, transformer.proj_out.weight
    text = draw((1, 8 if options.quick else 256, config.text_embed_dim), like=last)
    pooled = draw((1, config.pooled_projection_dim), like=last)
    cond = Conditioning(text, text_lengths=(text.shape[1],), pooled=pooled, guidance=6.0)
    shape = (1, 4, 6) if options.quick else (33, 90, 160)
    step = OneStep(HunyuanVideoBlockModel(transformer), shape, cond=cond, uncond=None)
    (mask,) = draw_masks(1, step.model.num_blocks)
    require_finite(step([mask]))
    times = time_step(step, [mask], 1)
    rows: list[Row] = []
    for way in ("shared", "recomputed"):
        passes = 1 + SubWork.of_masks([mask], step.model.num_blocks, share_prefix=way == "shared").passes
        held_against = f"{passes:.3f} for the mask drawn, dual and single blocks counting alike"
        ratio = times[way][0][0] / times["cfg"][0][0]
        rows.append(
            measured(
                f"S²/cond, seconds of a step, HunyuanVideo, 1280x720x129, prefix {way}", [ratio], [1], held_against
            )
        )
    return Section(rows, {"mask": mask, "seconds": times})


def backends(options: Options) -> Section:
    """A CFG step under each attention kernel of diffusers' dispatcher that this machine has."""
    step = sized_wan(options, SMALL, (21, 60, 104))
    transformer, shape = step.model.transformer, tuple(step.latents.shape[2:])
    ways: dict[str, Callable[[], Any]] = {}
    absent = {}
    for name in BACKENDS:

        def run(name: str = name) -> Any:
            return wan_step(transformer, shape, num_text=512, backend=name)()

        try:
            require_finite(run())
        except (ImportError, RuntimeError, ValueError) as error:
            absent[name] = str(error).splitlines()[0]
        else:
            ways[name] = run
    times = take_turns(ways, options.repeats, step.device)
    transformer.set_attention_backend("native")
    rows = [
        measured(f"Attention by `{name}` / `native`, seconds of a CFG step, Wan 1.3B", times[name], times["native"], "")
        for name in times
        if name != "native"
    ]
    return Section(rows, {"seconds": times, "absent": absent})


def compiled(options: Options) -> Section:
    """Blocks compiled as `model.compile: blocks` does must serve every mask; a recompilation is an error."""
    step = sized_wan(options, SMALL, (21, 60, 104))
    masks = draw_masks(options.masks, step.model.num_blocks)
    with patch.object(block_compiler, "BACKEND", "eager" if options.quick else block_compiler.BACKEND):
        block_compiler.compile_blocks(step.model.transformer.blocks)
    step([masks[0]])
    with torch._dynamo.config.patch(error_on_recompile=True):
        for mask in masks:
            step([mask])

    def eagerly() -> None:
        with torch.compiler.set_stance("force_eager"):
            step([masks[0]])

    times = take_turns({"eager": eagerly, "compiled": lambda: step([masks[0]])}, options.repeats, step.device)
    what = "Blocks compiled / not, seconds of an S² step, Wan 1.3B"
    row = measured(what, times["compiled"], times["eager"], f"below 1; {len(masks)} masks without a recompilation")
    return Section([row], {"masks": masks, "seconds": times})


def reuse(options: Options) -> Section:
    """S² with each preset of reuse against CFG: all steps of a short run of Wan 1.3B at 832x480x81."""
    step = sized_wan(options, SMALL, (21, 60, 104))
    return reuse_of(step, 4 if options.quick else LEAST_STEPS, 1, "Wan 1.3B, 832x480x81")


def random_vae(options: Options) -> AutoencoderKLWan:
    torch.manual_seed(0)
    with torch.device(options.device):
        vae = AutoencoderKLWan(**(TINY_VAE if options.quick else {}))
    return vae.eval().requires_grad_(False)


def with_channels_last(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    """Lay the weights of its 3D convolutions out with channels last; `Module.to` fails at those of 2D ones."""
    for parameter in vae.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
    return vae


@torch.no_grad()
def decoding(options: Options) -> Section:
    """Wan's VAE in float32, a latent frame at a time against `vae.decode`, frames arriving in CPU memory.

    Also with weights that keep channels last, which kernels of convolutions may prefer.
    """
    vae, device = random_vae(options), torch.device(options.device)
    channels_last = with_channels_last(random_vae(options))
    shapes = {"832x480x81": (21, 60, 104), "1280x720x161": (41, 90, 160)}
    rows: list[Row] = []
    raw: dict[str, Any] = {}
    for name, shape in ({"tiny": (2, 4, 4)} if options.quick else shapes).items():
        latents = draw((1, 16, *shape), like=torch.zeros(1, device=device))

        def by_frames(latents: Tensor = latents, vae: AutoencoderKLWan = vae) -> Tensor:
            return torch.cat(list(decode_frames(vae, latents)))

        def whole(latents: Tensor = latents) -> Tensor:
            return to_frames(vae.decode(denormalize(vae, latents)).sample).cpu()

        difference = (by_frames() - whole()).abs().max().item()
        ways = {"streamed": by_frames, "whole": whole, "channels last": partial(by_frames, vae=channels_last)}
        times = take_turns(ways, 1 if options.quick else 2, device)
        peaks = {way: peak_bytes(run, device) for way, run in ways.items()}
        what = f"Streamed / `vae.decode`, {name}"
        rows += [
            measured(f"{what}: seconds", times["streamed"], times["whole"], f"largest difference {difference:.0e}"),
            counted(f"{what}: peak memory", peaks["streamed"] / peaks["whole"], "below 1"),
            measured(
                f"Decoding, channels last / not, {name}: seconds",
                times["channels last"],
                times["streamed"],
                "about 0.91 elsewhere",
            ),
        ]
        raw[name] = {"seconds": times, "peak_bytes": peaks, "difference": difference}
    return Section(rows, raw)


def weights(options: Options) -> Section:
    """Wan 1.3B streamed from CPU memory: bytes, seconds, peaks."""
    config = scaled_wan(quick=True) if options.quick else published(SMALL)
    shape = (1, 4, 6) if options.quick else (21, 60, 104)
    with tempfile.TemporaryDirectory() as name:
        save_transformer(Path(name), config, torch.bfloat16)
        repeats = 1 if options.quick else 3
        return streamed(Path(name), shape, repeats, torch.device(options.device), torch.bfloat16)


def dtypes(options: Options) -> Section:
    """One guided prediction in bfloat16 against float32, the same weights; guidance amplifies what rounding does."""
    guided = {}
    for dtype in (torch.float32, torch.bfloat16):
        transformer = random_model(scaled_wan(quick=options.quick), torch.device(options.device), dtype)
        step = wan_step(transformer, (1, 4, 6) if options.quick else (5, 26, 32))
        predictions = step(draw_masks(1, step.model.num_blocks))
        require_finite(predictions)
        guided[dtype] = combine(predictions, cfg_scale=5.0, s2_scale=0.25).float()
    exact = guided[torch.float32]
    error = ((guided[torch.bfloat16] - exact).norm() / exact.norm()).item()
    row = counted(
        "bfloat16 against float32, relative error of a guided prediction, Wan 1.3B scaled down",
        error,
        f"a few times the {2**-8:.3f} of bfloat16",
    )
    return Section([row])
