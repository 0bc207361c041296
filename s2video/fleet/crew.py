"""Replicas on a Ray cluster: each is a placement group whose actors are the ranks of one torch process group.

Ray knows which machines there are and which of their cores and GPUs are free. Which jobs there are, and who makes them,
is known by the keeper alone.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ..batch.interfaces import Ending
from ..system.terminal import say, say_plain, show_path
from .rank import Place, Rank, RankPlan, RankSettings, first_line
from .remote_store import Ask

_GRACE = 6.0  # seconds in which ranks say why they end after another one has ended
_WAITING = 10.0  # seconds without a place after which a line says so
_PROGRESS_EVERY = 15.0  # seconds between two lines about progress
_AGAIN = 2.0  # seconds after which a second request to stop is another one, as in system.shutdown
_MOST_DEATHS = 3  # of replicas of one number, after which one that dies before it draws a job is not started again


@dataclass(frozen=True)
class RayPlan:
    """Replicas on a cluster.

    Attributes:
        count: the most at the same time.
        nproc: ranks of each.
        uses_gpus: each rank gets a GPU.
        cpus: cores of each rank.
        spans: the ranks of a replica may be on several machines; they are on as few as possible.
        settings: what all ranks have in common.
    """

    count: int
    nproc: int
    uses_gpus: bool
    cpus: int
    spans: bool
    settings: RankSettings

    @property
    def bundle(self) -> dict[str, float]:
        """What Ray reserves for a rank."""
        return {"CPU": float(self.cpus)} | ({"GPU": 1.0} if self.uses_gpus else {})

    @property
    def needs(self) -> str:
        """What a replica needs, for messages."""
        number = self.nproc if self.uses_gpus else self.nproc * self.cpus
        return f"{number} {'GPUs' if self.uses_gpus else 'cores'}{'' if self.spans else ' on one machine'}"


class RayCrew:
    """A `Crew` on a cluster.

    Args:
        keeper: the actor that holds the store; `ask` calls its methods.
    """

    def __init__(self, plan: RayPlan, keeper: Any, ask: Ask) -> None:
        self.count = plan.count
        self._plan = plan
        self._keeper = keeper
        self._ask = ask
        self._deaths: Counter[int] = Counter()
        self._replicas: list[RayReplica] = []
        self._told: tuple[str, float] = "", time.monotonic()

    def start(self, number: int, owner: str) -> RayReplica:
        """Reserve the place of a replica; it starts when the cluster has room for it."""
        replica = RayReplica(owner, number, self._plan, self._keeper, self._ask, self._deaths)
        self._replicas = [r for r in self._replicas if not r.has_ended] + [replica]
        return replica

    def tick(self) -> None:
        """Print what replicas say, and how far they are; give up places that are not needed any more."""
        for news in self._ask("take_news"):
            if news.stream == "output":
                show_path(news.text)
            else:
                say_plain(f"s2video: [{news.source}] {news.text.removeprefix('s2video: ')}")
        counts = self._ask("count_open")
        if "waiting" not in counts:
            for replica in self._replicas:
                replica.give_up_waiting()
        self._tell_progress(counts)

    def _tell_progress(self, counts: Mapping[str, int]) -> None:
        text, told_at = self._told
        if time.monotonic() - told_at < _PROGRESS_EVERY:
            return
        steps = [f"{name} step {step} of {all_steps}" for name, (step, all_steps) in self._ask("steps").items()]
        shown = ", ".join(steps[:4]) + (f" and {len(steps) - 4} more" if len(steps) > 4 else "")
        now = f"{counts.get('waiting', 0)} waiting, {counts.get('running', 0)} running" + (shown and f": {shown}")
        if now != text:
            say(now)
        self._told = now, time.monotonic()


@dataclass
class RayReplica:
    """A replica: waiting for its place, then starting, then running."""

    owner: str
    number: int
    plan: RayPlan
    keeper: Any
    ask: Ask
    deaths: Counter[int]
    ended_because: str | None = None
    has_ended: bool = False

    _actors: list[Any] = field(default_factory=list)
    _placing: dict[Any, int] = field(default_factory=dict)  # reference of a rank's place -> its bundle
    _places: dict[int, Place] = field(default_factory=dict)
    _running: dict[Any, int] = field(default_factory=dict)  # reference of a rank's end -> its number
    _problems: list[Ending] = field(default_factory=list)
    _machine_is_gone: bool = False
    _failed_at: float | None = None
    _asked_at: float | None = None  # when it was asked to stop
    _was_asked: bool = False  # the keeper knows of it
    _has_said: bool = False

    def __post_init__(self) -> None:
        bundles = [self.plan.bundle] * self.plan.nproc
        self._group = placement_group(bundles, strategy="PACK" if self.plan.spans else "STRICT_PACK")
        self._started_at = time.monotonic()

    def poll(self) -> Ending | None:
        """See `Replica`."""
        if self.has_ended:
            return Ending(self.ended_because and f"{self.ended_because}, and was ended", reason=self.ended_because)
        if self._asked_at is not None and not self._was_asked:
            self._was_asked = True
            self.ask("stop", self.owner)
            if not self._running:
                return self._ended(Ending(None))
        if not self._actors:
            return self._place()
        return self._begin() if not self._running and not self._problems else self._watch()

    def end(self, reason: str) -> None:
        """See `Replica`."""
        self.ended_because = reason
        self._ended(Ending(reason))

    def end_if_idle(self) -> None:
        """Do nothing: ranks watch each other, and a single one watches itself."""

    def send_signal(self, number: int) -> None:
        """See `Replica`. A second request ends the replica at once."""
        now = time.monotonic()
        if self._asked_at is None:
            self._asked_at = now
        elif now - self._asked_at > _AGAIN and not self.has_ended:
            self.ended_because = "was asked to stop again"

    def give_up_waiting(self) -> None:
        """End it if its ranks have not begun, because there is nothing left to make."""
        if not self._running and not self._problems and not self.has_ended:
            self._ended(Ending(None))

    def _place(self) -> Ending | None:
        """Wait for room, without blocking; then start the actors."""
        if not self._group.wait(0.01):
            if not self._has_said and time.monotonic() - self._started_at > _WAITING:
                self._has_said = True
                say(f"{self.owner} waits for {self.plan.needs}; it starts as soon as the cluster has them free")
            return None
        for index in range(self.plan.nproc):
            strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=index)
            options = {"num_cpus": self.plan.cpus, "num_gpus": int(self.plan.uses_gpus), "max_restarts": 0}
            actor = ray.remote(Rank).options(scheduling_strategy=strategy, **options).remote()
            self._actors.append(actor)
            self._placing[actor.place.remote()] = index
        return None

    def _begin(self) -> Ending | None:
        """Wait until all ranks know where they are; then give each its number."""
        for reference in _ready(self._placing):
            index = self._placing.pop(reference)
            try:
                self._places[index] = ray.get(reference)
            except ray.exceptions.RayError as error:
                return self._died(f"could not start rank {index} ({first_line(error)})")
        if self._placing:
            return None
        for plan, index in rank_plans(self.plan.settings, self.owner, self._places):
            self._running[self._actors[index].run.remote(plan, self.keeper)] = plan.rank
        return None

    def _watch(self) -> Ending | None:
        """Wait for the end of all ranks; after that of one by a fault, not for long."""
        if self.ended_because is not None:
            return self._ended(Ending(f"{self.ended_because}, and was ended", reason=self.ended_because))
        for reference in _ready(self._running):
            rank = self._running.pop(reference)
            try:
                if code := ray.get(reference):
                    self._problems.append(Ending(f"exited with code {code}", code))
            except ray.exceptions.RayError as error:
                self._problems.append(Ending(self._loss_of(rank, error)))
        if self._problems and self._failed_at is None:
            self._failed_at = time.monotonic()
        if self._running and (self._failed_at is None or time.monotonic() - self._failed_at < _GRACE):
            return None
        if not self._problems:
            return self._ended(Ending(None, 0))
        first = next((p for p in self._problems if p.code is None), self._problems[0])
        return self._ended(first) if first.code is not None else self._died(str(first.problem))

    def _loss_of(self, rank: int, error: Exception) -> str:
        """Say where a rank was lost, and take note if its whole machine is gone."""
        plans = rank_plans(self.plan.settings, self.owner, self._places)
        place = next(self._places[index] for plan, index in plans if plan.rank == rank)
        is_gone = place.node not in {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        self._machine_is_gone |= is_gone
        which = f" of rank {rank}" if self.plan.nproc > 1 else ""
        where = f"{place.address}{', a machine that is gone' if is_gone else ''}"
        return f"lost the process{which} on {where} ({first_line(error)})"

    def _died(self, problem: str) -> Ending:
        """End after a process or a machine was lost, which says nothing about the next attempt until it repeats."""
        self.deaths[self.number] += 1
        return self._ended(Ending(problem, is_its_own=self.deaths[self.number] >= _MOST_DEATHS))

    def _ended(self, ending: Ending) -> Ending:
        """End all ranks, give the place back, and let the keeper release the jobs."""
        if not self.has_ended:
            self.has_ended = True
            for actor in self._actors:
                ray.kill(actor)
            remove_placement_group(self._group)
            if self._machine_is_gone:  # which is no fault of the jobs, however often it happens
                for name in self.ask("give_back", self.owner):
                    say(f"{name} of {self.owner} goes back into the queue")
            self.ask("goodbye", self.owner)
        return ending


def rank_plans(settings: RankSettings, owner: str, places: Mapping[int, Place]) -> list[tuple[RankPlan, int]]:
    """Return the plan of each rank and the index of its place. Ranks of one machine have adjacent numbers.

    Args:
        settings: what all ranks have in common.
        places: of the ranks, by index; the machine of index 0 comes first.
    """
    machines: dict[str, list[int]] = {}
    for index in sorted(places):
        machines.setdefault(places[index].node, []).append(index)
    first = places[min(places)]
    plans: list[tuple[RankPlan, int]] = []
    for machine, indices in enumerate(machines.values()):
        gpus = tuple(gpu for index in indices for gpu in places[index].gpus)
        for local_rank, index in enumerate(indices):
            plan = RankPlan(
                settings,
                owner=owner,
                rank=len(plans),
                world_size=len(places),
                local_rank=local_rank,
                local_size=len(indices),
                machine=machine,
                master=(first.address, first.port),
                gpus=gpus,
            )
            plans.append((plan, index))
    return plans


def _ready(references: Mapping[Any, int]) -> Sequence[Any]:
    if not references:
        return []
    ready, _ = ray.wait(list(references), num_returns=len(references), timeout=0, fetch_local=False)
    return list(ready)
