"""Detection of dead ranks: each rank writes heartbeats and its progress to the run's TCPStore and watches the others.

An exception cannot interrupt a collective that waits for a dead rank. So a rank that finds another one failed, or
without a heartbeat, ends its own process; one rank per host prints the reason. The heartbeat shows that the process is
alive, not its main thread, so a step may take any time. If ranks wait for each other, the collectives raise at their
time limit, and `leave` then names the rank that is behind. NCCL does not raise: it aborts the process. With NCCL, this
watch therefore limits the time of a step itself, and acts before NCCL does.

Each rank has two threads: one uses the store, which may block without end; the other only checks the clock. Knows no
model and no job.
"""

import json
import threading
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from types import TracebackType
from typing import NoReturn

import torch.distributed as dist

from ..errors import S2VideoError
from ..system import ranks
from ..system.shutdown import end_suddenly
from ..system.terminal import say_error

_INTERVAL = 1.0  # seconds between two heartbeats
_MEETING_INTERVAL = 0.05  # seconds between two heartbeats while this rank waits in `meet`
# Seconds for which a verdict must hold: after a pause, this process has not read the others' heartbeats yet, and after
# another rank's failure it may be about to fail in the same way, with its own exit code.
_GRACE = 2.0
_PATIENCE = 2.0  # seconds for one exchange with the store that may fail
_LINGER = 3.0  # seconds that rank 0, whose process may hold the store, leaves the others to read its last record
_UNWINDING = 15.0  # seconds for a failed rank to end by itself


@dataclass
class _Status:
    """The state that a rank writes to the store.

    Attributes:
        host: a name that the ranks of one host share.
        activity: the current work, such as "denoising step 3 of 30".
        sequence: number of activities so far. A rank with a lower number is behind.
        meetings: number of meetings that it has reached.
        waited: whether a collective failed on this rank, which means that it is not the one behind.
        failure: why the run has to end, as a sentence for the user; None without a failure.
        ended: whether the rank is leaving or has left.
    """

    host: str
    activity: str = "starting"
    sequence: int = 0
    meetings: int = 0
    waited: bool = False
    failure: str | None = None
    ended: bool = False


class Watch:
    """This rank's watch over the other ranks, as a context manager that ends with `leave`. Call `close` after it.

    Without a store, that is with one process, its methods do nothing.

    Args:
        silence: seconds without a heartbeat after which a rank counts as dead.
        longest_step: seconds that a step may take; None for no limit.
        host: a name that the ranks of one host share.
    """

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        *,
        silence: float = 20.0,
        longest_step: float | None = None,
        store: dist.Store | None = None,
        host: str = "",
    ) -> None:
        self._rank = rank
        self._silence = silence
        self._longest_step = longest_step
        self._interval = min(_INTERVAL, silence / 4)
        self._store = store
        self._keys = [f"rank/{r}" for r in range(size)]
        self._statuses = [_Status(host) for _ in range(size)]
        self._own = self._statuses[rank]
        self._news = threading.Condition()  # guards the following attributes, and notifies of changes
        self._answers = [b""] * size
        self._heard_at = [0.0] * size  # time of the last new answer of each rank
        self._exchanged_at = 0.0
        self._lost: str | None = None  # why the store cannot be used any more
        self._version = self._published = 0  # of this rank's status
        self._meeting = False
        self._doubt: tuple[float, str] | None = None  # time and error that show that some rank is behind
        self._step_since: float | None = None  # time of the last report, if it was of a step
        self._unwinding_since: float | None = None
        self._wake = threading.Event()
        self._closed = threading.Event()
        self._threads = [threading.Thread(target=f, daemon=True) for f in (self._exchange, self._judge)]

    def report(self, phase: str, step: int | None = None, num_steps: int | None = None) -> None:
        """Record what this rank starts now: a phase, or a step of it, counted from 1."""
        with self._news:
            self._own.activity = phase if step is None else f"{phase} step {step} of {num_steps}"
            self._own.sequence += 1
            self._step_since = None if step is None else time.monotonic()
            self._changed()

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
            all_met = self._news.wait_for(lambda: all(s.meetings >= self._own.meetings for s in self._statuses), within)
            self._meeting = False
        return all_met

    def start(self) -> None:
        """Start to watch. Requires a collective since the block began, so that every rank has written its status."""
        now = time.monotonic()
        self._heard_at = [now] * len(self._keys)
        self._exchanged_at = now
        for thread in self._threads:
            thread.start()

    def leave(self, error: BaseException | None = None) -> None:
        """Announce that this rank ends, with or without `error`. If it does not end soon, its watch ends the process.

        If the error only shows that another rank is dead, end the process here with a line that names that rank and its
        last activity. If several ranks of a host fail in the same way, one prints the error; `error.is_reported` tells
        the others.
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
                self._doubt = time.monotonic(), _first_line(error)
            self._closed.wait()  # until `_judge` ends the process
        else:
            reports = self._should_report()
            if isinstance(error, S2VideoError):
                error.is_reported = not reports
            failure = f"rank {self._rank} failed at {self._own.activity}: {_first_line(error)}"
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
        assert self._store is not None, "a single process has no ranks to watch"
        self._store.set(self._keys[self._rank], self._text(0))
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
            self._news.wait_for(lambda: all(s.ended for s in self._statuses) or self._lost, _LINGER)

    def _changed(self) -> None:
        self._version += 1
        self._wake.set()

    def _text(self, beat: int) -> str:
        return json.dumps([beat, asdict(self._own)])

    def _exchange(self) -> None:
        """Thread that writes this rank's heartbeat and reads those of the others."""
        assert self._store is not None
        beat = 0
        while not self._closed.is_set():
            beat += 1
            with self._news:
                version, text = self._version, self._text(beat)
            try:
                self._store.set(self._keys[self._rank], text)
                answers = self._store.multi_get(self._keys)
            except RuntimeError as error:
                with self._news:
                    self._lost = _first_line(error)
                    self._news.notify_all()
                return
            with self._news:
                now = self._exchanged_at = time.monotonic()
                for rank, answer in enumerate(answers):
                    if answer != self._answers[rank]:
                        self._answers[rank], self._heard_at[rank] = answer, now
                        if rank != self._rank:
                            self._statuses[rank] = _Status(**json.loads(answer)[1])
                self._published = version
                pause = _MEETING_INTERVAL if self._meeting else self._interval
                self._news.notify_all()
            self._wake.wait(pause)
            self._wake.clear()

    def _judge(self) -> None:
        """Thread that ends the process when another rank or the store is lost."""
        since: float | None = None
        while not self._closed.wait(self._interval):
            now = time.monotonic()
            with self._news:
                verdict = self._verdict(now)
            if verdict is None:
                since = None
            elif since is None:
                since = now
            elif now - since >= _GRACE:
                self._end(verdict)

    def _verdict(self, now: float) -> str | None:
        """Return why this process has to end now, or None."""
        if self._unwinding_since is not None:
            return self._own.failure if now - self._unwinding_since > _UNWINDING else None
        others = [(rank, status) for rank, status in enumerate(self._statuses) if rank != self._rank]
        for _, status in others:
            if status.failure is not None:
                return status.failure
        here = f"rank {self._rank} is at: {self._own.activity}"
        lost = self._lost
        if lost is None and now - self._exchanged_at > self._silence:
            lost = f"no answer for {self._silence:g} s"
        if lost is not None:
            return (
                f"lost the store of this run ({lost}): rank 0 or the torchrun of its host has ended; rank 0 was "
                f"last at: {self._statuses[0].activity}; {here}"
            )
        silent = [rank for rank, s in others if not s.ended and now - self._heard_at[rank] > self._silence]
        if silent:
            return f"no heartbeat for {self._silence:g} s from {self._activities(silent)}; {here}"
        early = [rank for rank, status in others if status.ended and status.meetings < self._own.meetings]
        if early:
            return f"ended before the other ranks: {self._activities(early)}; {here}"
        # by now, a dead rank has missed its heartbeat, and a rank in the same collective has failed too
        if self._doubt is not None and now - self._doubt[0] > self._silence + 2 * self._interval:
            behind = self._behind() or [rank for rank, status in others if not status.waited]
            return f"a collective failed on rank {self._rank} ({self._doubt[1]}): {self._named_behind(behind)}; {here}"
        limit, since = self._longest_step, self._step_since
        if limit is not None and since is not None and now - since > limit:
            return (
                f"a step took longer than parallel.timeout_seconds, {limit:g} s: {self._named_behind(self._behind())}; "
                f"{here}; if a step may take so long, raise the limit"
            )
        return None

    def _behind(self) -> list[int]:
        """Return the ranks that have begun fewer activities than others."""
        last = max(status.sequence for status in self._statuses)
        return [rank for rank, status in enumerate(self._statuses) if status.sequence < last]

    def _named_behind(self, behind: list[int]) -> str:
        if not behind:
            return "no rank is behind"
        return f"{self._activities(behind)} {'are' if len(behind) > 1 else 'is'} behind"

    def _activities(self, ranks: list[int]) -> str:
        return ", ".join(f"rank {rank} (last at: {self._statuses[rank].activity})" for rank in ranks)

    def _end(self, verdict: str) -> NoReturn:
        with self._news:
            others = self._statuses[: self._rank] + self._statuses[self._rank + 1 :]
            is_reported = any(s.failure == verdict and s.host == self._own.host for s in others)
        if not is_reported and self._should_report():
            say_error(verdict)
        with self._news:
            self._own.failure, self._own.ended = verdict, True
            self._publish()
        end_suddenly(1)

    def _should_report(self) -> bool:
        """Return whether this rank is the first of its host to ask, or the store does not answer."""
        assert self._store is not None
        store, key, counts = self._store, f"speaker/{self._own.host}", list[int]()
        if self._lost is None:
            asking = threading.Thread(target=lambda: counts.append(store.add(key, 1)), daemon=True)
            asking.start()
            asking.join(_PATIENCE)  # the store may have stopped answering
        return counts in ([], [1])


def connect(silence: float, longest_step: float | None = None) -> Watch:
    """Return a watch over the default process group, which this process has joined through its environment."""
    # A separate connection: calls that block in the process group's connection would delay heartbeats.
    address, port = ranks.store_address()
    server = dist.TCPStore(
        address,
        port,
        is_master=False,
        wait_for_workers=False,
        timeout=timedelta(seconds=silence),
    )
    return Watch(
        dist.get_rank(),
        dist.get_world_size(),
        silence=silence,
        longest_step=longest_step,
        store=dist.PrefixStore(f"s2video/watch/{ranks.attempt()}", server),
        host=ranks.host(),
    )


def shows_a_lost_rank(error: BaseException) -> bool:
    """Return whether a collective failed. gloo raises plain RuntimeErrors that name one of its source files."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    line = " ".join(text[0].split())[:300] if text else ""
    return line if isinstance(error, S2VideoError) else f"{type(error).__name__}: {line}".removesuffix(": ")
