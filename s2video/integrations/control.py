"""What happens at each call that an enabled pipeline makes of its transformer, and at each step of its scheduler.

State of one video: the plan of its steps, and the predictions that forecasts start from. Knows no pipeline by name.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor

from ..config.guidance import GuidanceConfig
from ..errors import InputError
from ..guidance.equations import Predictions, mean_deviation, scale_of_push
from ..guidance.forecasts import Forecasts
from ..guidance.masks import MaskSchedule, MaskSpec
from ..guidance.reuse import LEAST_STEPS, StepPasses
from ..models.noise_levels import noise_levels
from .blocks import Forks, check_transformer, count_blocks
from .guider import S2Guidance


@dataclass(frozen=True)
class PipelineKind:
    """How a pipeline class calls its transformers.

    Attributes:
        cond_context: name that the pipeline passes to `cache_context` for its conditional call; None if one call
            computes both halves, uncond first.
        transformers: attributes of the pipeline that hold a transformer.
    """

    cond_context: str | None = "cond"
    transformers: tuple[str, ...] = ("transformer",)

    @property
    def uncond_context(self) -> str | None:
        """The name that the pipeline passes for its unconditional call, which follows the other."""
        return None if self.cond_context is None else self.cond_context.replace("cond", "uncond")


def check(pipe: Any, transformer: Any, spec: MaskSpec) -> None:
    check_transformer(transformer, spec)
    if isinstance(getattr(pipe, "guider", None), S2Guidance):
        raise InputError("pipe: expected a pipeline without S²-Guidance, got the guider S2Guidance; use one of the two")


@dataclass
class Control:
    """The settings of one enabled pipeline, and its state from call to call."""

    pipe: Any
    family: PipelineKind
    guidance: GuidanceConfig
    context: str | None = None
    pushed: Tensor | None = None  # ω(sub − cond) of this step, mean over the draws, float32
    _video: "_Video | None" = None
    _schedulers: list[Any] = field(default_factory=list)

    def call(self, transformer: Any, forward: Callable[..., Any], arguments: Any, keywords: dict[str, Any]) -> Any:
        """Run the pipeline's call and, with a conditional one, the sub predictions; or answer it with a forecast."""
        is_cond = self.context == self.family.cond_context
        is_uncond = self.context is not None and self.context == self.family.uncond_context
        if not (is_cond or is_uncond) or keywords.get("skip_layers") is not None or self._is_idle:
            return forward(*arguments, **keywords)
        if is_uncond:
            return self._uncond(forward, arguments, keywords)
        return self._cond(transformer, forward, arguments, keywords)

    def _cond(self, transformer: Any, forward: Callable[..., Any], arguments: Any, keywords: dict[str, Any]) -> Any:
        """Run the conditional call and the sub predictions, or answer it."""
        self.pushed = None  # an interrupted step may have left one
        video = self._at_this_step(transformer)
        passes = video.passes
        output = computed = None
        if passes.cond == "computed":
            masks = video.masks.step(video.step) if passes.sub == "computed" else ()
            output, computed = self._computed(transformer, forward, arguments, keywords, masks)
        predictions = video.forecasts.complete(passes._replace(uncond="none"), video.level, computed)
        video.cond = predictions.cond if self.guidance.reuse.spec().uncond_every > 1 else None
        if predictions.subs:
            self.pushed = self._push(predictions)
        return output if output is not None else _answer(predictions.cond, arguments, keywords)

    @property
    def _is_idle(self) -> bool:
        return not self.guidance.uses_s2 and self.guidance.reuse.spec().is_exact

    def _computed(
        self,
        transformer: Any,
        forward: Callable[..., Any],
        arguments: Any,
        keywords: dict[str, Any],
        masks: Sequence[Sequence[int]],
    ) -> tuple[Any, Predictions]:
        """Return the output of the conditional call, and its prediction with a sub prediction for each mask."""
        if not any(masks):
            output = forward(*arguments, **keywords)
            return output, Predictions(self._cond_half(_sample(output)))
        check(self.pipe, transformer, self.guidance.mask_spec())
        forks = Forks(transformer, masks)
        with forks.recording():
            output = forward(*arguments, **keywords)
        forks.require_recorded()
        subs = []
        for mask in masks:
            with forks.replaying(mask):
                subs.append(self._cond_half(_sample(forward(*arguments, **keywords))))
        forks.require_used()
        return output, Predictions(self._cond_half(_sample(output)), None, tuple(subs))

    def _uncond(self, forward: Callable[..., Any], arguments: Any, keywords: dict[str, Any]) -> Any:
        """Run or answer the call for uncond, which follows the one for cond."""
        video = self._video
        if video is None or video.cond is None:
            return forward(*arguments, **keywords)
        if video.passes.uncond == "forecast":
            return _answer(video.forecasts.uncond(video.level, video.cond), arguments, keywords)
        output = forward(*arguments, **keywords)
        video.forecasts.keep(video.level, Predictions(video.cond, _sample(output)))
        return output

    def _push(self, predictions: Predictions) -> Tensor:
        """Return ω(sub − cond)."""
        deviation, push = mean_deviation(predictions), self.guidance.s2_push
        if push is None:
            return self.guidance.s2_scale * deviation
        return scale_of_push(predictions, push).view(-1, *(1,) * (deviation.ndim - 1)) * deviation

    def _at_this_step(self, transformer: Any) -> "_Video":
        """Return the video that the pipeline is making, at the scheduler's step."""
        scheduler = self.pipe.scheduler
        self._follow(scheduler)
        step = scheduler.step_index
        if step is None:  # before the first step
            step = scheduler.begin_index or 0
        video = self._video
        if video is None or step <= video.step or video.masks.num_steps != len(scheduler.timesteps):
            video = self._video = self._new_video(scheduler, count_blocks(transformer))
        video.advance(step)
        return video

    def _new_video(self, scheduler: Any, num_blocks: int) -> "_Video":
        num_steps = len(scheduler.timesteps)
        if not self.guidance.reuse.spec().is_exact and num_steps < LEAST_STEPS:
            raise InputError(
                f"enable: reuse: expected at least {LEAST_STEPS} steps, got {num_steps}: with so few, predictions "
                "change too much from step to step to be forecast; use more steps, or reuse exact"
            )
        masks = self.guidance.mask_schedule(
            num_blocks=num_blocks,
            seed=self.guidance.mask_seed or 0,
            num_steps=num_steps,
            levels=noise_levels(scheduler),
            restart=self._second_from(scheduler),
        )
        return _Video(masks, masks.passes([True] * num_steps), Forecasts(masks.reuse))

    def _second_from(self, scheduler: Any) -> int | None:
        """Return the first step of the pipeline's second transformer; None if it has none."""
        boundary = getattr(self.pipe.config, "boundary_ratio", None)
        if boundary is None:
            return None
        boundary *= scheduler.config.num_train_timesteps
        return next((step for step, timestep in enumerate(scheduler.timesteps) if timestep < boundary), None)

    def _cond_half(self, prediction: Tensor) -> Tensor:
        if self.family.cond_context is None and self.pipe.do_classifier_free_guidance:
            return prediction.chunk(2)[1]
        return prediction

    def _follow(self, scheduler: Any) -> None:
        """Make a scheduler's `step` subtract what S² adds. Called at each step, because users can replace it."""
        if any(known is scheduler for known in self._schedulers):
            return
        self.release()
        step = scheduler.step

        def guided_step(model_output: Tensor, *arguments: Any, **keywords: Any) -> Any:
            if self.pushed is not None:
                guided = model_output.float() - self.pushed
                model_output, self.pushed = guided.to(model_output.dtype), None
            return step(model_output, *arguments, **keywords)

        scheduler.__dict__["step"] = guided_step
        self._schedulers.append(scheduler)

    def release(self) -> None:
        """Restore the schedulers' own `step`."""
        for scheduler in self._schedulers:
            scheduler.__dict__.pop("step", None)
        self._schedulers.clear()
        self.pushed = self._video = None


@dataclass
class _Video:
    """What is known from the steps of the video that the pipeline makes.

    Attributes:
        step: of the last conditional call.
        passes: what this step computes and forecasts.
        cond: the prediction of this step, if the forecast of uncond needs it.
    """

    masks: MaskSchedule
    plan: tuple[StepPasses, ...]
    forecasts: Forecasts
    step: int = -1
    passes: StepPasses = field(default_factory=StepPasses)
    cond: Tensor | None = None

    def advance(self, step: int) -> None:
        if self.step < (self.masks.restart or 0) <= step:
            self.forecasts.clear()
        self.step, self.passes = step, self.plan[step]
        if not self.forecasts.can_complete(self.passes):  # a run that does not begin with the first step
            self.passes = StepPasses(sub="none" if self.passes.sub == "none" else "computed")

    @property
    def level(self) -> float:
        return self.masks.levels[self.step]


def _answer(prediction: Tensor, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
    """Return a forecast as the transformer would, in the dtype of its input."""
    latents = keywords["hidden_states"] if "hidden_states" in keywords else arguments[0]
    prediction = prediction.to(latents.dtype)
    return Transformer2DModelOutput(sample=prediction) if keywords.get("return_dict", True) else (prediction,)


def _sample(output: Any) -> Tensor:
    sample: Tensor = output[0] if isinstance(output, tuple) else output.sample
    return sample
