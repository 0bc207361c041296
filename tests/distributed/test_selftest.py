"""Tests that the self-test passes on a correct setup and reports what is wrong otherwise."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from ranks import RankPool

from s2video.engine import selftest
from s2video.engine.selftest import Outcome, format_row, run_selftest
from s2video.parallel.mesh import Mesh

Ranks = Callable[[int], RankPool]


def outcomes(mesh: Mesh) -> list[Outcome]:
    return list(run_selftest(mesh))


def test_two_ranks_pass_and_see_the_same_table(ranks: Ranks) -> None:
    tables = ranks(2).run(outcomes)
    assert tables[0] == tables[1]
    assert all(outcome.passed for outcome in tables[0]), [format_row(o) for o in tables[0] if not o.passed]
    names = [outcome.name for outcome in tables[0]]
    for layout in ("ulysses 2", "ring 2", "ulysses 1 × branch 2"):
        assert f"{layout} against one rank" in names
    found_out = next(o for o in tables[0] if o.name == "masks and disagreement")
    assert "detected" in found_out.measured


def narrow_goes_wrong_on_rank_1(mesh: Mesh) -> list[Outcome]:
    right = selftest._narrow
    try:
        if mesh.world.rank == 1:
            selftest._narrow = lambda mesh, dtype, axis: (right(mesh, dtype, axis)[0] and False, "relative error 0.7")
        return [o for o in run_selftest(mesh) if "bfloat16" in o.name]
    finally:
        selftest._narrow = right


def test_a_rank_that_computes_wrongly_is_named_with_advice(ranks: Ranks) -> None:
    for table in ranks(2).run(narrow_goes_wrong_on_rank_1):
        outcome, in_ring = table
        assert not in_ring.passed and in_ring.name == "bfloat16 on ring 2 against float32"
        assert not outcome.passed and outcome.measured == "rank 1: relative error 0.7"
        row = format_row(outcome)
        assert row.startswith("FAILED") and "expected: relative error" in row and "advice: do not use" in row


def test_an_exception_is_a_failed_row_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*arguments: object, **more: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(selftest, "write_video", refuses)
    table = list(run_selftest(Mesh(torch.device("cpu"))))
    assert [o.passed for o in table] == [True] * (len(table) - 1) + [False]
    assert "OSError: no space left" in format_row(table[-1])


def test_the_command_says_ok_and_exits_0() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "s2video", "selftest", "--device", "cpu"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 6 and all(line.startswith("ok ") for line in lines)
