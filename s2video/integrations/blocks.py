"""A diffusers transformer run without some of its blocks, through its own forward.

The sub prediction is that forward once more, in which blocks before the first dropped one hand on what they get, and
cond's state is put in there: the prefix is not computed twice. Weights, modules and their hooks are not touched: for
the time of one call, the block lists are exchanged for lists of the same modules that are walked with gaps. Knows no
pipeline and no guidance.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..errors import InputError
from ..guidance.masks import MaskSpec
from ..models.registry import FAMILIES

Block = Callable[..., Any]
Walk = Callable[[int, Block, tuple[Any, ...], dict[str, Any]], Any]

_POSITIONS = {"hidden_states": 0, "encoder_hidden_states": 1}  # of a block's arguments, in all families


@dataclass(frozen=True)
class _Structure:
    """What has to be known of a transformer class.

    Attributes:
        lists: its block lists, in the order in which they run.
        returns: what a block returns, in this order, under the names of its arguments.
    """

    lists: tuple[str, ...]
    returns: tuple[str, ...]


_TEXT_FIRST = ("encoder_hidden_states", "hidden_states")
_IMAGES = {  # transformers of images, which the engine does not run
    "FluxTransformer2DModel": _Structure(("transformer_blocks", "single_transformer_blocks"), _TEXT_FIRST),
    "SD3Transformer2DModel": _Structure(("transformer_blocks",), _TEXT_FIRST),
}


def structures() -> dict[str, _Structure]:
    """Return the transformer classes whose blocks can be left out: those of the registered families, and images'."""
    return {f.classes["transformer"]: _Structure(f.block_lists, f.block_returns) for f in FAMILIES} | _IMAGES


# Hooks of diffusers that hand on what another call computed, whether `enable_cache` or an `apply_` function put them.
_CACHES = {f"diffusers.hooks.{name}_cache" for name in ("faster", "first_block", "mag", "sea", "taylorseer", "text_kv")}
_CACHES |= {"diffusers.hooks.pyramid_attention_broadcast"}


def check_transformer(transformer: Any, spec: MaskSpec) -> None:
    """Raise InputError for a transformer that cannot be run in part, or has too few blocks to drop.

    That is one that is not known, is compiled as a whole, has a step cache on, or shares its tokens with other ranks.
    """
    if getattr(transformer, "_compiled_call_impl", None) is not None or hasattr(transformer, "_orig_mod"):
        raise InputError(
            "S²-Guidance: the transformer is compiled as a whole, and would be compiled anew for every mask: compile "
            "its blocks instead, transformer.compile_repeated_blocks()"
        )
    if (cache := _step_cache(transformer)) is not None:
        raise InputError(
            f"S²-Guidance: {cache} reuses what blocks computed, and would hand the sub prediction's to cond: call "
            "transformer.disable_cache() first"
        )
    if getattr(getattr(transformer, "_parallel_config", None), "context_parallel_config", None) is not None:
        raise InputError(
            "S²-Guidance: enable_parallelism shards tokens in hooks of blocks, which may be left out: let several GPUs "
            "make one video by s2video launch"
        )
    num_blocks = count_blocks(transformer)
    eligible = len(spec.eligible(num_blocks))
    if spec.drop_count is not None and spec.drop_count > eligible:
        raise InputError(
            f"S²-Guidance: drop_count: expected at most {eligible} of {num_blocks} blocks, got {spec.drop_count}"
        )


def _step_cache(transformer: nn.Module) -> str | None:
    """The name of diffusers' cache that is on, if one is."""
    if (config := getattr(transformer, "_cache_config", None)) is not None:
        return type(config).__name__
    registries = (module.__dict__.get("_diffusers_hook") for module in transformer.modules())
    hooks = (hook for registry in registries if registry is not None for hook in registry.hooks.values())
    return next((type(hook).__name__ for hook in hooks if type(hook).__module__ in _CACHES), None)


def count_blocks(transformer: nn.Module) -> int:
    """Blocks of all lists together. Raises InputError for a transformer that is not known."""
    return sum(len(getattr(transformer, name)) for name in _structure(transformer).lists)


def _structure(transformer: nn.Module) -> _Structure:
    name, known = type(transformer).__name__, structures()
    if name not in known:
        raise InputError(f"S²-Guidance: expected one of {', '.join(known)}, got {name}")
    return known[name]


class Forks:
    """One conditional call of a transformer, and the sub predictions that fork from it.

    Args:
        transformer: one that passed `check_transformer`.
        masks: the dropped blocks of each sub prediction, none of them empty.
    """

    def __init__(self, transformer: nn.Module, masks: Sequence[Sequence[int]]) -> None:
        self._transformer = transformer
        self._structure = _structure(transformer)
        self._states: dict[int, tuple[Tensor, ...]] = {min(mask): () for mask in masks}

    def recording(self) -> "_Walking":
        """For the conditional call: keep the states at the forks."""

        def walk(index: int, block: Block, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
            if index in self._states:
                self._states[index] = self._given(arguments, keywords)
            return block(*arguments, **keywords)

        return _Walking(self._transformer, self._structure.lists, walk)

    def replaying(self, mask: Sequence[int]) -> "_Walking":
        """For a call with the same arguments: run the blocks behind the fork that are not in `mask`."""
        fork, dropped = min(mask), frozenset(mask)

        def walk(index: int, block: Block, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
            if index > fork and index not in dropped:
                return block(*arguments, **keywords)
            _pass_by(block)
            state = self._states[fork] if index == fork else self._given(arguments, keywords)
            return state if len(state) > 1 else state[0]

        return _Walking(self._transformer, self._structure.lists, walk)

    def _given(self, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Tensor, ...]:
        """The states among a block's arguments, in the order in which it would return them."""
        names = self._structure.returns
        return tuple(keywords[name] if name in keywords else arguments[_POSITIONS[name]] for name in names)


def _pass_by(block: Block) -> None:
    """Of blocks that are offloaded as one group, the first brings all and the last takes them away."""
    registry = vars(block).get("_diffusers_hook")
    hook = None if registry is None else registry.get_hook("group_offloading")
    if hook is not None and len(hook.group.modules) > 1:
        hook.pre_forward(block)
        hook.post_forward(block, None)


class _WalkedList(nn.ModuleList):
    """A list of the same modules, walked with `walk` instead of calling each."""

    def __init__(self, blocks: nn.ModuleList, first: int, walk: Walk) -> None:
        super().__init__(blocks)
        self._walk, self._first = walk, first

    def __iter__(self) -> Iterator[Any]:
        for index, block in enumerate(self._modules.values(), self._first):
            yield lambda *a, index=index, block=block, **k: self._walk(index, block, a, k)


class _Walking(AbstractContextManager[None]):
    """Inside, the transformer's block lists are walked with `walk`; it can be entered once."""

    def __init__(self, transformer: nn.Module, lists: Sequence[str], walk: Walk) -> None:
        self._transformer, self._walk = transformer, walk
        self._own = {name: getattr(transformer, name) for name in lists}

    def __enter__(self) -> None:
        first = 0
        for name, blocks in self._own.items():
            self._transformer._modules[name] = _WalkedList(blocks, first, self._walk)
            first += len(blocks)

    def __exit__(self, *error: object) -> None:
        self._transformer._modules.update(self._own)
