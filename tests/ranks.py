"""Worker processes for distributed tests, started once per world size, that run any number of functions.

Importing torch and diffusers takes seconds per process, so a pool is kept for several tests. A pool that timed out, or
in which a rank died, is discarded.
"""

import multiprocessing as mp
import os
import socket
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from s2video.parallel.mesh import Mesh


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _worker(rank: int, world_size: int, port: int, pipe: Connection) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        OMP_NUM_THREADS="1",
    )
    import torch

    from s2video.config.sections import ParallelConfig
    from s2video.parallel.mesh import init_mesh

    torch.set_num_threads(1)
    with init_mesh(ParallelConfig(timeout_seconds=60), "cpu") as mesh:
        while True:
            mesh.watch.rest()  # also after an error, which an engine's caller catches here
            order = pipe.recv()
            if order is None:
                return
            function, arguments = order
            try:
                pipe.send(("result", function(mesh, *arguments)))
            except Exception as error:
                pipe.send(("error", (type(error).__name__, str(error), traceback.format_exc())))


_LAID_OUT: "dict[tuple[int, int, int], Mesh]" = {}


def laid_out(mesh: "Mesh", ring: int, ulysses: int, branch: Literal[1, 2] = 1) -> "Mesh":
    """Return, in a rank, a mesh of the same ranks as ring x ulysses x branch; cached, since groups are expensive."""
    from s2video.config.sections import ParallelConfig
    from s2video.parallel.mesh import build_mesh

    degrees = (ring, ulysses, branch)
    if degrees not in _LAID_OUT:
        _LAID_OUT[degrees] = build_mesh(ParallelConfig(ring=ring, ulysses=ulysses, branch=branch), mesh.device)
    return _LAID_OUT[degrees]


class RankError(Exception):
    """Raised if a function fails on any rank; `kinds` and `messages` have each rank's exception, or None."""

    def __init__(self, errors: list[tuple[str, str, str] | None]) -> None:
        self.kinds = [e and e[0] for e in errors]
        self.messages = [e and e[1] for e in errors]
        super().__init__("\n".join(f"rank {i}: {e[2]}" for i, e in enumerate(errors) if e))


class RankPool:
    def __init__(self, world_size: int) -> None:
        context = mp.get_context("spawn")
        port = _free_port()
        self.world_size = world_size
        self._is_open = True
        self._pipes = []
        self._processes = []
        for rank in range(world_size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_worker, args=(rank, world_size, port, theirs), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, function: Callable[..., Any], *arguments: Any, timeout: float = 180.0) -> list[Any]:
        """Run `function(mesh, *arguments)` on every rank and return the results in rank order.

        Raises:
            RankError: any rank raised.
            TimeoutError: any rank did not answer in time; the pool is then ended.
        """
        for pipe in self._pipes:
            pipe.send((function, arguments))
        answers = []
        for rank, pipe in enumerate(self._pipes):
            if not pipe.poll(timeout):
                self.close()
                raise TimeoutError(f"rank {rank} of {self.world_size} did not answer within {timeout} s")
            answers.append(pipe.recv())
        if any(kind == "error" for kind, _ in answers):
            raise RankError([value if kind == "error" else None for kind, value in answers])
        return [value for _, value in answers]

    @property
    def alive(self) -> bool:
        """Whether all ranks can take another order."""
        return self._is_open and all(process.is_alive() for process in self._processes)

    def close(self) -> None:
        self._is_open = False
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            if process.is_alive():
                with suppress(OSError):
                    pipe.send(None)
        for process in self._processes:
            process.join(5)
            process.kill()
