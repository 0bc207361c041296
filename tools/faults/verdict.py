"""What must hold after a batch, whatever happened to it, and the report about it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from s2video.batch.run_file import Batch
from s2video.batch.store import Store
from s2video.errors import InputError
from s2video.media.output_paths import OutputPaths
from s2video.records.integrity import problems
from s2video.records.sidecar_model import read_sidecar
from s2video.system.files import sha256

from .orders import Order


def find_faults(batch: Batch, undisturbed: Path) -> Iterator[str]:
    """Yield a sentence for everything that does not hold.

    Every video is done, whole and that of its job; its digest is that of an undisturbed run; none was made twice; no
    other files are left.

    Args:
        undisturbed: folder of the same batch, made without faults.
    """
    store = Store(batch.folder)
    states = {record.name: record.state for record in store.records()}
    expected, digests = set(), Counter[str]()
    for job in batch.jobs:
        files = OutputPaths.of(job.config)
        expected |= {files.video.name, files.sidecar.name}
        if states.get(job.name) != "done":
            yield f"{job.name}: is {states.get(job.name)}, not done"
            continue
        try:
            sidecar = read_sidecar(files.sidecar)
        except InputError as error:
            yield f"{job.name}: {error}"
            continue
        yield from problems(files.sidecar, sidecar, files.video)
        if (sidecar.prompt, sidecar.seed) != (job.config.prompt, job.config.sampling.seed):
            yield f"{job.name}: its sidecar is that of another job"
        digests[sha256(files.video)] += 1
        if sha256(files.video) != sha256(undisturbed / job.name):
            yield f"{job.name}: its digest is not that of the undisturbed run"
    yield from (f"{count} videos have the digest {digest}" for digest, count in digests.items() if count > 1)
    yield from _wrong_checksums(batch.folder)
    yield from made_twice(batch.folder)
    left = {path.name for path in batch.folder.iterdir() if not path.name.startswith("batch.")} - expected
    yield from (f"{name} is left in the folder" for name in sorted(left))


def _wrong_checksums(folder: Path) -> Iterator[str]:
    lines = (folder / "batch.sha256").read_text(encoding="utf-8").splitlines()
    listed = dict(reversed(line.split("  ", 1)) for line in lines)
    made = {path.name for path in folder.iterdir() if path.suffix in (".mp4", ".json")}
    if made != listed.keys():
        yield f"batch.sha256 lists {len(listed)} files of {len(made)}"
    yield from (
        f"{name}: batch.sha256 has another digest" for name in made & listed.keys() if _differs(folder, name, listed)
    )


def _differs(folder: Path, name: str, listed: Mapping[str, str]) -> bool:
    return sha256(folder / name) != listed[name]


def made_twice(folder: Path) -> Iterator[str]:
    """A job may be drawn again only after it was let go, and is done once."""
    owners: dict[str, str] = {}
    done = Counter[str]()
    for line in (folder / "batch.events.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue  # the disk was full
        job = event.get("job")
        if event["event"] == "drawn":
            if job in owners:
                yield f"{job}: {event['replica']} drew it while {owners[job]} had it"
            owners[job] = event["replica"]
        elif event["event"] in ("released", "given back", "failed", "done"):
            owners.pop(job, None)
            done[job] += event["event"] == "done"
    yield from (f"{job}: was made {count} times" for job, count in done.items() if count > 1)


def as_text(report: Mapping[str, Any], orders: Sequence[Order]) -> str:
    """Return the report as a table of the faults, by phase and victim, and what was found."""
    victims = list(dict.fromkeys(order.victim for order in orders))
    phases = list(dict.fromkeys(order.phase for order in orders))
    tried = Counter((order.phase, order.victim) for order in orders)
    lines = [
        f"{report['videos']} videos of {report['size']}, {report['replicas']} replicas of {report['ranks']} ranks, "
        f"seed {report['seed']}",
        f"{report['kills']} kills, {report['faults']} faults in all, {report['starts']} starts of the batch, "
        f"{report['seconds']} s",
        "",
        f"{'':<12}" + "".join(f"{victim:>12}" for victim in victims),
    ]
    for phase in phases:
        lines.append(f"{phase:<12}" + "".join(f"{tried[phase, victim] or '-':>12}" for victim in victims))
    lines += ["", f"codes with which the batch ended: {report['codes']}"]
    found = report["found"]
    lines += found or ["every video whole, its own, made once, and that of an undisturbed run"]
    return "\n".join([*lines, ""])
