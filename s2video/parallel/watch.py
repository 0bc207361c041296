"""Detection of lost ranks: each rank writes heartbeats and its progress to the run's TCPStore and watches the others.

An exception cannot interrupt a collective that waits for a dead rank. So a rank that finds another one lost, or failed,
ends its own process; one rank per host prints the reason. `statuses.py` has the rules. A rank of the same host that is
gone is seen at once (`system/roster.py`), one of another host by its missing heartbeats. A heartbeat shows that the
process is alive, not its main thread: that one is lost if a step takes far longer than those before it, or if it does
nothing although it waits for none. If ranks wait for each other, the collectives raise at their time limit. NCCL does
not raise: it aborts the process. So with NCCL a step has a fixed limit, too, and this watch acts before NCCL does.

Each rank has two threads: one uses the store, which may block without end; the other only checks the clock. Knows no
model and no job.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import timedelta
from types import TracebackType
from typing import NoReturn

import torch.distributed as dist

from ..errors import FollowUpError, S2VideoError
from ..system import ranks
from ..system.launcher import end_hanging_torchrun, report_exit_code, report_reason
from ..system.processes import Idleness, only_looks
from ..system.roster import Entry, Roster, own_roster
from ..system.shutdown import end_suddenly
from ..system.terminal import say_error
from .statuses import Judge, Limits, Peer, Status
from .symptoms import first_line, is_stopped, main_thread, shows_a_lost_rank

_INTERVAL = 1.0  # seconds between two heartbeats
_MEETING_INTERVAL = 0.05  # seconds between two heartbeats while this rank waits in `meet`
# Seconds for which a verdict must hold: after a pause, this process has not read the others' heartbeats yet, and after
# another rank's failure it may be about to fail in the same way, with its own exit code.
_GRACE = 2.0
_PATIENCE = 2.0  # seconds for one exchange with the store that may fail
_LINGER = 3.0  # seconds that rank 0, whose process may hold the store, leaves the others to read its last record
_BEFORE_TORCHRUN = 10.0  # seconds that torchrun may have known of a loss before this process says so
_UNWINDING = 15.0  # seconds for a failed rank to end by itself


class Watch:
    """This rank's watch over the other ranks, as a context manager that ends with `leave`. Call `close` after it.

    Without a store, that is with one process, its methods do nothing.

    Args:
        limits: when a rank counts as lost.
        host: a name that the ranks of one host share.
        roster: the ranks of this host.
    """

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        *,
        limits: Limits | None = None,
        store: dist.Store | None = None,
        host: str = "",
        roster: Roster | None = None,
    ) -> None:
        self._rank = rank
        limits = limits or Limits()
        self._silence = limits.silence
        self._interval = min(_INTERVAL, limits.silence / 4)
        self._store = store
        self._roster = Roster(None) if roster is None else roster
        self._keys = [f"rank/{r}" for r in range(size)]
        self._peers = [Peer(Status(host)) for _ in range(size)]
        self._own = self._peers[rank].status
        self._rules = Judge(rank, self._peers, limits)
        self._news = threading.Condition()  # guards the following attributes, and notifies of changes
        self._exchanged_at = 0.0
        self._lost: str | None = None  # why the store cannot be used any more
        self._version = self._published = 0  # of this rank's status
        self._meeting = False
        self._step: tuple[str, float] | None = None  # phase and start of the current step
        self._doubt: tuple[float, str] | None = None  # time and error that show that some rank is behind
        self._unwinding_since: float | None = None
        self._wake = threading.Event()
        self._closed = threading.Event()
        self._ending = threading.Lock()  # taken by the thread that ends the process, and never released
        self._threads = [threading.Thread(target=f, daemon=True) for f in (self._exchange, self._judge)]

    def report(self, phase: str, step: int | None = None, num_steps: int | None = None) -> None:
        """Record what this rank starts now: a phase, or a step of it, counted from 1.

        Steps of one phase have a time limit, which is derived from the slowest of them.
        """
        now = time.monotonic()
        with self._news:
            own = self._own
            if self._step is None or step is None or self._step[0] != phase:
                own.slowest = 0.0
            else:
                own.slowest = max(own.slowest, now - self._step[1])
            self._step = None if step is None else (phase, now)
            own.activity = phase if step is None else f"{phase} step {step} of {num_steps}"
            own.is_timed = step is not None
            own.rests = False
            own.sequence += 1
            self._changed()
        self._roster.write(own.activity)

    def rest(self) -> None:
        """Record that this rank's caller has the word now, who may do nothing for as long as it likes.

        An engine does so at the end of every call. A program of its own that catches an error of it does so, too.
        """
        with self._news:
            self._own.rests = True
            self._changed()

    @contextmanager
    def resting_after(self) -> Iterator[None]:
        """Rest at the end of the block, however it ends."""
        try:
            yield
        finally:
            self.rest()

    @contextmanager
    def untimed(self) -> Iterator[None]:
        """Lift the time limit of the current step on this rank during the block."""
        before = self._set_timed(False)
        try:
            yield
        finally:
            self._set_timed(before)

    def _set_timed(self, is_timed: bool) -> bool:
        with self._news:
            before, self._own.is_timed = self._own.is_timed, is_timed
            self._peers[self._rank].unchanged = 0.0
            self._changed()
        return before

    def meet(self, within: float | None = None) -> bool:
        """Wait until all ranks call this. Return whether they did within `within` seconds (None for no limit).

        Use it if one rank works while the others wait: a collective would allow only `timeout_seconds`.
        """
        if self._store is None:
            return True
        self.report("waiting for the other ranks")
        with self._news:
            self._own.meetings += 1
            self._meeting = True
            self._changed()
            all_met = self._news.wait_for(
                lambda: all(peer.status.meetings >= self._own.meetings for peer in self._peers), within
            )
            self._meeting = False
        return all_met

    def missing(self) -> str:
        """Return the ranks that have not joined, such as "rank 1, rank 3", or "no rank"."""
        return (
            ", ".join(f"rank {r}" for r, p in enumerate(self._peers) if r != self._rank and not p.answer) or "no rank"
        )

    def leave(self, error: BaseException | None = None) -> None:
        """Announce that this rank ends, with or without `error`. If it does not end soon, its watch ends the process.

        If the error only shows that another rank is lost, end the process here with a line that names that rank and its
        last activity. SIGTERM can show that, too: torchrun sends it to the other ranks of a host. If several ranks of a
        host fail in the same way, one prints the error; `error.is_reported` tells the others.
        """
        if self._threads[1].ident is None:  # not started
            return
        failure = None
        if error is None:
            self.meet()
        elif shows_a_lost_rank(error):
            with self._news:
                self._own.waited = True
                self._changed()
                self._doubt = time.monotonic(), first_line(error)
            while True:  # until `_judge` ends the process; torchrun's SIGTERM may not keep it from saying why
                with suppress(SystemExit, KeyboardInterrupt):
                    self._closed.wait()
                    return
        elif isinstance(error, Exception):
            if isinstance(error, FollowUpError):  # `_judge` ends the process as soon as the other rank has failed
                self._closed.wait(_UNWINDING)
            reports = self._should_report()
            if isinstance(error, S2VideoError):
                error.is_reported = not reports
            failure = f"rank {self._rank} failed at {self._own.activity}: {first_line(error)}"
        else:
            if lost := self._roster.lost():
                self._end(self._rules.gone(self._roster.describe(lost)))
            failure = f"rank {self._rank} was stopped by a signal at: {self._own.activity}"
        self._roster.write(self._own.activity, goodbye=True)
        with self._news:
            self._own.failure, self._own.ended = failure, True
            self._unwinding_since = time.monotonic()
            self._publish()

    def close(self) -> None:
        """Stop watching. Call after the process group is destroyed, when nothing can hang in it."""
        self._closed.set()
        self._wake.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(_PATIENCE)  # a thread that is in the store at Python's shutdown can hang the process

    def __enter__(self) -> "Watch":
        """Start to watch the ranks that have joined, and those that join later."""
        assert self._store is not None, "a single process has no ranks to watch"
        self._store.set(self._keys[self._rank], self._text(0))
        self._exchanged_at = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave(error)

    def _publish(self) -> None:
        """Write this rank's status and give the others time to read it, within a time limit."""
        self._changed()
        self._news.wait_for(lambda: self._published == self._version or self._lost, _PATIENCE)
        if self._rank == 0:
            self._news.wait_for(lambda: all(peer.status.ended for peer in self._peers) or self._lost, _LINGER)

    def _changed(self) -> None:
        self._version += 1
        self._wake.set()

    def _text(self, beat: int) -> str:
        return json.dumps([beat, asdict(self._own)])

    def _exchange(self) -> None:
        """Thread that writes this rank's heartbeat and reads those of the others."""
        assert self._store is not None
        only_looks()
        beat, idleness = 0, Idleness()
        while not self._closed.is_set():
            beat += 1
            waits, line = main_thread()
            idle = idleness.update()
            with self._news:
                self._own.waits, self._own.line, self._own.idle = waits, line, idle
                version, text = self._version, self._text(beat)
            try:
                self._store.set(self._keys[self._rank], text)
                answers = self._answers(self._store)
            except RuntimeError as error:
                with self._news:
                    self._lost = first_line(error)
                    self._news.notify_all()
                return
            with self._news:
                self._read(answers)
                self._published = version
                pause = _MEETING_INTERVAL if self._meeting else self._interval
                self._news.notify_all()
            self._wake.wait(pause)
            self._wake.clear()

    def _answers(self, store: dist.Store) -> dict[int, bytes]:
        """Return what the ranks that have joined wrote last."""
        joined = [r for r, peer in enumerate(self._peers) if peer.answer or store.check([self._keys[r]])]
        return dict(zip(joined, store.multi_get([self._keys[r] for r in joined]), strict=True))

    def _read(self, answers: dict[int, bytes]) -> None:
        now = self._exchanged_at = time.monotonic()
        for rank, answer in answers.items():
            peer = self._peers[rank]
            if answer != peer.answer:
                peer.answer, peer.heard_at = answer, now
                if rank != self._rank:
                    peer.status = Status(**json.loads(answer)[1])

    def _judge(self) -> None:
        """Thread that ends the process when another rank or the store is lost."""
        only_looks()
        since: float | None = None
        while not self._closed.wait(self._interval):
            entries = self._roster.others()
            now = time.monotonic()
            with self._news:
                for peer in self._peers:
                    peer.age(self._interval)  # not the time that passed: this process may have been paused
                verdict = self._verdict(now, entries)
            if verdict is None:
                since = None
            elif since is None:
                since = now
            elif now - since >= _GRACE:
                self._end(verdict)

    def _verdict(self, now: float, entries: list[Entry]) -> str | None:
        """Return why this process has to end now, or None."""
        if self._unwinding_since is not None:
            return self._own.failure if now - self._unwinding_since > _UNWINDING else None
        rules = self._rules
        gone = [entry for entry in entries if not entry.is_alive and not entry.said_goodbye]
        if (failure := rules.failure()) is not None:
            return failure
        if gone:
            return rules.gone(self._roster.describe(gone))
        lost = self._lost
        if lost is None and now - self._exchanged_at > self._silence:
            lost = f"no answer for {self._silence:g} s"
        if lost is not None:
            return rules.store_lost(lost)
        for entry in entries:  # fresher than the store, where a rank that stops has not written its last activity yet
            self._peers[entry.rank].status.activity = entry.activity
        verdict = rules.silent(now, [e.rank for e in entries if is_stopped(e)]) or rules.left_early()
        verdict = verdict or rules.overdue() or rules.idle()
        # by now, a dead rank has missed its heartbeat, and a rank in the same collective has failed too
        if verdict is None and self._doubt is not None and now - self._doubt[0] > self._silence + 2 * self._interval:
            return rules.behind(self._doubt[1])
        return verdict

    def _end(self, verdict: str) -> NoReturn:
        self._ending.acquire()
        with self._news:
            others = [peer.status for peer in self._peers if peer.status is not self._own]
            is_reported = any(s.failure == verdict and s.host == self._own.host for s in others)
        if not is_reported and self._should_report():
            say_error(verdict)
            if any(status.host != self._own.host for status in others):
                end_hanging_torchrun()
        # before the lost rank's own entry, which says no more than the number of a signal
        report_reason(verdict, seconds_ago=_BEFORE_TORCHRUN)
        report_exit_code(1)
        for entry in self._roster.others():
            if is_stopped(entry):  # it cannot end by itself, and torchrun would wait for it
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(entry.pid, signal.SIGKILL)
        self._roster.write(self._own.activity, goodbye=True)
        with self._news:
            self._own.failure, self._own.ended = verdict, True
            self._publish()
        end_suddenly(1)

    def _should_report(self) -> bool:
        """Return whether this rank is the first of its host to ask; if the store does not answer, the first of all."""
        assert self._store is not None
        store, key, counts = self._store, f"speaker/{self._own.host}", list[int]()

        def ask() -> None:
            with suppress(RuntimeError):
                counts.append(store.add(key, 1))

        if self._lost is None:
            asking = threading.Thread(target=ask, daemon=True)
            asking.start()
            asking.join(_PATIENCE)  # the store may have stopped answering
        lost = self._roster.lost()
        return counts == [1] if counts else all(self._rank < e.rank for e in self._roster.others() if e not in lost)


def connect(rank: int, size: int, limits: Limits) -> Watch:
    """Return a watch that uses the run's store, which must exist and which torchrun's environment names."""
    # A separate connection: calls that block in the process group's connection would delay heartbeats.
    address, port = ranks.store_address()
    silence = timedelta(seconds=limits.silence)
    server = dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=silence)
    return Watch(
        rank,
        size,
        limits=limits,
        store=dist.PrefixStore(f"s2video/watch/{ranks.attempt()}", server),
        host=ranks.host(),
        roster=own_roster(),
    )
