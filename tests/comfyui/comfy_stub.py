"""The names of ComfyUI that the node pack uses, as far as it uses them, and a small model like the core's Wan.

comfy.model_patcher.set_model_options_patch_replace
comfy.samplers.calc_cond_batch
comfy.model_management.throw_exception_if_processing_interrupted, comfy.utils.ProgressBar
comfy_api.latest.io, comfy_api.latest.ComfyExtension, comfy_api.latest.InputImpl
a MODEL with `clone` and `set_model_sampler_post_cfg_function`
"""

import copy
import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

PACK = Path(__file__).resolve().parents[2] / "comfyui"


def install() -> None:
    """Put the stub into sys.modules."""

    def module(name: str, **content: Any) -> ModuleType:
        made = sys.modules[name] = ModuleType(name)
        made.__dict__.update(content)
        return made

    kinds = {
        kind: SimpleNamespace(Input=_Socket, Output=_Socket) for kind in ("Model", "Float", "Int", "String", "Video")
    }
    io = SimpleNamespace(ComfyNode=object, Schema=SimpleNamespace, NodeOutput=lambda *values: values, **kinds)
    implementations = SimpleNamespace(VideoFromFile=lambda file: file)
    latest = module("comfy_api.latest", io=io, ComfyExtension=object, InputImpl=implementations)
    module("comfy_api", latest=latest)
    samplers = module("comfy.samplers", calc_cond_batch=calc_cond_batch)
    patcher = module("comfy.model_patcher", set_model_options_patch_replace=set_model_options_patch_replace)
    management = module("comfy.model_management", throw_exception_if_processing_interrupted=lambda: None)
    utils = module("comfy.utils", ProgressBar=_ProgressBar)
    module("comfy", samplers=samplers, model_patcher=patcher, model_management=management, utils=utils)


def load_pack(folder: Path = PACK) -> ModuleType:
    """Import the pack as ComfyUI does: by its folder, under a name of the folder's own."""
    spec = importlib.util.spec_from_file_location(
        "s2_pack", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    pack = importlib.util.module_from_spec(spec)
    sys.modules["s2_pack"] = pack
    spec.loader.exec_module(pack)
    return pack


class _ProgressBar:
    shown: ClassVar[list[int]] = []

    def __init__(self, total: int) -> None:
        self.shown.clear()

    def update_absolute(self, value: int) -> None:
        self.shown.append(value)


class _Socket(SimpleNamespace):
    def __init__(self, name: str = "", **keywords: Any) -> None:
        super().__init__(name=name, **keywords)


def set_model_options_patch_replace(options: dict, patch: Any, name: str, block_name: str, number: int) -> dict:
    """Set a replacement in a copy of the transformer's options. `options` itself is changed, as the core does."""
    transformer_options = options["transformer_options"] = copy.copy(options["transformer_options"])
    replace = transformer_options["patches_replace"] = copy.copy(transformer_options.get("patches_replace", {}))
    replace[name] = {**replace.get(name, {}), (block_name, number): patch}
    return options


def calc_cond_batch(model: Any, conds: list[Any], x: Tensor, sigma: Tensor, options: dict[str, Any]) -> list[Tensor]:
    """Return the denoised samples, one for each condition; zeros where it is None."""
    level = sigma.reshape(-1, *[1] * (x.ndim - 1))
    run = model.diffusion_model
    return [
        torch.zeros_like(x) if cond is None else x - level * run(x, sigma, cond, options["transformer_options"])
        for cond in conds
    ]


class WanLike(nn.Module):
    """A transformer whose blocks can be replaced under ("double_block", index), as the core's Wan."""

    def __init__(self, num_blocks: int, width: int = 4) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(num_blocks))
        self.replaceable = True

    def forward(self, x: Tensor, sigma: Tensor, context: Tensor, transformer_options: dict[str, Any]) -> Tensor:
        """Return the velocity, of the shape of x, [B, C, T, H, W]."""
        replace = transformer_options.get("patches_replace", {}).get("dit", {}) if self.replaceable else {}
        state = x.movedim(1, -1) + sigma.reshape(-1, 1, 1, 1, 1)
        for index, block in enumerate(self.blocks):

            def original(given: dict[str, Any], block: nn.Module = block) -> dict[str, Any]:
                return {"img": given["img"] + torch.tanh(block(given["img"]) + given["txt"])}

            given = {"img": state, "txt": context, "vec": sigma, "pe": None, "transformer_options": transformer_options}
            patch = replace.get(("double_block", index))
            state = (patch(given, {"original_block": original}) if patch else original(given))["img"]
        return state.movedim(-1, 1)


class Model:
    """A MODEL: options and the functions that run after CFG."""

    def __init__(self, transformer: nn.Module) -> None:
        self.model = SimpleNamespace(diffusion_model=transformer)
        self.model_options: dict[str, Any] = {"transformer_options": {}}

    def clone(self) -> "Model":
        """Return a copy that shares the transformer."""
        made = Model(self.model.diffusion_model)
        made.model_options = self._copy_options()
        return made

    def _copy_options(self) -> dict[str, Any]:
        return {**self.model_options, "transformer_options": dict(self.model_options["transformer_options"])}

    def set_model_sampler_post_cfg_function(self, function: Any) -> None:
        """Add a function that runs after CFG."""
        earlier = self.model_options.get("sampler_post_cfg_function", [])
        self.model_options["sampler_post_cfg_function"] = [*earlier, function]

    def call(
        self, x: Tensor, sigma: float, sigmas: list[float], cond: Tensor, uncond: Tensor | None, cfg: float
    ) -> Tensor:
        """Return the denoised sample of one call of a sampler, as the core's `sampling_function` makes it."""
        options = self._copy_options()
        options["transformer_options"]["sample_sigmas"] = torch.tensor(sigmas)
        level = torch.full((x.shape[0],), sigma)
        cond_x0, uncond_x0 = calc_cond_batch(self.model, [cond, uncond], x, level, options)
        denoised = uncond_x0 + (cond_x0 - uncond_x0) * cfg
        for function in options.get("sampler_post_cfg_function", []):
            denoised = function(
                {
                    "denoised": denoised,
                    "cond": cond,
                    "uncond": uncond,
                    "cond_scale": cfg,
                    "model": self.model,
                    "uncond_denoised": uncond_x0,
                    "cond_denoised": cond_x0,
                    "sigma": level,
                    "model_options": options,
                    "input": x,
                }
            )
        return denoised
