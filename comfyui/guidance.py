"""S²-Guidance as a function that ComfyUI calls after CFG.

Eq. 4 of arXiv 2508.12880 is D = CFG − ω (sub − cond). ComfyUI's predictions are denoised samples, x0 = x − σ v for a
velocity v. This map is affine and the same for all passes of a step, so the equation holds for x0 as it does for v.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.model_patcher
import comfy.samplers
import torch
from torch import Tensor

from .masks import MaskSpec, step_masks

# The lists of blocks of the core's transformers, in the order in which a forward pass runs them, and the name under
# which the core looks for a replacement of a block.
_BLOCK_LISTS = (
    ("blocks", "double_block"),
    ("double_blocks", "double_block"),
    ("transformer_blocks", "double_block"),
    ("single_blocks", "single_block"),
)
_ROUNDING = 1e-4  # relative; samplers and sigmas differ by the last bits of float32


class S2Error(ValueError):
    """The guidance cannot be applied as asked. ComfyUI shows the message at the node."""


@dataclass(frozen=True)
class Settings:
    """What one node asks for.

    Attributes:
        s2_scale: ω ≥ 0.
        spec: how masks are drawn, see `MaskSpec`.
        mask_seed: in [0, 2**64).
        steps_before: number of steps that another sampler did before this one's first step.
        total_steps: number of steps of all samplers together; 0 means those of this sampler and `steps_before`.
    """

    s2_scale: float
    spec: MaskSpec
    mask_seed: int
    steps_before: int = 0
    total_steps: int = 0


def blocks_of(transformer: Any) -> list[tuple[str, int]]:
    """Return the (replacement name, index) of every block of a transformer of the core, in the order they run.

    Raises:
        S2Error: the model has no list of transformer blocks.
    """
    found = [
        (kind, index)
        for name, kind in _BLOCK_LISTS
        if isinstance(blocks := getattr(transformer, name, None), torch.nn.ModuleList)
        for index in range(len(blocks))
    ]
    if not found:
        raise S2Error(
            f"S2Guidance: expected a diffusion transformer with blocks, got {type(transformer).__name__}; "
            "use it with Wan, HunyuanVideo or another model whose blocks can be replaced"
        )
    return found


def step_of(sigma: float, sigmas: list[float]) -> int:
    """Return the index of the step that a call at noise level `sigma` belongs to.

    Args:
        sigmas: the n + 1 noise levels of a sampler of n steps, falling.

    A step starts at its own noise level and ends above that of the next, so that all calls of one step of a sampler
    that calls the model several times in a step use one mask. Levels above the first belong to step 0.
    """
    reached = sum(sigma <= level * (1 + _ROUNDING) for level in sigmas[:-1])
    return max(reached - 1, 0)


def guide(settings: Settings) -> Callable[[dict[str, Any]], Tensor]:
    """Return the function for `ModelPatcher.set_model_sampler_post_cfg_function`.

    It takes the result of CFG or of another method, [B, C, T, H, W], and subtracts ω/N Σᵢ (subᵢ − cond) in the window.
    """

    def post_cfg(arguments: dict[str, Any]) -> Tensor:
        guided, cond = arguments["denoised"], arguments["cond_denoised"]
        subs = [_sub(arguments, mask) for mask in _masks(settings, arguments)] if settings.s2_scale else []
        for sub in subs:
            guided = guided - settings.s2_scale / len(subs) * (sub - cond)
        return guided

    return post_cfg


def _masks(settings: Settings, arguments: dict[str, Any]) -> list[list[tuple[str, int]]]:
    """Return the blocks that each draw of this call's step drops."""
    levels = arguments["model_options"].get("transformer_options", {}).get("sample_sigmas")
    if levels is None:
        raise S2Error("S2Guidance: this sampler does not tell its noise levels; use KSampler or SamplerCustom")
    sigmas = [float(level) for level in levels]
    step = settings.steps_before + step_of(float(arguments["sigma"].flatten()[0]), sigmas)
    total = settings.total_steps or settings.steps_before + len(sigmas) - 1
    if step >= total:
        raise S2Error(
            f"S2Guidance: total_steps is {total}, but this sampler does step {step + 1}; set total_steps to the steps "
            "of all samplers together, or to 0"
        )
    blocks = blocks_of(arguments["model"].diffusion_model)
    spec, seed = settings.spec, settings.mask_seed
    if unknown := [index for index in spec.never_drop if index >= len(blocks)]:
        raise S2Error(f"S2Guidance: never_drop names block {unknown[0]}, but the model's last is {len(blocks) - 1}")
    masks = step_masks(spec, num_blocks=len(blocks), seed=seed, step=step, num_steps=total)
    return [[blocks[index] for index in mask] for mask in masks]


def _sub(arguments: dict[str, Any], mask: list[tuple[str, int]]) -> Tensor:
    """Return the prediction for the same condition without the blocks of `mask`."""
    options = arguments["model_options"].copy()
    if "easycache" in options.get("transformer_options", {}):
        raise S2Error(
            "S2Guidance: EasyCache would keep the result of the pass with dropped blocks and reuse it for the whole "
            "network; remove the EasyCache node (LazyCache works)"
        )
    skipped: set[tuple[str, int]] = set()
    options.setdefault("transformer_options", {})
    for kind, index in mask:
        skip = _skip(kind, index, skipped)
        options = comfy.model_patcher.set_model_options_patch_replace(options, skip, "dit", kind, index)
    model, x, sigma = arguments["model"], arguments["input"], arguments["sigma"]
    (sub,) = comfy.samplers.calc_cond_batch(model, [arguments["cond"]], x, sigma, options)
    if missed := set(mask) - skipped:
        raise S2Error(
            f"S2Guidance: {len(missed)} of {len(mask)} blocks to drop were not asked for by "
            f"{type(model.diffusion_model).__name__}; this model does not let its blocks be replaced, or a step cache "
            "answered in its place"
        )
    return sub


def _skip(kind: str, index: int, skipped: set[tuple[str, int]]) -> Callable[[dict[str, Any], Any], dict[str, Any]]:
    """Return a replacement of a block that returns its input, and notes that it was called."""

    def skip(block_input: dict[str, Any], _: Any) -> dict[str, Any]:
        skipped.add((kind, index))
        if index == 0:
            # VACE keeps the first block's input for its hints, and adds to the block's output in place.
            return {**block_input, "img": block_input["img"].clone()}
        return block_input

    return skip
