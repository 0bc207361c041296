"""Run the node in the core of a real ComfyUI, with small models of its own classes: python core.py CHECKOUT

The environment needs what the checkout's requirements.txt names; torchvision may be missing. For each class, a run of
KSampler with the node is compared with one in which Eq. 4 is computed by hand from passes of a model whose dropped
blocks are removed. Prints a line for each class; exit code 1 if one differs.
"""

import asyncio
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

CHECKOUT = Path(sys.argv.pop(1)).resolve()
sys.argv.append("--cpu")
sys.path.insert(0, str(CHECKOUT))


class _Anything(ModuleType):
    """Stands for torchvision, which the classes below do not use."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


if importlib.util.find_spec("torchvision") is None:
    import transformers  # noqa: F401  # looks for torchvision itself, and does without

    for missing in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
        sys.modules[missing] = _Anything(missing)

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.model_patcher  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.supported_models as supported  # noqa: E402
import torch  # noqa: E402

PACK = Path(__file__).resolve().parents[2] / "comfyui"
SPEC = importlib.util.spec_from_file_location("s2_pack", PACK / "__init__.py", submodule_search_locations=[str(PACK)])
sys.modules["s2_pack"] = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(sys.modules["s2_pack"])
S2Guidance, _ = asyncio.run(asyncio.run(sys.modules["s2_pack"].comfy_entrypoint()).get_node_list())

from s2video.guidance.masks import MaskSpec, step_masks  # noqa: E402

STEPS, CFG, OMEGA, SEED, BLOCKS = 6, 3.0, 0.5, 5, 10
WAN = {"image_model": "wan2.1", "dim": 24, "ffn_dim": 32, "num_heads": 2, "num_layers": BLOCKS, "text_dim": 16}
WAN |= {"freq_dim": 16, "text_len": 8, "in_dim": 16, "out_dim": 16}
HUNYUAN = {
    "image_model": "hunyuan_video",
    "in_channels": 16,
    "out_channels": 16,
    "hidden_size": 24,
    "num_heads": 2,
    "depth": 4,
    "depth_single_blocks": 6,
    "axes_dim": [4, 4, 4],
    "theta": 256,
    "patch_size": [1, 2, 2],
    "qkv_bias": True,
    "guidance_embed": True,
    "vec_in_dim": 12,
    "context_in_dim": 16,
    "mlp_ratio": 2.0,
    "byt5": False,
    "meanflow": False,
}
MODELS = {
    "WAN21_T2V": {**WAN, "model_type": "t2v"},
    "WAN21_Vace": {**WAN, "model_type": "vace", "vace_layers": 5, "vace_in_dim": 96},
    "WAN21_Camera": {**WAN, "model_type": "camera", "in_dim": 32},
    "WAN22_Animate": {**WAN, "model_type": "animate", "in_dim": 36, "motion_encoder_dim": 8},
    "HunyuanVideo": HUNYUAN,
}


def build(name: str) -> Any:
    """Return a MODEL of the class `name` with random weights."""
    torch.manual_seed(0)
    config = getattr(supported, name)(dict(MODELS[name]))
    config.unet_config["dtype"] = torch.float32
    base = config.get_model({}, device="cpu").eval().requires_grad_(False)
    for parameter in base.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape)
    return comfy.model_patcher.ModelPatcher(base, torch.device("cpu"), torch.device("cpu"))


def conditions(name: str) -> tuple[list[Any], list[Any]]:
    """Return positive and negative conditioning as a text encoder node gives it."""
    extra = {"pooled_output": torch.randn(1, 12)} if name == "HunyuanVideo" else {}
    return tuple([[torch.randn(1, 8, 16), dict(extra)]] for _ in range(2))


def run(model: Any, name: str, sampler: str) -> torch.Tensor:
    """Return the latents that KSampler makes."""
    torch.manual_seed(1)
    noise, (positive, negative) = torch.randn(1, 16, 3, 4, 4), conditions(name)
    latent = torch.zeros_like(noise)
    return comfy.sample.sample(
        model,
        noise,
        STEPS,
        CFG,
        sampler,
        "simple",
        positive,
        negative,
        latent,
        disable_pbar=True,
        seed=3,
    )


def by_hand(model: Any) -> Any:
    """Return a MODEL with Eq. 4 computed from a forward pass in which the dropped blocks are not in the lists."""
    spec = MaskSpec(drop_ratio=0.2)

    def post_cfg(arguments: dict[str, Any]) -> torch.Tensor:
        transformer = arguments["model"].diffusion_model
        sigmas = arguments["model_options"]["transformer_options"]["sample_sigmas"]
        step = int((arguments["sigma"][0] <= sigmas[:-1] * 1.0001).sum()) - 1
        guided = arguments["denoised"]
        for mask in step_masks(spec, num_blocks=BLOCKS, seed=SEED, step=step, num_steps=STEPS):
            with without(transformer, mask):
                options = arguments["model_options"]
                (sub,) = comfy.samplers.calc_cond_batch(
                    arguments["model"], [arguments["cond"]], arguments["input"], arguments["sigma"], options
                )
            guided = guided - OMEGA * (sub - arguments["cond_denoised"])
        return guided

    patched = model.clone()
    patched.set_model_sampler_post_cfg_function(post_cfg)
    return patched


class without:
    """Replace the forward of dropped blocks by one that returns its input, while the `with` lasts.

    The blocks keep their places, because the core finds hints and adapters by the number of a block.
    """

    def __init__(self, transformer: Any, mask: tuple[int, ...]) -> None:
        doubles = getattr(transformer, "double_blocks", None)
        blocks = [*transformer.blocks] if doubles is None else [*doubles, *transformer.single_blocks]
        self.two = set(map(id, doubles or ()))
        self.dropped = [blocks[index] for index in mask]

    def __enter__(self) -> None:
        for block in self.dropped:
            block.forward = self._pair if id(block) in self.two else lambda x, *_, **__: x

    def __exit__(self, *_: Any) -> None:
        for block in self.dropped:
            del block.forward

    @staticmethod
    def _pair(img: torch.Tensor, txt: torch.Tensor, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return img, txt


def main() -> int:
    """Compare every class under three samplers."""
    failed = False
    for name in MODELS:
        if not hasattr(supported, name):
            print(f"{name}: not in this ComfyUI")
            continue
        plain = build(name)
        settings = {"drop_ratio": 0.2, "drop_count": 0, "never_drop": "0", "num_draws": 1}
        window = {"window_start": 0.1, "window_end": 0.9}
        node = S2Guidance.execute(model=plain, s2_scale=OMEGA, mask_seed=SEED, **settings, **window).args[0]
        for sampler in ("euler", "heun", "uni_pc"):
            got, expected, cfg = (run(model, name, sampler) for model in (node, by_hand(plain), plain))
            same, moved = torch.equal(got, expected), float((got - cfg).norm() / cfg.norm())
            finite = bool(torch.isfinite(got).all())
            print(f"{name} {sampler}: {'the same to the bit' if same else 'DIFFERENT'}, {moved:.3f} from CFG")
            failed |= not same or not finite or moved == 0
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
