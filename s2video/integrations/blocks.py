"""Running a diffusers transformer without some of its blocks, through its own forward.

The sub prediction is a second forward. Blocks before the first dropped one return their inputs, and at the first
dropped one the state is replaced by cond's, so the prefix is not computed twice. Weights, modules and hooks do not
change; during a call, the block lists are replaced by lists of the same modules that skip some. Knows neither pipelines
nor guidance.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import nn

from ..errors import InputError
from ..guidance.masks import MaskSpec
from .structure import as_returned, block_lists, count_blocks, count_returned, state_of

Walk = Callable[[int, nn.Module, tuple[Any, ...], dict[str, Any]], Any]


def check_transformer(transformer: Any, spec: MaskSpec) -> None:
    """Raise InputError if a transformer cannot skip blocks, or has too few of them.

    It cannot skip blocks if it is unknown, compiled as a whole, or shards tokens over ranks.
    """
    if getattr(transformer, "_compiled_call_impl", None) is not None or hasattr(transformer, "_orig_mod"):
        raise InputError(
            "S²-Guidance: expected an uncompiled transformer, got one compiled as a whole, which would recompile "
            "for every mask; compile its blocks instead with transformer.compile_repeated_blocks()"
        )
    if getattr(getattr(transformer, "_parallel_config", None), "context_parallel_config", None) is not None:
        raise InputError(
            "S²-Guidance: expected a transformer without context parallelism, got enable_parallelism, whose hooks are "
            "on blocks that can be skipped; use s2video launch to make one video on several GPUs"
        )
    num_blocks = count_blocks(transformer)
    eligible = len(spec.eligible(num_blocks))
    if spec.drop_count is not None and spec.drop_count > eligible:
        raise InputError(
            f"S²-Guidance: drop_count: expected at most {eligible} of {num_blocks} blocks, got {spec.drop_count}"
        )


class Forks:
    """One conditional call of a transformer, and the sub predictions that fork from it.

    Args:
        transformer: a transformer that passed `check_transformer`.
        masks: dropped blocks of each sub prediction, at least one each.
    """

    def __init__(self, transformer: nn.Module, masks: Sequence[Sequence[int]]) -> None:
        self._transformer = transformer
        self._lists = block_lists(transformer)
        self._num_blocks = count_blocks(transformer)
        self._states: dict[int, tuple[Any, ...]] = {min(mask): () for mask in masks}
        self._counts: list[int] = []  # how many values each block returned in the conditional call
        self._unused = {min(mask) for mask in masks}  # forks that no sub prediction has reached

    def recording(self) -> "_Walking":
        """Return a context for the conditional call, which stores the states at the forks."""
        self._counts.clear()

        def walk(index: int, block: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
            output = block(*arguments, **keywords)
            if index != len(self._counts):
                self._refuse(len(self._counts))
            self._counts.append(count_returned(block, output, arguments, keywords))
            if index in self._states:
                self._states[index] = state_of(block, self._counts[index], arguments, keywords)
            return output

        return _Walking(self._transformer, self._lists, walk)

    def replaying(self, mask: Sequence[int], *, whole: bool = False) -> "_Walking":
        """Return a context for a call with the same arguments, which runs the blocks after the fork, without `mask`.

        Args:
            whole: run the blocks before the fork too, because the conditional call may not have computed them.

        What the transformer does between its blocks is done after a skipped one, too: Wan VACE's hints and Wan
        Animate's faces belong to the control, not to the block. So sub differs from cond in its blocks alone.
        """
        fork, dropped = -1 if whole else min(mask), frozenset(mask)
        if whole:
            self._unused.discard(min(mask))

        def walk(index: int, block: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
            if index > fork and index not in dropped:
                return block(*arguments, **keywords)
            _skip(block, is_followed=index > fork)
            if index == fork:
                self._unused.discard(fork)
                return as_returned(self._states[fork])
            return as_returned(state_of(block, self._counts[index], arguments, keywords))

        return _Walking(self._transformer, self._lists, walk)

    def require_recorded(self) -> None:
        """Raise InputError if the conditional call did not run each block once, in order."""
        if len(self._counts) != self._num_blocks:
            self._refuse(len(self._counts))

    def require_used(self) -> None:
        """Raise InputError if a sub prediction did not reach its fork, so that it is that of cond."""
        if self._unused:
            self._refuse(min(self._unused))

    @staticmethod
    def _refuse(index: int) -> None:
        """Whatever the cause: a cache or another wrapper that runs the blocks, or leaves them out, by itself."""
        raise InputError(
            "S²-Guidance: expected the transformer to run each of its blocks, in order, got a call that left out block "
            f"{index}; remove the cache or wrapper that is on its blocks, or call s2video.disable(pipe)"
        )


def _skip(block: nn.Module, *, is_followed: bool) -> None:
    """Run the offloading hooks of a skipped block.

    In a group of several blocks, the first block loads all, the last unloads them. With a stream, each block loads the
    next group while it runs: a skipped one does so too, and frees what was loaded for it.

    Args:
        is_followed: the next block runs, or is skipped in the same way; False before the fork.
    """
    registry = vars(block).get("_diffusers_hook")
    hook = None if registry is None else registry.get_hook("group_offloading")
    if hook is None:
        return
    group = hook.group
    if len(group.modules) > 1:
        hook.pre_forward(block)
        hook.post_forward(block, None)
    elif group.stream is not None and _is_loaded(group):
        if is_followed:
            hook.pre_forward(block)
        group.offload_()


def _is_loaded(group: Any) -> bool:
    """Return whether a group of diffusers' group offload is on the device where it runs."""
    parameters = [*(p for module in group.modules for p in module.parameters()), *group.parameters]
    return bool(parameters) and parameters[0].device != group.offload_device


class _WalkedList(nn.ModuleList):
    """A list of the same modules that calls `walk` with each block instead of the block."""

    def __init__(self, blocks: nn.ModuleList, first: int, walk: Walk) -> None:
        super().__init__(blocks)
        self._walk, self._first = walk, first

    def __iter__(self) -> Iterator[Any]:
        return iter(self[:])

    def __getitem__(self, index: Any) -> Any:
        return [_Walked(number, block, self._walk) for number, block in enumerate(self._modules.values(), self._first)][
            index
        ]


class _Walked:
    """A block of such a list. It has the block's attributes."""

    def __init__(self, number: int, block: Any, walk: Walk) -> None:
        self._number, self._block, self._walk = number, block, walk

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self._walk(self._number, self._block, arguments, keywords)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._block, name)


class _Walking(AbstractContextManager[None]):
    """A context in which the transformer's block lists call `walk`. It can be entered once."""

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
