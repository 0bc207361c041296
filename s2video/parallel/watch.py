"""Who is where, and who is gone: each rank writes its progress to the run's TCPStore and watches the others there.

A collective that waits for a dead rank cannot be interrupted by an exception. So a rank that finds another one failed,
or without a sign of life, says so and ends its own process; one rank of each host speaks. What a rank gives is a sign
of life of its process, not of its main thread: a step may take as long as it likes. Two ranks that wait for each other
are the business of the collectives' time limit, and of `leave`, which then names the rank that is behind.

Two threads a rank: one talks to the store, which may stop answering for ever; the other only looks at the clock.
Knows no model and no job.
"""

import json
import sys
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

_INTERVAL = 1.0  # seconds between two signs of life
_MEETING_INTERVAL = 0.05  # while somebody waits
# Seconds that a verdict must stand: after a pause of this process it has not heard of the others yet, and after the
# failure of another rank it may be about to fail in the same way, with its own exit code.
_GRACE = 2.0
_PATIENCE = 2.0  # seconds for one exchange with the store, where nothing is lost without it
_LINGER = 3.0  # seconds that rank 0, whose process may hold the store, gives the others to read what it wrote last
_UNWINDING = 15.0  # seconds for a rank that failed to end by itself


@dataclass
class _Record:
    """What a rank writes of itself.

    Attributes:
        host: a name that the ranks of one host share.
        place: what it is doing, such as "denoising step 3 of 30".
        sequence: how many places it has been at. Who has been at fewer is behind.
        meetings: how many meetings it has come to.
        waited: a collective failed on it, so it is not the one that is behind.
        failure: why the run has to end, a sentence for the user; None while all is well.
        ended: it leaves, or has left.
    """

    host: str
    place: str = "starting"
    sequence: int = 0
    meetings: int = 0
    waited: bool = False
    failure: str | None = None
    ended: bool = False


class Watch:
    """This rank's watch over the others; a block of `with`, whose end is `leave`, and then `close`.

    Without a store, that is with one process, its methods do nothing.

    Args:
        silence: seconds without a sign of life after which a rank counts as gone.
        host: a name that the ranks of one host share.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, *, silence: float = 20.0, store: dist.Store | None = None, host: str = ""
    ) -> None:
        self._rank = rank
        self._silence = silence
        self._interval = min(_INTERVAL, silence / 4)
        self._store = store
        self._keys = [f"rank/{r}" for r in range(size)]
        self._records = [_Record(host) for _ in range(size)]
        self._own = self._records[rank]
        self._news = threading.Condition()  # guards what follows, and tells of changes in it
        self._answers = [b""] * size
        self._heard_at = [0.0] * size  # when an answer last differed from the one before
        self._exchanged_at = 0.0
        self._lost: str | None = None  # why there is no store any more
        self._version = self._published = 0  # of the own record
        self._meeting = False
        self._doubt: tuple[float, str] | None = None  # since when, and why, some rank must be behind
        self._unwinding_since: float | None = None
        self._wake = threading.Event()
        self._closed = threading.Event()
        self._threads = [threading.Thread(target=f, daemon=True) for f in (self._exchange, self._judge)]

    def report(self, phase: str, step: int | None = None, num_steps: int | None = None) -> None:
        """What this rank begins now: a phase, or a step of it counted from 1."""
        with self._news:
            self._own.place = phase if step is None else f"{phase} step {step} of {num_steps}"
            self._own.sequence += 1
            self._changed()

    def meet(self, within: float | None = None) -> bool:
        """Return when all ranks have come here, and whether they have `within` so many seconds, where that is given.

        For work that one rank does while the others wait: a collective would give it only `timeout_seconds`.
        """
        if self._store is None:
            return True
        self.report("waiting for the other ranks")
        with self._news:
            self._own.meetings += 1
            self._meeting = True
            self._changed()
            came = self._news.wait_for(lambda: all(r.meetings >= self._own.meetings for r in self._records), within)
            self._meeting = False
        return came

    def start(self) -> None:
        """Watch from now on. There was a collective since the block began, so every rank has written its record."""
        now = time.monotonic()
        self._heard_at = [now] * len(self._keys)
        self._exchanged_at = now
        for thread in self._threads:
            thread.start()

    def leave(self, error: BaseException | None = None) -> None:
        """This rank ends, well or by `error`, and the others hear of it. If it then does not end, its watch ends it.

        Where the error only shows that another rank is gone, this rank's process ends here, with a line that says
        which one and where it was. Where several ranks of a host fail in the same way, one of them is to speak:
        `error.told` says to the others that it does.
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
            speaks = self._is_to_speak()
            if isinstance(error, S2VideoError):
                error.told = not speaks
            failure = f"rank {self._rank} failed, {self._own.place}: {_first_line(error)}"
        with self._news:
            self._own.failure, self._own.ended = failure, True
            self._unwinding_since = time.monotonic()
            self._tell()

    def close(self) -> None:
        """Watch no more: the process group is left, and nothing can hang in it."""
        self._closed.set()
        self._wake.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(_PATIENCE)  # a thread inside the store while Python shuts down can hang the process

    def __enter__(self) -> "Watch":
        assert self._store is not None, "one process alone has nobody to watch"
        self._store.set(self._keys[self._rank], self._text(0))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave(error)

    def _tell(self) -> None:
        """Wait until the others can have read the own record, but not for ever."""
        self._changed()
        self._news.wait_for(lambda: self._published == self._version or self._lost, _PATIENCE)
        if self._rank == 0:
            self._news.wait_for(lambda: all(r.ended for r in self._records) or self._lost, _LINGER)

    def _changed(self) -> None:
        self._version += 1
        self._wake.set()

    def _text(self, beat: int) -> str:
        return json.dumps([beat, asdict(self._own)])

    def _exchange(self) -> None:
        """Thread: give a sign of life, and read those of the others."""
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
                            self._records[rank] = _Record(**json.loads(answer)[1])
                self._published = version
                pause = _MEETING_INTERVAL if self._meeting else self._interval
                self._news.notify_all()
            self._wake.wait(pause)
            self._wake.clear()

    def _judge(self) -> None:
        """Thread: end the process when another rank, or the store, is gone."""
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
        """Why this process has to end now, or None."""
        if self._unwinding_since is not None:
            return self._own.failure if now - self._unwinding_since > _UNWINDING else None
        others = [(rank, record) for rank, record in enumerate(self._records) if rank != self._rank]
        for _, record in others:
            if record.failure is not None:
                return record.failure
        here = f"rank {self._rank} is at: {self._own.place}"
        lost = self._lost
        if lost is None and now - self._exchanged_at > self._silence:
            lost = f"no answer for {self._silence:g} s"
        if lost is not None:
            return (
                f"rank 0 or the torchrun of its host is gone, and with it the store of this run ({lost}); rank 0 was "
                f"last at: {self._records[0].place}; {here}"
            )
        silent = [rank for rank, r in others if not r.ended and now - self._heard_at[rank] > self._silence]
        if silent:
            return f"no sign of life for {self._silence:g} s from {self._places(silent)}; {here}"
        early = [rank for rank, record in others if record.ended and record.meetings < self._own.meetings]
        if early:
            return f"the other ranks wait in vain for {self._places(early)}, which ended; {here}"
        # one that is gone has become silent by now, and one that waits for the same has given up, too
        if self._doubt is not None and now - self._doubt[0] > self._silence + 2 * self._interval:
            last = max(record.sequence for record in self._records)
            behind = [rank for rank, record in enumerate(self._records) if record.sequence < last]
            behind = behind or [rank for rank, record in others if not record.waited]
            who = f"behind is {self._places(behind)}" if behind else "no rank is behind"
            return f"a collective failed on rank {self._rank} ({self._doubt[1]}): {who}; {here}"
        return None

    def _places(self, ranks: list[int]) -> str:
        return ", ".join(f"rank {rank} (last at: {self._records[rank].place})" for rank in ranks)

    def _end(self, verdict: str) -> NoReturn:
        with self._news:
            others = self._records[: self._rank] + self._records[self._rank + 1 :]
            is_told = any(r.failure == verdict and r.host == self._own.host for r in others)
        if not is_told and self._is_to_speak():
            print(f"s2video: error: {verdict}", file=sys.stderr, flush=True)
        with self._news:
            self._own.failure, self._own.ended = verdict, True
            self._tell()
        end_suddenly(1)

    def _is_to_speak(self) -> bool:
        """Whether this rank is the first of its host to ask, or cannot know."""
        assert self._store is not None
        store, key, counts = self._store, f"speaker/{self._own.host}", list[int]()
        if self._lost is None:
            asking = threading.Thread(target=lambda: counts.append(store.add(key, 1)), daemon=True)
            asking.start()
            asking.join(_PATIENCE)  # the store may have stopped answering
        return counts in ([], [1])


def connect(silence: float) -> Watch:
    """A watch over the default process group, which this process has joined through its environment."""
    # A connection of our own: a call that blocks in the process group's would hold up the signs of life.
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
        store=dist.PrefixStore(f"s2video/watch/{ranks.attempt()}", server),
        host=ranks.host(),
    )


def shows_a_lost_rank(error: BaseException) -> bool:
    """Whether a collective failed: gloo raises plain RuntimeErrors that name a file of its sources."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    line = " ".join(text[0].split())[:300] if text else ""
    return line if isinstance(error, S2VideoError) else f"{type(error).__name__}: {line}".removesuffix(": ")
