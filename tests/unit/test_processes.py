"""Tests of processes that are tied to this one, of what they do, and of the roster of ranks."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from s2video.system import launcher
from s2video.system import processes as module
from s2video.system.launcher import HeldSignals, held_signals, report_reason, start_ranks
from s2video.system.processes import Idleness, kill_tree, look, start_time, tied, tree
from s2video.system.roster import Roster

SLEEP = "import time; print('ready', flush=True); time.sleep(1000)"
# A parent that starts a child, and prints the child's process id.
PARENT = """
import os, signal, subprocess, sys, time
from s2video.system.launcher import start_ranks
from s2video.system.processes import tied
command = [sys.executable, "-c", "import signal, time; signal.signal(signal.SIGHUP, signal.SIG_IGN); time.sleep(1000)"]
if sys.argv[1] == "tied":
    process = subprocess.Popen(tied(command, signal.SIGKILL), start_new_session=True)
else:
    process = start_ranks(command, os.environ)
print(process.pid, flush=True)
time.sleep(1000)
"""
RANK = """
import sys, time
from pathlib import Path
from s2video.system.roster import Roster
roster = Roster(Path(sys.argv[1]), rank=1, local_rank=1, local_size=2)
roster.write("denoising step 3 of 30", goodbye=sys.argv[2] == "goodbye")
print("ready", flush=True)
time.sleep(1000)
"""


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def run(code: str, *arguments: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        command = [sys.executable, "-c", code, *arguments]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    found = look(pid)
    return found is None or found.state == "Z"


@pytest.mark.parametrize("how", ["tied", "ranks"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP, signal.SIGTERM])
def test_a_child_ends_with_its_parent(
    start: Callable[..., subprocess.Popen[str]], how: str, number: signal.Signals
) -> None:
    parent = start(PARENT, how)
    child = int(said(parent))
    assert not is_gone(child)
    parent.send_signal(number)
    wait_until(lambda: is_gone(child))


def test_a_stopped_child_ends_with_its_parent(start: Callable[..., subprocess.Popen[str]]) -> None:
    parent = start(PARENT, "tied")
    child = int(said(parent))
    # Just after a program has started its command line is empty, so the new one is waited for, not the old one's end.
    wait_until(lambda: b"SIGHUP" in (line := Path(f"/proc/{child}/cmdline").read_bytes()) and b"prctl" not in line)
    os.kill(child, signal.SIGSTOP)
    parent.kill()
    wait_until(lambda: is_gone(child))


def test_a_tied_program_is_the_program(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import os, sys; print(os.getpid()); sys.exit(7)"]
    process = subprocess.Popen(tied(command, signal.SIGKILL), stdout=subprocess.PIPE, text=True)
    assert said(process) == str(process.pid) and process.wait(60) == 7
    process.communicate()
    missing = subprocess.run(tied([tmp_path / "none"], signal.SIGKILL), capture_output=True, text=True)
    assert (
        missing.returncode == 1 and missing.stderr == f"cannot start {tmp_path / 'none'}: No such file or directory\n"
    )


def test_a_child_of_a_parent_that_is_gone_does_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent may end before the child has asked to be told of it."""
    monkeypatch.setattr(module.os, "getpid", lambda: 1)
    assert subprocess.run(tied([sys.executable, "-c", "raise SystemExit(7)"], signal.SIGKILL)).returncode == 1


def test_a_tree_ends_as_a_whole(start: Callable[..., subprocess.Popen[str]]) -> None:
    parent = start(PARENT, "ranks")
    child = int(said(parent))
    os.kill(child, signal.SIGSTOP)
    assert tree(parent.pid) == [parent.pid, child]
    kill_tree(parent.pid)
    wait_until(lambda: is_gone(child) and is_gone(parent.pid))


@pytest.mark.parametrize(
    ("code", "works"),
    [
        (SLEEP, False),
        ("print('ready', flush=True)\nwhile True: pass", True),
        (
            "import threading, time\ndef work():\n  while True: pass\n"
            "threading.Thread(target=work, daemon=True).start(); print('ready', flush=True); time.sleep(1000)",
            True,
        ),
    ],
)
def test_who_works(start: Callable[..., subprocess.Popen[str]], code: str, works: bool) -> None:
    process = start(code)
    said(process)
    idleness = Idleness(0.2)
    for _ in range(10):
        time.sleep(0.25)
        idleness.update(lambda: [process.pid])
    assert (idleness.seconds < 1) == works


def test_a_pause_of_the_one_who_looks_is_not_idleness_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    idleness, real = Idleness(1.0), time.monotonic
    monkeypatch.setattr(module.time, "monotonic", lambda: real() + 3600)
    assert idleness.update(lambda: []) == 2.0


@pytest.mark.parametrize(("way", "lost"), [("silent", True), ("goodbye", False)])
def test_a_rank_that_ends_without_goodbye_is_lost(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path, way: str, lost: bool
) -> None:
    for local_rank in ("0", "1"):
        (tmp_path / local_rank).mkdir()
    roster = Roster(tmp_path, rank=0, local_rank=0, local_size=2)
    assert roster.others() == []
    rank = start(RANK, str(tmp_path), way)
    said(rank)
    (entry,) = roster.others()
    assert (entry.rank, entry.pid, entry.activity, entry.is_alive) == (1, rank.pid, "denoising step 3 of 30", True)
    assert roster.lost() == []
    rank.kill()
    wait_until(lambda: not roster.others()[0].is_alive)
    assert bool(roster.lost()) == lost
    text = roster.describe(roster.others())
    assert text.startswith(
        "lost rank 1 (last at: denoising step 3 of 30), which ended without a message: killed by kill"
    )


def test_the_kernels_own_kills_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vmstat").write_text("pgfault 7\noom_kill 3\n")
    monkeypatch.setattr(module, "_PROC", tmp_path)
    roster = Roster(None)
    (tmp_path / "vmstat").write_text("pgfault 7\noom_kill 4\n")
    assert "the kernel has just killed a process for lack of memory" in roster.describe([])


def test_without_torchrun_nobody_is_known() -> None:
    roster = Roster(None)
    roster.write("loading")
    assert roster.others() == roster.lost() == [] and roster.first() is None


def test_the_reason_for_torchrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    file = tmp_path / "0" / "error.json"
    file.parent.mkdir()
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    report_reason("lost rank 1 (“”)", seconds_ago=10)
    report_reason("the second reason")
    failures = {0: ProcessFailure(0, 11, 1, str(file)), 1: ProcessFailure(1, 12, -9, str(tmp_path / "none"))}
    assert "lost rank 1 (“”)" in str(ChildFailedError("s2video", failures)).partition("Root Cause")[2]


@pytest.mark.parametrize(
    ("stops_softly", "number", "expected"),
    [
        (True, signal.SIGINT, -signal.SIGTERM),
        (False, signal.SIGINT, -signal.SIGINT),
        (False, signal.SIGHUP, -signal.SIGTERM),
        (True, signal.SIGHUP, -signal.SIGTERM),
    ],
)
def test_signals_are_passed_on(stops_softly: bool, number: signal.Signals, expected: int) -> None:
    code = "import signal; signal.signal(signal.SIGINT, signal.SIG_DFL); signal.pause()"
    with held_signals(stops_softly=stops_softly) as signals:
        process = start_ranks([sys.executable, "-c", code], os.environ)
        signals.add(process)
        wait_until(
            lambda: (found := look(process.pid)) is not None and found.state == "S" and tree(process.pid)[1:] == []
        )
        time.sleep(0.5)  # its own handler of SIGINT is gone
        os.kill(os.getpid(), number)
        assert process.wait(60) == expected
    assert signals.received == [number]
    assert process.stdin is not None
    process.stdin.close()


def test_an_ignored_hangup_stays_ignored() -> None:
    """As `nohup` wants."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with held_signals(stops_softly=True) as signals:
            os.kill(os.getpid(), signal.SIGHUP)
        assert signals == HeldSignals(True)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("age", ["own", "another"])
def test_a_torchrun_that_hangs_is_ended_and_no_other_process(
    start: Callable[..., subprocess.Popen[str]], age: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its number may belong to another process by then, which began at another time."""
    torchrun = start(SLEEP)
    said(torchrun)
    began = start_time(torchrun.pid) if age == "own" else "1"
    command = [sys.executable, "-I", "-S", "-c", launcher._END_HANGING, str(torchrun.pid), str(began), "1"]
    subprocess.run(command, check=True, timeout=60)
    if age == "own":
        assert torchrun.wait(60) == -signal.SIGKILL
        assert "torchrun did not end within 1 s after its ranks, and was killed" in capfd.readouterr().err
    else:
        assert torchrun.poll() is None


@pytest.mark.parametrize(("launched_by", "ends"), [("torchrun", True), ("mpirun", False)])
def test_only_torchrun_is_ended_for_hanging(launched_by: str, ends: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever else set RANK may be a cluster's own process, or a shell with more commands to run."""
    started: list[list[str]] = []
    monkeypatch.setattr(launcher.subprocess, "Popen", lambda command, **options: started.append(command))
    monkeypatch.setattr(launcher, "_parents", [os.getppid()])
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if launched_by == "torchrun":
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "s2video")
    launcher.end_hanging_torchrun()
    assert [command[5] for command in started] == ([str(os.getppid())] if ends else [])
