"""Tests of batches on a Ray cluster: nodes that die and join, and files that are brought from them."""

import os
import subprocess
from pathlib import Path

import pytest
from ray_faults import Nodes, Trial, disturb
from tiny import MAX_SEQUENCE_LENGTH, PROMPT

from s2video.cli.main import build_parser, main
from s2video.fleet import rank
from s2video.fleet.crew import rank_plans
from s2video.fleet.rank import Place, RankSettings
from s2video.system.files import sha256
from s2video.system.processes import kill_tree

VIDEOS = 6


def test_a_node_is_killed_and_one_joins_in_the_middle_of_a_batch(tmp_path: Path, tiny_checkpoint: Path) -> None:
    """Afterwards one video is made by ranks on two nodes."""
    settings = {
        "model": {"path": str(tiny_checkpoint), "device": "cpu"},
        "sampling": {"width": 32, "height": 32, "num_frames": 5, "num_inference_steps": 4}
        | {"max_sequence_length": MAX_SEQUENCE_LENGTH},
        "guidance": {"drop_ratio": 0.3},
        "parallel": {"heartbeat_seconds": 120},  # the host may be busy
        "shots": [f"{PROMPT} {number}" for number in range(VIDEOS)],
    }
    trial = Trial(tmp_path, settings, nproc=2)
    local = trial.start("undisturbed")
    with Nodes(cores=2) as nodes:
        for _ in range(2):
            nodes.add()
        assert local.wait() == 0, (tmp_path / "undisturbed.txt").read_text()
        # as if the nodes had disks of their own: files are made elsewhere, and brought to the batch's folder
        process = trial.start("disturbed", "--ray", nodes.address, "--replicas", "2", "--ray-files", "collect")
        try:
            disturb(nodes, trial, "disturbed", process, kill_after=1)
        finally:
            kill_tree(process.pid)
        spanning = start_spanning(nodes, trial)
        try:
            assert spanning.wait() == 0, (tmp_path / "spanning.txt").read_text()
        finally:
            kill_tree(spanning.pid)
    videos = [next(iter(sorted((tmp_path / name).glob("*.mp4")))) for name in ("spanning", "undisturbed")]
    assert videos[0].name == videos[1].name and sha256(videos[0]) == sha256(videos[1])
    said = (tmp_path / "disturbed.txt").read_text()
    assert process.returncode == 0, said
    assert trial.differences("disturbed", "undisturbed") == [], said
    ends = trial.events("disturbed", "replica ended")
    assert len(ends) == 1 and f"{ends[0]['replica']} lost the process of rank" in said, said
    made = [line for line in said.splitlines() if line.startswith(str(tmp_path))]
    assert len(made) == VIDEOS, said  # the paths of the videos, on standard output as of a local batch
    assert not list((tmp_path / "disturbed").glob("batch.seen-*"))


def start_spanning(nodes: Nodes, trial: Trial) -> "subprocess.Popen[bytes]":
    """Start to make one of the videos with two ranks of two cores each, which fit on no node alone."""
    shots = trial.settings["shots"][:1]
    single = Trial(trial.work, {**trial.settings, "shots": shots}, nproc=2)
    return single.start("spanning", "--ray", nodes.address, "--span-nodes", "--rank-cpus", "2")


def test_ranks_are_numbered_by_machine_and_see_all_gpus_of_theirs() -> None:
    places = {
        0: Place("node b", "10.0.0.2", 1234, ("3",)),
        1: Place("node a", "10.0.0.1", 1111, ("0",)),
        2: Place("node b", "10.0.0.2", 2222, ("1",)),
    }
    settings = RankSettings("{}", "auto", "/batch", "seen", "/", "auto", idle_limit=60.0)
    plans = rank_plans(settings, "replica-1-x", places)
    assert [(index, plan.rank, plan.machine, plan.local_rank, plan.local_size) for plan, index in plans] == [
        (0, 0, 0, 0, 2),
        (2, 1, 0, 1, 2),
        (1, 2, 1, 0, 1),
    ]
    assert [plan.gpus for plan, _ in plans] == [("3", "1"), ("3", "1"), ("0",)]
    assert {(plan.master, plan.world_size, plan.owner) for plan, _ in plans} == {(("10.0.0.2", 1234), 3, "replica-1-x")}


def test_files_of_a_replica_that_was_killed_are_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    killed, alive, own = (rank._own_folder() / f"replica-{n}-x-files" for n in (1, 2, 3))
    with rank._removed_at_end(alive):
        for folder in (killed, alive):
            folder.mkdir()
        with rank._removed_at_end(own):
            own.mkdir()
            assert not killed.exists() and alive.exists()
    assert os.listdir(rank._own_folder()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ray", "ray://10.0.0.1:10001"], "--ray: expected local, auto, or the HOST:PORT"),
        (["--ray", "somewhere"], "--ray: expected local, auto, or the HOST:PORT"),
        (["--ray", "6379"], "--ray: expected local, auto, or the HOST:PORT"),
        (["--ray", "local", "--shard", "1/2"], "--ray: expected no --shard, got both"),
        (["--ray", "local", "--rank-cpus", "0"], "expected values >= 1, and at most 1024 ranks, got 1, 1 and 0"),
        (["--ray", "local", "--replicas", "1025"], "at most 1024 ranks, got 1025, 1 and 1"),
        (["--ray", "auto", "--nproc", "1000001"], "at most 1000000 ranks, got 1, 1000001 and 1"),
        (["--ray-files", "collect"], "--ray-files: expected --ray, which it belongs to, got none"),
        (["--span-nodes"], "--span-nodes: expected --ray, which it belongs to, got none"),
    ],
)
def test_what_cannot_be_asked_of_ray(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    run_file = tmp_path / "run.yaml"
    run_file.write_text("model: {path: shapes-wan}\nshots: [a circle]\n")
    assert main(["batch", str(run_file), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["run.yaml"]


def test_a_cluster_may_have_more_ranks_than_this_machine(tmp_path: Path) -> None:
    run_file = tmp_path / "run.yaml"
    run_file.write_text("model: {path: shapes-wan}\nshots: [a circle]\n")
    assert main(["batch", str(run_file), "--ray", "10.0.0.1:6379", "--replicas", "2000", "--dry-run"]) == 0


def test_without_an_address_a_cluster_is_started_on_this_machine() -> None:
    assert build_parser().parse_args(["batch", "run.yaml", "--ray", "--replicas", "2"]).ray == "local"
