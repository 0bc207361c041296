"""Orders: which fault happens where. The driver places one as a file, and one process of the batch carries it out."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

PHASES = ("loading", "denoising", "decoding", "encoding", "renaming")
BY_ALL_RANKS = ("loading", "denoising", "decoding")  # phases that are not the main rank's alone


@dataclass(frozen=True)
class Order:
    """One fault.

    Attributes:
        number: its name.
        phase: what the process that carries it out is doing.
        victim: rank, replica (all its processes), supervisor or encoder, which are killed by SIGKILL; term: the
            supervisor gets SIGTERM; disk: it is filled; clock: it jumps.
        rank: of the process that carries it out.
        skip: how often that process passes the place first.
        jump: seconds that the clock jumps.
        delay: seconds from the place to the fault, so that it can happen at any moment.
    """

    number: int
    phase: str
    victim: str
    rank: int
    skip: int
    jump: float = 0.0
    delay: float = 0.0

    @property
    def kills(self) -> bool:
        return self.victim in ("rank", "replica", "supervisor", "encoder")


def plan_orders(rounds: int, seed: int, num_ranks: int) -> list[Order]:
    """Return every kind of fault `rounds` times: those while loading first, the rest in a random order."""
    wanted = [(phase, victim) for phase in PHASES for victim in ("rank", "replica", "supervisor")]
    wanted += [("encoding", "encoder")] * 3
    for victim in ("term", "disk", "clock"):
        wanted += [(phase, victim) for phase in ("denoising", "encoding", "renaming")]
    chosen = random.Random(seed)
    orders = []
    for phase, victim in wanted * rounds:
        rank = chosen.randrange(num_ranks) if victim == "rank" and phase in BY_ALL_RANKS else 0
        skip = 0 if phase == "loading" else chosen.randrange(4)
        jump = chosen.choice([120.0, 3600.0, -3600.0]) if victim == "clock" else 0.0
        orders.append(Order(len(orders), phase, victim, rank, skip, jump))
    loading = [order for order in orders if order.phase == "loading"]
    rest = [order for order in orders if order.phase != "loading"]
    chosen.shuffle(loading)
    chosen.shuffle(rest)
    return loading + rest


def place(order: Order, folder: Path) -> None:
    """Make an order known to all processes."""
    waiting = folder / "order.json"
    waiting.with_suffix(".new").write_text(json.dumps(asdict(order)))
    os.replace(waiting.with_suffix(".new"), waiting)


def waiting(folder: Path) -> Order | None:
    """Return the order that is to be carried out, if there is one."""
    with suppress(FileNotFoundError):
        return Order(**json.loads((folder / "order.json").read_text()))
    return None


def take(order: Order, folder: Path) -> bool:
    """Return whether this process carries out the order, and no other."""
    try:
        os.rename(folder / "order.json", folder / f"taken-{order.number}.json")
    except FileNotFoundError:
        return False
    return True


def log(folder: Path, **facts: object) -> None:
    """Append a line to the log."""
    with (folder / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(f"{json.dumps(facts)}\n")


def logged(folder: Path) -> list[dict[str, object]]:
    """Return the lines of the log."""
    path = folder / "log.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def rest_of(orders: Sequence[Order], folder: Path) -> list[Order]:
    """Return the orders that were not carried out yet."""
    return [order for order in orders if not (folder / f"taken-{order.number}.json").exists()]
