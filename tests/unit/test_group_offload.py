"""Tests of skipped blocks whose weights diffusers loads ahead in a stream, on doubles of its groups."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.hooks import HookRegistry
from diffusers.hooks.group_offloading import GroupOffloadingConfig, GroupOffloadingHook, GroupOffloadingType
from torch import Tensor, nn

from s2video.integrations.blocks import Forks

CPU, DEVICE = torch.device("cpu"), torch.device("meta")


class Block(nn.Module):
    def __init__(self, name: str, log: list[str]) -> None:
        super().__init__()
        self.name, self._log = name, log

    def forward(self, hidden_states: Tensor) -> Tensor:
        self._log.append(f"{self.name} runs")
        return hidden_states


class Group:
    """A double of a group of one block, with a stream."""

    def __init__(self, block: Block, log: list[str]) -> None:
        self.modules, self.onload_leader, self.offload_leader = [block], block, block
        self.offload_device, self.onload_device, self.onload_self = CPU, DEVICE, True
        self.non_blocking = True
        self.stream = SimpleNamespace(synchronize=lambda: log.append("stream is waited for"))
        self.parameters = [SimpleNamespace(device=CPU)]
        self._log = log

    def onload_(self) -> None:
        self._log.append(f"{self.modules[0].name} comes")
        self.parameters[0].device = DEVICE

    def offload_(self) -> None:
        if self.parameters[0].device != CPU:
            self._log.append(f"{self.modules[0].name} leaves")
        self.parameters[0].device = CPU


class WanTransformer3DModel(nn.Module):
    """A double of diffusers' class, which is known by its name."""

    def __init__(self, blocks: list[Block]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def scene(log: list[str]) -> tuple[Any, list[Group]]:
    """Six blocks, each of which loads the next one while it runs, as after diffusers' first pass."""
    blocks = [Block(f"b{number}", log) for number in range(6)]
    groups = [Group(block, log) for block in blocks]
    config = GroupOffloadingConfig(
        onload_device=DEVICE,
        offload_device=CPU,
        offload_type=GroupOffloadingType.BLOCK_LEVEL,
        non_blocking=True,
        record_stream=False,
        low_cpu_mem_usage=False,
    )
    hooks = [GroupOffloadingHook(group, config=config) for group in groups]
    for block, hook in zip(blocks, hooks, strict=True):
        HookRegistry.check_if_exists_or_initialize(block).register_hook(hook, "group_offloading")
    for hook, following in zip(hooks, groups[1:], strict=False):
        hook.next_group, following.onload_self = following, False
    log.clear()
    return WanTransformer3DModel(blocks), groups


def test_a_skipped_block_loads_the_next_one_ahead_and_stays_nowhere(
    scene: tuple[Any, list[Group]], log: list[str]
) -> None:
    transformer, groups = scene
    forks = Forks(transformer, [(1, 3)])
    x = torch.zeros(1)
    with forks.recording():
        transformer(x)
    assert all(group.parameters[0].device == CPU for group in groups)
    log.clear()
    with forks.replaying((1, 3)):
        transformer(x)
    # b2 is the first to run, so nothing could load it ahead; b4 comes before b3 would have run, not when b4 does
    assert log == [
        "b2 comes",
        "stream is waited for",
        "b3 comes",
        "b2 runs",
        "b2 leaves",
        "b4 comes",
        "b3 leaves",
        "b5 comes",
        "b4 runs",
        "b4 leaves",
        "stream is waited for",
        "b5 runs",
        "b5 leaves",
    ]
    assert all(group.parameters[0].device == CPU for group in groups)


def test_what_was_loaded_for_a_block_before_the_fork_is_freed(scene: tuple[Any, list[Group]], log: list[str]) -> None:
    """diffusers loads the first group when the transformer's forward begins."""
    transformer, groups = scene
    forks = Forks(transformer, [(3,)])
    with forks.recording():
        transformer(torch.zeros(1))
    groups[0].onload_()
    log.clear()
    with forks.replaying((3,)):
        transformer(torch.zeros(1))
    assert log[0] == "b0 leaves" and not [entry for entry in log if entry.startswith(("b1", "b2", "b3"))]
    assert all(group.parameters[0].device == CPU for group in groups)
