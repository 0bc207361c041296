"""Blocks compiled one by one (`model.compile: blocks`), and what that needs.

As diffusers' `compile_repeated_blocks`, which however finds blocks by the names of their classes, and FSDP2 renames
those. All blocks of a class share their compiled code. A mask decides which blocks run, not what a block does, so it
leads to no compilation; another shape does, once, after which sizes are variables.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..config.run import RunConfig
from ..errors import InputError

if TYPE_CHECKING:
    from torch import nn

BACKEND: Any = "inductor"  # of torch.compile; tests take others
_KEPT = (
    64  # compilations of a block's code that torch keeps, for models and shapes together; beyond, it would not compile
)
_COMPILERS = ("c++", "g++", "clang++")


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
        named = os.environ.get("CXX")
        if not any(shutil.which(name) for name in ([named] if named else _COMPILERS)):
            expected = named or f"one of {', '.join(_COMPILERS)}"
            raise InputError(
                f"model.compile: blocks on a CPU needs a C++ compiler, expected {expected} in PATH, got none; install "
                "g++, or set model.compile to none"
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
