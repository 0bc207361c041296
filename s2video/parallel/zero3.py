"""Block weights sharded by DeepSpeed's ZeRO-3. DeepSpeed is optional and imported only when used.

There is no engine and no optimizer: `zero.Init` partitions the parameters, and their own gather and partition methods
are called block by block. ZeRO's module hooks would fetch once per branch.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from .mesh import Axis
from .traffic import record
from .weights import FetchedWeights, Handle, Read, fill


def require_deepspeed() -> None:
    """Raise InputError unless DeepSpeed is installed."""
    if importlib.util.find_spec("deepspeed") is None:
        raise InputError(
            "parallel.weights: zero3 needs DeepSpeed, which is not installed; pip install 's2video[deepspeed]', "
            "or choose fsdp, which needs no other package"
        )


class Zero3Weights(FetchedWeights):
    """Weights of which each rank keeps an even part of every flattened parameter; a block is gathered before use.

    Parameters keep their dtypes; a gather is one collective for each dtype in the block.

    Args:
        blocks: modules on the meta device.
        axis: the ranks that share the weights; more than one, in a group that serves nothing else.
    """

    def __init__(self, blocks: Sequence[nn.Module], axis: Axis, device: torch.device, read: Read) -> None:
        os.environ.setdefault("DS_ACCELERATOR", device.type)  # otherwise DeepSpeed chooses a GPU if there is one
        import deepspeed

        super().__init__(len(blocks))
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)  # uses the existing process group
        self._parameters: list[list[Any]] = []
        self._sent: list[int] = []
        for index, block in enumerate(blocks):
            block.to_empty(device=device)  # whole for a moment: only existing parameters are partitioned
            deepspeed.zero.Init(module=block, data_parallel_group=axis.group)
            sent = 0
            parameters: list[tuple[str, Any]] = list(block.named_parameters())
            for name, parameter in parameters:
                part, numel = parameter.ds_tensor, math.prod(parameter.ds_shape)
                start = min(axis.rank * part.numel(), numel)
                fill(part[: numel - start], read, index, name, start)
                sent += part.nbytes * (axis.size - 1)
            self._parameters.append([parameter for _, parameter in parameters])
            self._sent.append(sent)

    def _fetch(self, index: int) -> Handle:
        record("weights", self._sent[index])
        parameters = self._parameters[index]
        handle: Handle = parameters[0].all_gather_coalesced(parameters)
        return handle

    def _free(self, index: int) -> None:
        parameters = self._parameters[index]
        parameters[0].partition(parameters)
