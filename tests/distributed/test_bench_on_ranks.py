"""Tests of the part of tools/bench.py that runs on ranks, at small sizes. They assert no times."""

import subprocess
import time
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from benches import decoding_cost, two_ranks
from benches.phases import phases
from benches.workloads import Options, apart
from ranks import RankPool

from s2video.parallel.collectives import gather_parts
from s2video.parallel.mesh import Mesh


def late_gather(mesh: Mesh) -> dict[str, float]:
    def run() -> None:
        time.sleep(0.3 * mesh.world.rank)
        gather_parts(torch.ones(3), mesh.world)

    return phases(run)


def late_transfer(mesh: Mesh) -> dict[str, float]:
    def run() -> None:
        tensor, other = torch.ones(1 << 20), 1 - mesh.world.rank
        transfer = dist.P2POp(dist.irecv, tensor, other) if other else dist.P2POp(dist.isend, tensor, other)
        (request,) = dist.batch_isend_irecv([transfer])
        time.sleep(0.3 * mesh.world.rank)
        request.wait()

    return phases(run)


def test_meshes(ranks: Callable[[int], RankPool]) -> None:
    first, second = ranks(2).run(two_ranks.time_meshes, True, 2)
    times, others = first["seconds"], second["seconds"]
    assert times.keys() == {"one rank", "each alone", "ulysses 2", "ring 2", "branch 2"} == first["phases"].keys()
    assert all(len(taken) == 2 for kinds in times.values() for taken in (kinds["cfg"], kinds["s2"]))
    assert others["one rank"] == {"cfg": [], "s2": []} and len(others["branch 2"]["s2"]) == 2


def test_phases_tell_communication_from_waiting(ranks: Callable[[int], RankPool]) -> None:
    """Rank 1 sleeps before each exchange, so rank 0 waits, and a transfer that runs meanwhile takes no time."""
    for exchange in (late_gather, late_transfer):
        first, second = ranks(2).run(exchange)
        assert first["waiting"] > 0.2 > second["waiting"] + second["communication"] and first["communication"] < 0.2
        assert second["compute"] > 0.2 > first["compute"]


def test_decoding(ranks: Callable[[int], RankPool]) -> None:
    first, second = ranks(2).run(decoding_cost.time_ranks, 5, 32, 1)
    assert first["difference"] < 1e-4
    assert len(first["seconds"]["sharded"]) == 1
    assert first["sent"] > 0 and second["sent"] > 0


def test_the_least_is_sent_under_torchrun() -> None:
    assert [row.ratio for row in two_ranks.traffic(Options(quick=True)).rows] == [1, 1]


def test_a_process_that_fails_ends_the_section() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        apart("weight_fetching.load_peak", folder="nowhere", kind="streamed")
