"""Tests of a job that fails on some ranks of a replica: all ranks recover, it fails once, and the next job is made."""

from collections.abc import Callable
from pathlib import Path

import pytest
from ranks import RankPool

from s2video.batch.replica import _Options, _Replica
from s2video.batch.store import Entry, Store
from s2video.config.sections import ParallelConfig
from s2video.errors import InputError
from s2video.models.checkpoint import open_checkpoint
from s2video.parallel.mesh import Mesh
from s2video.system.shutdown import Termination

Ranks = Callable[[int], RankPool]


def attempts(mesh: Mesh, folder: Path, failing: tuple[int, ...]) -> list[str | None]:
    """Make two jobs of which the first fails on some ranks. Return the results of each rank."""
    store = Store(folder)
    options = _Options("auto", "none", Termination())
    replica = _Replica(store, "r1", mesh, ParallelConfig(), open_checkpoint, options)
    results = []
    for record in store.records():

        def act(name: str = record.name) -> str:
            if name == "first" and mesh.world.rank in failing:
                raise InputError(f"rank {mesh.world.rank} has no image")
            return f"{name} on rank {mesh.world.rank}"

        results.append(replica._together(record, act))
    return results


@pytest.mark.parametrize("failing", [(0,), (1,), (0, 1)])
def test_all_ranks_come_out_of_a_job_that_fails(ranks: Ranks, tmp_path: Path, failing: tuple[int, ...]) -> None:
    store = Store(tmp_path)
    store.create()
    store.put(
        [Entry(name=n, place="", models="", config="{}", key="", work=None) for n in ("first", "second")],
        frozenset(),
    )
    store.draw("r1")
    store.draw("r1")
    assert ranks(2).run(attempts, tmp_path, failing) == [[None, "second on rank 0"], [None, "second on rank 1"]]
    first, second = store.records()
    assert (first.state, second.state) == ("failed", "running")
    assert first.error in [f"rank {rank} has no image" for rank in failing]
