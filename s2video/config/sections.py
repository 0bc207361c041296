"""The sections of a run's configuration: what can be set, its defaults, and the bounds that need no model to check.

The sections `guidance` and `output` are in `guidance.py` and `output.py`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field, model_validator

from .fields import (
    MAX_FRAMES,
    MAX_SIDE,
    MAX_STEPS,
    MAX_TOKENS,
    Dtype,
    Number,
    Section,
    Switch,
    Text,
    Whole,
    setting,
)
from .text import read_list


class LoraConfig(Section):
    """A low-rank change of a transformer's weights."""

    path: Text = Field(
        min_length=1, description="a .safetensors file, a folder that has one, a Hub id, or owner/name/file"
    )
    scale: Number = Field(default=1.0, description="strength; 0: none")
    component: Literal["transformer", "transformer_2"] = Field(
        default="transformer", description="which transformer, if the checkpoint has two"
    )


FILE_SETTINGS = ("transformer", "transformer_2", "vae", "text_encoder")
"""The settings of `model` that name weights outside of `model.path`, each called as the component."""


class ModelSource(NamedTuple):
    """What opens a checkpoint, see `models.checkpoint.open_checkpoint`; jobs with equal ones share their models."""

    path: str
    revision: str | None
    variant: str | None
    files: tuple[tuple[str, str], ...]


def _weights(component: str) -> Any:
    """Return the setting for a component's weights in files of their own."""
    return setting(
        "nothing",
        names="file",
        default=None,
        min_length=1,
        description=f"weights of the {component} in place of those in model.path: a .safetensors or .gguf file, one of "
        "its shards, or a folder; names and formats of other programs are converted. null: those in model.path",
    )


class ModelConfig(Section):
    """Which checkpoint, in which precision, on which device."""

    path: Text = setting(
        "nothing",
        names="model",
        default="shapes-wan",
        min_length=1,
        description="an embedded model's name (shapes-wan, shapes-wan-24), a folder in diffusers' format, or a Hub id",
    )
    revision: Text | None = setting(
        "nothing",
        names="model",
        default=None,
        description="branch, tag or commit of a Hub id; null: its default branch",
    )
    variant: Text | None = setting(
        "nothing",
        names="model",
        default=None,
        pattern=r"^[A-Za-z0-9_]+$",
        description='variant of the weight files, such as "fp16" for model.fp16.safetensors; null: the plain files',
    )
    transformer: Text | None = _weights("transformer")
    transformer_2: Text | None = _weights("second transformer")
    vae: Text | None = _weights("VAE")
    text_encoder: Text | None = _weights("text encoder")
    lora: Annotated[tuple[LoraConfig, ...], BeforeValidator(read_list)] = setting(
        "nothing",
        names="lora",
        default=(),
        description="LoRAs on the transformer, as [{path: ..., scale: 1.0}, ...]; needs peft",
    )
    dtype: Dtype = setting("latents", default="float32", description="precision of the transformer")
    text_encoder_dtype: Dtype = setting("latents", default="float32", description="precision of the text encoder")
    image_encoder_dtype: Dtype = setting(
        "latents", default="float32", description="precision of the image encoder; diffusers recommends float32"
    )
    vae_dtype: Dtype = setting(
        "frames",
        default="float32",
        description="precision of the VAE; diffusers recommends float32, which on a GPU means TF32 in convolutions, as "
        "in diffusers, unless NVIDIA_TF32_OVERRIDE is 0 in the environment",
    )
    quantization: Literal["int8", "int8_dynamic", "fp8", "fp8_dynamic", "bnb_int8", "bnb_nf4", "gguf"] | None = setting(
        "latents",
        newer=True,
        default=None,
        description="how the linear layers of the blocks are stored: int8 or fp8 weights (torchao), with activations "
        "quantised too (dynamic), by bitsandbytes, or as a GGUF file has them (gguf); null: in dtype",
    )
    attention_backend: Text | None = setting(
        "latents",
        names="backend",
        default=None,
        description="one of diffusers' attention backends (native, flash, sage, ...); null: diffusers' default",
    )
    compile: Literal["none", "blocks"] = setting(
        "rounding",
        newer=True,
        default="none",
        description="blocks: torch.compile each block of the transformer, which takes time in the first step and "
        "changes the last bits",
    )
    device: Literal["auto", "cpu", "cuda"] = setting(
        "rounding", per_process=True, default="auto", description="auto: cuda if there is a GPU, else cpu"
    )
    offload_text_encoder: Switch = setting(
        "nothing", default=True, description="free the text encoder's device memory before denoising"
    )
    stream_text_encoder: Switch = setting(
        "nothing",
        default=False,
        description="run the text encoder from CPU memory, a layer at a time, if it does not fit on the device",
    )
    offload_experts: Switch = setting(
        "nothing", default=False, description="keep the inactive one of two transformers (Wan 2.2 A14B) in CPU memory"
    )

    @property
    def source(self) -> ModelSource:
        """What opens this model."""
        named = ((component, getattr(self, component)) for component in FILE_SETTINGS)
        files = tuple((component, file) for component, file in named if file is not None)
        return ModelSource(self.path, self.revision, self.variant, files)


HEUN = "FlowMatchHeunDiscreteScheduler"
SchedulerName = Literal[
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "UniPCMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DEISMultistepScheduler",
    "SASolverScheduler",
]
Sigma = Annotated[Number, Field(gt=0, le=1)]


class SamplingConfig(Section):
    """Size and length of the video, and how it is denoised."""

    width: Whole = setting(
        "latents",
        default=64,
        gt=0,
        le=MAX_SIDE,
        description="pixels; a multiple of a number that depends on the checkpoint",
    )
    height: Whole = setting(
        "latents",
        default=64,
        gt=0,
        le=MAX_SIDE,
        description="pixels; a multiple of a number that depends on the checkpoint",
    )
    num_frames: Whole = setting(
        "latents",
        default=17,
        ge=1,
        le=MAX_FRAMES,
        description="frames; one more than a multiple of the VAE's temporal factor",
    )
    num_inference_steps: Whole = setting("latents", default=30, ge=1, le=MAX_STEPS, description="denoising steps")
    seed: Whole = setting(
        "latents", default=0, ge=0, lt=2**63, description="seed of the noise, and of the masks unless mask_seed is set"
    )
    flow_shift: Number | None = setting(
        "latents",
        default=None,
        gt=0,
        description="shift of the flow schedule; null: that of the checkpoint's scheduler",
    )
    scheduler: SchedulerName | None = setting(
        "latents",
        newer=True,
        default=None,
        description="diffusers' scheduler for the steps, with the checkpoint's shift; null: the checkpoint's own",
    )
    scheduler_options: Annotated[dict[str, bool | int | float | str | None], Field(max_length=50)] = setting(
        "latents",
        newer=True,
        default={},
        description="options of sampling.scheduler by diffusers' names, such as {use_beta_sigmas: true}",
    )
    sigmas: Annotated[tuple[Sigma, ...], BeforeValidator(read_list)] | None = setting(
        "latents",
        newer=True,
        default=None,
        min_length=1,
        max_length=MAX_STEPS,
        description="noise level at which each step begins, descending, before flow_shift, as in diffusers' pipelines; "
        "as many as num_inference_steps. null: the scheduler's",
    )
    max_sequence_length: Whole = setting(
        "latents",
        default=512,
        ge=1,
        le=MAX_TOKENS,
        description="text tokens, padding included; Wan attends to padding, so this changes its videos",
    )

    @model_validator(mode="after")
    def _as_many_sigmas_as_steps(self) -> SamplingConfig:
        if self.sigmas is not None:
            if len(self.sigmas) != self.num_inference_steps:
                raise ValueError(
                    f"expected as many sigmas as num_inference_steps, got {len(self.sigmas)} and "
                    f"{self.num_inference_steps}: change one of the two"
                )
            if any(after >= before for before, after in pairwise(self.sigmas)):
                raise ValueError(f"expected sigmas in descending order, got {list(self.sigmas)}: sort them")
        return self

    @property
    def expected_steps(self) -> int:
        """Steps of the run, as far as the config tells: Heun's scheduler takes two for each but the last."""
        return 2 * self.num_inference_steps - 1 if self.scheduler == HEUN else self.num_inference_steps


class ParallelConfig(Section):
    """How the ranks of one run share its work. `parallel: auto` is short for `degrees: auto`."""

    degrees: Literal["given", "auto"] = setting(
        "rounding",
        default="given",
        description="auto: the mesh that `s2video plan` puts first; given: ulysses, ring and branch below",
    )
    ulysses: Whole | None = setting(
        "rounding",
        default=None,
        ge=1,
        description="neighbouring ranks that exchange tokens for heads; null: all ranks, or what ring leaves",
    )
    ring: Whole | None = setting(
        "rounding",
        default=None,
        ge=1,
        description="groups of such ranks, which pass keys and values around; null: 1, or what ulysses leaves",
    )
    branch: Literal[1, 2] = setting(
        "rounding",
        default=1,
        description="2: cond and uncond side by side, on half of the ranks each; sub still on all of them",
    )
    decode: Literal["auto", "sharded", "tiled", "serial"] = setting(
        "frames",
        newer=True,
        default="auto",
        description="sharded: a strip of the picture for each rank, exact; tiled: overlapping tiles, blended; serial: "
        "rank 0 alone; auto: sharded with Wan's VAE, else tiled",
    )
    weights: Literal["replicated", "fsdp", "zero3", "streamed"] = setting(
        "rounding",
        default="replicated",
        description="replicated: every rank has all; fsdp, zero3: sharded over the ranks (FSDP2, DeepSpeed); "
        "streamed: every rank has all in CPU memory, and two blocks on its GPU",
    )
    backend: Literal["auto", "gloo", "nccl"] = setting(
        "rounding", per_process=True, default="auto", description="auto: nccl on cuda, else gloo"
    )
    timeout_seconds: Number = setting(
        "nothing",
        per_process=True,
        default=600.0,
        gt=0,
        le=86400,
        description="seconds that a rank waits for the others in one collective; with nccl, at least 120, and a whole "
        "step must be shorter",
    )
    heartbeat_seconds: Number = setting(
        "nothing",
        per_process=True,
        default=20.0,
        gt=0,
        le=86400,
        description="seconds without a heartbeat after which a rank is considered lost",
    )

    @model_validator(mode="before")
    @classmethod
    def _the_word_auto(cls, value: Any) -> Any:
        return {"degrees": "auto"} if value == "auto" else value

    @model_validator(mode="after")
    def _no_degrees_beside_auto(self) -> ParallelConfig:
        if self.degrees == "auto" and (self.ring, self.ulysses, self.branch) != (None, None, 1):
            raise ValueError("degrees: auto chooses ring, ulysses and branch: leave them out, or take auto away")
        return self


class CheckpointConfig(Section):
    """When denoising is saved, to be resumed with --resume."""

    every_seconds: Number | None = setting(
        "nothing",
        default=None,
        gt=0,
        description="seconds between writes of X.checkpoint.safetensors; null: it is only written on SIGTERM",
    )
