"""Tests of the process that holds a batch's store for other machines, and of what those see of it, without Ray."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fleet_scale
import pytest

from s2video.batch.records import Entry
from s2video.batch.status import read_status
from s2video.batch.store import LEASE, Store
from s2video.config.run import RunConfig, build_config
from s2video.errors import InputError, S2VideoError
from s2video.fleet import keeper as keepers
from s2video.fleet import remote_store
from s2video.fleet.keeper import Keeper
from s2video.fleet.remote_store import RemoteStore, UnreachableError
from s2video.media.output_paths import OutputPaths
from s2video.records.sidecar import versions
from s2video.system.files import sha256


class Machine:
    """What a cluster does between a replica and the keeper: one call at a time, and none when the line is cut."""

    def __init__(self, folder: Path, *names: str) -> None:
        store = Store(folder)
        store.create()
        configs = {
            name: build_config({"prompt": "p", "output": {"path": str(folder / name)}}, "here") for name in names
        }
        jobs = [
            Entry(name=name, place="here", models="", config=config.model_dump_json(), key="k", work=None)
            for name, config in configs.items()
        ]
        store.put(jobs, frozenset())
        self.folder = folder
        self.keeper = Keeper(str(folder), versions())
        self.is_cut = False
        self._turn = threading.Lock()

    def ask(self, name: str, *arguments: Any, patience: float = 0.0) -> Any:
        if self.is_cut:
            raise UnreachableError("no answer")
        with self._turn:
            return getattr(self.keeper, name)(*arguments)

    def states(self) -> dict[str, str]:
        return {record.name: record.state for record in Store(self.folder).records()}

    @contextmanager
    def replica(self, owner: str, folder: Path | None = None, *, shares: bool = False) -> Iterator[RemoteStore]:
        store = RemoteStore(self.ask, folder or self.folder, collects=folder is not None and not shares)
        with store.presence(owner):
            yield store


@pytest.fixture(autouse=True)
def quick_pulse(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (remote_store, keepers):
        monkeypatch.setattr(module, "PULSE", 0.02)
    monkeypatch.setattr(keepers, "_PULSES", 1000.0)


def until(condition: Any) -> None:
    while not condition():
        time.sleep(0.01)


def make_files(paths: OutputPaths, text: str) -> None:
    paths.output.parent.mkdir(parents=True, exist_ok=True)
    paths.video.write_text(text)
    paths.sidecar.write_text(f"about {text}")


def test_jobs_are_drawn_and_finished_by_way_of_the_keeper(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "a.mp4", "b.mp4")
    with machine.replica("replica-1-x") as store:
        record = store.draw("replica-1-x")
        assert record is not None and record.name == "a.mp4"
        assert store.renew("replica-1-x") == {"a.mp4"}
        assert read_status(tmp_path).alive == 1  # for other processes, too
        assert store.finish("a.mp4", "replica-1-x", {"a.mp4": "0" * 64})
        assert (record := store.draw("replica-1-x")) is not None
        assert store.fail("b.mp4", "replica-1-x", "its own fault", rank=0)
        assert store.draw("replica-1-x") is None
    assert machine.states() == {"a.mp4": "done", "b.mp4": "failed"}
    assert not list(tmp_path.glob("batch.replica-*"))


def test_a_replica_whose_end_was_seen_loses_its_job_at_once(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "a.mp4")
    with machine.replica("replica-1-x") as store:
        store.draw("replica-1-x")
        assert machine.keeper.release() == []
        machine.keeper.goodbye("replica-1-x")
        assert [job.name for job in machine.keeper.release()] == ["a.mp4"]
        assert store.renew("replica-1-x") == set()
        assert not store.finish("a.mp4", "replica-1-x", {"a.mp4": "0" * 64})
        with pytest.raises(S2VideoError, match="counts as ended"):
            store.draw("replica-1-x")
    assert machine.states() == {"a.mp4": "waiting"}


def test_a_replica_that_cannot_reach_the_keeper_gives_its_jobs_up_before_its_lease_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, now = Machine(tmp_path, "a.mp4"), time.monotonic()
    with machine.replica("replica-1-x") as store:
        store.draw("replica-1-x")
        store.renew("replica-1-x")
        machine.is_cut = True
        assert store.renew("replica-1-x") == {"a.mp4"}  # a moment without an answer is no loss
        with monkeypatch.context() as later:
            later.setattr(remote_store.time, "monotonic", lambda: now + LEASE / 2 + 5)
            assert store.renew("replica-1-x") == set()
        machine.is_cut = False


def test_a_replica_that_is_asked_to_stop_gets_sigterm_and_no_job(tmp_path: Path) -> None:
    machine, received = Machine(tmp_path, "a.mp4"), []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        with machine.replica("replica-1-x") as store:
            store.step_done("a.mp4", 3, 30)
            until(lambda: machine.keeper.steps() == {"a.mp4": (3, 30)})
            assert not received
            machine.keeper.stop("replica-1-x")
            until(lambda: received)
            assert store.draw("replica-1-x") is None
            time.sleep(0.1)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM]  # a second one would end it in the middle of a step


def test_a_replica_that_is_asked_to_stop_while_it_starts_gets_no_job(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "a.mp4")
    machine.keeper.stop("replica-1-x")
    with machine.replica("replica-1-x") as store:
        assert store.draw("replica-1-x") is None


def test_a_machine_with_other_versions_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(tmp_path, "a.mp4")
    monkeypatch.setattr(remote_store, "versions", lambda: {**versions(), "torch": "1.0", "python": "3.99"})
    with pytest.raises(InputError, match=r"expected torch .* on every machine, .* got 1\.0"), machine.replica("r"):
        pass


def test_files_of_a_machine_with_its_own_disk_are_brought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (keepers, remote_store):
        monkeypatch.setattr(module, "PART", 5)
    machine, elsewhere = Machine(tmp_path / "head", "shots/a.mp4"), tmp_path / "elsewhere"
    with machine.replica("replica-1-x", elsewhere) as store:
        record = store.draw("replica-1-x")
        assert record is not None and str(elsewhere / "shots/a.mp4") in record.config
        files, brought = (OutputPaths(folder / "shots/a.mp4") for folder in (elsewhere, tmp_path / "head"))
        make_files(files, "a whole video")
        files.latents.write_text("latents that are kept")
        files.resume_point.write_text("step 3, and much more")
        until(brought.resume_point.exists)
        assert brought.resume_point.read_text() == "step 3, and much more"
        digests = {path.relative_to(elsewhere).as_posix(): sha256(path) for path in (files.video, files.sidecar)}
        assert store.finish("shots/a.mp4", "replica-1-x", digests)
        assert brought.video.read_text() == "a whole video"
        assert brought.sidecar.read_text() == "about a whole video"
        assert brought.latents.read_text() == "latents that are kept"
        assert not brought.resume_point.exists() and not any(path.exists() for path in files.all)
    assert machine.states() == {"shots/a.mp4": "done"}
    assert Store(machine.folder).digests() == {"shots/a.mp4": digests}
    assert not list((machine.folder / "batch.incoming").iterdir())


def test_a_job_continues_on_another_machine_from_the_resume_point_that_was_brought(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "head", "a.mp4")
    with machine.replica("replica-1-x", tmp_path / "one") as store:
        store.draw("replica-1-x")
        OutputPaths(tmp_path / "one/a.mp4").resume_point.parent.mkdir(exist_ok=True)
        OutputPaths(tmp_path / "one/a.mp4").resume_point.write_text("step 3")
        assert store.give_back("replica-1-x") == ["a.mp4"]  # stopped: the last one is brought before it is given back
    with machine.replica("replica-2-y", tmp_path / "two") as store:
        make_files(OutputPaths(tmp_path / "two/a.mp4"), "of another attempt on this machine")
        assert store.draw("replica-2-y") is not None
        assert OutputPaths(tmp_path / "two/a.mp4").resume_point.read_text() == "step 3"
        assert not OutputPaths(tmp_path / "two/a.mp4").sidecar.exists()


def test_a_replica_that_lost_its_job_replaces_no_file(tmp_path: Path) -> None:
    machine, elsewhere = Machine(tmp_path / "head", "a.mp4"), tmp_path / "elsewhere"
    with machine.replica("replica-1-x", elsewhere) as store:
        store.draw("replica-1-x")
        make_files(OutputPaths(elsewhere / "a.mp4"), "late")
        machine.keeper._store.give_back("replica-1-x")
        digests = {name: sha256(elsewhere / name) for name in ("a.mp4", "a.json")}
        with machine.replica("replica-2-y") as other:
            assert other.draw("replica-2-y") is not None
            assert not store.finish("a.mp4", "replica-1-x", digests)
    assert not (machine.folder / "a.mp4").exists()


def test_a_sequence_replaces_the_older_one_whole(tmp_path: Path) -> None:
    machine, elsewhere = Machine(tmp_path / "head", "a.png"), tmp_path / "elsewhere"
    files, brought = OutputPaths(elsewhere / "a.png"), OutputPaths(machine.folder / "a.png")
    for paths, count in ((files, 2), (brought, 5)):
        paths.video.mkdir(parents=True)
        for number in range(count):
            (paths.video / f"{number}.png").write_text(f"frame {number} of {count}")
    with machine.replica("replica-1-x", elsewhere) as store:
        frames = {path.name: path.read_text() for path in files.video.iterdir()}
        store.draw("replica-1-x")
        files.video.mkdir()
        for name, text in frames.items():
            (files.video / name).write_text(text)
        files.sidecar.write_text("{}")
        paths = (*files.video.iterdir(), files.sidecar)
        assert store.finish("a.png", "replica-1-x", {p.relative_to(elsewhere).as_posix(): sha256(p) for p in paths})
    assert {path.name: path.read_text() for path in brought.video.iterdir()} == frames
    assert brought.sidecar.read_text() == "{}"


@pytest.mark.parametrize("path", ["../a.mp4", "/etc/a.mp4", "a/../../b", "", "a\0b"])
def test_no_file_is_received_outside_the_folder(tmp_path: Path, path: str) -> None:
    machine = Machine(tmp_path / "head", "a.mp4")
    with machine.replica("replica-1-x"):
        with pytest.raises(InputError, match="expected a path below the batch's folder"):
            machine.ask("send_part", "replica-1-x", path, 0, b"x")
        with pytest.raises(InputError, match="expected a path below the batch's folder"):
            machine.ask("read_part", path, 0)


def test_a_file_that_arrives_changed_or_in_part_is_refused(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "head", "a.mp4")
    with machine.replica("replica-1-x") as store:
        store.draw("replica-1-x")
        machine.ask("send_part", "replica-1-x", "a.mp4", 0, b"other bytes")
        with pytest.raises(InputError, match="expected the part at byte 11, got the one at 5"):
            machine.ask("send_part", "replica-1-x", "a.mp4", 5, b"x")
        with pytest.raises(S2VideoError, match="expected the file with SHA-256"):
            machine.ask("finish", "a.mp4", "replica-1-x", {"a.mp4": "0" * 64}, ())
    assert machine.states() == {"a.mp4": "running"} and not (machine.folder / "a.mp4").exists()


def test_the_keeper_keeps_one_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine, opened = Machine(tmp_path, *(f"{n}.mp4" for n in range(5))), []
    connect = keepers.Store._connect
    monkeypatch.setattr(keepers.Store, "_connect", lambda self: opened.append(os.getpid()) or connect(self))
    with machine.replica("replica-1-x") as store:
        while (record := store.draw("replica-1-x")) is not None:
            store.finish(record.name, "replica-1-x", {})
    machine.keeper.close()
    assert opened == []  # it has one from its start


def test_a_simulated_fleet_ends_with_all_jobs_done(capsys: pytest.CaptureFixture[str]) -> None:
    """`tools/fleet_scale.py`, whose results are in docs/fleet.md, with a fleet that loses replicas."""
    assert fleet_scale.main(["--replicas", "8", "--jobs", "24", "--losses", "0.05", "--tick", "1"]) == 0
    said = capsys.readouterr().out
    found = re.search(r"24 of 24 jobs done, 0 failed, (\d+) draws, (\d+) replicas lost", said)
    assert found is not None, said
    draws, lost = map(int, found.groups())
    assert lost > 0 and 24 <= draws <= 24 + lost


KEEPER = """
import sys, time
from s2video.fleet.keeper import Keeper
keeper = Keeper(sys.argv[1], {})
keeper.hello("replica-1-x", {})
keeper.draw("replica-1-x")
keeper.finish("a.mp4", "replica-1-x", {"a.mp4": "0" * 64})
print(keeper.draw("replica-1-x").name, flush=True)
time.sleep(600)
"""


def test_what_is_done_outlives_the_process_that_holds_the_store(tmp_path: Path) -> None:
    Machine(tmp_path, "a.mp4", "b.mp4").keeper.close()
    first = subprocess.Popen([sys.executable, "-c", KEEPER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None and first.stdout.readline() == "b.mp4\n"
    finally:
        first.kill()
        first.wait()
    second = Keeper(str(tmp_path), versions())
    second.hello("replica-2-y", versions())
    assert [job.name for job in second.release()] == ["b.mp4"]
    record = second.draw("replica-2-y")
    assert record is not None and record.name == "b.mp4"
    assert second.finish("b.mp4", "replica-2-y", {"b.mp4": "1" * 64}) and second.draw("replica-2-y") is None
    second.close()
    assert {record.name: record.state for record in Store(tmp_path).records()} == {"a.mp4": "done", "b.mp4": "done"}


def test_a_relative_folder_of_a_run_file_is_the_one_that_all_machines_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    machine = Machine(Path("runs"), "a.mp4")
    monkeypatch.chdir("/")
    machine.keeper = Keeper(str(tmp_path / "runs"), versions())
    with machine.replica("replica-1-x", tmp_path / "runs", shares=True) as store:
        record = store.draw("replica-1-x")
        assert record is not None
        assert RunConfig.model_validate_json(record.config).output.path == str(tmp_path / "runs/a.mp4")
