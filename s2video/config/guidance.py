"""The section `guidance` of a run's configuration: CFG, S²-Guidance, its masks, reuse, and other methods."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from ..guidance.reuse import LARGE_SCALE, MEASURED_AT_5, PRESETS, SAFE_START, Preset, ReuseSpec
from .fields import MAX_DRAWS, Index, Number, Section, Share, Switch, Whole, setting
from .text import read_list

if TYPE_CHECKING:
    from ..guidance.masks import MaskSchedule, MaskSpec


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


class ReuseConfig(Section):
    """Steps that forecast predictions instead of computing them. `reuse: light` is short for `preset: light`."""

    preset: Preset = setting(
        "latents",
        default="exact",
        description="exact: compute all; deviation: sub in every 2nd step up to the middle; light: uncond and sub in "
        "every 2nd step; fast: cond and uncond in every 2nd step, sub as deviation",
    )
    cond_every: Whole | None = setting(
        "latents", default=None, ge=1, description="compute cond in every n-th step after start; null: by the preset"
    )
    uncond_every: Whole | None = setting(
        "latents", default=None, ge=1, description="the same for uncond, at least cond_every; null: by the preset"
    )
    sub_every: Whole | None = setting(
        "latents",
        default=None,
        ge=1,
        description="the same for sub, in the steps in which S² acts, at least cond_every; null: by the preset",
    )
    start: Share | None = setting(
        "latents",
        default=None,
        description="part of the denoising before which cond and uncond are computed in every step; null: 0.2",
    )
    sub_until: Share | None = setting(
        "latents",
        default=None,
        description="part of the denoising after which S² does not act, in steps; null: by the preset",
    )
    order: Literal[0, 1] | None = setting(
        "latents",
        default=None,
        description="0: hold the last prediction; 1: extrapolate the last two; null: 1. sub − cond is always held",
    )

    @model_validator(mode="before")
    @classmethod
    def _the_word_of_a_preset(cls, value: Any) -> Any:
        return {"preset": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _only_together_with_cond(self) -> ReuseConfig:
        spec = self.spec()
        for name, every in (("uncond_every", spec.uncond_every), ("sub_every", spec.sub_every)):
            if every < spec.cond_every:
                raise ValueError(
                    f"expected {name} >= cond_every, {spec.cond_every}, got {every}: it is computed only in steps "
                    f"that compute cond; set {name} too"
                )
        return self

    def spec(self) -> ReuseSpec:
        """Return the preset with the fields that are set."""
        fields = self.model_dump(exclude={"preset"}, exclude_none=True)
        return replace(PRESETS[self.preset], **fields)


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
    s2_push: Number | None = setting(
        "latents",
        newer=True,
        default=None,
        gt=0,
        description="ω by its effect: in each step, ω · |sub − cond| / |cond| has this value; replaces s2_scale, which "
        "means something else on every network. null: s2_scale",
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
    window_in: Literal["steps", "noise"] = setting(
        "latents",
        newer=True,
        default="steps",
        description="what window counts: steps, or noise: a step with noise level σ is at 1 − σ",
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
    reuse: ReuseConfig = setting(
        "latents", newer=True, default=ReuseConfig(), description="forecast predictions instead of computing them"
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
    def _one_strength(self) -> GuidanceConfig:
        default = GuidanceConfig.model_fields["s2_scale"].default
        if self.s2_push is None:
            return self
        if self.s2_scale != default:
            raise ValueError(
                f"expected s2_scale or s2_push, got s2_scale {self.s2_scale:g} and s2_push {self.s2_push:g}: both set "
                "the strength of S²; remove one of them"
            )
        if self.form != "deviation":
            raise ValueError(
                f"expected form deviation, because s2_push sets the length of ω(sub − cond), got {self.form}; remove "
                "one of the two"
            )
        return self

    @model_validator(mode="after")
    def _of_one_method(self) -> GuidanceConfig:
        if self.method == "s2":
            return self
        default = GuidanceConfig.model_fields["s2_scale"].default
        if self.s2_push is not None:
            raise ValueError(
                f"expected s2_push null, because method is {self.method}, got {self.s2_push:g}; remove it, or set "
                "method to s2"
            )
        if self.reuse.preset == "deviation" and self.method != "slg":
            raise ValueError(
                f"expected reuse exact, light or fast, because method {self.method} has no sub pass, got deviation; "
                "choose one of these"
            )
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
        return self.method == "s2" and (self.s2_scale > 0 or self.s2_push is not None)

    @property
    def cfg_scales(self) -> tuple[float, float]:
        """λ of the first transformer, and of the second one, if there is one."""
        return self.cfg_scale, self.cfg_scale if self.cfg_scale_2 is None else self.cfg_scale_2

    def reuse_warning(self) -> str | None:
        """Return the line for a user whose forecasts of cond − uncond are multiplied by a large λ from early on."""
        spec, largest = self.reuse.spec(), max(self.cfg_scales)
        if spec.uncond_every == 1 or largest < LARGE_SCALE or spec.start >= SAFE_START:
            return None
        return (
            f"guidance.reuse {self.reuse.preset} at cfg_scale {largest:g}: {MEASURED_AT_5}; guidance.reuse deviation "
            f"is safer, and so is guidance.reuse.start {SAFE_START:g}"
        )

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
            window_in=self.window_in,
        )

    def mask_schedule(
        self,
        *,
        num_blocks: int,
        seed: int,
        num_steps: int,
        levels: tuple[float, ...] = (),
        restart: int | None = None,
    ) -> MaskSchedule:
        """Return the masks of S² that a job with these settings draws; none if it has no S².

        Args:
            levels: the noise level of each step; without them, the window must be one of steps.
            restart: the first step of the second transformer.
        """
        from ..guidance.masks import MaskSchedule

        return MaskSchedule(
            self.mask_spec() if self.uses_s2 else None,
            num_blocks=num_blocks,
            seed=seed,
            num_steps=num_steps,
            levels=levels,
            reuse=self.reuse.spec(),
            restart=restart,
        )
