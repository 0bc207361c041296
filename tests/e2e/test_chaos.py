"""A small run of tools/chaos.py, on one rank; and what its report would notice."""

import json
import shutil
from pathlib import Path

import chaos
import pytest
from faults import orders, verdict
from faults.orders import Order
from tiny import MAX_SEQUENCE_LENGTH

from s2video.batch.run_file import load_batch

FAULTS = [
    Order(0, "encoding", "encoder", 0, 0),
    Order(1, "renaming", "supervisor", 0, 1),
    Order(2, "decoding", "rank", 0, 0),
]


def test_videos_survive_kills(tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder, the supervisor and the replica are killed; then what the report finds is put to the test."""
    monkeypatch.setattr(orders, "plan_orders", lambda rounds, seed, num_ranks: FAULTS)
    monkeypatch.setattr(chaos, "_on_small_disk", lambda folder: folder.mkdir(parents=True))
    words = ["--work", str(tmp_path), "--videos", "5", "--replicas", "1", "--nproc", "1", "--steps", "2", "--nice", "0"]
    words += ["--model", str(tiny_checkpoint), "--text-length", str(MAX_SEQUENCE_LENGTH)]
    assert chaos.main([*words, "-o", str(tmp_path / "report.json")]) == 0, (tmp_path / "chaos" / "said.txt").read_text()
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["kills"], report["videos"], report["found"]) == (3, 5, [])
    assert -9 in report["codes"] and "every video whole" in (tmp_path / "report.txt").read_text()

    batch, calm = load_batch(tmp_path / "disturbed.yaml"), tmp_path / "undisturbed"

    def found() -> str:
        return "\n".join(verdict.find_faults(batch, calm))

    assert found() == ""
    first, second = (batch.folder / job.name for job in batch.jobs[:2])
    (batch.folder / ".left").touch()
    assert found() == ".left is left in the folder"
    (batch.folder / ".left").unlink()
    with (batch.folder / "batch.events.jsonl").open("a") as events:
        for event in ("drawn", "drawn", "done"):
            events.write(json.dumps({"event": event, "job": first.name, "replica": "r"}) + "\n")
    assert "r drew it while r had it" in found() and "was made 2 times" in found()
    shutil.copy(second, first)
    assert "its digest is not that of the undisturbed run" in found() and "2 videos have the digest" in found()
    assert f"{first.name}: batch.sha256 has another digest" in found() and "changed since it was written" in found()


def test_the_plan_has_every_kind_of_fault_and_no_chance() -> None:
    planned = orders.plan_orders(1, 0, 2)
    kills = [order for order in planned if order.kills]
    for phase in orders.PHASES:
        assert sum(order.phase == phase for order in kills) >= 3
    for victim in ("rank", "replica", "supervisor", "encoder", "term", "disk", "clock"):
        assert sum(order.victim == victim for order in planned) >= 3
    assert planned == orders.plan_orders(1, 0, 2) != orders.plan_orders(1, 1, 2)
    assert {order.rank for order in orders.plan_orders(5, 0, 2)} == {0, 1}
