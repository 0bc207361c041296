"""`enable(pipe)`: S²-Guidance in an unmodified diffusers pipeline.

A pipeline computes CFG in its loop, where it cannot be replaced. But by Eq. 4, D = CFG − ω(sub − cond), so the term
that S² adds does not depend on CFG. When the pipeline calls its transformer for cond, the sub prediction is made too
and ω(sub − cond) is stored; when it steps its scheduler, it is subtracted. The pipeline's λ is never read, and
λ = 1, embedded guidance and rescaling work as before.
"""

import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from diffusers import ModularPipeline

from ..config.run import build_config
from ..errors import InputError
from .caches import Caches
from .control import Control, check
from .kinds import PipelineKind, known_pipelines, transformers

_ATTRIBUTE = "_s2video"


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
    s2_push: float | None = None,
    window_in: Literal["steps", "noise"] = "steps",
    reuse: str | Mapping[str, Any] = "exact",
) -> None:
    """Turn on S²-Guidance for a diffusers pipeline. Its other settings are kept. Call again to change the S² settings.

    Args:
        pipe: a pipeline of a class in `known_pipelines()`. Its schedulers and transformers can be replaced later, and
            shared with other pipelines: each call guides those that the pipeline has then.
        s2_scale: ω ≥ 0 of Eq. 4; 0 makes no sub prediction.
        drop_ratio: share of the blocks that the sub prediction skips, 0 … 1; `drop_count` overrides it.
        never_drop, band: blocks that are never skipped, and the first and last that can be; indices count all block
            lists as one.
        window: part of the denoising in which S² is active, 0 … 1.
        num_draws: N of Eq. 3, sub predictions per step.
        mask_seed: seed of the masks, which equal those of this package's sampler. Independent of the noise's seed.
        s2_push: sets ω by its effect, |what S² adds| / |cond| in each step; replaces the default `s2_scale`.
        window_in: whether `window` counts steps or noise levels.
        reuse: predictions that are forecast from earlier steps: "exact" (none), "deviation", "light" or "fast", or the
            fields of `guidance.reuse`. The transformer is then not called for them; needs 16 steps or more.

    Raises:
        InputError: if the pipeline is unknown or its guider is S2Guidance, a setting is out of its bounds, or a
            transformer is compiled as a whole, shards tokens, or has a cache that cannot work. If such a change is made
            later, the next call of the pipeline raises it; it also raises if it cannot tell which call is cond.
            Also for `reuse` of cond or uncond, if the pipeline computes both in one call.
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
        "s2_push": s2_push,
        "window_in": window_in,
        "reuse": dict(reuse) if isinstance(reuse, Mapping) else reuse,
    }
    guidance = build_config({"guidance": settings}, "enable").guidance
    kind = _known(pipe)
    if kind.one_call and guidance.reuse.spec().uncond_every > 1:
        raise InputError(
            f"enable: guidance.reuse: expected exact or deviation for {type(pipe).__name__}, which computes cond and "
            f"uncond in one call, got {guidance.reuse.preset}; use one of these"
        )
    control = Control(pipe, kind, guidance)
    for transformer in transformers(pipe):
        check(pipe, guidance, transformer)
    disable(pipe)
    pipe.__dict__[_ATTRIBUTE] = control
    pipe.__class__ = _guided_pipeline(type(pipe))


def disable(pipe: Any) -> None:
    """Restore the pipeline to its state before `enable`. Does nothing if it was not enabled."""
    _known(pipe)
    if _ATTRIBUTE in pipe.__dict__:
        pipe.__dict__.pop(_ATTRIBUTE).release()
        pipe.__class__ = type(pipe).__bases__[0]


def _guided_pipeline(base: type) -> type:
    """Return a subclass of the same name whose calls are guided. Transformers are changed during a call only.

    So a transformer can be exchanged, compiled, shared with other pipelines or given to `from_pipe` between calls.
    """

    class Guided(base):
        @functools.wraps(base.__call__)
        def __call__(self, *arguments: Any, **keywords: Any) -> Any:
            control = self.__dict__.get(_ATTRIBUTE)  # not in a pipeline that `from_pipe` makes of this class
            if control is None:
                return super().__call__(*arguments, **keywords)
            with _guiding(transformers(self), control):
                named = _named(super().__call__, arguments, keywords)
                control.begin(named, _cfg_scale(super().__call__, named))
                return super().__call__(*arguments, **keywords)

    if hasattr(base, "encode_prompt"):
        Guided.encode_prompt = _noted(base.encode_prompt)
    Guided.__name__, Guided.__qualname__, Guided.__module__ = base.__name__, base.__qualname__, base.__module__
    return Guided


def _named(call: Any, arguments: Any, keywords: Any) -> dict[str, Any]:
    """Return the arguments of a call by name; none if it will raise a TypeError."""
    try:
        return inspect.signature(call).bind_partial(*arguments, **keywords).arguments
    except TypeError:
        return {}


def _cfg_scale(call: Any, named: Mapping[str, Any]) -> Any:
    """Return the λ of a call; None if it has none. Of two names, the other one is an embedded scale."""
    known = inspect.signature(call).parameters
    name = next((name for name in ("true_cfg_scale", "guidance_scale") if name in known), None)
    return None if name is None else named.get(name, known[name].default)


def _noted(encode: Any) -> Any:
    """Return a method that tells the control what `encode_prompt` returns."""

    @functools.wraps(encode)
    def encode_prompt(self: Any, *arguments: Any, **keywords: Any) -> Any:
        returned = encode(self, *arguments, **keywords)
        if (control := self.__dict__.get(_ATTRIBUTE)) is not None:
            control.encoded(encode, returned, (self, *arguments), keywords)
        return returned

    return encode_prompt


@contextmanager
def _guiding(modules: Sequence[Any], control: Control) -> Iterator[None]:
    """Let calls of these transformers go through a control. Raises InputError for one that cannot be guided."""
    for transformer in modules:
        check(control.pipe, control.guidance, transformer)
        if _ATTRIBUTE in transformer.__dict__:
            raise InputError(
                "pipe: expected a transformer that no other call is using, got one that another call of an enabled "
                "pipeline is using now; make one call after the other"
            )
    for transformer in modules:
        control.caches[transformer] = Caches(transformer)
        transformer.__dict__[_ATTRIBUTE] = control
        transformer.__class__ = _guided_class(type(transformer))
    try:
        yield
    finally:
        for transformer in modules:
            del transformer.__dict__[_ATTRIBUTE]
            transformer.__class__ = type(transformer).__bases__[0]
        control.end()


def _known(pipe: Any) -> PipelineKind:
    name = type(pipe).__name__
    known = known_pipelines()
    if isinstance(pipe, ModularPipeline) and name not in known:
        raise InputError(
            f"pipe: expected a standard pipeline, got {name}, which takes a guider; use "
            "pipe.update_components(guider=s2video.S2Guidance(...))"
        )
    if name not in known:
        raise InputError(
            f"pipe: expected one of {', '.join(known)}, got {name}; use one of these, because it is not known how "
            "others combine their predictions"
        )
    return known[name]


def _guided_class(base: type) -> type:
    """Return a subclass of the same name whose calls go through the control. Hooks on `forward` still work."""

    class Guided(base):
        def __call__(self, *arguments: Any, **keywords: Any) -> Any:
            return self.__dict__[_ATTRIBUTE].call(self, super().__call__, arguments, keywords)

        @contextmanager
        def cache_context(self, name: str, **keywords: Any) -> Iterator[None]:
            control = self.__dict__[_ATTRIBUTE]
            with super().cache_context(name, **keywords), control.caches[self].branch(name):
                control.context = name
                try:
                    yield
                finally:
                    control.context = None

    Guided.__name__, Guided.__qualname__, Guided.__module__ = base.__name__, base.__qualname__, base.__module__
    return Guided
