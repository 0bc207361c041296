"""Whole runs: S² against CFG, with reuse too, and this engine against diffusers' pipeline."""

import torch
from diffusers import WanPipeline

from benches.rows import Section, measured
from benches.workloads import OneStep, Options, draw_masks, s2_over_cfg, scaled_step, take_turns
from s2video.config.guidance import GuidanceConfig
from s2video.config.run import RunConfig, build_config
from s2video.engine.engine import Engine
from s2video.guidance.masks import step_masks
from s2video.guidance.reuse import PRESETS
from s2video.models.base import ImageConditioning
from s2video.models.experts import Expert, Experts
from s2video.parallel.mesh import Mesh
from s2video.parallel.weights import WHOLE
from s2video.planning.work import SubWork
from s2video.sampling.denoiser import Denoiser
from s2video.sampling.passes import step_passes

PROMPT = "a small red circle moving left and a large blue square moving up on a gray background"
PAPER_SECONDS = 1.38  # Table 5: 28 steps, text to image
REUSE_GOALS = {"deviation": 1.10, "light": 1.00, "fast": 0.72}  # seconds of a run over plain CFG's


def config(options: Options) -> RunConfig:
    return build_config(
        {
            "model": {"path": "shapes-wan", "device": "cpu"},
            "sampling": {
                "num_inference_steps": 3 if options.quick else 20,
                "max_sequence_length": 64,
                "num_frames": 5 if options.quick else 17,
            },
            "guidance": {"cfg_scale": 5.0},
        }
    )


def runs(options: Options) -> Section:
    """From prompt to latents; the text is encoded once, before the clock starts."""
    s2 = Engine(config(options), progress="none")
    cfg = s2.with_guidance(s2_scale=0.0)
    num_steps, spec = s2.config.sampling.num_inference_steps, s2.config.guidance.mask_spec()
    by_step = [
        step_masks(spec, num_blocks=s2.num_blocks, seed=0, step=step, num_steps=num_steps) for step in range(num_steps)
    ]
    masks = [draws[0] for draws in by_step if draws]
    times = take_turns(
        {"s2": lambda: s2.sample([PROMPT], [0]), "cfg": lambda: cfg.sample([PROMPT], [0])}, options.repeats
    )
    drawn, expected = (1 + len(masks) / num_steps * (s2_over_cfg(s2.num_blocks, m) - 1) for m in (masks, None))
    row = measured(
        f"S²/CFG, seconds of a run of {num_steps} steps, shapes-wan ({s2.num_blocks} blocks)",
        times["s2"],
        times["cfg"],
        f"{drawn:.3f} for the masks drawn, {expected:.3f} expected; the paper's {PAPER_SECONDS} for its own setting",
    )
    return Section([row], {"masks": by_step, "seconds": times})


def with_reuse(options: Options) -> Section:
    """Wan 1.3B scaled down, on the CPU."""
    step, num_steps = scaled_step(quick=options.quick), 16 if options.quick else 30
    return reuse_of(step, num_steps, options.repeats, "Wan 1.3B scaled down")


class Guided:
    """All steps of a run from random inputs, without text, scheduler and decoding, which are the same for all."""

    def __init__(self, step: OneStep, num_steps: int, guidance: GuidanceConfig) -> None:
        self._step, self._guidance = step, guidance
        self.num_blocks = step.model.num_blocks
        self._levels = tuple(1 - i / num_steps for i in range(num_steps))
        self.masks = guidance.mask_schedule(
            num_blocks=self.num_blocks, seed=0, num_steps=num_steps, levels=self._levels
        )

    @torch.no_grad()
    def run(self) -> None:
        step = self._step
        experts = Experts([Expert(step.model, WHOLE, step.model.transformer)])
        conditionings = {"cond": step.cond, "uncond": step.uncond, "images": ImageConditioning()}
        denoise = Denoiser(
            experts, Mesh(step.device), self._guidance, dtype=step.cond.text.dtype, masks=self.masks, **conditionings
        )
        for number, level in enumerate(self._levels):
            denoise(step.latents, torch.tensor(1000 * level, device=step.device), number)


def reuse_of(step: OneStep, num_steps: int, repeats: int, name: str) -> Section:
    """S² with each preset against CFG, over all steps of a run."""
    blocks = step.model.num_blocks
    settings = {"cfg": GuidanceConfig(s2_scale=0.0)} | {name: GuidanceConfig(reuse=name) for name in PRESETS}
    runs = {name: Guided(step, num_steps, guidance) for name, guidance in settings.items()}
    step([draw_masks(1, blocks)[0]])  # the first of all steps is slower
    times = take_turns({name: guided.run for name, guided in runs.items()}, repeats, step.device)
    rows = []
    for preset in PRESETS:
        masks = runs[preset].masks
        passes = step_passes(settings[preset], masks)
        full = sum((p.cond == "computed") + (p.uncond == "computed") for p in passes)
        subs = sum(SubWork.of_masks(masks.step(i), blocks).passes for i in range(num_steps))
        held = f"{(full + subs) / (2 * num_steps):.3f} for the masks drawn"
        if preset in REUSE_GOALS:
            held += f"; at most {REUSE_GOALS[preset]:.2f}"
        what = f"S², reuse {preset} / CFG, seconds of {num_steps} steps, {name} ({blocks} blocks)"
        rows.append(measured(what, times[preset], times["cfg"], held))
    return Section(rows, {"seconds": times})


def against_diffusers(options: Options) -> Section:
    """CFG, the same weights and seed; the pipeline encodes its text in every run, and the engine keeps it."""
    engine = Engine(config(options), progress="none").with_guidance(s2_scale=0.0)
    sampling = engine.config.sampling
    pipeline = WanPipeline.from_pretrained(engine.checkpoint.folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)

    def ours() -> torch.Tensor:
        return engine.sample([PROMPT], [0])

    def theirs() -> torch.Tensor:
        latents: torch.Tensor = pipeline(
            PROMPT,
            height=sampling.height,
            width=sampling.width,
            num_frames=sampling.num_frames,
            num_inference_steps=sampling.num_inference_steps,
            guidance_scale=engine.config.guidance.cfg_scale,
            generator=torch.Generator().manual_seed(0),
            max_sequence_length=sampling.max_sequence_length,
            output_type="latent",
        ).frames
        return latents

    equal = torch.equal(ours(), theirs())
    times = take_turns({"ours": ours, "diffusers": theirs}, options.repeats)
    row = measured(
        "CFG here / diffusers' `WanPipeline`, seconds of a run, shapes-wan",
        times["ours"],
        times["diffusers"],
        f"at most 1.02; latents bitwise {'equal' if equal else 'DIFFERENT'}",
    )
    return Section([row], {"seconds": times, "bitwise_equal": equal})
