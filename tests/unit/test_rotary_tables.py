"""Tests of the rotary tables that branches share."""

import threading

import torch
from torch import Tensor

from s2video.geometry import Shard
from s2video.models.tokens import RotaryTables

LATENTS = torch.zeros(1, 16, 2, 4, 4)
NUM_TOKENS = 8


class Rope:
    """Counts how often it makes the tables [L, D] of a video."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        self.count += 1
        angles = torch.arange(NUM_TOKENS * 4.0).view(NUM_TOKENS, 4)
        return angles.cos(), angles.sin()


def test_branches_of_a_step_share_them() -> None:
    tables, rope, shard = RotaryTables(), Rope(), Shard(3, 2)
    cond, uncond = (tables.of(LATENTS, shard, rope, dim=0) for _ in range(2))
    assert rope.count == 1 and all(a is b for a, b in zip(cond, uncond, strict=True))
    assert all(torch.equal(a, whole[3:5]) for a, whole in zip(cond, Rope()(LATENTS), strict=True))


def test_none_stay_behind_when_a_step_ends() -> None:
    tables, rope = RotaryTables(), Rope()
    for _ in range(2):
        step = tables.of(LATENTS, Shard(0, NUM_TOKENS), rope, dim=0)
        assert all(reference() is table for reference, table in zip(tables._kept, step, strict=True))
        del step
        assert [reference() for reference in tables._kept] == [None, None]
    assert rope.count == 2


def test_a_part_does_not_keep_the_whole_in_memory() -> None:
    part = RotaryTables().of(LATENTS, Shard(3, 2), Rope(), dim=0)
    assert [table.untyped_storage().nbytes() for table in part] == [2 * 4 * 4] * 2


def test_other_shards_and_sizes_have_their_own() -> None:
    tables, rope = RotaryTables(), Rope()
    kept = [tables.of(LATENTS, Shard(0, 3), rope, dim=0), tables.of(LATENTS, Shard(3, 3), rope, dim=0)]
    kept.append(tables.of(LATENTS[..., :2], Shard(3, 3), rope, dim=0))
    assert rope.count == 3 and not torch.equal(kept[0][0], kept[1][0])


def test_other_threads_have_their_own() -> None:
    """They may work in other streams, in which a table may not be ready yet."""
    tables, rope = RotaryTables(), Rope()
    mine = tables.of(LATENTS, Shard(0, NUM_TOKENS), rope, dim=0)
    theirs: list[tuple[Tensor, Tensor]] = []
    thread = threading.Thread(target=lambda: theirs.append(tables.of(LATENTS, Shard(0, NUM_TOKENS), rope, dim=0)))
    thread.start()
    thread.join()
    assert rope.count == 2 and theirs[0][0] is not mine[0] and torch.equal(theirs[0][0], mine[0])
