"""Tests of a batch's state: owners, leases and outcomes of jobs, and the output of `status`."""

import errno
import io
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from s2video.batch import heartbeat
from s2video.batch import store as batch_store
from s2video.batch.heartbeat import Heartbeat
from s2video.batch.status import as_json, as_text, read_status
from s2video.batch.store import LEASE, MAX_ATTEMPTS, Entry, Store, find_stores
from s2video.cli.main import main
from s2video.errors import InputError, S2VideoError
from s2video.system.locks import held_lock, is_held


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Store:
    made = Store(tmp_path, clock=clock, ticks=clock)
    made.create()
    made.put([entry("a"), entry("b"), entry("c", models="large")], frozenset())
    return made


@pytest.fixture
def alive(store: Store) -> Iterator[ExitStack]:
    """Keep r1 and r2 alive."""
    with ExitStack() as stack:
        for owner in ("r1", "r2"):
            stack.enter_context(held_lock(store.owner_path(owner)))
        yield stack


def entry(name: str, *, models: str = "small", key: str = "k", work: float | None = 1.0) -> Entry:
    return Entry(name=name, place="here", models=models, config="{}", key=key, work=work)


def states(store: Store) -> dict[str, str]:
    return {record.name: record.state for record in store.records()}


def events(store: Store) -> list[str]:
    lines = (store.folder / "batch.events.jsonl").read_text().splitlines()
    return [json.loads(line)["event"] for line in lines]


def test_jobs_are_drawn_once_each_in_order_but_loaded_models_first(store: Store) -> None:
    drawn = [store.draw("r1"), store.draw("r2", ["large"]), store.draw("r1", ["small"]), store.draw("r1", ["small"])]
    assert [job and job.name for job in drawn] == ["a", "c", "b", None]
    assert [(r.owner, r.attempts, r.started) for r in store.records()] == [
        ("r1", 1, 1000.0),
        ("r1", 1, 1000.0),
        ("r2", 1, 1000.0),
    ]


def test_many_processes_draw_no_job_twice(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.create()
    store.put([entry(f"{i:02d}") for i in range(40)], frozenset())
    code = (
        "import sys; from pathlib import Path; from s2video.batch.store import Store\n"
        "store = Store(Path(sys.argv[1]))\n"
        "while (job := store.draw(sys.argv[2])) is not None: print(job.name)"
    )
    root = str(Path(batch_store.__file__).parents[1])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), f"r{i}"],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": root},
        )
        for i in range(3)
    ]
    names = [name for process in processes for name in process.communicate(timeout=60)[0].split()]
    assert sorted(names) == [f"{i:02d}" for i in range(40)]


def test_a_job_is_done_with_its_files(store: Store, clock: Clock, alive: ExitStack) -> None:
    store.draw("r1")
    clock.now += 7
    assert store.finish("a", "r1", {"a.mp4": "1" * 64, "a.json": "2" * 64})
    record = store.records()[0]
    assert (record.state, record.seconds) == ("done", 7.0)
    assert store.digests() == {"a": {"a.mp4": "1" * 64, "a.json": "2" * 64}}
    assert store.checksums_path.read_text() == f"{'2' * 64}  a.json\n{'1' * 64}  a.mp4\n"
    assert events(store) == ["drawn", "done"]


def test_a_job_that_failed_on_another_rank_of_its_replica_is_not_lost(store: Store, alive: ExitStack) -> None:
    """The main rank learns of it from the store before it learns of it from that rank."""
    store.draw("r1")
    store.fail("a", "r1", "no memory")
    assert store.renew("r1") == {"a"}
    assert store.renew("r2") == set()


def test_a_lease_holds_while_it_is_renewed(store: Store, clock: Clock, alive: ExitStack) -> None:
    store.draw("r1")
    clock.now += LEASE - 1
    assert store.renew("r1") == {"a"}
    clock.now += LEASE - 1
    assert store.release() == []
    clock.now += 2
    (job,) = store.release()
    assert (job.name, job.owner, job.error) == ("a", "r1", None)
    assert store.renew("r1") == set()
    taken = store.draw("r2")
    assert taken is not None and (taken.name, taken.attempts) == ("a", 2)


def test_a_lease_does_not_depend_on_the_time_of_day(tmp_path: Path) -> None:
    """The clock of the machine is set; the replica lives and renews, or has just drawn its job."""
    time_of_day, ticks = Clock(), Clock()
    store = Store(tmp_path, clock=time_of_day, ticks=ticks)
    store.create()
    store.put([entry("a"), entry("b")], frozenset())
    with held_lock(store.owner_path("r1")):
        store.draw("r1")
        time_of_day.now += 120
        assert Store(tmp_path, clock=time_of_day, ticks=ticks).release() == []
        time_of_day.now -= 3600
        assert store.release() == [] and store.renew("r1") == {"a"}
        ticks.now += LEASE + 1
        assert [job.name for job in store.release()] == ["a"]
        store.draw("r1")
        assert store.finish("a", "r1", {})
        time_of_day.now -= 3600
        store.draw("r1")
        time_of_day.now -= 3600
        assert store.finish("b", "r1", {})
        assert [record.seconds for record in store.records()] == [0, 0]


def test_the_clock_of_leases_does_not_jump() -> None:
    assert Store(Path("x"))._ticks is time.monotonic


def test_who_lost_a_job_ends_it_no_more(store: Store, clock: Clock, alive: ExitStack) -> None:
    store.draw("r1")
    clock.now += LEASE + 1
    store.release()
    store.draw("r2")
    assert not store.finish("a", "r1", {"a.mp4": "1" * 64})
    assert not store.fail("a", "r1", "late")
    assert store.digests() == {}
    assert store.finish("a", "r2", {"a.mp4": "1" * 64})


def test_a_job_of_a_dead_replica_waits_again_at_once(store: Store, alive: ExitStack) -> None:
    store.draw("r1")
    store.draw("r2")
    alive.close()
    with held_lock(store.owner_path("r2")):
        (job,) = store.release()
        assert (job.name, job.attempts) == ("a", 1)
        assert states(store) == {"a": "waiting", "b": "running", "c": "waiting"}


def test_a_job_that_kills_every_replica_fails(store: Store) -> None:
    for attempt in range(1, MAX_ATTEMPTS + 1):
        drawn = store.draw("gone")
        assert drawn is not None and drawn.name == "a"
        (job,) = store.release()
        assert job.attempts == attempt
    assert job.error == f"{MAX_ATTEMPTS} replicas died during this job"
    assert store.records()[0].error == job.error
    assert states(store)["a"] == "failed"


def test_a_new_start_forgives_attempts_and_a_stop_is_none(store: Store) -> None:
    store.draw("r1")
    store.draw("r1")
    assert store.give_back("r1") == ["a", "b"]
    assert [r.attempts for r in store.records()] == [0, 0, 0]
    store.draw("gone")
    store.release()
    assert store.records()[0].attempts == 1
    store.draw("gone")
    for owner in ("replica-1-x", "replica-2-y"):
        store.owner_path(owner).touch()
    with held_lock(store.owner_path("replica-1-x")):
        store.begin()
        assert [path.name for path in store.folder.glob("*.lock")] == ["batch.replica-1-x.lock"]
    assert [(r.state, r.attempts) for r in store.records()] == [("waiting", 0)] * 3


def test_a_job_that_failed_keeps_its_error_until_it_is_made_again(store: Store) -> None:
    store.draw("r1")
    assert store.fail("a", "r1", "NaN", traceback="")
    assert not store.fail("a", "r1", "the second to speak")
    store.put([entry("a"), entry("b")], frozenset())
    assert [(r.name, r.state, r.error) for r in store.records()] == [("a", "failed", "NaN"), ("b", "waiting", None)]
    store.put([entry("b"), entry("a")], frozenset({"a"}))
    assert [(r.name, r.state, r.error) for r in store.records()] == [("b", "waiting", None), ("a", "waiting", None)]


def test_files_of_jobs_that_are_no_more_are_no_more_listed(store: Store) -> None:
    for name in ("a", "b"):
        store.draw("r1")
        store.finish(name, "r1", {f"{name}.mp4": "1" * 64})
    store.put([entry("b"), entry("c")], frozenset())
    assert store.checksums_path.read_text() == f"{'1' * 64}  b.mp4\n"


def test_a_replica_that_lost_a_job_ends(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    beating = Heartbeat(store, "r1")
    ended: list[int] = []

    def end(code: int) -> None:
        ended.append(code)
        beating._ended.set()

    monkeypatch.setattr(heartbeat, "LEASE", 0.04)
    monkeypatch.setattr(heartbeat, "end_suddenly", end)
    with beating:
        store.draw("r1")
        beating.held.add("a")
        beating._thread.join(0.3)
        assert ended == []
        with store._transaction() as connection:
            connection.execute("UPDATE jobs SET owner = 'r2'")
        beating._thread.join(30)
    assert ended == [1]
    assert "may have lost a to another replica" in capsys.readouterr().err


def test_locks(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not is_held(path)
    with held_lock(path) as first, held_lock(path) as second:
        assert (first, second, is_held(path)) == (True, False, True)
    assert not is_held(path)


@pytest.mark.parametrize(("shard", "mode"), [(None, "wal"), ((2, 3), "delete")])
def test_the_journal(tmp_path: Path, shard: tuple[int, int] | None, mode: str) -> None:
    store = Store(tmp_path, shard)
    store.create()
    with store._connected() as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone()[0] == mode


def test_a_folder_that_cannot_hold_a_state(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="choose another folder"):
        Store(tmp_path / "file").create()
    (tmp_path / "batch.sqlite").write_text("not a database, but long enough to be read as one" * 100)
    with pytest.raises(InputError, match="choose another folder"):
        Store(tmp_path).create()


def test_status_tells_all_shards(tmp_path: Path, clock: Clock) -> None:
    shards = [Store(tmp_path, (i, 2), clock=clock, ticks=clock) for i in (1, 2)]
    for i, shard in enumerate(shards):
        shard.create()
        shard.put([entry(f"{name}{i}", work=2.0 + 2 * i) for name in "abc"], frozenset())
    assert [store.path for store in find_stores(tmp_path)] == [shard.path for shard in shards]
    first, second = shards
    with held_lock(first.owner_path("r1")):
        for _ in range(2):
            first.draw("r1")
        second.draw("gone")
        clock.now += 10
        first.finish("a0", "r1", {"a0.mp4": "1" * 64})
        second.fail("a1", "gone", "NaN in the latents")
        second.draw("gone")
        status = read_status(tmp_path, now=clock.now)
    reported = json.loads(as_json(status))
    assert reported["counts"] == {"waiting": 2, "running": 2, "done": 1, "failed": 1}
    assert reported["replicas"] == 1
    # 5 s per unit of work; 10 s of b0 are done; 10 s of c0, 20 s of b1 and 20 s of c1 are left
    assert reported["seconds_left"] == pytest.approx(50.0)
    assert [job["error"] for job in reported["jobs"] if job["state"] == "failed"] == ["NaN in the latents"]
    text = as_text(status)
    assert "1 of 6 done, 2 running, 2 waiting, 1 failed; 1 replicas; time left: 50 s" in text
    assert "failed   a1  (here): NaN in the latents" in text
    assert "1 of the running jobs belong to replicas that died" in text


def test_status_does_not_guess(store: Store) -> None:
    assert read_status(store.folder).seconds_left is None
    store.put([], frozenset())
    assert read_status(store.folder).seconds_left == 0.0


def test_status_of_no_batch(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected the folder of a batch"):
        read_status(tmp_path)


def test_status_of_a_batch_that_has_put_no_job_yet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "batch.sqlite").touch()
    assert main(["status", str(tmp_path)]) == 2
    assert "expected a batch that has begun, got an empty batch.sqlite; try again" in capsys.readouterr().err
    Store(tmp_path).create()
    shutil.copy(tmp_path / "batch.sqlite", tmp_path / "batch.old.sqlite")  # is no part of the state
    assert main(["status", str(tmp_path), "--exit-code"]) == 3


class Steps:
    """Counts the instructions of SQLite's machine, which say what a query costs, whatever the clock says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        connect = sqlite3.connect

        def counted(*arguments: Any, **keywords: Any) -> sqlite3.Connection:
            connection = connect(*arguments, **keywords)
            connection.set_progress_handler(self.add, 1)
            return connection

        monkeypatch.setattr(batch_store.sqlite3, "connect", counted)

    def add(self) -> int:
        self.count += 1
        return 0


def test_what_happens_often_costs_the_same_after_many_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a supervisor asks in each round, and what a replica does for each job."""
    costs, lines = [], []
    for number in (20, 2000):
        store = Store(tmp_path / str(number))
        store.create()
        names = [f"{i:05d}" for i in range(number + 2)]
        store.put([entry(name) for name in names], frozenset())
        with store._transaction() as connection:
            connection.execute("UPDATE jobs SET state = 'done', owner = 'r0' WHERE position < ?", (number,))
            rows = [(name, f"{name}.mp4", "1" * 64) for name in names[:number]]
            connection.executemany("INSERT INTO files VALUES (?, ?, ?)", rows)
            store._write_checksums(connection)
        with monkeypatch.context() as patch:
            steps = Steps(patch)
            drawn = store.draw("r1", "small")
            assert drawn is not None and store.owners() == {"r1"} and store.has_drawn("r1")
            assert store.count_open() == {"waiting": 1, "running": 1}
            store.renew("r1")
            size = store.checksums_path.stat().st_size
            assert store.finish(drawn.name, "r1", {f"{drawn.name}.mp4": "2" * 64})
            lines.append(store.checksums_path.stat().st_size - size)
            assert store.release() == [] and not store.has_drawn("r9")
        costs.append(steps.count)
    assert lines[0] == lines[1] == 64 + 2 + 10
    assert costs[1] < 1.2 * costs[0]


def test_checksums_are_those_of_the_store_whoever_died(store: Store, clock: Clock, alive: ExitStack) -> None:
    store.draw("r1")
    store.finish("a", "r1", {"a.mp4": "1" * 64})
    store.draw("gone")
    with store.checksums_path.open("a") as file:
        file.write(f"{'9' * 64}  b.mp4\n")  # of a replica that died before it could commit
    clock.now += LEASE + 1
    assert [job.name for job in store.release()] == ["b"]
    store.draw("r1")
    store.finish("b", "r1", {"b.mp4": "2" * 64})
    assert store.checksums_path.read_text() == f"{'1' * 64}  a.mp4\n{'2' * 64}  b.mp4\n"


def test_a_full_disk_leaves_the_checksums_as_they_were(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.draw("r1")
    store.finish("a", "r1", {"a.mp4": "1" * 64})
    before = store.checksums_path.read_text()
    store.draw("r1")
    opened = Path.open

    class Full(io.StringIO):
        def write(self, text: str) -> int:
            with opened(store.checksums_path, "a") as file:
                file.write(text[:10])
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(
        Path, "open", lambda path, *a, **k: Full() if path == store.checksums_path else opened(path, *a, **k)
    )
    with pytest.raises(S2VideoError, match="No space left"):
        store.finish("b", "r1", {"b.mp4": "2" * 64})
    monkeypatch.undo()
    assert store.checksums_path.read_text() == before
    assert states(store)["b"] == "running"


def columns(change: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(change)

    return damage


FOREIGN: dict[str, Callable[[Path], None]] = {
    "junk": lambda path: path.write_bytes(b"junk" * 1000) and None,
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:5000]) and None,
    "another database": columns("DROP TABLE jobs"),
    "another table": columns("ALTER TABLE jobs RENAME COLUMN key TO other"),
    "a state that is none": columns("UPDATE jobs SET state = 'x'"),
    "running without owner": columns("UPDATE jobs SET state = 'running', owner = NULL"),
    "work a word": columns("UPDATE jobs SET work = 'x'"),
    "attempts a blob": columns("UPDATE jobs SET attempts = x'ff'"),
    "a name that is no text": columns("UPDATE jobs SET name = x'ff' WHERE position = 0"),
    "text that is not UTF-8": columns("UPDATE jobs SET error = CAST(x'ff' AS TEXT)"),
}


@pytest.mark.parametrize("damage", FOREIGN.values(), ids=FOREIGN.keys())
def test_a_foreign_or_damaged_file(
    damage: Callable[[Path], None], store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(sqlite3.connect(store.path)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")  # all of it in one file
    damage(store.path)
    assert main(["status", str(store.folder)]) == 2
    assert main(["page", str(store.folder)]) == 2
    for line in capsys.readouterr().err.splitlines():
        assert re.search(r"batch\.sqlite: expected the state of a batch, got another or a damaged file \(.*\); ", line)
    with pytest.raises(InputError, match="damaged file"):
        store.records()
