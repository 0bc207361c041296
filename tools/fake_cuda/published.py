"""Published models with fake weights: their transformers, VAEs, text and image encoders, at their widths.

Sizes come from `s2video/assets/published`; those of the encoders, which plans do not need, are here. Blocks and layers
can be fewer than published, which changes no kernel's shape. `published_engine` gives the project's own `Engine` with
such models: only the reading of files is replaced.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import diffusers
import safetensors.torch
import torch
import transformers
from accelerate import init_empty_weights
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from s2video.config.named import named_config
from s2video.config.run import RunConfig
from s2video.engine import decoders as decoders_module
from s2video.engine import encoders as encoders_module
from s2video.engine import engine as engine_module
from s2video.engine.engine import Engine
from s2video.models import lora_format, parts
from s2video.models.checkpoint import ASSETS, Checkpoint
from s2video.models.family import PROCESSORS, JsonFile
from s2video.models.minimax_h3 import blocks as h3_blocks
from s2video.models.minimax_h3.schedulers import PairedScheduler
from s2video.parallel.mesh import Mesh

from .device import GPU

_DEPTHS = ("num_layers", "num_single_layers")  # keys of a transformer's config.json: blocks of a list
_SCHEDULERS = {
    "UniPCMultistepScheduler": {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 5.0},
    "FlowMatchEulerDiscreteScheduler": {"shift": 7.0},
}


class FakeCheckpoint(Checkpoint):
    """A published checkpoint without weights.

    Args:
        name: a name of `s2video models`.
        num_blocks: blocks of each list of a transformer; None for all.
    """

    def __init__(self, name: str, num_blocks: int | None = None) -> None:
        super().__init__(ASSETS / "published" / named_config(name).model.path.replace("/", "--"))
        self.num_blocks = num_blocks

    def config(self, component: str) -> JsonFile:
        file = super().config(component)
        if component.startswith("transformer") and self.num_blocks is not None:
            fewer: dict[str, Any] = {key: self.num_blocks for key in _DEPTHS if key in file.values}
            if (hints := file.values.get("vace_layers")) is not None:
                fewer["vace_layers"] = [index for index in hints if index < self.num_blocks]
            return replace(file, values=file.values | fewer)
        return file

    def files(self, component: str) -> tuple[Any, ...]:
        return ()


def fake_config(name: str, **changes: Any) -> RunConfig:
    """Return a config of the package, patched with settings such as `**{"parallel.weights": "fsdp"}`."""
    values: dict[str, Any] = {"model.lora": [], **changes}
    config = named_config(name)
    return config.patched({key: value for key, value in values.items()})


def fake_module(config: Mapping[str, Any], dtype: torch.dtype, device: torch.device = GPU) -> Any:
    """Return diffusers' module of a config.json, with fake parameters. Call it in `fake_gpu`."""
    kind = getattr(diffusers, config["_class_name"])
    with empty():
        module = kind.from_config(dict(config))
    in_float32 = set(getattr(kind, "_keep_in_fp32_modules", None) or ())
    return placed(module, dtype, device, in_float32)


@contextmanager
def empty() -> Iterator[None]:
    """Make parameters on the meta device and real buffers. Fake ones made in this way break the heap (torch 2.13)."""
    with unset_fake_temporarily(), init_empty_weights(include_buffers=False):
        yield


def placed(module: nn.Module, dtype: torch.dtype, device: torch.device, in_float32: set[str] | None = None) -> Any:
    """Replace the parameters and buffers of a module by fake ones on the device."""
    for path, part in module.named_modules():
        for name, value in list(part.named_parameters(recurse=False)):
            kept = bool((in_float32 or set()) & {*path.split("."), name})
            made = torch.empty(value.shape, dtype=torch.float32 if kept else dtype, device=device)
            part._parameters[name] = nn.Parameter(made, requires_grad=False)
        for name, value in list(part.named_buffers(recurse=False)):
            part._buffers[name] = torch.empty(value.shape, dtype=value.dtype, device=device)
    return module.eval()


def fake_transformer(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device = GPU,
    component: str = "transformer",
    *,
    quantization: None = None,
) -> Any:
    """Return a transformer of the published width, as `load_transformer` does."""
    return fake_module(checkpoint.config(component).values | _class(checkpoint, component), dtype, device)


def fake_vae(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device = GPU) -> Any:
    """Return the published VAE, whole, as `load_vae` does."""
    return fake_module(checkpoint.config("vae").values | _class(checkpoint, "vae"), dtype, device)


def _class(checkpoint: Checkpoint, component: str) -> dict[str, str]:
    return {"_class_name": checkpoint.class_of(component)}


def _encoder(name: str, kind: str, layers: int | None) -> Any:
    """Return a text or image encoder of the published width on the meta device, with at most `layers` layers."""

    def few(count: int) -> int:
        return count if layers is None else min(count, layers)

    clip = {"num_attention_heads": 12, "num_hidden_layers": few(12), "hidden_size": 768, "intermediate_size": 3072}
    llama = {"vocab_size": 128320, "hidden_size": 4096, "intermediate_size": 14336, "num_key_value_heads": 8}
    configs: dict[str, Any] = {
        "UMT5EncoderModel": lambda: transformers.UMT5Config(
            vocab_size=256384,
            d_model=4096,
            d_kv=64,
            d_ff=10240,
            num_layers=few(24),
            num_heads=64,
            feed_forward_proj="gated-gelu",
        ),
        "LlamaModel": lambda: transformers.LlamaConfig(num_hidden_layers=max(3, few(32)), **llama),
        "LlavaForConditionalGeneration": lambda: transformers.LlavaConfig(
            text_config=transformers.LlamaConfig(num_hidden_layers=max(3, few(32)), **llama),
            vision_config=transformers.CLIPVisionConfig(
                hidden_size=1024,
                intermediate_size=4096,
                num_hidden_layers=max(2, few(24)),
                num_attention_heads=16,
                image_size=336,
                patch_size=14,
            ),
            image_token_index=128257,
            pad_token_id=2,
        ),
        "CLIPTextModel": lambda: transformers.CLIPTextConfig(**clip),
        "Qwen2_5_VLTextModel": lambda: transformers.Qwen2_5_VLTextConfig(
            vocab_size=152064,
            hidden_size=3584,
            intermediate_size=18944,
            num_hidden_layers=max(3, few(28)),
            num_attention_heads=28,
            num_key_value_heads=4,
            rope_parameters={"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
        ),
        "T5EncoderModel": lambda: transformers.T5Config(
            vocab_size=1510,
            d_model=1472,
            d_kv=64,
            d_ff=3584,
            num_layers=few(12),
            num_heads=6,
            feed_forward_proj="gated-gelu",
        ),
        "CLIPVisionModel": lambda: transformers.CLIPVisionConfig(
            hidden_size=1280,
            intermediate_size=5120,
            num_hidden_layers=max(2, few(32)),
            num_attention_heads=16,
            patch_size=14,
            projection_dim=1024,
        ),
        "SiglipVisionModel": lambda: transformers.SiglipVisionConfig(
            hidden_size=1152,
            intermediate_size=4304,
            num_hidden_layers=few(27),
            num_attention_heads=16,
            image_size=384,
            patch_size=14,
        ),
    }
    configs["CLIPVisionModelWithProjection"] = configs["CLIPVisionModel"]
    with empty():
        return getattr(transformers, kind)(configs[kind]())


def fake_conditioners(
    checkpoint: Checkpoint, dtype: torch.dtype, image_dtype: torch.dtype | None = None, *, tokenizers: Any, layers: int
) -> dict[str, Any]:
    """Return the components that encode prompts and images, on the CPU, as `load_conditioners` does.

    Args:
        tokenizers: tokenizers and image processors by the names of their folders; their small vocabularies do.
        layers: of each encoder, at most.
    """
    loaded: dict[str, Any] = {}
    for name in checkpoint.family.conditioners:
        if name.startswith(("tokenizer", *PROCESSORS)):
            loaded[name] = tokenizers[name]
        else:
            own = (name == "image_encoder" and image_dtype) or dtype
            loaded[name] = placed(_encoder(name, checkpoint.class_of(name), layers), own, torch.device("cpu"))
    return loaded


def fake_scheduler(checkpoint: Checkpoint, flow_shift: float | None = None) -> Any:
    """Return a scheduler of the class that the checkpoint names."""
    kind = checkpoint.class_of("scheduler")
    if kind == "MiniMaxH3Scheduler":
        assert checkpoint.info.sound is not None
        return PairedScheduler(_RealSchedule(12.0), _RealSchedule(3.0), checkpoint.info.sound)
    return getattr(diffusers, kind)(**_SCHEDULERS[kind])


class _RealSchedule(diffusers.MiniMaxH3Scheduler):
    """Merges steps of the same noise level with real numbers, since fake ones cannot be compared."""

    def set_timesteps(self, num_inference_steps: int, device: object = None) -> None:
        with unset_fake_temporarily():
            super().set_timesteps(num_inference_steps)
            numbers = self.sigmas.tolist(), self.timesteps.tolist()
        self.sigmas, self.timesteps = map(torch.tensor, numbers)


def empty_component(*args: Any) -> nn.Module:
    """Return a component whose parameters are on the GPU and whose buffers are not, as the loader of parts does."""
    with unset_fake_temporarily():  # see `empty`
        model = _REAL_EMPTY(*args)
    for part in model.modules():
        for name, value in list(part.named_parameters(recurse=False)):
            part._parameters[name] = nn.Parameter(
                torch.empty(value.shape, dtype=value.dtype, device=GPU), requires_grad=False
            )
        for name, value in list(part.named_buffers(recurse=False)):
            part._buffers[name] = torch.empty(value.shape, dtype=value.dtype)
    return model


_REAL_EMPTY = parts.empty_component
_REAL_POSITIONS = h3_blocks.packed_positions
_REAL_FILE, _REAL_TRACE = safetensors.torch.load_file, lora_format.trace


def _real_trace(*args: Any) -> Any:
    """Find by the values of real tensors which tensors a conversion is made of."""
    with unset_fake_temporarily():
        return _REAL_TRACE(*args)


def _fake_positions(*args: Any) -> Tensor:
    """Return fake positions of rows, which are planned from numbers on the CPU."""
    with unset_fake_temporarily():
        positions = _REAL_POSITIONS(*args)
    return torch.empty(positions.shape, dtype=positions.dtype)


def _fake_times(timestep: Tensor) -> tuple[Tensor, list[int]]:
    """Return two timesteps, as in every step but the first."""
    return torch.empty(2), [0, 1]


def _fake_file(path: Any) -> dict[str, Tensor]:
    """Return fake tensors of the names, shapes and dtypes that a file has."""
    with unset_fake_temporarily():
        tensors = _REAL_FILE(path)
    return {name: torch.empty(value.shape, dtype=value.dtype) for name, value in tensors.items()}


class NoFiles:
    """Stands for a component's weight files: tensors of the right number of elements, read from nowhere."""

    def read(self, name: str, start: int, stop: int) -> Tensor:
        return torch.empty(stop - start, dtype=torch.bfloat16)


@contextmanager
def published_engine(
    name: str,
    mesh: Mesh,
    *,
    tokenizers: Any = None,
    num_blocks: int | None = 2,
    layers: int = 2,
    **changes: Any,
) -> Iterator[Engine]:
    """Yield the engine of a published model with fake weights. Enter it in `fake_gpu`.

    Args:
        name: a name of `s2video models`.
        tokenizers: as in `fake_conditioners`; None: the mesh's rank is not the main one, or the engine encodes nothing.
        num_blocks: blocks of each list of the transformer; None for all.
        layers: of text and image encoders, at most.
        changes: settings of the config, by dotted name. A LoRA's file must be there.
    """
    checkpoint = FakeCheckpoint(name, num_blocks)

    def conditioners(*args: Any) -> dict[str, Any]:
        return fake_conditioners(*args, tokenizers=tokenizers, layers=layers)

    with ExitStack() as stack:
        for module, attribute, double in (
            (decoders_module, "load_vae", fake_vae),
            (encoders_module, "load_conditioners", conditioners),
            (engine_module, "load_scheduler", fake_scheduler),
            (parts, "load_transformer", fake_transformer),
            (parts, "empty_component", empty_component),
            (parts, "check_component", lambda *_: NoFiles()),
            (safetensors.torch, "load_file", _fake_file),
            (lora_format, "trace", _real_trace),
            (h3_blocks, "packed_positions", _fake_positions),
            (h3_blocks, "distinct_times", _fake_times),
        ):
            stack.enter_context(patch.object(module, attribute, double))
        if tokenizers is None:
            stack.enter_context(patch.object(Engine, "_load_encoders", lambda self: None))
        yield Engine(fake_config(name, **changes), mesh, checkpoint=checkpoint, progress="none")
