"""Tests of the part of tools/bench.py that runs on ranks, at small sizes. They assert no times."""

import subprocess
from collections.abc import Callable

import pytest
from benches import decoding_cost, two_ranks
from benches.workloads import Options, apart
from ranks import RankPool


def test_meshes(ranks: Callable[[int], RankPool]) -> None:
    first, second = ranks(2).run(two_ranks.time_meshes, True, 2)
    assert first.keys() == {"one rank", "ulysses 2", "ring 2", "branch 2"}
    assert all(len(times) == 2 for kinds in first.values() for times in (kinds["cfg"], kinds["s2"]))
    assert second["one rank"] == {"cfg": [], "s2": []} and len(second["branch 2"]["s2"]) == 2


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
