"""`enable(pipe)`: S²-Guidance in an unmodified diffusers pipeline.

A pipeline computes CFG in its loop, where it cannot be replaced. But by Eq. 4, D = CFG − ω(sub − cond), so the term
that S² adds does not depend on CFG. When the pipeline calls its transformer for cond, the sub prediction is made too
and sub − cond is stored; when it steps its scheduler, ω(sub − cond) is subtracted. The pipeline's λ is never read, and
λ = 1, embedded guidance and rescaling work as before.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import ModularPipeline
from torch import Tensor

from ..config.run import build_config
from ..errors import InputError
from ..guidance.masks import MaskSpec, step_masks
from ..models.registry import FAMILIES
from .blocks import Forks, check_transformer, count_blocks
from .guider import S2Guidance

_ATTRIBUTE = "_s2video"


@dataclass(frozen=True)
class _Pipeline:
    """How a pipeline class calls its transformers.

    Attributes:
        cond_context: name that the pipeline passes to `cache_context` for its conditional call; None if one call
            computes both halves, uncond first.
        transformers: attributes of the pipeline that hold a transformer.
    """

    cond_context: str | None = "cond"
    transformers: tuple[str, ...] = ("transformer",)


_IMAGES = {"FluxPipeline": _Pipeline(), "StableDiffusion3Pipeline": _Pipeline(cond_context=None)}


def known_pipelines() -> dict[str, _Pipeline]:
    """Return the pipeline classes that can be enabled: those of registered families, and two image pipelines."""
    found: dict[str, _Pipeline] = {}
    for family in FAMILIES:
        if family.cond_context is not None:
            transformers = tuple(name for name in family.classes if name.startswith("transformer"))
            merged = dict.fromkeys((*transformers, *getattr(found.get(family.pipeline), "transformers", ())))
            found[family.pipeline] = _Pipeline(family.cond_context, tuple(merged))
    return found | _IMAGES


def enable(
    pipe: Any,
    *,
    s2_scale: float = 0.25,
    drop_ratio: float = 0.1,
    drop_count: int | None = None,
    never_drop: Sequence[int] = (0,),
    band: tuple[int, int] | None = None,
    window: tuple[float, float] = (0.1, 0.9),
    num_draws: int = 1,
    mask_seed: int = 0,
) -> None:
    """Turn on S²-Guidance for a diffusers pipeline. Its other settings are kept. Call again to change the S² settings.

    Args:
        pipe: a pipeline of a class in `known_pipelines()`. Its schedulers can be replaced later, its transformers
            cannot.
        s2_scale: ω ≥ 0 of Eq. 4; 0 makes no sub prediction.
        drop_ratio: share of the blocks that the sub prediction skips, 0 … 1; `drop_count` overrides it.
        never_drop, band: blocks that are never skipped, and the first and last that can be; indices count all block
            lists as one.
        window: part of the denoising in which S² is active, 0 … 1.
        num_draws: N of Eq. 3, sub predictions per step.
        mask_seed: seed of the masks, which equal those of this package's sampler. Independent of the noise's seed.

    Raises:
        InputError: if the pipeline is unknown or its guider is S2Guidance, a setting is out of its bounds, or a
            transformer is compiled as a whole, has an active step cache, or shards tokens over ranks. If such a change
            is made later, the next call of the pipeline raises it.
    """
    settings = {
        "s2_scale": s2_scale,
        "drop_ratio": drop_ratio,
        "drop_count": drop_count,
        "never_drop": list(never_drop),
        "band": band,
        "window": window,
        "num_draws": num_draws,
        "mask_seed": mask_seed,
    }
    guidance = build_config({"guidance": settings}, "enable").guidance
    family = _known(pipe)
    transformers = [t for t in (getattr(pipe, name, None) for name in family.transformers) if t is not None]
    spec = guidance.mask_spec()
    for transformer in transformers:
        _check(pipe, transformer, spec)
    disable(pipe)
    control = _Control(pipe, family, spec, guidance.s2_scale, mask_seed)
    for transformer in transformers:
        transformer.__dict__[_ATTRIBUTE] = control
        transformer.__class__ = _guided_class(type(transformer))


def disable(pipe: Any) -> None:
    """Restore the pipeline to its state before `enable`. Does nothing if it was not enabled."""
    for name in _known(pipe).transformers:
        transformer = getattr(pipe, name, None)
        if transformer is not None and _ATTRIBUTE in transformer.__dict__:
            transformer.__dict__.pop(_ATTRIBUTE).release()
            transformer.__class__ = type(transformer).__bases__[0]


def _check(pipe: Any, transformer: Any, spec: MaskSpec) -> None:
    check_transformer(transformer, spec)
    if isinstance(getattr(pipe, "guider", None), S2Guidance):
        raise InputError("pipe: expected a pipeline without S²-Guidance, got the guider S2Guidance; use one of the two")


def _known(pipe: Any) -> _Pipeline:
    name = type(pipe).__name__
    if isinstance(pipe, ModularPipeline):
        raise InputError(
            f"pipe: expected a standard pipeline, got {name}, which takes a guider; use "
            "pipe.update_components(guider=s2video.S2Guidance(...))"
        )
    if name not in (known := known_pipelines()):
        raise InputError(
            f"pipe: expected one of {', '.join(known)}, got {name}; use one of these, because other pipelines do "
            "not mark the conditional call of the transformer"
        )
    return known[name]


@dataclass
class _Control:
    """The settings of one enabled pipeline, and its state between a conditional call and the scheduler's step."""

    pipe: Any
    family: _Pipeline
    spec: MaskSpec
    s2_scale: float
    mask_seed: int
    context: str | None = None
    deviation: Tensor | None = None  # mean of sub − cond over the draws, float32
    _schedulers: list[Any] = field(default_factory=list)

    def call(self, transformer: Any, forward: Callable[..., Any], arguments: Any, keywords: dict[str, Any]) -> Any:
        """Run the pipeline's call and, after a conditional one, the sub predictions."""
        if not self.s2_scale or self.context != self.family.cond_context or keywords.get("skip_layers") is not None:
            return forward(*arguments, **keywords)
        self.deviation = None  # an interrupted step may have left one
        masks = self._masks(transformer)
        if not any(masks):
            return forward(*arguments, **keywords)
        _check(self.pipe, transformer, self.spec)
        forks = Forks(transformer, masks)
        with forks.recording():
            output = forward(*arguments, **keywords)
        cond = self._cond_half(_sample(output))
        deviations = []
        for mask in masks:
            with forks.replaying(mask):
                deviations.append(self._cond_half(_sample(forward(*arguments, **keywords))).float() - cond.float())
        self.deviation = torch.stack(deviations).mean(dim=0)
        return output

    def _masks(self, transformer: Any) -> tuple[tuple[int, ...], ...]:
        scheduler = self.pipe.scheduler
        self._follow(scheduler)
        step = scheduler.step_index
        if step is None:  # before the first step
            step = scheduler.begin_index or 0
        return step_masks(
            self.spec,
            num_blocks=count_blocks(transformer),
            seed=self.mask_seed,
            step=step,
            num_steps=len(scheduler.timesteps),
        )

    def _cond_half(self, prediction: Tensor) -> Tensor:
        if self.family.cond_context is None and self.pipe.do_classifier_free_guidance:
            return prediction.chunk(2)[1]
        return prediction

    def _follow(self, scheduler: Any) -> None:
        """Make a scheduler's `step` subtract the deviation. Called at each step, because users can replace it."""
        if any(known is scheduler for known in self._schedulers):
            return
        self.release()
        step = scheduler.step

        def guided_step(model_output: Tensor, *arguments: Any, **keywords: Any) -> Any:
            if self.deviation is not None:
                guided = model_output.float() - self.s2_scale * self.deviation
                model_output, self.deviation = guided.to(model_output.dtype), None
            return step(model_output, *arguments, **keywords)

        scheduler.__dict__["step"] = guided_step
        self._schedulers.append(scheduler)

    def release(self) -> None:
        """Restore the schedulers' own `step`."""
        for scheduler in self._schedulers:
            scheduler.__dict__.pop("step", None)
        self._schedulers.clear()
        self.deviation = None


def _guided_class(base: type) -> type:
    """Return a subclass of the same name whose calls go through the control. Hooks on `forward` still work."""

    class Guided(base):
        def __call__(self, *arguments: Any, **keywords: Any) -> Any:
            return self.__dict__[_ATTRIBUTE].call(self, super().__call__, arguments, keywords)

        @contextmanager
        def cache_context(self, name: str, **keywords: Any) -> Iterator[None]:
            control = self.__dict__[_ATTRIBUTE]
            with super().cache_context(name, **keywords):
                control.context = name
                try:
                    yield
                finally:
                    control.context = None

    Guided.__name__, Guided.__qualname__, Guided.__module__ = base.__name__, base.__qualname__, base.__module__
    return Guided


def _sample(output: Any) -> Tensor:
    sample: Tensor = output[0] if isinstance(output, tuple) else output.sample
    return sample
