"""The names of the files that belong to one video. Reads no disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..system.files import user_path
from .formats import place_of


class _HasPath(Protocol):
    @property
    def path(self) -> str: ...


class _HasOutput(Protocol):
    @property
    def output(self) -> _HasPath: ...


@dataclass(frozen=True)
class OutputPaths:
    """The files of one video.

    Args:
        output: a name that ends in the suffix of the format; the other files are next to it under the same name.
    """

    output: Path

    @classmethod
    def of(cls, job: _HasOutput) -> OutputPaths:
        """Return the files of a job, by its `output.path`."""
        return cls(user_path(job.output.path, "output"))

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
        return self.video, self.sidecar, self.latents, self.resume_point

    @property
    def lock(self) -> Path:
        """The lock file of a `Claim` on them; it is there while they are made."""
        return self.output.with_name(f".{self.output.stem}.lock")
