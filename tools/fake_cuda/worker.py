"""A process of its own in which functions run on a pretended GPU. It is started once and runs any number of them."""

import importlib
import multiprocessing as mp
import traceback
import warnings
from multiprocessing.connection import Connection
from typing import Any


class Worker:
    """The process. `run` starts it, and starts it again after one that died or hung."""

    def __init__(self) -> None:
        self._process: Any = None
        self._pipe: Connection | None = None

    def run(self, module: str, function: str, arguments: dict[str, Any], seconds: float = 300) -> str | None:
        """Run `module.function(**arguments)`; return its traceback, or None if it returned.

        Args:
            arguments: picklable ones.
            seconds: after which the process is ended.
        """
        if self._process is None or not self._process.is_alive():
            self._start()
        assert self._pipe is not None
        self._pipe.send((module, function, arguments))
        try:
            if self._pipe.poll(seconds):
                failure: str | None = self._pipe.recv()
                return failure
            said = f"{module}.{function} did not end within {seconds:g} s"
        except EOFError:
            self._process.join()
            said = f"the process of {module}.{function} ended with {self._process.exitcode}"
        self.close()
        return said

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._process = self._pipe = None

    def _start(self) -> None:
        context = mp.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()


def _serve(pipe: Connection) -> None:
    import torch

    from .device import pretend_cuda

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # by copy.deepcopy
    pretend_cuda()
    while True:
        try:
            module, function, arguments = pipe.recv()
        except EOFError:
            return
        failure = None
        try:
            getattr(importlib.import_module(module), function)(**arguments)
        except BaseException:
            failure = traceback.format_exc()
        pipe.send(failure)
