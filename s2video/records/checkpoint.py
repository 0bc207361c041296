"""Denoising that can be taken up again: latents and the scheduler's state in a file beside the video.

X.checkpoint.safetensors holds tensors, and JSON in its header: the steps done, what has changed in the scheduler since
its first step, and a statement of all that decides the latents, so that another job is not taken up by mistake. The
masks need no state: they are a function of the step. Knows no model and no particular scheduler.
"""

import copy
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import InputError, S2VideoError, StoppedError
from ..parallel.collectives import broadcast_tensors, gather_objects
from ..parallel.mesh import Mesh
from .sidecar import METADATA_KEY, write_tensors

# Parts of a job's statement, or whole sections of it, that change the latents by rounding at most: what goes on on
# another number of ranks, or after an update, is the same video. Weights are compared whole instead of by their names.
_NOT_COMPARED = {"parallel", "checkpoint", "versions", "weights", "model.device", "model.revision", "model.vae_dtype"}
_NOT_COMPARED |= {"guidance.share_prefix", "guidance.batch_branches"}


class Checkpoints:
    """The checkpoint of one job: read before the first step, written between steps, removed when the video is there.

    All ranks construct it and call `begin` and `step_done` together; the main rank reads and writes.

    Args:
        weights: digests of the weights that decide the latents; asked on the main rank, when a file is read or written,
            for they take their time.
        every_seconds: how often `step_done` writes; None: only when the run is stopped.
        resume: whether `begin` looks for a checkpoint.
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
        self._written_at = 0.0

    def begin(self, statement: Mapping[str, Any], scheduler: Any, noise: Tensor) -> tuple[Tensor, int]:
        """Take the job up where its checkpoint left it, if there is one.

        Args:
            statement: JSON-like values of all that decides the latents but the weights, by field.
            scheduler: after `set_timesteps`; given the state that it had.
            noise: where the job starts anew.

        Returns:
            The latents to go on from, on the mesh's device, and the number of steps done; that is `first_step` then.

        Raises:
            InputError: on all ranks, for a checkpoint that is damaged or of another job; it names the first field that
                differs.
        """
        kept = {key: value for key, value in statement.items() if not {key, key.split(".")[0]} & _NOT_COMPARED}
        self._statement = json.loads(json.dumps(kept, default=str))
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
            self._note(f"there is no {self.path}: starting with the first step")
            return noise, 0
        device, names = self._mesh.device, facts["tensors"]
        ours = [tensors[name].to(device) for name in names] if self._mesh.is_main else None
        received = dict(zip(names, broadcast_tensors(ours, self._mesh.world, device), strict=True))
        for name, value in facts["scheduler"].items():
            setattr(scheduler, name, _decoded(value, received))
        self.first_step = facts["step"]
        self._note(f"{self.path}: going on after step {self.first_step}")
        return received["latents"], self.first_step

    def step_done(self, step: int, num_steps: int, latents: Tensor, scheduler: Any, *, stops: bool) -> None:
        """After `step` steps: write a checkpoint if it is time for one, if only decoding is left to do, or at a stop.

        A checkpoint that cannot be written is noted, and the older one stands.

        Raises:
            StoppedError: on all ranks, if `stops`, which is the same on all of them.
            S2VideoError: after the first step, for a scheduler whose state cannot be stored, if that is to be done.
        """
        if stops:
            problem = self._write(step, latents, scheduler) if self._mesh.is_main else None
            problem = gather_objects(problem, self._mesh.world)[0]  # nobody leaves while the main rank writes
            end = f"{self.path} holds it: generate --resume, or the batch when it is started again, goes on from there"
            if problem is not None:
                end = f"no checkpoint could be written ({problem})"
            raise StoppedError(f"stopped as asked after step {step} of {num_steps}: {end}")
        if self._every_seconds is None or not self._mesh.is_main:
            return
        if step == self.first_step + 1:
            _encoded(self._changed(scheduler))
        if step == num_steps or time.monotonic() - self._written_at >= self._every_seconds:
            if (problem := self._write(step, latents, scheduler)) is not None:
                self._note(f"no checkpoint after step {step}: {problem}")
            self._written_at = time.monotonic()

    def remove(self) -> None:
        """The video is there, and the checkpoint has served."""
        if self._mesh.is_main:
            self.path.unlink(missing_ok=True)

    def _changed(self, scheduler: Any) -> dict[str, Any]:
        """The scheduler's attributes that are not as they were after `set_timesteps`."""
        return {
            name: value
            for name, value in vars(scheduler).items()
            if name not in self._fresh or not _same(value, self._fresh[name])
        }

    def _write(self, step: int, latents: Tensor, scheduler: Any) -> str | None:
        """None, or what stood in the way."""
        try:
            state, tensors = _encoded(self._changed(scheduler))
            tensors["latents"] = latents
            facts = {"statement": self._full_statement(), "step": step, "scheduler": state, "tensors": list(tensors)}
            write_tensors(self.path, tensors, facts)
        except (S2VideoError, OSError) as error:
            return str(error)
        return None

    def _read(self) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
        if not self.path.exists():
            return None, {}
        try:
            with safe_open(self.path, framework="pt") as file:
                facts = json.loads((file.metadata() or {})[METADATA_KEY])
                tensors = {key: file.get_tensor(key) for key in facts["tensors"]}
            saved = facts["statement"]
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.path}: is no checkpoint of s2video ({error}); delete it") from None
        statement = self._full_statement()
        for field in sorted(saved.keys() | statement.keys()):
            then, now = saved.get(field), statement.get(field)
            if then != now:
                raise InputError(
                    f"{self.path}: is of another job: {field} was {_short(then)}, now it is {_short(now)}; "
                    "ask for the same, choose another output, or delete the checkpoint"
                )
        return facts, tensors

    def _full_statement(self) -> dict[str, Any]:
        return self._statement | {f"weights of {file}": digest for file, digest in self._weights().items()}

    def _note(self, text: str) -> None:
        if self._mesh.is_main:
            print(f"s2video: {text}", file=sys.stderr, flush=True)


def _encoded(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Attributes as JSON, and the tensors that it names. Raises S2VideoError for what is neither."""
    tensors: dict[str, Tensor] = {}

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
            f"the scheduler's state cannot be stored: expected numbers, text, tensors and lists, {name} is of type "
            f"{type(value).__name__}; run this scheduler without checkpoint.every_seconds"
        )

    return {name: encode(name, value) for name, value in state.items()}, tensors


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
