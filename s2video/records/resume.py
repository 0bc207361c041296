"""The resume point of a job: its latents after some steps, and the state of scheduler and guidance, in a file.

X.checkpoint.safetensors, next to the video X, holds tensors, and JSON in its header: the steps done, what has changed
in the scheduler since its first step, the guidance's state, and a statement of everything that decides the latents, so
that no other job resumes from it. Masks need no state: they are a function of the step.
"""

import copy
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import InputError, S2VideoError, StoppedError
from ..parallel.collectives import broadcast_tensors, gather_objects
from ..parallel.mesh import Mesh
from ..system.json_reader import parse_json
from ..system.terminal import say
from .sidecar import write_tensors
from .sidecar_model import METADATA_KEY


class Stateful(Protocol):
    """What carries numbers and tensors from step to step (`sampling.denoiser.Denoiser`)."""

    def state(self) -> dict[str, Any]: ...
    def load_state(self, state: Mapping[str, Any]) -> None: ...


class ResumePoint:
    """One job's resume point: read before the first step, written between steps, removed when the video is there.

    All ranks construct it and call `begin` and `step_done` together; the main rank reads and writes.

    Args:
        weights: returns digests of the weights that decide the latents. Called on the main rank, and only when a file
            is read or written, because hashing takes time.
        every_seconds: how often `step_done` writes; None: only when the run is stopped.
        resume: whether `begin` looks for a file.

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
    ) -> None:
        self.path = path
        self.resume = resume
        self.first_step = 0
        self._mesh = mesh
        self._weights = weights
        self._every_seconds = every_seconds
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
        facts: dict[str, Any] | None = None
        tensors: dict[str, Tensor] = {}
        problem = None
        if self._mesh.is_main:
            try:
                facts, tensors = self._read()
            except InputError as error:
                problem = str(error)
        problem, facts = gather_objects((problem, facts), self._mesh.world)[0]
        if problem is not None:
            raise InputError(problem)
        if facts is None:
            self._note(f"no resume point {self.path}; starting with the first step")
            return noise, 0
        device, names = self._mesh.device, facts["tensors"]
        ours = [tensors[name].to(device) for name in names] if self._mesh.is_main else None
        received = dict(zip(names, broadcast_tensors(ours, self._mesh.world, device), strict=True))
        for name, value in facts["scheduler"].items():
            setattr(scheduler, name, _decoded(value, received))
        self._guidance_state = {name: _decoded(value, received) for name, value in facts["guidance"].items()}
        self.first_step = facts["step"]
        self._note(f"{self.path}: resuming after step {self.first_step}")
        return received["latents"], self.first_step

    def restore(self, denoiser: Stateful) -> None:
        """Give the denoiser the state that it had at the resume point, after `begin`."""
        denoiser.load_state(self._guidance_state)

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
            _encoded(self._changed(scheduler), {})
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
        tensors = {"latents": latents}
        try:
            facts = {
                "statement": self._full_statement(),
                "step": step,
                "scheduler": _encoded(self._changed(scheduler), tensors),
                "guidance": _encoded(denoiser.state(), tensors),
                "tensors": list(tensors),
            }
            write_tensors(self.path, tensors, facts)
        except (S2VideoError, OSError) as error:
            return str(error)
        return None

    def _read(self) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
        if not self.path.exists():
            return None, {}
        try:
            with safe_open(self.path, framework="pt") as file:
                facts = parse_json((file.metadata() or {})[METADATA_KEY], "its header")
                tensors = {key: file.get_tensor(key) for key in facts["tensors"]}
            saved = facts["statement"]
            _move_guidance_state(facts)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.path}: expected a resume point of s2video ({error}); delete the file") from None
        statement = self._full_statement()
        for field in sorted(saved.keys() | statement.keys()):
            then, now = saved.get(field), statement.get(field)
            if then != now:
                raise InputError(
                    f"{self.path}: belongs to another job: {field} was {_short(then)}, now it is {_short(now)}; "
                    "use the same settings, choose another output, or delete the file"
                )
        return facts, tensors

    def _full_statement(self) -> dict[str, Any]:
        return self._statement | {f"weights of {file}": digest for file, digest in self._weights().items()}

    def _note(self, text: str) -> None:
        if self._mesh.is_main:
            say(text)


def _encoded(state: Mapping[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return attributes as JSON, and add the tensors that it names to `tensors`. Raises S2VideoError for others."""

    def encode(name: str, value: Any) -> Any:
        if isinstance(value, Tensor):
            key = f"scheduler.{len(tensors)}"
            tensors[key] = value
            return {"tensor": key}
        if isinstance(value, list):
            return {"list": [encode(name, item) for item in value]}
        if value is None or type(value) in (bool, int, float, str):
            return value
        raise S2VideoError(
            f"the scheduler's state cannot be stored: expected numbers, text, tensors and lists, got {name} of type "
            f"{type(value).__name__}; run this scheduler without checkpoint.every_seconds"
        )

    return {name: encode(name, value) for name, value in state.items()}


def _move_guidance_state(facts: dict[str, Any]) -> None:
    """Older files kept the momentum of APG among the scheduler's attributes."""
    state = facts.setdefault("guidance", {})
    if "guidance_momentum" in facts["scheduler"]:
        state["momentum"] = facts["scheduler"].pop("guidance_momentum")


def _decoded(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return [_decoded(item, tensors) for item in value["list"]]
    return value


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return type(a) is type(b) and bool(a == b)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
