"""Tests of two ranks' watches in one process, with a store in memory."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch.distributed as dist

from s2video.errors import FollowUpError, S2VideoError
from s2video.parallel import statuses
from s2video.parallel import watch as module
from s2video.parallel.statuses import Judge, Limits, Peer, Status
from s2video.parallel.watch import Watch

SILENCE = 2.0


class Ended(Exception):
    """Raised instead of ending the process."""


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    codes: list[int] = []

    def end(code: int) -> None:
        codes.append(code)
        raise Ended

    monkeypatch.setattr(module, "end_suddenly", end)
    monkeypatch.setattr(module, "end_hanging_torchrun", lambda: None)  # this process is no rank of torchrun's
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)
    return codes


@pytest.fixture
def pair(ends: list[int]) -> Iterator[Callable[..., list[Watch]]]:
    made: list[Watch] = []

    def make(*hosts: str, longest_step: float | None = None) -> list[Watch]:
        store, limits = dist.HashStore(), Limits(silence=SILENCE, longest_step=longest_step)
        made.extend(Watch(r, len(hosts), store=store, host=host, limits=limits) for r, host in enumerate(hosts))
        for watch in made:
            watch.__enter__()
        return made

    yield make
    for watch in made:
        watch.close()
    for thread in [thread for watch in made for thread in watch._threads]:
        thread.join(30)  # a thread that is about to end the process must not do so in the next test


def wait_until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_alone_it_does_nothing() -> None:
    watch = Watch()
    watch.report("denoising", 1, 2)
    watch.meet()
    watch.leave()
    watch.leave(S2VideoError("x"))


def test_all_meet_and_leave(pair: Callable[..., list[Watch]], ends: list[int]) -> None:
    """The first rank waits without limit, even longer than `silence`."""
    first, second = pair("a", "a")
    met: list[int] = []

    def come(number: int, watch: Watch) -> None:
        watch.meet()
        met.append(number)
        watch.leave()

    threads = [threading.Thread(target=come, args=(i, w)) for i, w in enumerate((first, second))]
    threads[0].start()
    time.sleep(2 * SILENCE)
    assert met == [] and ends == []
    threads[1].start()
    for thread in threads:
        thread.join(30)
    assert sorted(met) == [0, 1] and ends == []


@pytest.mark.parametrize(("hosts", "lines"), [(("a", "a"), 0), (("a", "b"), 1)])
def test_a_failure_ends_the_others(
    pair: Callable[..., list[Watch]],
    ends: list[int],
    capfd: pytest.CaptureFixture[str],
    hosts: tuple[str, str],
    lines: int,
) -> None:
    """One rank per host prints it: the failed rank, and one rank of each other host."""
    _, failing = pair(*hosts)
    failing.report("denoising", 3, 6)
    error = S2VideoError("out of\norder")
    failing.leave(error)
    assert error.is_reported is False
    wait_until(lambda: ends)
    assert ends == [1]
    said = capfd.readouterr().err.splitlines()
    assert said == ["s2video: error: rank 1 failed at denoising step 3 of 6: out of"] * lines


def test_ranks_of_a_host_that_fail_alike_speak_once(pair: Callable[..., list[Watch]], ends: list[int]) -> None:
    errors = [S2VideoError("NaN"), S2VideoError("NaN")]
    pairs = zip(pair("a", "a"), errors, strict=True)
    threads = [threading.Thread(target=watch.leave, args=(error,)) for watch, error in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(bool(error.is_reported) for error in errors) == [False, True]
    assert ends == []


def test_a_silent_rank_is_named(
    pair: Callable[..., list[Watch]], ends: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    _, silent = pair("a", "a")
    silent.report("loading")
    time.sleep(0.7)
    silent.close()  # its threads end
    wait_until(lambda: ends)
    said = capfd.readouterr().err
    assert "no heartbeat for 2 s from rank 1 (last at: loading" in said and "rank 0 is at: starting" in said


def test_the_rank_with_less_progress_is_behind(
    pair: Callable[..., list[Watch]], ends: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    """A rank that hangs is named after a collective's time limit, even though its heartbeat continues."""
    ahead, behind = pair("a", "a")
    for step in (1, 2):
        ahead.report("denoising", step, 9)
    behind.report("denoising", 1, 9)
    error = RuntimeError("[gloo/transport.cc:129] Timed out")
    threading.Thread(target=ahead.leave, args=(error,), daemon=True).start()
    wait_until(lambda: ends)
    said = capfd.readouterr().err
    assert "Timed out" in said and re.search(
        r"rank 1 \(last at: denoising step 1 of 9, .*\) is behind; rank 0 is", said
    )


def test_a_step_beyond_its_limit_names_the_rank_behind(
    pair: Callable[..., list[Watch]], ends: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    """NCCL never raises: the host only waits, and NCCL's own limit would abort the process without a reason."""
    ahead, behind = pair("a", "a", longest_step=1.0)
    behind.report("denoising", 1, 9)
    for step in (1, 2):
        ahead.report("denoising", step, 9)
    wait_until(lambda: len(ends) == 2)
    said = capfd.readouterr().err
    assert re.search(r"a step took longer than 1 s: rank 1 \(last at: denoising step 1 of 9, .*\) is behind", said)
    assert "raise parallel.timeout_seconds" in said
    assert said.count("s2video: error:") == 1


def test_work_that_is_no_step_has_no_limit(pair: Callable[..., list[Watch]], ends: list[int]) -> None:
    """Rank 0 may read from a slow disk for hours, while the others wait to meet it."""
    first, second = pair("a", "a", longest_step=0.5)
    for watch in (first, second):
        watch.report("denoising", 9, 9)
    first.report("loading")
    threading.Thread(target=second.meet, daemon=True).start()
    time.sleep(0.5 + module._GRACE + 2 * SILENCE / 4)
    assert ends == []
    first.meet()


def test_a_process_that_stood_still_accuses_nobody(
    pair: Callable[..., list[Watch]], ends: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After SIGCONT, the clock has advanced, but no heartbeat has been read."""
    pair("a", "a")
    time.sleep(0.6)
    real, jump = time.monotonic, 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: real() + jump)
    end = real() + 2 * SILENCE
    while real() < end:
        time.sleep(0.1)
    assert ends == []


def test_a_step_that_takes_far_longer_than_the_others(
    pair: Callable[..., list[Watch]],
    ends: list[int],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The limit is a multiple of the slowest step of any rank, and not below a floor."""
    monkeypatch.setattr(statuses, "STEP_FLOOR", 1.0)
    first, second = pair("a", "a")
    for step in (1, 2, 3):
        for watch in (first, second):
            watch.report("denoising", step, 9)
        time.sleep(0.2)
    first.report("denoising", 4, 9)
    wait_until(lambda: len(ends) == 2)
    said = capfd.readouterr().err
    assert re.search(r"a step took longer than [23] s: rank 1 \(last at: denoising step 3 of 9, .* is behind", said), (
        said
    )
    assert "the slowest step so far took 0." in said


def test_a_step_has_no_limit_before_the_first_is_measured_or_while_a_file_is_written(
    pair: Callable[..., list[Watch]], ends: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statuses, "STEP_FLOOR", 0.5)
    monkeypatch.setattr(statuses, "STEP_FACTOR", 1.0)
    first, second = pair("a", "a")
    for watch in (first, second):
        watch.report("denoising", 1, 9)
    time.sleep(0.5 + module._GRACE + SILENCE)
    assert ends == []
    with first.untimed():
        second.report("denoising", 2, 9)
        time.sleep(0.5 + module._GRACE + SILENCE)
    assert ends == []
    first.report("another video", 1, 9)  # its steps may take longer
    second.report("another video", 1, 9)
    assert first._own.slowest == second._own.slowest == 0


def test_a_rank_that_only_follows_lets_the_other_one_speak(
    pair: Callable[..., list[Watch]], ends: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    first, second = pair("a", "a")
    threading.Thread(target=second.leave, args=(FollowUpError("see rank 0"),), daemon=True).start()
    time.sleep(0.5)
    error = S2VideoError("no space")
    first.leave(error)
    wait_until(lambda: ends)
    assert error.is_reported is False and "see rank 0" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("idle", "unchanged", "waits", "expected"),
    [(61.0, 61.0, False, True), (61.0, 61.0, True, False), (59.0, 61.0, False, False), (61.0, 1.0, False, False)],
)
def test_a_rank_that_does_nothing_is_lost_unless_it_waits(
    idle: float, unchanged: float, waits: bool, expected: bool
) -> None:
    """Or looks for work from time to time, as in a replica that stays."""
    other = Peer(Status("a", activity="decoding", rests=False, idle=idle, waits=waits), b"x", unchanged=unchanged)
    peers = [Peer(Status("a", waits=True, idle=100.0), b"x", unchanged=100.0), other]
    verdict = Judge(0, peers, Limits()).idle()
    assert (verdict is not None) == expected
    assert verdict is None or verdict.startswith("rank 1 (last at: decoding) has done nothing for 60 s, as if asleep")


def test_a_rank_may_rest_between_two_videos(pair: Callable[..., list[Watch]]) -> None:
    """A program in Python may keep its ranks idle for as long as it likes, but not in the middle of something."""
    first, other = pair("a", "a")

    def verdict() -> str | None:
        seen = [replace(watch._own, idle=1000.0, waits=False) for watch in (first, other)]
        return Judge(0, [Peer(status, b"x", unchanged=1000.0) for status in seen], Limits()).idle()

    assert verdict() is None  # before the first report
    first.report("waiting")
    first.rest()
    with other.resting_after():
        other.report("loading")
        assert "rank 1 (last at: loading" in (verdict() or "")
    assert verdict() is None
