"""What must hold for the videos of a server, whatever happened to it, and the report about it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults.orders import Order
from faults.verdict import made_twice

from s2video.system.files import sha256

from .client import Client

_FILES = (".mp4", ".json", ".latents.safetensors")  # of each video


@dataclass(frozen=True)
class Made:
    """What a client reads about one video.

    Attributes:
        digests: SHA-256 of the video and of its latents, empty if it was not made.
        sidecar: how it was made, empty if it was not.
    """

    id: str
    status: str
    error: str | None
    digests: tuple[str, ...]
    sidecar: Mapping[str, Any]

    @classmethod
    def read(cls, client: Client, name: str) -> Made:
        """Read all of it from a server that answers."""
        video = json.loads(client.get(f"/v1/videos/{name}") or b"{}")
        error = video["error"] and video["error"]["message"]
        if video["status"] != "completed":
            return cls(name, video["status"], error, (), {})
        content, sidecar = (client.get(f"/v1/videos/{name}/{part}") or b"{}" for part in ("content", "sidecar"))
        record = json.loads(sidecar)
        digests = hashlib.sha256(content).hexdigest(), str(record["latents"]["sha256"])
        return cls(name, video["status"], error, digests, record)


def find_faults(
    folder: Path, made: Mapping[int, Made], calm: Mapping[int, Made], wanted: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    """Yield a sentence for everything that does not hold.

    Args:
        folder: the server's.
        made: what clients read about the videos, by number.
        calm: the same of a server without faults.
        wanted: what they asked for.
    """
    for index, fields in enumerate(wanted):
        video, undisturbed = made.get(index), calm.get(index)
        if video is None or undisturbed is None:
            yield f"video {index} is lost"
        elif video.status != "completed":
            yield f"video {index} is {video.status}: {video.error}"
        else:
            if (video.sidecar["prompt"], video.sidecar["seed"]) != (fields["prompt"], fields["seed"]):
                yield f"video {index}: its sidecar is that of another one"
            if video.digests != undisturbed.digests:
                yield f"video {index}: its digests are not those of the undisturbed run"
    for what in range(2):
        counts = Counter(video.digests[what] for video in made.values() if video.digests)
        yield from (f"{count} videos have the digest {digest}" for digest, count in counts.items() if count > 1)
    yield from _twice(made)
    yield from made_twice(folder)
    yield from _wrong_files(folder, made)


def _twice(made: Mapping[int, Made]) -> Iterator[str]:
    counts = Counter(video.id for video in made.values())
    yield from (f"{name} is the answer to {count} requests" for name, count in counts.items() if count > 1)


def _wrong_files(folder: Path, made: Mapping[int, Made]) -> Iterator[str]:
    """What is missing or left, and files that are not those that the store has recorded."""
    expected = {f"{video.id}{suffix}" for video in made.values() if video.digests for suffix in _FILES}
    there = {path.name for path in (folder / "videos").iterdir()}
    yield from (f"{name} is missing" for name in sorted(expected - there))
    yield from (f"{name} is left in the folder" for name in sorted(there - expected))
    if (folder / "images").exists() and (left := list((folder / "images").iterdir())):
        yield f"{len(left)} images are left"
    for line in (folder / "batch.sha256").read_text(encoding="utf-8").splitlines():
        digest, _, name = line.partition("  ")
        if not (folder / name).exists() or sha256(folder / name) != digest:
            yield f"{name}: batch.sha256 has another digest"


def as_text(report: Mapping[str, Any], planned: Sequence[Order]) -> str:
    """Return the report as a table of the kills, by phase and victim, and what was found."""
    names = {"supervisor": "server", "replica": "replica"}
    tried = Counter((order.phase, order.victim) for order in planned)
    lines = [
        f"{report['videos']} videos of two models, {report['replicas']} replicas of {report['ranks']} ranks, "
        f"seed {report['seed']}",
        f"{report['kills']} kills, {report['starts']} starts of the server, {report['seconds']} s",
        "",
        f"{'':<12}" + "".join(f"{name:>12}" for name in names.values()),
    ]
    for phase in dict.fromkeys(order.phase for order in planned):
        lines.append(f"{phase:<12}" + "".join(f"{tried[phase, victim] or '-':>12}" for victim in names))
    lines += ["", *(report["found"] or ["every video whole, its own, made once, and that of an undisturbed run"])]
    return "\n".join([*lines, ""])
