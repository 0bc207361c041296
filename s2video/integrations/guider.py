"""S²-Guidance as a diffusers guider, for modular pipelines and for pipelines with a `guider`.

A guider lists the predictions of a step, is called before and after each of them, and combines them. For a sub
prediction, it modifies the transformer for exactly one call; the transformer is restored even if that call fails.
"""

import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from diffusers.configuration_utils import register_to_config
from diffusers.guiders.guider_utils import BaseGuidance, GuiderOutput
from torch import Tensor, nn

from ..config.run import build_config
from ..errors import InputError
from ..guidance.equations import Predictions, combine, needs_uncond, scale_of_push
from ..guidance.masks import step_masks
from ..guidance.reuse import StepPasses
from .blocks import Forks, check_transformer
from .caches import Caches
from .guider_reuse import GuidedVideo, new_video
from .structure import count_blocks

_ARMED = "_s2video_walk"


class S2Guidance(BaseGuidance):
    """D = uncond + λ(cond − uncond) − (ω/N) Σ (sub − cond), Eq. 3 and 4.

    Args:
        guidance_scale: λ ≥ 0; 1 makes no uncond prediction.
        s2_scale: ω ≥ 0; 0 is plain CFG.
        drop_ratio, drop_count, never_drop, band, num_draws, mask_seed: as in `s2video.enable`.
        guidance_rescale: share of the prediction that is rescaled to the standard deviation of cond, 0 … 1.
        start, stop: part of the denoising in which S² is active, 0 … 1. CFG is always active.
        enabled: False returns cond.
        s2_push: sets ω by its effect, as in `s2video.enable`; replaces the default `s2_scale`.
        reuse: predictions that are forecast from earlier steps, as in `s2video.enable`; the pipeline is then not asked
            for them. Needs 16 steps or more, and for forecasts of cond or uncond the attribute `scheduler`.

    Attributes:
        scheduler: that of the pipeline, whose noise levels forecasts of cond and uncond need. It is not saved.

    Raises:
        InputError: if a setting is out of its bounds; in `set_state`, if there are too few steps for reuse, or the
            scheduler is missing or another one; in `prepare_models`, if the model is unknown, compiled as a whole, or
            has an active step cache.
    """

    _input_predictions = ["pred_cond", "pred_uncond", "pred_sub"]  # noqa: RUF012  (the base class requires a list)

    spatio_temporal_guidance_blocks: list[int] | None = None  # LTX-2: those of the other guider's pass
    scheduler: Any = None

    _step: int | None
    _num_inference_steps: int | None

    @register_to_config
    def __init__(
        self,
        guidance_scale: float = 5.0,
        s2_scale: float = 0.25,
        drop_ratio: float = 0.1,
        drop_count: int | None = None,
        never_drop: tuple[int, ...] | list[int] = (0,),
        band: tuple[int, int] | list[int] | None = None,
        num_draws: int = 1,
        mask_seed: int = 0,
        guidance_rescale: float = 0.0,
        start: float = 0.1,
        stop: float = 0.9,
        enabled: bool = True,
        s2_push: float | None = None,
        reuse: str | Mapping[str, Any] = "exact",
    ) -> None:
        super().__init__(start, stop, enabled)
        settings = {
            "cfg_scale": guidance_scale,
            "s2_scale": s2_scale,
            "drop_ratio": drop_ratio,
            "drop_count": drop_count,
            "never_drop": list(never_drop),
            "band": band,
            "num_draws": num_draws,
            "mask_seed": mask_seed,
            "rescale": guidance_rescale,
            "window": (start, stop),
            "s2_push": s2_push,
            "reuse": dict(reuse) if isinstance(reuse, Mapping) else reuse,
        }
        self._guidance = build_config({"guidance": settings}, "S2Guidance").guidance
        self._spec = self._guidance.mask_spec()
        self._masks: tuple[tuple[int, ...], ...] = ()
        self._forks: Forks | None = None
        self._video: GuidedVideo | None = None  # of reuse
        if (warning := self._guidance.reuse_warning()) is not None:
            warnings.warn(f"S2Guidance: {warning}", stacklevel=3)

    def new(self, **settings: Any) -> "S2Guidance":
        """Return a guider with the same settings, of which some can be changed, and the same scheduler."""
        # diffusers takes what was not given by name for defaults, and leaves it out
        own = {name: value for name, value in self.config.items() if name != "_use_default_values"}
        made: S2Guidance = self.from_config(own, **settings)
        made.scheduler = self.scheduler
        return made

    def set_state(self, step: int, num_inference_steps: int, timestep: Any) -> None:
        """Go to a step. Pipelines call it before they ask for the step's predictions."""
        super().set_state(step, num_inference_steps, timestep)
        if not self._enabled or self._guidance.reuse.spec().is_exact:
            return
        if self._video is None or not self._video.is_followed_by(step, num_inference_steps):
            self._video = new_video(
                self._guidance, self.scheduler, step=step, num_steps=num_inference_steps, timestep=timestep
            )
        self._video.advance(step)

    def active_predictions(self) -> list[str]:
        """Return the names of this step's predictions. LTX-2's pipelines ask for them."""
        return self._names()

    def _names(self) -> list[str]:
        """Return the names of this step's predictions, in the order in which they are made."""
        if not self._enabled:
            return ["pred_cond"]
        passes = self._passes()
        return [
            *(["pred_cond"] if passes.cond == "computed" else []),
            *(["pred_uncond"] if passes.uncond == "computed" else []),
            *(f"pred_sub_{draw}" for draw in range(self._spec.num_draws if passes.sub == "computed" else 0)),
        ]

    def _passes(self) -> StepPasses:
        """Return what this step computes; before the first step, all that any step can compute."""
        step, num_steps = self._step, self._num_inference_steps
        if step is not None and self._video is not None:
            return self._video.passes
        active = step is None or num_steps is None or self._spec.active(step, num_steps)
        return StepPasses(
            uncond="computed" if needs_uncond(self._guidance.cfg_scale) else "none",
            sub="computed" if active and self._guidance.uses_s2 else "none",
        )

    def prepare_inputs(self, data: Any) -> list[Any]:
        return [self._prepare_batch(data, int(name == "pred_uncond"), name) for name in self._names()]

    def prepare_inputs_from_block_state(self, data: Any, input_fields: Any) -> list[Any]:
        return [
            self._prepare_batch_from_block_state(input_fields, data, int(name == "pred_uncond"), name)
            for name in self._names()
        ]

    def prepare_models(self, denoiser: nn.Module) -> None:
        """Prepare the model for one prediction. Called before each prediction of the step, in the order of `_names`."""
        super().prepare_models(denoiser)
        names = self._names()
        if self._count_prepared > len(names):
            return  # a pass of another guider of the pipeline, such as LTX-2's guider for sound
        name = names[self._count_prepared - 1]
        subs = [other for other in names if other.startswith("pred_sub")]
        if name == "pred_cond" and subs:
            check_transformer(denoiser, self._spec)
            if cache := Caches(denoiser):
                raise InputError(
                    f"S2Guidance: expected no step cache, got {cache.name}, because a guider does not make the calls "
                    "of the model; call disable_cache() on it, or use s2video.enable in a standard pipeline"
                )
            self._masks = step_masks(
                self._spec,
                num_blocks=count_blocks(denoiser),
                seed=self._guidance.mask_seed or 0,
                step=self._step or 0,
                num_steps=self._num_inference_steps or 1,
            )
            if any(self._masks):
                self._forks = Forks(denoiser, self._masks)
                _arm(denoiser, self._forks.recording())
        elif name in subs and any(self._masks):
            assert self._forks is not None
            _arm(denoiser, self._forks.replaying(self._masks[subs.index(name)]))

    def cleanup_models(self, denoiser: nn.Module) -> None:
        """Restore the model. Called after each prediction."""
        _disarm(denoiser)
        if self._forks is None:
            return
        if self._count_prepared == 1:
            self._forks.require_recorded()
        if self._count_prepared == self.num_conditions:
            forks, self._forks = self._forks, None  # the states are large
            forks.require_used()

    def forward(
        self, pred_cond: Tensor | None = None, pred_uncond: Tensor | None = None, **subs: Tensor
    ) -> GuiderOutput:
        """Combine the step's predictions, all of one shape, to the guided one, in float32. The others are forecast."""
        self._step = None  # pipelines read `num_conditions` before the first step of the next video
        if not self._enabled:
            return GuiderOutput(pred=pred_cond, pred_cond=pred_cond, pred_uncond=None)
        predictions = self._completed(pred_cond, pred_uncond, tuple(subs.values()))
        push, scale = self._guidance.s2_push, self._guidance.s2_scale
        pred = combine(
            predictions,
            cfg_scale=self._guidance.cfg_scale,
            s2_scale=scale if push is None or not predictions.subs else scale_of_push(predictions, push),
            rescale=self._guidance.rescale,
        )
        return GuiderOutput(pred=pred, pred_cond=predictions.cond, pred_uncond=predictions.uncond)

    def _completed(self, cond: Tensor | None, uncond: Tensor | None, subs: tuple[Tensor, ...]) -> Predictions:
        """Return the step's predictions, with those that the pipeline was not asked for."""
        computed = None if cond is None else Predictions(cond, uncond, subs)
        video = self._video
        if video is None:
            assert computed is not None
            return computed
        predictions = video.complete(computed)
        if video.is_last:
            self._video = None  # the predictions are large
        return predictions

    @property
    def is_conditional(self) -> bool:
        names = self._names()
        return not names or names[max(self._count_prepared, 1) - 1] != "pred_uncond"

    @property
    def num_conditions(self) -> int:
        return len(self._names())


def _arm(denoiser: nn.Module, walk: AbstractContextManager[None]) -> None:
    """Run the next call of the denoiser, and only that call, within `walk`."""
    denoiser.__dict__[_ARMED] = walk
    denoiser.__class__ = _armed_class(type(denoiser))


def _armed_class(base: type) -> type:
    class Armed(base):
        def __call__(self, *arguments: Any, **keywords: Any) -> Any:
            walk = self.__dict__[_ARMED]
            _disarm(self)
            with walk:
                return self(*arguments, **keywords)

    Armed.__name__, Armed.__qualname__, Armed.__module__ = base.__name__, base.__qualname__, base.__module__
    return Armed


def _disarm(denoiser: nn.Module) -> None:
    if denoiser.__dict__.pop(_ARMED, None) is not None:
        denoiser.__class__ = type(denoiser).__bases__[0]
