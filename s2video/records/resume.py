"""The resume point of a job: its latents after some steps, and the state of scheduler and guidance, in a file.

X.checkpoint.safetensors, next to the video X, holds the steps done, what has changed in the scheduler since its first
step, the guidance's state, and a statement of everything that decides the latents, so that no other job resumes from it
(`resume_file.py`). Masks need no state: they are a function of the step.
"""

import copy
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import InputError, S2VideoError, StoppedError
from ..parallel.collectives import broadcast_tensors, gather_objects
from ..parallel.mesh import Mesh
from ..system.terminal import say
from .resume_file import DamagedError, SavedPoint, check_point, decoded, encoded, read_point, write_point


class Stateful(Protocol):
    """What carries numbers and tensors from step to step (`sampling.denoiser.Denoiser`)."""

    def state(self) -> dict[str, Any]: ...
    def load_state(self, state: Mapping[str, Any]) -> None: ...


class ResumePoint:
    """One job's resume point: read before the first step, written between steps, removed when the video is there.

    All ranks construct it and call `begin` and `step_done` together; the main rank reads and writes.

    Args:
        weights: returns digests of the weights and settings files that decide the latents. Called on the main rank, and
            only when a file is read or written, because hashing takes time.
        every_seconds: how often `step_done` writes; None: only when the run is stopped.
        resume: whether `begin` looks for a file.
        afresh_if_damaged: whether it says so and starts at the beginning if the file is damaged, as a batch does, for
            which no rank waits; else it raises.

    Attributes:
        first_step: steps that were done when the job was resumed; 0: it started at the beginning.
    """

    def __init__(
        self,
        path: Path,
        mesh: Mesh,
        weights: Callable[[], Mapping[str, str]],
        *,
        every_seconds: float | None = None,
        resume: bool = False,
        afresh_if_damaged: bool = False,
    ) -> None:
        self.path = path
        self.resume = resume
        self.first_step = 0
        self._mesh = mesh
        self._weights = weights
        self._every_seconds = every_seconds
        self._afresh = afresh_if_damaged
        self._statement: dict[str, Any] = {}
        self._fresh: dict[str, Any] = {}
        self._guidance_state: dict[str, Any] = {}
        self._written_at = 0.0

    def begin(self, statement: Mapping[str, Any], scheduler: Any, noise: Tensor) -> tuple[Tensor, int]:
        """Resume the job from its file, if there is one.

        Args:
            statement: JSON-like values of everything that decides the latents, except the weights, by field.
            scheduler: after `set_timesteps`; its state of the resume point is restored.
            noise: where the job starts if there is no file.

        Returns:
            The latents to continue from, on the mesh's device, and the number of steps done, which is `first_step`.

        Raises:
            InputError: on all ranks, for a file that is damaged or belongs to another job; it names the first field
                that differs.
        """
        self._statement = json.loads(json.dumps(statement, default=str))
        self._fresh = copy.deepcopy(vars(scheduler))
        self._written_at = time.monotonic()
        if not self.resume:
            return noise, 0
        point: SavedPoint | None = None
        problem = None
        if self._mesh.is_main:
            try:
                point = self._read(scheduler, noise)
            except DamagedError as error:
                problem = None if self._afresh else str(error)
                if self._afresh:
                    self._note(f"{error}; starting with the first step")
            except InputError as error:
                problem = str(error)
        problem = gather_objects(problem, self._mesh.world)[0]
        if problem is not None:
            raise InputError(problem)
        point = self._shared(point)
        if point is None:
            return noise, 0
        for name, value in point.scheduler.items():
            setattr(scheduler, name, value)
        self._guidance_state = point.guidance
        self.first_step = point.step
        self._note(f"{self.path}: resuming after step {self.first_step}")
        return point.latents, self.first_step

    def _shared(self, point: SavedPoint | None) -> SavedPoint | None:
        """The main rank's point on all ranks, with its tensors on the mesh's device."""
        tensors: dict[str, Tensor] = {}
        facts: dict[str, Any] | None = None
        if point is not None:
            tensors["latents"] = point.latents
            facts = {name: encoded(state, tensors) for name, state in (("s", point.scheduler), ("g", point.guidance))}
            facts |= {"step": point.step, "names": list(tensors)}
        facts = gather_objects(facts, self._mesh.world)[0]
        if facts is None:
            return None
        device = self._mesh.device
        ours = [tensor.to(device) for tensor in tensors.values()] if self._mesh.is_main else None
        received = dict(zip(facts["names"], broadcast_tensors(ours, self._mesh.world, device), strict=True))
        scheduler, guidance = ({name: decoded(value, received) for name, value in facts[key].items()} for key in "sg")
        return SavedPoint(facts["step"], {}, scheduler, guidance, received["latents"])

    @property
    def name(self) -> str:
        """Name of the video, without its suffix."""
        return self.path.name.removesuffix(".checkpoint.safetensors")

    def restore(self, denoiser: Stateful) -> None:
        """Give the denoiser the state that it had at the resume point, after `begin`.

        Raises:
            InputError: the state is not that of this guidance.
        """
        try:
            denoiser.load_state(self._guidance_state)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            raise InputError(
                f"{self.path}: expected the state of this guidance ({type(error).__name__}: {error}); delete the file"
            ) from None

    def step_done(
        self, step: int, num_steps: int, latents: Tensor, scheduler: Any, denoiser: Stateful, *, stops: bool
    ) -> None:
        """After `step` steps: write the file if it is due, if only decoding is left to do, or if the run stops.

        If it cannot be written, a line says so, and the older file stays.

        Raises:
            StoppedError: on all ranks, if `stops`, which is the same on all of them.
            S2VideoError: after the first step, for a scheduler whose state cannot be stored, if a file would be due.
        """
        if stops:
            problem = self._write(step, latents, scheduler, denoiser) if self._mesh.is_main else None
            problem = gather_objects(problem, self._mesh.world)[0]  # no rank leaves while the main rank writes
            end = f"saved to {self.path}; run the same command with --resume (a batch: start it again) to continue"
            if problem is not None:
                end = f"it could not be saved ({problem})"
            raise StoppedError(f"stopped on request after step {step} of {num_steps}: {end}")
        if self._every_seconds is None or not self._mesh.is_main:
            return
        if step == self.first_step + 1:
            encoded(self._changed(scheduler), {})
        if step == num_steps or time.monotonic() - self._written_at >= self._every_seconds:
            if (problem := self._write(step, latents, scheduler, denoiser)) is not None:
                self._note(f"no resume point after step {step}: {problem}")
            self._written_at = time.monotonic()

    def remove(self) -> None:
        """Remove the file: the video is there."""
        if self._mesh.is_main:
            self.path.unlink(missing_ok=True)

    def _changed(self, scheduler: Any) -> dict[str, Any]:
        """Return the scheduler's attributes that differ from those after `set_timesteps`."""
        return {
            name: value
            for name, value in vars(scheduler).items()
            if name not in self._fresh or not _same(value, self._fresh[name])
        }

    def _write(self, step: int, latents: Tensor, scheduler: Any, denoiser: Stateful) -> str | None:
        """Write the file; returns why it could not be written, or None."""
        with self._mesh.watch.untimed():  # digests of the weights, and a slow disk
            return self._written(step, latents, scheduler, denoiser)

    def _written(self, step: int, latents: Tensor, scheduler: Any, denoiser: Stateful) -> str | None:
        changed = self._changed(scheduler)
        try:
            write_point(self.path, SavedPoint(step, self._full_statement(), changed, denoiser.state(), latents))
        except (S2VideoError, OSError) as error:
            return str(error)
        return None

    def _read(self, scheduler: Any, noise: Tensor) -> SavedPoint | None:
        if not self.path.exists():
            self._note(f"no resume point {self.path}; starting with the first step")
            return None
        point = read_point(self.path)
        saved, statement = point.statement, self._full_statement()
        if not _INDEXES & saved.keys():  # version 0.1.0 did not record settings files
            statement = {name: value for name, value in statement.items() if name in saved or name in self._statement}
        for field in sorted(saved.keys() | statement.keys()):
            then, now = saved.get(field), statement.get(field)
            if then != now:
                raise InputError(
                    f"{self.path}: belongs to another job: {field} was {_short(then)}, now it is {_short(now)}; "
                    "use the same settings, choose another output, or delete the file"
                )
        check_point(self.path, point, scheduler, noise)
        return point

    def _full_statement(self) -> dict[str, Any]:
        return self._statement | {f"weights of {file}": digest for file, digest in self._weights().items()}

    def _note(self, text: str) -> None:
        if self._mesh.is_main:
            say(text)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return type(a) is type(b) and bool(a == b)


_INDEXES = frozenset(f"weights of {name}" for name in ("model_index.json", "modular_model_index.json"))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
