"""A server whose processes are killed, and replicas of several ranks; and what tools/serve_chaos.py would notice."""

import json
import sqlite3
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import serve_chaos
from faults.orders import BY_ALL_RANKS, Order
from running import PROMPT, running, wait_for
from serving import verdict
from serving.verdict import Made
from tiny import MAX_SEQUENCE_LENGTH

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

KILLS = [Order(0, "denoising", "supervisor", 0, 1, delay=0.01), Order(1, "encoding", "replica", 0, 0)]


def test_videos_survive_kills(tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is killed while it denoises, a replica while it encodes; both models of the server are asked for."""
    monkeypatch.setattr(serve_chaos, "plan_kills", lambda number, seed, num_ranks: KILLS)
    words = ["--work", str(tmp_path / "w"), "--jobs", "4", "--replicas", "1", "--steps", "3", "--nice", "0"]
    words += ["--model", str(tiny_checkpoint), "--text-length", str(MAX_SEQUENCE_LENGTH)]
    assert serve_chaos.main([*words, "-o", str(tmp_path / "report.json")]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["kills"], report["videos"], report["starts"], report["found"]) == (2, 4, 2, [])
    said = (tmp_path / "w" / "disturbed.txt").read_text()
    assert "was killed by SIGKILL" in said and "goes back into the queue" in said

    # what the report finds is put to the test
    folder = tmp_path / "w" / "disturbed"
    with sqlite3.connect(folder / "batch.sqlite") as connection:
        ids = [name for (name,) in connection.execute("SELECT id FROM requests ORDER BY id")]
    wanted = serve_chaos.requests(4, 3)
    made = {
        index: Made(name, "completed", None, (f"v{index}", f"l{index}"), {"prompt": w["prompt"], "seed": w["seed"]})
        for index, (name, w) in enumerate(zip(ids, wanted, strict=True))
    }

    def found(**changes: Made) -> str:
        disturbed = made | {int(name[1:]): video for name, video in changes.items()}
        return "\n".join(verdict.find_faults(folder, disturbed, made, wanted))

    assert found() == ""
    assert "video 1 is failed: why" in found(_1=Made(ids[1], "failed", "why", (), {}))
    assert "its digests are not those" in found(_1=replace(made[1], digests=("x", "y")))
    assert "2 videos have the digest v0" in found(_1=replace(made[1], digests=("v0", "l1")))
    assert "is the answer to 2 requests" in found(_1=replace(made[1], id=ids[0]))
    (folder / "videos" / "left.checkpoint").touch()
    assert "left.checkpoint is left in the folder" in found()
    (folder / "videos" / f"{ids[0]}.mp4").write_bytes(b"other")
    assert f"videos/{ids[0]}.mp4: batch.sha256 has another digest" in found()


def test_the_kills_are_spread_and_repeatable() -> None:
    kills = serve_chaos.plan_kills(10, 1, 2)
    for victim in ("supervisor", "replica"):
        assert {order.phase for order in kills if order.victim == victim} == set(serve_chaos.PHASES)
    assert kills == serve_chaos.plan_kills(10, 1, 2) != serve_chaos.plan_kills(10, 2, 2)
    assert len({order.delay for order in kills}) > 5 and all(order.rank < 2 for order in kills)
    assert all(order.rank == 0 for order in kills if order.phase not in BY_ALL_RANKS)


def test_two_replicas_of_two_ranks(tmp_path: Path) -> None:
    """Both make videos of two models, which stay loaded; a deleted one stops on all ranks, which go on."""
    b = tmp_path / "b.yaml"
    b.write_text("model: {path: shapes-wan, device: cpu, dtype: bfloat16}\n")
    options = ["--replicas", "2", "--nproc", "2", "--loaded", "2", "--model", "a=shapes-wan", "--model", f"b={b}"]
    folder = tmp_path / "jobs"
    with running(folder, *options) as server:
        client = server.until_ready().client()

        def ask(model: str, steps: int, seed: int) -> Any:
            extra = {"seed": seed, "sampling": {"num_inference_steps": steps}}
            return client.videos.create(prompt=PROMPT, model=model, size="32x32", seconds="1", extra_body=extra)

        long = [ask("a", 200, seed) for seed in (1, 2)]  # one for each replica
        for video in long:
            while wait_for(client, video.id, "in_progress", seconds=300).step == 0:
                time.sleep(0.2)
        client.videos.delete(long[0].id)
        client.videos.delete(long[1].id)
        videos = [ask(model, 3, seed) for seed, model in enumerate("abab")]
        for video in videos:
            assert wait_for(client, video.id, "completed", "failed", seconds=300).status == "completed"
        record = httpx.get(f"{server.url}/v1/videos/{videos[0].id}/sidecar").json()
        said = server.log.read_text(encoding="utf-8")  # before torchrun tells at length that it was stopped
        assert server.stop() == 143
    assert record["mesh"]["world_size"] == 2
    events = [json.loads(line) for line in (folder / "batch.events.jsonl").read_text().splitlines()]
    assert len({event["replica"] for event in events if event["event"] == "drawn"}) == 2  # none was started again
    assert sum(event["event"] == "cancelled" for event in events) == 2 and "Traceback" not in said
    assert {path.name.partition(".")[0] for path in (folder / "videos").iterdir()} == {video.id for video in videos}
