"""What happens at each call that an enabled pipeline makes of its transformer, and at each step of its scheduler.

State of one video: the plan of its steps, and the predictions that forecasts start from. Knows no pipeline by name.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..config.guidance import GuidanceConfig
from ..errors import InputError
from ..guidance.equations import Predictions, mean_deviation, scale_of_push
from ..guidance.forecasts import Forecasts
from ..guidance.masks import MaskSchedule
from ..guidance.reuse import LEAST_STEPS, StepPasses
from ..models.noise_levels import noise_levels
from .blocks import Forks, check_transformer
from .caches import Caches
from .embeddings import PromptEmbeddings, Rows, refuse_same, refuse_unknown
from .guider import S2Guidance
from .kinds import PipelineKind
from .outputs import prediction, with_prediction
from .structure import count_blocks

# Names that pipelines and guiders give to their calls, with `cache_context`.
_COND, _UNCOND, _BOTH = ("cond", "pred_cond"), ("uncond", "pred_uncond"), "cond_uncond"


def check(pipe: Any, guidance: GuidanceConfig, transformer: Any) -> None:
    """Raise InputError for a transformer that cannot be guided as set."""
    check_transformer(transformer, guidance.mask_spec())
    Caches(transformer).check(reuses=guidance.reuse.spec().uncond_every > 1)
    if isinstance(getattr(pipe, "guider", None), S2Guidance):
        raise InputError("pipe: expected a pipeline without S²-Guidance, got the guider S2Guidance; use one of the two")


@dataclass
class Control:
    """The settings of one enabled pipeline, and its state from call to call."""

    pipe: Any
    kind: PipelineKind
    guidance: GuidanceConfig
    context: str | None = None
    caches: dict[Any, Caches] = field(default_factory=dict)  # of each transformer, during a call of the pipeline
    pushed: Tensor | None = None  # ω(sub − cond) of this step, mean over the draws, float32
    _embeddings: PromptEmbeddings | None = None
    _has_cond: bool = False  # a call of this step was cond, found by its embeddings
    _row: Any = None  # the timesteps of this step, in diffusion forcing
    _video: "_Video | None" = None
    _cfg_scale: Any = None  # of this call, until the warning about it
    _schedulers: list[Any] = field(default_factory=list)

    def begin(self, arguments: Mapping[str, Any], cfg_scale: Any) -> None:
        """Start a call of the pipeline, with these arguments; its λ is read for a warning alone."""
        self._embeddings = PromptEmbeddings(arguments)
        self._cfg_scale = cfg_scale

    def encoded(self, encode: Callable[..., Any], returned: Any, arguments: Any, keywords: Any) -> None:
        """Note what the pipeline's `encode_prompt` returned."""
        if self._embeddings is not None:  # the user can call it, too
            self._embeddings.encoded(encode, returned, arguments, keywords)

    def call(self, transformer: Any, forward: Callable[..., Any], arguments: Any, keywords: dict[str, Any]) -> Any:
        """Run the pipeline's call and, with a conditional one, the sub predictions; or answer it with a forecast."""
        if keywords.get("skip_layers") is not None or self._is_idle:
            return forward(*arguments, **keywords)
        rows = self._rows(arguments, keywords)
        if any(rows):
            output = self._cond(transformer, forward, arguments, keywords, rows)
        elif self.context is None or self.context in _UNCOND:
            output = self._uncond(forward, arguments, keywords)
        else:
            output = forward(*arguments, **keywords)
        return self._moved(output) if self.kind.place == "calls" and self.pushed is not None else output

    def _rows(self, arguments: Any, keywords: dict[str, Any]) -> Rows:
        """Return which chunks of a call's batch are cond. Raises InputError if that is unknown."""
        if self.kind.all_cond or self.context in _COND:
            return (True,)
        if self.context not in (None, _BOTH):
            return (False,)
        rows = self._embeddings and self._embeddings.rows(arguments, keywords)
        if self.context == _BOTH and not (rows and any(rows)):
            # uncond comes first in all pipelines; some change the embeddings before the call
            return (False, True) if self.pipe.do_classifier_free_guidance else (True,)
        if not rows:
            return refuse_unknown(type(self.pipe).__name__)
        if sum(rows) + (self._has_cond and self.context is None) > 1 and any(rows):
            refuse_same()
        return rows

    def _cond(
        self, transformer: Any, forward: Callable[..., Any], arguments: Any, keywords: dict[str, Any], rows: Rows
    ) -> Any:
        """Run the conditional call and the sub predictions, or answer it."""
        self.pushed = None  # an interrupted step may have left one
        video = self._at_this_step(transformer)
        self._has_cond = self.context is None and not self.kind.all_cond
        passes = video.passes
        output = computed = None
        if passes.cond == "computed":
            masks = video.masks.step(video.step) if passes.sub == "computed" else ()
            output, computed = self._computed(transformer, _Call(forward, arguments, keywords, rows), masks)
            video.answer = output
        predictions = video.forecasts.complete(passes._replace(uncond="none"), video.level, computed)
        video.cond = predictions.cond if self.guidance.reuse.spec().uncond_every > 1 else None
        if predictions.subs:
            self.pushed = self._push(predictions)
        return output if output is not None else with_prediction(video.answer, predictions.cond)

    @property
    def _is_idle(self) -> bool:
        return not self.guidance.uses_s2 and self.guidance.reuse.spec().is_exact

    def _computed(self, transformer: Any, call: "_Call", masks: Sequence[Sequence[int]]) -> tuple[Any, Predictions]:
        """Return the output of the conditional call, and its prediction with a sub prediction for each mask."""
        if not any(masks):
            output = call.run()
            return output, Predictions(call.cond(output))
        check(self.pipe, self.guidance, transformer)
        cache = self.caches[transformer]
        forks = Forks(transformer, masks)
        with forks.recording():
            output = call.run()
        forks.require_recorded()
        subs = []
        for mask in masks:
            with forks.replaying(mask, whole=bool(cache)), cache.off():
                subs.append(call.cond(call.run()))
        forks.require_used()
        return output, Predictions(call.cond(output), None, tuple(subs))

    def _uncond(self, forward: Callable[..., Any], arguments: Any, keywords: dict[str, Any]) -> Any:
        """Run or answer the call for uncond, which follows the one for cond."""
        video = self._video
        if video is None or video.cond is None:
            return forward(*arguments, **keywords)
        if video.passes.uncond == "forecast":
            self._warn()
            return with_prediction(video.answer, video.forecasts.uncond(video.level, video.cond))
        output = forward(*arguments, **keywords)
        video.forecasts.keep(video.level, Predictions(video.cond, prediction(output)))
        return output

    def _warn(self) -> None:
        """Say once in a call that its λ multiplies the errors of forecasts."""
        scale, self._cfg_scale = self._cfg_scale, None
        if isinstance(scale, (int, float)):
            warning = self.guidance.model_copy(update={"cfg_scale": scale}).reuse_warning()
            if warning is not None:
                warnings.warn(f"enable: {warning}", stacklevel=2)

    def _moved(self, output: Any) -> Any:
        """Return an output whose predictions are less by what S² adds."""
        assert self.pushed is not None
        own = prediction(output)
        if own.shape[1:] != self.pushed.shape[1:] or len(own) % len(self.pushed):
            self._refuse_shape(own, self.pushed)
        pushed = self.pushed.repeat(len(own) // len(self.pushed), *(1,) * (own.ndim - 1))
        return with_prediction(output, own.float() - pushed)

    def _refuse_shape(self, got: Tensor, expected: Tensor) -> None:
        raise InputError(
            f"S²-Guidance: expected {type(self.pipe).__name__} to guide predictions of shape {tuple(expected.shape)}, "
            f"got {tuple(got.shape)}; call s2video.disable(pipe) for this use"
        )

    def _push(self, predictions: Predictions) -> Tensor:
        """Return ω(sub − cond)."""
        deviation, push = mean_deviation(predictions), self.guidance.s2_push
        if push is None:
            return self.guidance.s2_scale * deviation
        return scale_of_push(predictions, push).view(-1, *(1,) * (deviation.ndim - 1)) * deviation

    def _at_this_step(self, transformer: Any) -> "_Video":
        """Return the video that the pipeline is making, at its step."""
        step, num_steps = self._row_step() if self.kind.steps == "row" else self._scheduler_step()
        video = self._video
        if video is None or step <= video.step or video.masks.num_steps != num_steps:
            video = self._video = self._new_video(num_steps, count_blocks(transformer))
        video.advance(step)
        return video

    def _scheduler_step(self) -> tuple[int, int]:
        """Return the scheduler's step, and the number of its steps."""
        scheduler = self.pipe.scheduler
        self._follow(scheduler)
        if not hasattr(scheduler, "step_index"):
            now = self.pipe._current_timestep
            return int((scheduler.timesteps == now).nonzero()[0]), len(scheduler.timesteps)
        step = scheduler.step_index
        if step is None:  # before the first step
            step = scheduler.begin_index or 0
        return step, len(scheduler.timesteps)

    def _row_step(self) -> tuple[int, int]:
        """Return the step by its row of timesteps, which never rise within a video, and the number of rows."""
        row, last = self.pipe._current_timestep, self._row
        is_first = last is None or row.shape != last.shape or bool((row > last).any())
        step = 0 if is_first or self._video is None else self._video.step + (row is not last)
        self._row = row
        return step, self.pipe.num_timesteps

    def _new_video(self, num_steps: int, num_blocks: int) -> "_Video":
        scheduler, is_exact = self.pipe.scheduler, self.guidance.reuse.spec().is_exact
        has_levels = num_steps == len(scheduler.timesteps)
        if not has_levels and not (is_exact and self.guidance.window_in == "steps"):
            raise InputError(
                "enable: expected window_in steps and reuse exact for frames that are denoised one after the other, "
                f"got {self.guidance.window_in} and {self.guidance.reuse.preset}; use these, or ar_step=0"
            )
        if not is_exact and num_steps < LEAST_STEPS:
            raise InputError(
                f"enable: reuse: expected at least {LEAST_STEPS} steps, got {num_steps}: with so few, predictions "
                "change too much from step to step to be forecast; use more steps, or reuse exact"
            )
        masks = self.guidance.mask_schedule(
            num_blocks=num_blocks,
            seed=self.guidance.mask_seed or 0,
            num_steps=num_steps,
            levels=noise_levels(scheduler) if has_levels else (),
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

    def _follow(self, scheduler: Any) -> None:
        """Make a scheduler's `step` subtract what S² adds. Called at each step, because users can replace it."""
        if any(known is scheduler for known in self._schedulers):
            return
        self.release()
        step = scheduler.step

        def guided_step(model_output: Tensor, *arguments: Any, **keywords: Any) -> Any:
            if self.pushed is not None and self.kind.place == "step":
                if model_output.shape != self.pushed.shape:
                    self._refuse_shape(model_output, self.pushed)
                model_output = (model_output.float() - self.pushed).to(model_output.dtype)
            self.pushed, self._has_cond = None, False
            return step(model_output, *arguments, **keywords)

        scheduler.__dict__["step"] = guided_step
        self._schedulers.append(scheduler)

    def release(self) -> None:
        """Restore the schedulers' own `step`."""
        for scheduler in self._schedulers:
            scheduler.__dict__.pop("step", None)
        self._schedulers.clear()
        self.pushed = self._video = self._row = None
        self._has_cond = False

    def end(self) -> None:
        """End a call of the pipeline."""
        self.release()
        self.caches.clear()
        self._embeddings = None


@dataclass(frozen=True)
class _Call:
    """A call of the transformer that has cond in its batch."""

    forward: Callable[..., Any]
    arguments: Any
    keywords: dict[str, Any]
    rows: Rows

    def run(self) -> Any:
        return self.forward(*self.arguments, **self.keywords)

    def cond(self, output: Any) -> Tensor:
        """Return the part of an output's prediction that is cond."""
        return prediction(output).chunk(len(self.rows))[self.rows.index(True)]


@dataclass
class _Video:
    """What is known from the steps of the video that the pipeline makes.

    Attributes:
        step: of the last conditional call.
        passes: what this step computes and forecasts.
        cond: the prediction of this step, if the forecast of uncond needs it.
        answer: the last output of a conditional call, whose form forecasts take.
    """

    masks: MaskSchedule
    plan: tuple[StepPasses, ...]
    forecasts: Forecasts
    step: int = -1
    passes: StepPasses = field(default_factory=StepPasses)
    cond: Tensor | None = None
    answer: Any = None

    def advance(self, step: int) -> None:
        if self.step < (self.masks.restart or 0) <= step:
            self.forecasts.clear()
        self.step, self.passes = step, self.plan[step]
        if not self.forecasts.can_complete(self.passes):  # a run that does not begin with the first step
            self.passes = StepPasses(sub="none" if self.passes.sub == "none" else "computed")

    @property
    def level(self) -> float:
        return self.masks.levels[self.step] if self.masks.levels else 0.0
