"""How many replicas one keeper of a batch's store serves: a fleet in simulated time, in front of a real keeper.

    python tools/fleet_scale.py --replicas 1000 --jobs 100000    # takes many minutes

No video is made. Replicas draw, renew their leases, report progress and finish, at the moments at which they would, and
one is lost every second; a supervisor looks as it does. Each of these is a call of the keeper, with its transaction in
SQLite on the disk. Only the time between the calls is simulated. It prints the cost of each kind of call, and the share
of the keeper's time that the fleet needs. With --ray, calls go to the keeper as an actor of Ray, from this process.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import random
import resource
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from s2video.batch.records import Entry, Record
from s2video.batch.store import LEASE, Store
from s2video.config.run import build_config
from s2video.fleet.keeper import Keeper

VERSIONS = {"s2video": "0"}
START = 20.0  # seconds from a replica's loss to the first draw of the one in its place


class Meter:
    """The keeper, with the cost of each kind of call."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call
        self.wall: dict[str, list[float]] = defaultdict(list)  # seconds
        self.cpu: dict[str, float] = defaultdict(float)

    def __call__(self, name: str, *arguments: Any) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        result = self._call(name, *arguments)
        self.cpu[name] += time.process_time() - cpu
        self.wall[name].append(time.perf_counter() - wall)
        return result

    def table(self) -> str:
        """Return a row for each kind of call."""
        rows = ["call            calls   CPU ms  p50 ms  p99 ms  p99.9 ms  most ms"]
        for name, wall in sorted(self.wall.items()):
            ordered = sorted(wall)
            p50, p99, p999 = (1e3 * ordered[int(share * (len(wall) - 1))] for share in (0.5, 0.99, 0.999))
            mean = 1e3 * self.cpu[name] / len(wall)
            rows.append(
                f"{name:<12} {len(wall):8d} {mean:8.3f} {p50:7.2f} {p99:7.2f} {p999:9.2f} {1e3 * ordered[-1]:8.1f}"
            )
        return "\n".join(rows)


class Fleet:
    """Replicas in simulated time.

    Args:
        ask: the keeper.
        losses: replicas that are lost in a second.
        blame: count an attempt for the job of a replica that is lost, as if the job had killed it.
    """

    def __init__(self, ask: Meter, replicas: int, *, job_seconds: float, losses: float, blame: bool) -> None:
        self.now = 0.0
        self.lost = self.drawn = 0
        self._ask = ask
        self._job_seconds = job_seconds
        self._count = replicas
        self._losses = losses
        self._blame = blame
        self._random = random.Random(0)
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = itertools.count()
        self._owners: dict[int, str] = {}  # number of a replica -> its name now
        self._names = (f"replica-{n}-x" for n in itertools.count(1))
        self._is_over = False
        for number in range(replicas):
            self._at(self._random.uniform(0, job_seconds), self._start, number)

    def run(self, *, tick: float) -> None:
        """Run until no job is open.

        Args:
            tick: seconds between two looks of the supervisor.
        """
        self._at(tick, self._supervise, tick)
        if self._losses:
            self._at(1 / self._losses, self._lose)
        while not self._is_over:
            self.now, _, act, arguments = heapq.heappop(self._events)
            act(*arguments)

    def _at(self, when: float, act: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._events, (when, next(self._order), act, arguments))

    def _start(self, number: int) -> None:
        owner = next(self._names)
        self._ask("hello", owner, VERSIONS)
        self._owners[number] = owner
        self._at(self.now + LEASE / 4, self._renew, number, owner)
        self._at(self.now + 2, self._pulse, number, owner)
        self._draw(number, owner)

    def _draw(self, number: int, owner: str) -> None:
        record: Record | None = self._ask("draw", owner, [])
        if record is None:
            self._ask("goodbye", owner)
            del self._owners[number]
            return
        self.drawn += 1
        end = self.now + self._job_seconds * self._random.uniform(0.9, 1.1)
        self._at(end, self._finish, number, owner, record.name)

    def _finish(self, number: int, owner: str, name: str) -> None:
        if self._owners.get(number) == owner:
            self._ask("finish", name, owner, {name: "0" * 64, f"{name[:-4]}.json": "1" * 64})
            self._draw(number, owner)

    def _renew(self, number: int, owner: str) -> None:
        if self._owners.get(number) == owner:
            self._ask("renew", owner)
            self._at(self.now + LEASE / 4, self._renew, number, owner)

    def _pulse(self, number: int, owner: str) -> None:
        if self._owners.get(number) == owner:
            pause = self._ask("pulse", owner, {"shot.mp4": (3, 30)})
            self._at(self.now + pause, self._pulse, number, owner)

    def _lose(self) -> None:
        number = self._random.randrange(self._count)  # it may have nothing to do any more
        if (owner := self._owners.pop(number, None)) is not None:
            self.lost += 1
            if not self._blame:
                self._ask("give_back", owner)
            self._ask("goodbye", owner)
            self._at(self.now + START, self._start, number)
        self._at(self.now + 1 / self._losses, self._lose)

    def _supervise(self, tick: float) -> None:
        self._ask("take_news")
        self._ask("owners")
        self._ask("release")
        self._is_over = not self._ask("count_open")
        self._at(self.now + tick, self._supervise, tick)


def make_store(folder: Path, jobs: int) -> Store:
    """Make the store of a batch with so many jobs."""
    store = Store(folder)
    store.create()
    config = build_config({"prompt": "a large red circle moving left on a gray background"}, "here").model_dump_json()
    names = [f"shot{number:06d}.mp4" for number in range(jobs)]
    entries = [Entry(name=n, place="here", models="m", config=config, key="k" * 64, work=1.0) for n in names]
    store.put(entries, frozenset())
    return store


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the simulation of the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicas", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--job-seconds", type=float, default=60.0)
    parser.add_argument("--losses", type=float, default=1.0, help="replicas that are lost in a second")
    parser.add_argument("--blame", action="store_true", help="count an attempt for the job of a lost replica")
    parser.add_argument("--tick", type=float, default=0.2, help="seconds between two looks of the supervisor")
    parser.add_argument("--ray", action="store_true", help="the keeper is an actor of Ray")
    parser.add_argument("--work", type=Path, help="folder of the store (default: a temporary one)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        store = make_store(Path(folder), options.jobs)
        now: list[Fleet] = []
        if options.ray:
            ask = Meter(_actor(folder))
        else:
            keeper = Keeper(folder, VERSIONS, ticks=lambda: now[0].now if now else 0.0)
            ask = Meter(lambda name, *values: getattr(keeper, name)(*values))
        fleet = Fleet(
            ask, options.replicas, job_seconds=options.job_seconds, losses=options.losses, blame=options.blame
        )
        now.append(fleet)
        started = time.perf_counter()
        fleet.run(tick=options.tick)
        passed = time.perf_counter() - started
        states = [record.state for record in store.records()]
        print(ask.table())
        busy = sum(ask.cpu.values())
        print(
            f"{states.count('done')} of {len(states)} jobs done, {states.count('failed')} failed, {fleet.drawn} draws, "
            f"{fleet.lost} replicas lost, in {fleet.now:.0f} simulated seconds; {passed:.0f} s of real time"
        )
        calls = sum(map(len, ask.wall.values()))
        print(f"{calls / fleet.now:.0f} calls in a simulated second, {calls / passed:.0f} in a real one")
        if not options.ray:
            share = busy / fleet.now
            print(f"CPU time of the keeper: {100 * share:.1f} % of a core for {options.replicas} replicas")
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"memory of this process: {memory:.0f} MiB; the store: {store.path.stat().st_size / 2**20:.0f} MiB")
    return 0 if states.count("done") + states.count("failed") == len(states) else 1


def _actor(folder: str) -> Callable[..., Any]:
    import ray

    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    keeper: Any = ray.remote(Keeper).options(num_cpus=0).remote(folder, VERSIONS)
    return lambda name, *values: ray.get(getattr(keeper, name).remote(*values))


if __name__ == "__main__":
    sys.exit(main())
