"""The sections of a run's configuration: what can be set, its defaults, and the bounds that need no model to check."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    field_validator,
    model_validator,
)

from ..media.formats import MAX_START_NUMBER, Codec, VideoSpec, codec_for
from ..system.files import user_path
from .text import read_fraction, read_list, read_number, read_switch, read_text, read_whole

if TYPE_CHECKING:
    from ..guidance.masks import MaskSchedule, MaskSpec

Whole = Annotated[int, BeforeValidator(read_whole)]
Number = Annotated[float, BeforeValidator(read_number)]
Text = Annotated[str, BeforeValidator(read_text)]
Switch = Annotated[bool, BeforeValidator(read_switch)]
Rate = Annotated[
    Fraction,
    PlainValidator(read_fraction),
    PlainSerializer(lambda rate: rate.numerator if rate.denominator == 1 else str(rate), return_type=int | str),
]
MAX_STEPS = 10_000  # schedulers know 1,000; a sidecar with many more would only fill the memory
MAX_SIDE = 2**16  # pixels; larger than any format of video, and small enough to compute with
MAX_FRAMES = 1_000_000
MAX_DRAWS = 100
MAX_TOKENS = 2**16  # of a prompt; embeddings are padded to the setting
Index = Annotated[Whole, Field(ge=0)]
Share = Annotated[Number, Field(ge=0, le=1)]
Dtype = Literal["float32", "bfloat16", "float16"]


Changes = Literal["latents", "frames", "rounding", "nothing"]
"""What a setting changes: the latents; only the way from latents to the file; at most the last bits; or nothing, or
only through files whose contents are compared themselves (weights, LoRAs)."""


Names = Literal["program", "target", "sound", "file", "model", "lora", "backend"]
"""What the value of a setting names outside the config. `records/trust.py` says what of it a data file may name."""


def setting(
    changes: Changes, *, newer: bool = False, per_process: bool = False, names: Names | None = None, **field: Any
) -> Any:
    """Return pydantic's `Field(**field)` for a setting.

    Every list of settings that count for something is derived from these marks, see `marks.py`.

    Args:
        changes: what it changes.
        newer: there are records without it. It counts only where it is not at its default, so that those stay valid.
        per_process: it holds for all videos that a process makes, so the shots of a batch cannot differ in it.
        names: what its value names outside the config: a program, a file, a model.
    """
    marks: dict[str, Any] = {"changes": changes}
    marks |= {name: True for name, is_set in (("newer", newer), ("per_process", per_process)) if is_set}
    marks |= {} if names is None else {"names": names}
    return Field(**field, json_schema_extra=marks)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class LoraConfig(Section):
    """A low-rank change of a transformer's weights."""

    path: Text = Field(min_length=1, description="a .safetensors file, a folder that has one, or a Hub id")
    scale: Number = Field(default=1.0, description="strength; 0: none")
    component: Literal["transformer", "transformer_2"] = Field(
        default="transformer", description="which transformer, if the checkpoint has two"
    )


class ModelConfig(Section):
    """Which checkpoint, in which precision, on which device."""

    path: Text = setting(
        "nothing",
        names="model",
        default="shapes-wan",
        min_length=1,
        description="the embedded model's name (shapes-wan), a folder in diffusers' format, or a Hub id",
    )
    revision: Text | None = setting(
        "nothing",
        names="model",
        default=None,
        description="branch, tag or commit of a Hub id; null: its default branch",
    )
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
        "frames", default="float32", description="precision of the VAE; diffusers recommends float32"
    )
    attention_backend: Text | None = setting(
        "latents",
        names="backend",
        default=None,
        description="one of diffusers' attention backends (native, flash, sage, ...); null: diffusers' default",
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
    max_sequence_length: Whole = setting(
        "latents",
        default=512,
        ge=1,
        le=MAX_TOKENS,
        description="text tokens, padding included; Wan attends to padding, so this changes its videos",
    )


class CfgZeroStarConfig(Section):
    """CFG-Zero*, with the names and defaults of diffusers' ClassifierFreeZeroStarGuidance."""

    zero_init_steps: Index = setting("latents", default=1, description="steps at the start whose prediction is zero")


class ApgConfig(Section):
    """Adaptive projected guidance, with the names, without their prefix, and the defaults of diffusers' guider."""

    momentum: Number | None = setting(
        "latents", default=None, description="weight of earlier steps' updates; null: none"
    )
    rescale: Number = setting("latents", default=15.0, ge=0, description="largest norm of an update; 0: no limit")
    eta: Number = setting(
        "latents", default=1.0, description="weight of the part of an update that is parallel to cond"
    )


class SlgConfig(Section):
    """Skip layer guidance, with the names, without their prefix, and the defaults of diffusers' guider."""

    scale: Number = setting("latents", default=2.8, ge=0, description="strength; 0: no pass")
    start: Annotated[Number, Field(ge=0, lt=1)] = setting(
        "latents", default=0.01, description="part of the denoising after which it acts; never in the first step"
    )
    stop: Share = setting("latents", default=0.2, description="part of the denoising up to which it acts")
    layers: Annotated[tuple[Index, ...], BeforeValidator(read_list)] = setting(
        "latents", default=(), description="indices of the blocks that its pass drops; required if method is slg"
    )

    @model_validator(mode="after")
    def _ordered(self) -> SlgConfig:
        if self.start > self.stop:
            raise ValueError(f"expected start <= stop, got start {self.start:g} and stop {self.stop:g}: swap the two")
        return self


class GuidanceConfig(Section):
    """Classifier-free guidance and S²-Guidance; the symbols are those of the paper (arXiv 2508.12880)."""

    method: Literal["s2", "cfg_zero_star", "apg", "slg"] = setting(
        "latents",
        default="s2",
        description="s2: CFG and S²; or, for comparison, diffusers' cfg_zero_star, apg, or slg (STG too)",
    )
    cfg_scale: Number = setting(
        "latents", default=5.0, ge=0, description="λ, strength of classifier-free guidance; 1: no uncond pass"
    )
    cfg_scale_2: Number | None = setting(
        "latents",
        default=None,
        ge=0,
        description="λ of the second transformer, if there are two (Wan 2.2 A14B); null: as cfg_scale",
    )
    embedded_scale: Number = setting(
        "latents",
        default=6.0,
        ge=1,
        description="strength of the guidance that guidance-distilled models (HunyuanVideo) take as an input; other "
        "models ignore it. Such a model needs no uncond pass: set cfg_scale to 1",
    )
    s2_scale: Number = setting(
        "latents", default=0.25, ge=0, description="ω, strength of S²-Guidance; 0: plain CFG, no sub pass"
    )
    form: Literal["deviation", "original"] = setting(
        "latents",
        default="deviation",
        description="deviation: CFG − ω(sub − cond), Eq. 4; original: CFG − ω·sub, of older preprints",
    )
    rescale: Share = setting(
        "latents",
        default=0.0,
        description="share of the prediction that is rescaled to cond's standard deviation, as in diffusers",
    )
    drop_ratio: Share = setting("latents", default=0.1, description="share of the blocks that the sub pass drops")
    drop_count: Index | None = setting(
        "latents", default=None, description="number of dropped blocks; overrides drop_ratio"
    )
    never_drop: Annotated[tuple[Index, ...], BeforeValidator(read_list)] = setting(
        "latents", default=(0,), description="indices of blocks that are never dropped"
    )
    band: Annotated[tuple[Index, Index], BeforeValidator(read_list)] | None = setting(
        "latents",
        default=None,
        description="first and last block index that can be dropped, both included; null: all blocks",
    )
    window: Annotated[tuple[Share, Share], BeforeValidator(read_list)] = setting(
        "latents",
        default=(0.1, 0.9),
        description="part of the denoising in which S² acts; step i of n is at (i + 1/2) / n",
    )
    num_draws: Whole = setting(
        "latents",
        default=1,
        ge=1,
        le=MAX_DRAWS,
        description="N, masks drawn in a step (Eq. 3); each costs one sub pass",
    )
    mask_seed: Whole | None = setting(
        "latents", default=None, ge=0, lt=2**63, description="seed of the masks; null: the video's own seed"
    )
    share_prefix: Switch = setting(
        "rounding", default=True, description="take cond's activations up to the first dropped block"
    )
    batch_branches: Switch = setting(
        "rounding", default=False, description="run the branches as one batch; changes the last bits"
    )
    cfg_zero_star: CfgZeroStarConfig = setting(
        "latents", default=CfgZeroStarConfig(), description="if method is cfg_zero_star"
    )
    apg: ApgConfig = setting("latents", default=ApgConfig(), description="if method is apg")
    slg: SlgConfig = setting("latents", default=SlgConfig(), description="if method is slg")

    @field_validator("band", "window")
    @classmethod
    def _ordered(cls, pair: tuple[float, float] | None) -> tuple[float, float] | None:
        if pair is not None and pair[0] > pair[1]:
            raise ValueError(f"expected [first, last] in ascending order, got {list(pair)}: swap the two")
        return pair

    @model_validator(mode="after")
    def _of_one_method(self) -> GuidanceConfig:
        if self.method == "s2":
            return self
        default = GuidanceConfig.model_fields["s2_scale"].default
        if self.s2_scale not in (0, default) or self.form != "deviation":
            raise ValueError(
                f"expected the default s2_scale and form, because method is {self.method}, got s2_scale "
                f"{self.s2_scale:g} and form {self.form}: S² is not combined with other guidance methods; remove them, "
                "or set method to s2"
            )
        if self.method == "cfg_zero_star" and self.cfg_zero_star.zero_init_steps and self.rescale:
            raise ValueError(
                f"expected rescale 0, got {self.rescale:g}: the steps that cfg_zero_star.zero_init_steps makes zero "
                "have no standard deviation to rescale; set one of the two to 0"
            )
        if self.method == "slg" and not self.slg.layers:
            raise ValueError("expected slg.layers to name the blocks that its pass leaves out, got none")
        return self

    @property
    def uses_s2(self) -> bool:
        """Whether any step can have sub predictions of S²."""
        return self.method == "s2" and self.s2_scale > 0

    @property
    def cfg_scales(self) -> tuple[float, float]:
        """λ of the first transformer, and of the second one, if there is one."""
        return self.cfg_scale, self.cfg_scale if self.cfg_scale_2 is None else self.cfg_scale_2

    def mask_spec(self) -> MaskSpec:
        """Return the part of these settings that decides which blocks a draw drops."""
        from ..guidance.masks import MaskSpec  # here, so that bad input is answered before numpy is imported

        return MaskSpec(
            drop_ratio=self.drop_ratio,
            drop_count=self.drop_count,
            never_drop=self.never_drop,
            band=self.band,
            window=self.window,
            num_draws=self.num_draws,
        )

    def mask_schedule(self, *, num_blocks: int, seed: int, num_steps: int) -> MaskSchedule:
        """Return the masks of S² that a job with these settings draws; none if it has no S²."""
        from ..guidance.masks import MaskSchedule

        spec = self.mask_spec() if self.uses_s2 else None
        return MaskSchedule(spec, num_blocks=num_blocks, seed=seed, num_steps=num_steps)


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


class OutputConfig(Section):
    """The file that is written."""

    path: Text = setting(
        "nothing",
        names="target",
        default="out.mp4",
        min_length=1,
        description="path of the video; its sidecar X.json is next to it. A sequence X.png or X.exr is a folder X",
    )
    codec: Literal[Codec, "auto"] = setting(
        "frames",
        default="auto",
        description="h264, h265 (.mp4), prores, dnxhr (.mov), png, exr; auto: by the path, h264, prores, png or exr",
    )
    fps: Rate = setting(
        "frames",
        default=Fraction(16),
        description='frames per second: a number, or a ratio as text ("24000/1001"); '
        "23.976, 29.97 and 59.94 mean 24000/1001, 30000/1001 and 60000/1001",
    )
    crf: Whole = setting(
        "frames",
        default=18,
        ge=0,
        le=51,
        description="quality of H.264 and H.265: 0 best (H.264: lossless), 18 visually clean, 51 worst",
    )
    timecode: Text | None = setting(
        "frames",
        default=None,
        description='timecode of the first frame, as text ("01:00:00:00"); null: none. PNG cannot hold one',
    )
    audio: Text | None = setting(
        "frames",
        names="sound",
        default=None,
        description="a file with sound, which is cut or padded with silence to the length of the video; null: no sound",
    )
    start_number: Whole = setting(
        "frames",
        default=1001,
        ge=0,
        le=MAX_START_NUMBER,
        description="number of the first file of a PNG or EXR sequence",
    )
    ffmpeg: Text | None = setting(
        "nothing",
        names="program",
        default=None,
        min_length=1,
        description="path of the ffmpeg to use; null: that of imageio-ffmpeg",
    )
    keep_latents: Switch = setting("nothing", default=False, description="keep X.latents.safetensors next to the video")

    def spec(self, path: Path) -> VideoSpec:
        """Return how a video called `path` is written. Raises InputError if settings do not fit it or each other."""
        return VideoSpec(
            self.fps,
            self.crf,
            codec_for(path, self.codec),
            self.timecode,
            None if self.audio is None else user_path(self.audio, "output.audio"),
            self.start_number,
            None if self.ffmpeg is None else user_path(self.ffmpeg, "output.ffmpeg"),
        )
