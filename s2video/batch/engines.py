"""The engines of a replica: a bounded number, of which the least recently used makes room for another one.

Every rank of a replica gets the same jobs in the same order, so all ranks keep and drop the same engines.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace

import torch

from ..config.run import RunConfig
from ..config.sections import ParallelConfig
from ..engine.engine import Engine
from ..parallel.mesh import Mesh, build_mesh
from .plan import models_of

Build = Callable[[RunConfig, Mesh], Engine]


class Engines:
    """Up to `most` engines.

    Args:
        parallel: the settings that `mesh` is laid out by.
        build: loads the models of a job.
        changed: called whenever an engine is loaded or dropped.
    """

    def __init__(
        self, most: int, mesh: Mesh, parallel: ParallelConfig, build: Build, changed: Callable[[], None]
    ) -> None:
        self._most, self._mesh, self._build, self._changed = most, mesh, build, changed
        # by the settings that they are laid out by: groups of ranks are expensive, and never given back
        self._meshes = {parallel.model_dump_json(): mesh}
        self._loaded: dict[str, tuple[Engine, str]] = {}  # the last one was used last; the text is the jobs' group

    @property
    def groups(self) -> list[str]:
        """The groups of jobs whose models are loaded."""
        return [group for _, group in self._loaded.values()]

    def have_others(self, group: str) -> bool:
        """Return whether models may stay loaded that a job of the group does not need."""
        return self._most > 1 and any(other != group for other in self.groups)

    def of(self, job: RunConfig, group: str) -> Engine:
        """Return the engine of a job, which is loaded if it is not there.

        Args:
            job: with its mesh given.
            group: the job's group in the store.
        """
        key = models_of(job)
        found = self._loaded.pop(key, None)
        if found is None:
            self._drop(list(self._loaded)[: max(0, len(self._loaded) + 1 - self._most)])
            found = self._build(job, self._mesh_of(job.parallel)), group
            self._changed()
        self._loaded[key] = found
        return found[0]

    def keep_only(self, group: str) -> None:
        """Drop all engines but those of a group."""
        self._drop([key for key, (_, other) in self._loaded.items() if other != group])

    def _drop(self, keys: list[str]) -> None:
        for key in keys:
            del self._loaded[key]
        if keys:
            self._changed()
        free_memory(self._mesh.device)

    def _mesh_of(self, parallel: ParallelConfig) -> Mesh:
        if self._mesh.backend is None:
            return self._mesh  # one process lays nothing out
        key = parallel.model_dump_json()
        if key not in self._meshes:
            self._meshes[key] = replace(build_mesh(parallel, self._mesh.device), watch=self._mesh.watch)
        return self._meshes[key]


def free_memory(device: torch.device) -> None:
    """Give back what nothing uses any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
