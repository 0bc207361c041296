"""Blocks compiled one by one (`model.compile: blocks`), and what that needs.

As diffusers' `compile_repeated_blocks`, which however finds blocks by the names of their classes, and FSDP2 renames
those. All blocks of a class share their compiled code. A mask decides which blocks run, not what a block does, so it
leads to no compilation; another shape does, once, after which sizes are variables.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..config.run import RunConfig
from ..errors import InputError

if TYPE_CHECKING:
    from torch import nn

BACKEND: Any = "inductor"  # of torch.compile; tests take others
# Compilations of a block's code that torch keeps, for models and shapes together; beyond, it would not compile.
_KEPT = 64


def check_compile(config: RunConfig) -> None:
    """Raise InputError if `model.compile` is set, and the weights are not placed so that blocks can be compiled."""
    if config.model.compile == "blocks" and config.parallel.weights == "zero3":
        raise InputError(
            "model.compile: blocks cannot be compiled with parallel.weights zero3, because DeepSpeed gives parameters "
            "another shape whenever they are gathered; set parallel.weights to fsdp"
        )


def require_compiler(device: str) -> None:
    """Raise InputError unless torch.compile can make code for a device ("cpu" or "cuda") on this machine."""
    if device == "cpu":
        compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")  # torch tries no other
        if shutil.which(compiler) is None:
            raise InputError(
                f"model.compile: blocks on a CPU needs a C++ compiler, expected {compiler or 'a name in CXX'} in PATH, "
                "got none; install it, set CXX to another one, or set model.compile to none"
            )
    elif importlib.util.find_spec("triton") is None:
        raise InputError(
            "model.compile: blocks on a GPU needs triton, which is not installed; pip install triton, or set "
            "model.compile to none"
        )


def compile_blocks(blocks: Iterable[nn.Module]) -> None:
    """Let blocks compile themselves when they first run. Hooks on a block, such as those of FSDP2, are not compiled."""
    import torch

    limit = torch._dynamo.config
    limit.recompile_limit = max(limit.recompile_limit, _KEPT)
    for block in blocks:
        block.forward = torch.compile(block.forward, backend=BACKEND)
