"""Boundaries of the edit and of render farms: timelines, picks, certificates, signed files, tasks of a bundle."""

import base64
import contextlib
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import opentimelineio as otio
import torch
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from PIL import Image

from fuzzing.certificates import write_signer
from fuzzing.mutations import dumped, mutate_bytes, mutate_json
from fuzzing.trial import Finding, Target
from s2video.batch.checks import find_problems
from s2video.batch.picks import FILE, as_text, decide, read_takes
from s2video.batch.run_file import ListedShots, load_batch
from s2video.batch.store import Entry, Store
from s2video.config.run import build_config
from s2video.editorial.edl import write_edl
from s2video.editorial.fcp_xml import write_xml
from s2video.editorial.read import Timeline
from s2video.editorial.shots import keep_timeline, kept_timeline, shots_in
from s2video.errors import InputError, S2VideoError
from s2video.fleet.farm import read_job
from s2video.media.certificates import check_certificates, signer_of
from s2video.media.credentials import Credentials, sign_video
from s2video.media.formats import VideoSpec
from s2video.media.video import write_video
from s2video.models.checkpoint import open_checkpoint
from s2video.review.inspect import describe_credentials

RATE = Fraction(30000, 1001)
SETTINGS = ("model.path=shapes-wan", "output.fps=30000/1001")


def timeline(suffix: str) -> Callable[[bytes, Path], Any]:
    """A timeline to shots, and back into each format, as far as a dry run goes."""

    def run(data: bytes, folder: Path) -> Any:
        path = folder / f"cut{suffix}"
        path.write_bytes(data)
        found = shots_in(path, path, SETTINGS, handles=2, open_model=open_checkpoint)
        with contextlib.chdir(folder):
            batch = load_batch(path, SETTINGS, listed=ListedShots(str(path), found.shots[:20]))
            problems = [*batch.problems, *find_problems(batch.jobs[:20], open_checkpoint, world_size=1, images=True)]
        keep_timeline(folder, found.timeline)
        kept = kept_timeline(folder)
        if kept is None or (kept.fps, kept.drop) != (found.timeline.fps, found.timeline.drop):
            raise Finding("the batch's own timeline is another one")
        for write in (_edl, _xml):
            with contextlib.suppress(InputError):  # they hold less than .otio
                write(kept)
        if problems:
            raise InputError(problems[0])
        return "shots"

    return run


def _edl(found: Timeline) -> None:
    write_edl(found.otio, found.fps, drop=found.drop)


def _xml(found: Timeline) -> None:
    write_xml(found.otio, found.fps, drop=found.drop, size=(64, 64), sound=False)


def picks(data: bytes, folder: Path) -> Any:
    store = Store(folder)
    store.create()
    store.put([Entry(f"sh0{n}_s0.mp4", "here", "m", "{}", "k", 1.0) for n in (1, 2)], frozenset())
    store.draw("r1")
    store.finish("sh01_s0.mp4", "r1", {"sh01_s0.mp4": "1" * 64})
    (folder / FILE).write_bytes(data)
    as_text(read_takes(folder))
    return decide(folder, ["sh01_s0"], "rejected")


def task(data: bytes, folder: Path) -> Any:
    (folder / "job-000001.json").write_bytes(data)
    job = read_job(folder, 1)
    if Path(job.name).is_absolute() or ".." in Path(job.name).parts:
        raise Finding(f"a video outside the output folder: {job.name}")
    return job


def chain(root: bytes, key: bytes) -> Callable[[bytes, Path], Any]:
    """A signer's certificate as DER, which the authority `root` has issued for `key` if it is not changed."""

    def run(data: bytes, folder: Path) -> Any:
        return _checked(folder, _pem("CERTIFICATE", data) + root, key)

    return run


def chain_file(key: bytes) -> Callable[[bytes, Path], Any]:
    return lambda data, folder: _checked(folder, data, key)


def key_file(certificates: bytes) -> Callable[[bytes, Path], Any]:
    return lambda data, folder: _checked(folder, certificates, data)


def _checked(folder: Path, certificates: bytes, key: bytes) -> Any:
    (folder / "chain.pem").write_bytes(certificates)
    (folder / "key.pem").write_bytes(key)
    check_certificates(folder / "chain.pem", folder / "key.pem")
    return signer_of(folder / "chain.pem")


def _pem(kind: str, der: bytes) -> bytes:
    return f"-----BEGIN {kind}-----\n".encode() + base64.encodebytes(der) + f"-----END {kind}-----\n".encode()


def credentials(name: str) -> Callable[[bytes, Path], Any]:
    """A signed file without its sidecar; one that is not as it was signed is as good as an InputError."""

    def run(data: bytes, folder: Path) -> Any:
        (folder / name).write_bytes(data)
        try:
            said = describe_credentials(folder / name)
        except S2VideoError as error:
            raise InputError(str(error)) from None
        if said is None:
            raise InputError("no credentials")
        return said

    return run


def editorial_targets() -> list[Target]:
    """All targets; makes their seeds, which takes about a second."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        chain_path, key_path = write_signer(folder)
        certificates, key = chain_path.read_bytes(), key_path.read_bytes()
        signer, root = x509.load_pem_x509_certificates(certificates)
        signed = _signed(folder, Credentials(chain_path, key_path))
    cut = _cut()
    job = {"name": "sh01_s0.mp4", "config": build_config({"prompt": "a red wall"}).model_dump(mode="json")}
    pick = {"verdict": "picked", "content": "1" * 64, "note": "good", "time": "2026-11-28T00:00:00+00:00"}
    edl = write_edl(_with_one_track(cut), RATE, drop=True).encode()
    xml = write_xml(cut, RATE, drop=True, size=(64, 64), sound=False).encode()
    root_pem = root.public_bytes(Encoding.PEM)
    return [
        Target("OTIO", (cut.to_json_string().encode(),), timeline(".otio"), mutate_json, 25),
        Target("EDL", (edl,), timeline(".edl"), mutate_bytes, 15),
        Target("FCP XML", (xml,), timeline(".xml"), mutate_bytes, 25),
        Target("picks", (dumped({"schema": 1, "picks": {"sh01_s0.mp4": pick}}),), picks, mutate_json, 30),
        Target("task of a bundle", (dumped(job),), task, mutate_json, 5),
        Target("certificates", (certificates,), chain_file(key), mutate_bytes),
        Target("certificate", (signer.public_bytes(Encoding.DER),), chain(root_pem, key), mutate_bytes),
        Target("private key", (key,), key_file(certificates), mutate_bytes),
        *(Target(f"signed {name}", (data,), credentials(name), mutate_bytes, 15) for name, data in signed.items()),
    ]


def _cut() -> Any:
    """Two shots with prompts and a dissolve between them, a gap, a filmed clip with a marker, and a second track."""
    rate = float(RATE)

    def time(frames: int) -> Any:
        return otio.opentime.RationalTime(frames, rate)

    def span(start: int, length: int) -> Any:
        return otio.opentime.TimeRange(time(start), time(length))

    def shot(name: str, start: int, **own: Any) -> Any:
        medium = otio.schema.ExternalReference(f"file:///media/{name}.mov", span(0, 60))
        return otio.schema.Clip(name, medium, span(start, 9), metadata={"s2video": {"prompt": "a red wall", **own}})

    found = otio.schema.Timeline("reel 1", global_start_time=time(107892), metadata={"s2video": {"drop": True}})
    first, second = (otio.schema.Track(name, kind="Video") for name in ("V1", "V2"))
    filmed = otio.schema.Clip("A001_C002", otio.schema.MissingReference(), span(30, 9))
    filmed.markers.append(otio.schema.Marker("prompt: a blue wall", span(31, 1)))
    dissolve = otio.schema.Transition("dissolve", "SMPTE_Dissolve", time(2), time(2))
    settings = {"sampling.seed": 5, "output.also": ["{name}_2.mp4"]}
    first.extend([shot("sh010", 8), dissolve, shot("sh020", 8, head=2, shot="sh020", settings=settings)])
    first.extend([otio.schema.Gap(source_range=span(0, 7)), filmed])
    second.append(shot("sh030", 8))
    found.tracks.extend([first, second])
    return found


def _with_one_track(cut: Any) -> Any:
    """Return what an EDL can hold of it: the first track, without its dissolve."""
    copy = cut.deepcopy()
    del copy.tracks[1], copy.tracks[0][1]
    return copy


def _signed(folder: Path, signer: Credentials) -> dict[str, bytes]:
    """Return a small file of each kind that was signed."""
    frames = torch.rand(2, 16, 16, 3, generator=torch.Generator().manual_seed(0))
    write_video([frames], folder / "x.mp4", VideoSpec(Fraction(24)), metadata={"title": "t"})
    Image.new("RGB", (4, 4), "red").save(folder / "x.png")
    for name in ("x.mp4", "x.png"):
        sign_video(folder / name, signer, {"seed": 7, "model": "m"}, suffix=Path(name).suffix)
    return {name: (folder / name).read_bytes() for name in ("x.mp4", "x.png")}
