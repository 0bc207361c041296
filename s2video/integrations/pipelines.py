"""`enable(pipe)`: S²-Guidance in an unmodified diffusers pipeline.

Pipelines write CFG out in their loop, and nothing in it can be replaced. But by Eq. 4, D = CFG − ω(sub − cond): what S²
adds does not depend on CFG. So when the pipeline calls its transformer for cond, the sub prediction is made as well
and sub − cond is kept; when it steps its scheduler, ω times that is taken off. The pipeline's own λ is never read, and
λ = 1, embedded guidance and rescaling stay what they were.
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
    """What has to be known of a pipeline class.

    Attributes:
        cond_context: the name that the pipeline gives to `cache_context` for its conditional call; None where one call
            brings both halves, uncond first.
        transformers: the pipeline's attributes that hold one.
    """

    cond_context: str | None = "cond"
    transformers: tuple[str, ...] = ("transformer",)


_IMAGES = {"FluxPipeline": _Pipeline(), "StableDiffusion3Pipeline": _Pipeline(cond_context=None)}


def known_pipelines() -> dict[str, _Pipeline]:
    """Return the pipeline classes that can be enabled: those of the registered families, and two of images."""
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
    """Let a diffusers pipeline sample with S²-Guidance from now on, whatever else it is told. Anew: other settings.

    Args:
        pipe: one of `known_pipelines()`. Its schedulers may be exchanged later, its transformers may not.
        s2_scale: ω ≥ 0 of Eq. 4; 0 computes nothing more.
        drop_ratio: share of the blocks that the sub prediction leaves out, 0 … 1; `drop_count` overrides it.
        never_drop, band: blocks that are never left out, and the first and last that may be; indices count all block
            lists as one.
        window: the part of the denoising in which S² acts, 0 … 1.
        num_draws: N of Eq. 3, sub predictions a step.
        mask_seed: of the masks, which are those that this package's own sampler draws. The noise's seed is not it.

    Raises:
        InputError: a pipeline that is not known or whose guider is S2Guidance, settings out of their bounds, and a
            transformer that is compiled as a whole, has a step cache on, or shares its tokens with other ranks. What is
            done to the pipeline later is refused by the call that meets it.
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
    """Leave the pipeline as it was before `enable`; one that was never enabled stays as it is."""
    for name in _known(pipe).transformers:
        transformer = getattr(pipe, name, None)
        if transformer is not None and _ATTRIBUTE in transformer.__dict__:
            transformer.__dict__.pop(_ATTRIBUTE).release()
            transformer.__class__ = type(transformer).__bases__[0]


def _check(pipe: Any, transformer: Any, spec: MaskSpec) -> None:
    check_transformer(transformer, spec)
    if isinstance(getattr(pipe, "guider", None), S2Guidance):
        raise InputError("enable: the pipeline's guider is S2Guidance, which does the same: use one of the two")


def _known(pipe: Any) -> _Pipeline:
    name = type(pipe).__name__
    if isinstance(pipe, ModularPipeline):
        raise InputError(f"enable: {name} takes a guider: pipe.update_components(guider=s2video.S2Guidance(...))")
    if name not in (known := known_pipelines()):
        raise InputError(
            f"enable: expected one of {', '.join(known)}, got {name}; in other pipelines nothing tells which call "
            "of the transformer is the conditional one, and s2video does not guess"
        )
    return known[name]


@dataclass
class _Control:
    """The settings of one enabled pipeline, and what is under way between a conditional call and the next step."""

    pipe: Any
    family: _Pipeline
    spec: MaskSpec
    s2_scale: float
    mask_seed: int
    context: str | None = None
    deviation: Tensor | None = None  # mean of sub − cond over the draws, float32
    _schedulers: list[Any] = field(default_factory=list)

    def call(self, transformer: Any, forward: Callable[..., Any], arguments: Any, keywords: dict[str, Any]) -> Any:
        """The pipeline's call, and after a conditional one the sub prediction."""
        if not self.s2_scale or self.context != self.family.cond_context or keywords.get("skip_layers") is not None:
            return forward(*arguments, **keywords)
        self.deviation = None  # a step that was interrupted left its own
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
        if step is None:  # before its first step
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
        """Users exchange `pipe.scheduler` at will: whichever is there has to take the deviation off."""
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
        """Give the schedulers their own `step` back."""
        for scheduler in self._schedulers:
            scheduler.__dict__.pop("step", None)
        self._schedulers.clear()
        self.deviation = None


def _guided_class(base: type) -> type:
    """A class of the same name whose calls go through the control: hooks on `forward` stay where they are."""

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
