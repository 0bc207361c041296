"""Tests of replicas that succeed, die, or fail to start, simulated by a program that draws jobs and makes no videos."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from s2video.batch import supervisor as replicas
from s2video.batch.store import MAX_ATTEMPTS, Entry, Store
from s2video.batch.supervisor import ReplicaPlan, supervise, visible_gpus
from s2video.cli import batch as batch_commands
from s2video.cli import catalog
from s2video.cli.main import main
from s2video.errors import InputError, S2VideoError, StoppedError
from s2video.system.shutdown import Termination

# The prefix of a job's name sets what happens to its replica.
PLAYED = """
import os, signal, sys, time
from pathlib import Path
from s2video.batch.store import Store
from s2video.system.locks import held_lock

from s2video.batch import store as stores
stores.LEASE = float(os.environ.get("PLAYED_LEASE", stores.LEASE))
folder, owner = Path(sys.argv[1]), sys.argv[3]
store = Store(folder)
if (folder / "broken").exists():
    sys.exit("out of order")
if (folder / "broken once").exists() and os.environ["PLAYED_NUMBER"] == "2":
    (folder / "broken once").unlink()
    sys.exit("out of order")
if (folder / "asleep").exists():
    time.sleep(1000)
with held_lock(store.owner_path(owner)):
    while (job := store.draw(owner)) is not None:
        if job.name.startswith("kills"):
            os.kill(os.getpid(), signal.SIGKILL)
        if job.name.startswith("kills once") or job.name.startswith("long"):
            (folder / "drawn").touch()
            try:
                time.sleep(60)
            finally:
                store.give_back(owner)
        if job.name.startswith(("stops", "sleeps")) and job.attempts == 1:
            if job.name.startswith("stops"):
                os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(1000)
        if job.name.startswith("fails"):
            store.fail(job.name, owner, "its own fault")
            sys.exit(1)
        store.finish(job.name, owner, {job.name: "0" * 64})
    while (folder / "patient").exists():
        time.sleep(0.2)
"""


class PlayedPlan(ReplicaPlan):
    def command(self, arguments: Sequence[str]) -> list[str]:
        return [sys.executable, "-c", PLAYED, *arguments]


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(replicas.__file__).parents[1]))


def store_of(folder: Path, *names: str) -> Store:
    store = Store(folder)
    store.create()
    jobs = [Entry(name=name, place="here", models="", config="{}", key="k", work=None) for name in names]
    store.put(jobs, frozenset())
    return store


def states(store: Store) -> dict[str, str]:
    return {record.name: record.state for record in store.records()}


def test_the_queue_is_emptied(tmp_path: Path) -> None:
    store = store_of(tmp_path, *(f"job {i}" for i in range(6)))
    assert supervise(store, PlayedPlan(2, 1), [str(tmp_path)]) is None
    assert set(states(store).values()) == {"done"}


def test_a_job_that_kills_its_replicas_fails_and_the_others_are_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = store_of(tmp_path, "job 0", "kills all", "job 1", "fails", "job 2")
    assert supervise(store, PlayedPlan(1, 1), [str(tmp_path)]) is None
    made = states(store)
    assert [made.pop("kills all"), made.pop("fails")] == ["failed", "failed"]
    assert set(made.values()) == {"done"}
    errors = {record.name: record.error for record in store.records()}
    assert errors["kills all"] == f"{MAX_ATTEMPTS} replicas died during this job"
    assert errors["fails"] == "its own fault"
    said = capsys.readouterr().err
    assert said.count("was killed by SIGKILL") == MAX_ATTEMPTS
    assert "kills all of replica-1-" in said and "goes back into the queue (attempt 1)" in said
    assert "exited with code 1" in said
    ends = [json.loads(line) for line in (tmp_path / "batch.events.jsonl").read_text().splitlines()]
    assert [end["code"] for end in ends if end["event"] == "replica ended"].count(-signal.SIGKILL) == MAX_ATTEMPTS


def test_replicas_that_never_draw_a_job_are_not_started_for_ever(tmp_path: Path) -> None:
    store = store_of(tmp_path, "job")
    (tmp_path / "broken").touch()
    with pytest.raises(S2VideoError, match="1 videos are waiting, but every replica exited before"):
        supervise(store, PlayedPlan(2, 1), [str(tmp_path)])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("stops", "did nothing for 3 s, because it is stopped (SIGSTOP), and was ended"),
        ("sleeps", "did nothing for 3 s, and"),
    ],
)
def test_a_replica_that_does_nothing_is_ended_and_its_job_made_by_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, reason: str
) -> None:
    store = store_of(tmp_path, name, "job")
    assert supervise(store, PlayedPlan(1, 1), [str(tmp_path)], idleness=3.0) is None
    assert states(store) == {name: "done", "job": "done"}
    said = capsys.readouterr().err
    assert reason in said and f"{name} of replica-1-" in said and "goes back into the queue (attempt 1)" in said


def test_replicas_that_do_nothing_before_they_draw_a_job_end_the_batch(tmp_path: Path) -> None:
    """As one that hangs while it loads its models."""
    store = store_of(tmp_path, "job")
    (tmp_path / "asleep").touch()
    with pytest.raises(S2VideoError, match="1 videos are waiting, but every replica exited before"):
        supervise(store, PlayedPlan(1, 1), [str(tmp_path)], idleness=3.0)


def test_a_replica_that_lost_its_job_is_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is stopped for longer than its lease."""
    monkeypatch.setattr("s2video.batch.store.LEASE", 2.0)
    store = store_of(tmp_path, "stops")
    monkeypatch.setenv("PLAYED_LEASE", "2")
    assert supervise(store, PlayedPlan(1, 1), [str(tmp_path)]) is None
    assert states(store) == {"stops": "done"}
    assert "missed its heartbeat" in capsys.readouterr().err


def _stop_when(condition: Callable[[], bool]) -> threading.Thread:
    """Send SIGTERM to this process when a condition holds."""

    def wait() -> None:
        end = time.monotonic() + 60
        while not condition() and time.monotonic() < end:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_where_replicas_stay_one_that_died_while_it_started_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one works meanwhile, and may do so for months."""
    monkeypatch.setattr(replicas, "_RETRY_AFTER", 0.5)
    store = store_of(tmp_path, "long", "job")
    first = PlayedPlan.environment

    def environment(self: ReplicaPlan, number: int) -> dict[str, str]:
        return {**first(self, number), "PLAYED_NUMBER": str(number)}

    monkeypatch.setattr(PlayedPlan, "environment", environment)
    (tmp_path / "broken once").touch()
    waiting = _stop_when(lambda: states(store)["job"] == "done")
    assert supervise(store, PlayedPlan(2, 1), [str(tmp_path)], stays=True) == signal.SIGTERM
    waiting.join()
    assert states(store)["job"] == "done" and not (tmp_path / "broken once").exists()


def test_a_replica_that_stays_may_have_nothing_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It has drawn nothing yet, or a client has deleted all that it made."""
    store = store_of(tmp_path, "job", "other")
    (tmp_path / "patient").touch()

    def cleared() -> bool:
        if set(states(store).values()) == {"done"}:
            for name in states(store):
                store.forget(name)
            time.sleep(5)
        return not states(store)

    waiting = _stop_when(cleared)
    assert supervise(store, PlayedPlan(1, 1), [str(tmp_path)], idleness=2.0, stays=True) == signal.SIGTERM
    waiting.join()
    assert "did nothing" not in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stop_is_passed_on(tmp_path: Path, number: signal.Signals) -> None:
    store = store_of(tmp_path, "long")

    def stop() -> None:
        while not (tmp_path / "drawn").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    threading.Thread(target=stop).start()
    before = signal.getsignal(number)
    assert supervise(store, PlayedPlan(1, 1), [str(tmp_path)]) == number
    assert signal.getsignal(number) is before
    assert states(store) == {"long": "waiting"} or store.release()[0].attempts == 1


def test_the_shares_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 32)
    plan = ReplicaPlan(2, 2, ["3", "5", "6", "7"])
    plan.check()
    assert [plan.environment(number)["CUDA_VISIBLE_DEVICES"] for number in (1, 2)] == ["3,5", "6,7"]
    assert plan.environment(1)["OMP_NUM_THREADS"] == "8"
    assert "OMP_NUM_THREADS" not in ReplicaPlan(1, 1).environment(1)
    assert plan.command(["replica"])[1:3] == ["-m", "torch.distributed.run"]
    assert ReplicaPlan(2, 1).command(["replica"]) == [sys.executable, "-m", "s2video", "replica"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("is_batch", [True, False])
def test_the_exit_code_names_the_signal(
    is_batch: bool, number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a run saved its state after a step: it hears of the signal then, and ends with a StoppedError."""

    def stopped(arguments: object) -> int:
        if is_batch:
            batch_commands._check_end(store_of(tmp_path, "a"), number)
        with Termination().handled() as termination, termination.deferred():
            os.kill(os.getpid(), number)
            raise StoppedError("stopped on request after step 1 of 2")

    monkeypatch.setattr(catalog, "_models", stopped)
    assert main(["models"]) == 128 + number


@pytest.mark.parametrize(
    "plan",
    [
        *(ReplicaPlan(0, 1), ReplicaPlan(1, 0), ReplicaPlan(2, 2, ["0", "1", "2"])),
        *(ReplicaPlan(1_000_000, 1), ReplicaPlan(64, 64), ReplicaPlan(1, 2**40)),
    ],
)
def test_numbers_that_make_no_sense(plan: ReplicaPlan) -> None:
    with pytest.raises(InputError, match="--replicas"):
        plan.check()


@pytest.mark.parametrize(("variable", "count", "expected"), [("", 2, ["0", "1"]), ("4,6", 2, ["4", "6"]), ("", 0, [])])
def test_which_gpus_there_are(monkeypatch: pytest.MonkeyPatch, variable: str, count: int, expected: list[str]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    assert visible_gpus("auto") == expected
    assert visible_gpus("cpu") == []


def test_a_replica_hears_that_its_starter_is_gone() -> None:
    """The end of its standard input acts as a SIGTERM."""
    code = (
        "import time; from s2video.system.processes import end_with_stdin\n"
        "end_with_stdin(lambda: print('gone')); print('ready', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdin is not None
    assert process.stdout.readline() == b"ready\n"
    assert process.poll() is None
    process.stdin.close()
    assert process.wait(60) == -signal.SIGTERM
    process.stdout.close()
