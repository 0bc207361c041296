"""diffusers' caches in enabled pipelines: sub predictions run without them, and each branch has states of its own.

A cache is a set of hooks on a transformer's modules, which answer a call from what earlier calls left there. A sub
prediction drops other blocks in every step, so what it would leave belongs to no other call: while it runs, the hooks
are off. It is computed from block 0, because a cached cond has no state to fork from. Knows neither pipelines nor
guidance.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from ..errors import InputError

_MODULES = {
    f"diffusers.hooks.{kind}_cache" for kind in ("faster", "first_block", "mag", "sea", "taylorseer", "text_kv")
}
_MODULES |= {"diffusers.hooks.pyramid_attention_broadcast"}
_HALVING = "FasterCacheDenoiserHook"


class Caches:
    """The cache of one transformer; false if it has none."""

    def __init__(self, transformer: nn.Module) -> None:
        registries = (module.__dict__.get("_diffusers_hook") for module in transformer.modules())
        self._hooks: list[Any] = [
            hook
            for registry in registries
            if registry is not None
            for hook in registry.hooks.values()
            if type(hook).__module__ in _MODULES
        ]
        self._states: dict[str, list[Any]] = {}

    def __bool__(self) -> bool:
        return bool(self._hooks)

    @property
    def name(self) -> str:
        """What a message calls the cache."""
        return type(self._hooks[0]).__name__

    def check(self, *, reuses: bool) -> None:
        """Raise InputError for a cache that cannot work.

        Args:
            reuses: whether some calls for cond or uncond are answered by forecasts.
        """
        if self and reuses:
            raise InputError(
                f"S²-Guidance: expected reuse exact or deviation together with a cache, got {self.name}, which counts "
                "the calls of the transformer; choose one of the two"
            )
        if any(type(hook).__name__ == _HALVING and not hook.is_guidance_distilled for hook in self._hooks):
            raise InputError(
                "S²-Guidance: expected FasterCacheConfig(is_guidance_distilled=True), got False, with which the cache "
                "computes cond alone from the halves of a batch and makes uncond from it; set it, or use another cache"
            )

    @contextmanager
    def branch(self, name: str) -> Iterator[None]:
        """Let hooks that have one state for all calls (PAB, FasterCache) use that of the branch `name`."""
        hooks = [hook for hook in self._hooks if "state" in vars(hook)]
        own = [hook.state for hook in hooks]
        if name not in self._states:
            self._states[name] = [type(state)() for state in own]
        for hook, state in zip(hooks, self._states[name], strict=True):
            hook.state = state
        try:
            yield
        finally:
            for hook, state in zip(hooks, own, strict=True):
                hook.state = state

    @contextmanager
    def off(self) -> Iterator[None]:
        """Call modules without the cache: its hooks neither answer nor see the calls."""
        references = [hook.fn_ref for hook in self._hooks]
        own = [dict(vars(reference)) for reference in references]
        for reference in references:
            reference.pre_forward, reference.post_forward = _unchanged_inputs, _unchanged_output
            reference.forward = reference.original_forward or reference.forward
        try:
            yield
        finally:
            for reference, before in zip(references, own, strict=True):
                vars(reference).update(before)


def _unchanged_inputs(module: nn.Module, *arguments: Any, **keywords: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return arguments, keywords


def _unchanged_output(module: nn.Module, output: Any) -> Any:
    return output
