"""The names of the files that belong to one take: its video, its sidecar, and more files of the same frames.

The video X.mov of a run has the sidecar X.json, which is the record of the take. Every other file of its frames has a
sidecar under its whole name, such as X.mp4.json, so that no two of them share one. Reads no disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..system.files import user_path
from .formats import FORMATS, place_of


class _HasPath(Protocol):
    @property
    def path(self) -> str: ...


class _HasCopies(_HasPath, Protocol):
    def copies(self) -> Sequence[_HasPath]: ...


class _HasOutput(Protocol):
    @property
    def output(self) -> _HasCopies: ...


@dataclass(frozen=True)
class VideoFile:
    """One video and its sidecar.

    Args:
        output: a name that ends in the suffix of the format.
        sidecar: of this very file.
    """

    output: Path
    sidecar: Path

    @classmethod
    def copy(cls, output: Path) -> VideoFile:
        """Return one more file of a take: its sidecar has its whole name."""
        return cls(output, output.with_name(f"{output.name}.json"))

    @property
    def video(self) -> Path:
        """The file `output`, or the folder of a sequence."""
        return place_of(self.output)


@dataclass(frozen=True)
class OutputPaths:
    """The files of one take.

    Args:
        output: a name that ends in the suffix of the format; the other files are next to it under the same name.
        also: names of more files of the same frames.
    """

    output: Path
    also: tuple[Path, ...] = ()

    @classmethod
    def of(cls, job: _HasOutput) -> OutputPaths:
        """Return the files of a job, by its `output.path` and `output.also`."""
        copies = tuple(user_path(copy.path, "output.also") for copy in job.output.copies())
        return cls(user_path(job.output.path, "output"), copies)

    @property
    def master(self) -> VideoFile:
        return VideoFile(self.output, self.sidecar)

    @property
    def copies(self) -> tuple[VideoFile, ...]:
        return tuple(map(VideoFile.copy, self.also))

    @property
    def videos(self) -> tuple[VideoFile, ...]:
        """The master first."""
        return self.master, *self.copies

    @property
    def video(self) -> Path:
        """The file `output`, or the folder of a sequence."""
        return place_of(self.output)

    @property
    def sidecar(self) -> Path:
        return self.output.with_suffix(".json")

    @property
    def latents(self) -> Path:
        return self.output.with_suffix(".latents.safetensors")

    @property
    def resume_point(self) -> Path:
        return self.output.with_suffix(".checkpoint.safetensors")

    @property
    def all(self) -> tuple[Path, ...]:
        copies = (path for copy in self.copies for path in (copy.video, copy.sidecar))
        return self.video, self.sidecar, self.latents, self.resume_point, *copies

    @property
    def lock(self) -> Path:
        """The lock file of a `Claim` on the files that begin with this name; it is there while they are made."""
        return lock_of(self.output)

    @property
    def locks(self) -> dict[Path, tuple[Path, ...]]:
        """The lock files of all files, and the names that each stands for."""
        return {lock_of(path): _names_under(path) for path in (self.output, *self.also)}


def lock_of(output: Path) -> Path:
    """Return the lock file for a video; all formats of one name share it."""
    return output.with_name(f".{output.stem}.lock")


def _names_under(output: Path) -> tuple[Path, ...]:
    """Return all names that files of a take can have, in any format."""
    suffixes = sorted({format.suffix for format in FORMATS.values()}, key=lambda suffix: suffix != output.suffix)
    outputs = [output.with_suffix(suffix) for suffix in suffixes]
    copies = (path for each in outputs for path in (place_of(each), VideoFile.copy(each).sidecar))
    return tuple(dict.fromkeys((*OutputPaths(output).all, *copies)))
