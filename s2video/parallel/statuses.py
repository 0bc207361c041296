"""What each rank says of itself, what this rank knows of the others, and which of them has to be called lost.

Knows neither the store that carries it nor threads; the clock is the caller's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ..system.processes import IDLENESS

STEP_FLOOR = 30.0  # seconds that a step may take at least, whatever the steps before it took
STEP_FACTOR = 10.0  # times the slowest step so far that a step may take

_AGAIN = "start again, with --resume to continue from a resume point if there is one"


@dataclass
class Status:
    """The state that a rank writes to the store.

    Attributes:
        host: a name that the ranks of one host share.
        activity: the current work, such as "denoising step 3 of 30".
        sequence: number of activities so far. A rank with a lower number is behind.
        is_timed: whether the activity is a step that `slowest` is a measure for.
        slowest: seconds that the slowest step of this kind took, on this rank; 0 before the first has ended.
        meetings: number of meetings that it has reached.
        rests: whether its caller has the word: a program may rest between two videos for as long as it likes.
        waits: whether its main thread waits for other ranks.
        idle: seconds for which its process has done nothing.
        line: where its main thread is.
        waited: whether a collective failed on this rank, which means that it is not the one behind.
        failure: why the run has to end, as a sentence for the user; None without a failure.
        ended: whether the rank is leaving or has left.
    """

    host: str
    activity: str = "starting"
    sequence: int = 0
    is_timed: bool = False
    slowest: float = 0.0
    meetings: int = 0
    rests: bool = True
    waits: bool = False
    idle: float = 0.0
    line: str = ""
    waited: bool = False
    failure: str | None = None
    ended: bool = False


@dataclass
class Peer:
    """What this rank knows of one rank, which can be itself.

    Attributes:
        answer: what it wrote last, as it was read; empty until it has joined.
        heard_at: when this rank last read something new from it.
        unchanged: seconds for which this rank has seen it at the same activity.
    """

    status: Status
    answer: bytes = b""
    heard_at: float = 0.0
    unchanged: float = 0.0
    _seen: int = field(default=-1, repr=False)

    def age(self, seconds: float) -> None:
        """Let `seconds` pass in which this rank looked."""
        is_new, self._seen = self.status.sequence != self._seen, self.status.sequence
        self.unchanged = 0.0 if is_new else self.unchanged + seconds


@dataclass(frozen=True)
class Limits:
    """Seconds after which a rank counts as lost.

    Attributes:
        silence: without a heartbeat.
        idleness: of doing nothing while it waits for no other rank.
        longest_step: of a step, whatever the steps before it took, also of the first; None for no such limit.
    """

    silence: float = 20.0
    idleness: float = IDLENESS
    longest_step: float | None = None


@dataclass(frozen=True)
class Judge:
    """The rules by which a rank counts as lost.

    Args:
        rank: the rank that judges.
        peers: all ranks, in order.
    """

    rank: int
    peers: Sequence[Peer]
    limits: Limits

    def failure(self) -> str | None:
        """Return why another rank has failed, in its own words."""
        return next((p.status.failure for r, p in self._others() if p.status.failure is not None), None)

    def gone(self, sentence: str) -> str:
        """Return why the run has to end if ranks of this host are gone, as `sentence` says."""
        return f"{sentence}; {self._here}; {_AGAIN}"

    def store_lost(self, reason: str) -> str:
        """Return why the run has to end if the store cannot be used any more."""
        return (
            f"lost the store of this run ({reason}): rank 0 or the torchrun of its host has ended, or the network is "
            f"gone; rank 0 was last at: {self.peers[0].status.activity}; {self._here}; {_AGAIN}"
        )

    def silent(self, now: float, stopped: Iterable[int]) -> str | None:
        """Return why the run has to end if ranks that joined have not been heard; `stopped` are known to be stopped."""
        found = [
            rank
            for rank, peer in self._others()
            if peer.answer and not peer.status.ended and now - peer.heard_at > self.limits.silence
        ]
        if not found:
            return None
        why = "check its host and the network"
        if set(found) <= set(stopped):
            why = "the process is stopped (SIGSTOP, or a debugger), and was killed"
        return (
            f"no heartbeat for {self.limits.silence:g} s from {self._activities(found)}: {why}; {self._here}; {_AGAIN}"
        )

    def left_early(self) -> str | None:
        """Return why the run has to end if a rank has left before the others."""
        meetings = self.peers[self.rank].status.meetings
        early = [rank for rank, peer in self._others() if peer.status.ended and peer.status.meetings < meetings]
        return f"ended before the other ranks: {self._activities(early)}; {self._here}" if early else None

    def overdue(self) -> str | None:
        """Return why the run has to end if a step takes far longer than all before it, or longer than any may."""
        slowest, longest = max(peer.status.slowest for peer in self.peers), self.limits.longest_step
        limit = max(STEP_FLOOR, STEP_FACTOR * slowest) if slowest else longest
        reason = f"the slowest step so far took {slowest:.1f} s"
        if limit is None:
            return None
        if longest is not None and longest <= limit:
            limit, reason = longest, "if a step may take so long, raise parallel.timeout_seconds"
        late = self._behind([peer for peer in self.peers if peer.answer and not peer.status.ended])
        if not late or any(not peer.status.is_timed or peer.unchanged <= limit for peer in late):
            return None
        return f"a step took longer than {limit:.0f} s: {self._who(late)}; {self._here}; {reason}; {_AGAIN}"

    def idle(self) -> str | None:
        """Return why the run has to end if a rank does nothing, although it waits for no other and is not at rest."""
        for rank, peer in enumerate(self.peers):
            status = peer.status
            if status.rests:
                continue
            seconds = min(status.idle, peer.unchanged)  # a rank that looks for work now and then reports it each time
            if peer.answer and seconds > self.limits.idleness and not (status.waits or status.waited or status.ended):
                return (
                    f"{self._activities([rank])} has done nothing for {self.limits.idleness:g} s, as if asleep; "
                    f"{self._here}; {_AGAIN}"
                )
        return None

    def behind(self, error: str) -> str:
        """Return why the run has to end after a collective failed here with `error`."""
        late = self._behind(self.peers)
        return f"a collective failed on rank {self.rank} ({error}): {self._who(late)}; {self._here}; {_AGAIN}"

    def _others(self) -> list[tuple[int, Peer]]:
        return [(rank, peer) for rank, peer in enumerate(self.peers) if rank != self.rank]

    def _behind(self, peers: Sequence[Peer]) -> list[Peer]:
        """Return those with the least progress, but not those of them that wait for others, unless all do."""
        least = min((peer.status.sequence for peer in peers), default=0)
        late = [peer for peer in peers if peer.status.sequence == least]
        working = [peer for peer in late if not (peer.status.waits or peer.status.waited)]
        return working or late

    def _who(self, late: Sequence[Peer]) -> str:
        found = [rank for rank, peer in enumerate(self.peers) if any(peer is one for one in late)]
        if len(found) == len(self.peers):
            return "no rank is behind"
        return f"{self._activities(found)} {'are' if len(found) > 1 else 'is'} behind"

    @property
    def _here(self) -> str:
        return f"rank {self.rank} is at: {self.peers[self.rank].status.activity}"

    def _activities(self, ranks: Sequence[int]) -> str:
        def of(rank: int) -> str:
            status = self.peers[rank].status
            where = f", in {status.line}" if status.line and not status.waits else ""
            return f"rank {rank} (last at: {status.activity}{where})"

        return ", ".join(of(rank) for rank in ranks)
