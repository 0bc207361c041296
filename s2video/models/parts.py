"""A transformer whose blocks are not whole on every device: made empty, then read in parts.

Only what is kept is read, a rank's share of sharded blocks or one streamed block after the other, so that no process
ever needs memory for a checkpoint that it does not keep. What belongs to no block is whole on every rank.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ..config.sections import ParallelConfig
from ..errors import InputError
from ..parallel.mesh import Mesh, in_own_group
from ..parallel.weights import WHOLE, BlockWeights, ShardedWeights, StreamedWeights
from ..parallel.zero3 import Zero3Weights
from .checkpoint import read_json, weight_files
from .loading import load_transformer


def place_transformer(
    folder: Path,
    dtype: torch.dtype,
    mesh: Mesh,
    parallel: ParallelConfig,
    block_lists: Sequence[str],
    component: str = "transformer",
    *,
    rests: bool = False,
) -> tuple[Any, BlockWeights]:
    """A transformer of the checkpoint, and its blocks' weights placed as `parallel.weights` says.

    All ranks of the mesh call this together. Dtypes and values are those of `load_transformer`. A single rank has
    nobody to share weights with: fsdp and zero3 mean replicated there.

    Args:
        folder: the checkpoint's.
        dtype: of the parameters, save those that the model's class keeps in float32.
        block_lists: names of the transformer's lists of blocks, in the order in which these run.
        component: its folder there.
        rests: leave it on the CPU; where weights are replicated only.

    Raises:
        InputError: where the files do not hold the parameters that the transformer's config.json calls for.
    """
    if parallel.weights == "replicated" or (parallel.weights != "streamed" and mesh.world.size == 1):
        return load_transformer(folder, dtype, torch.device("cpu") if rests else mesh.device, component), WHOLE
    assert not rests
    model = _empty_transformer(folder, dtype, component)
    checkpoint = _Checkpoint(folder / component, model)
    blocks = {
        f"{name}.{index}.": block
        for name in block_lists
        for index, block in enumerate(cast(nn.ModuleList, model.get_submodule(name)))
    }
    # those would be lost when memory is given to a block
    assert not any(list(block.buffers()) for block in blocks.values())

    shared = {name: p for name, p in model.named_parameters() if not name.startswith(tuple(blocks))}
    values = {
        name: checkpoint.read(name, 0, p.numel()).view(p.shape).to(mesh.device, p.dtype, copy=True)
        for name, p in shared.items()
    }
    model.load_state_dict(values, strict=False, assign=True)
    for name, child in model.named_children():
        if name not in block_lists:
            child.to(mesh.device)  # the rotary tables: they are in no file

    prefixes = tuple(blocks)

    def read(block: int, name: str, start: int, stop: int) -> Tensor:
        return checkpoint.read(prefixes[block] + name, start, stop)

    modules = list(blocks.values())
    if parallel.weights == "streamed":
        return model, StreamedWeights(modules, mesh.device, read)
    sharded = ShardedWeights if parallel.weights == "fsdp" else Zero3Weights
    return model, sharded(modules, in_own_group(mesh.world, parallel.timeout_seconds), mesh.device, read)


def _empty_transformer(folder: Path, dtype: torch.dtype, component: str) -> nn.Module:
    """Parameters without memory, in their final dtypes; buffers as the constructor computes them."""
    import diffusers
    from accelerate import init_empty_weights

    kind = getattr(diffusers, read_json(folder / "model_index.json")[component][1])
    with init_empty_weights(include_buffers=False):
        model: nn.Module = kind.from_config(kind.load_config(folder, subfolder=component))
    in_float32 = set(kind._keep_in_fp32_modules or ())
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if in_float32 & set(name.split(".")) else dtype)
    return model.eval().requires_grad_(False)


class _Checkpoint:
    """The tensors of a folder of safetensors files, to be read in parts.

    A file is opened for every read: the pages that it maps would count as this process's memory until it is closed.

    Raises:
        InputError: where a parameter of the model is missing, or has another shape.
    """

    def __init__(self, folder: Path, model: nn.Module) -> None:
        self._files: dict[str, Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for path in weight_files(folder):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (it is no mapping)
                    self._files[name] = path
                    self._shapes[name] = tuple(file.get_slice(name).get_shape())
        for name, parameter in model.named_parameters():
            expected, came = tuple(parameter.shape), self._shapes.get(name)
            if came != expected:
                raise InputError(
                    f"{folder}: {name}: expected a tensor of shape {list(expected)}, as config.json says, "
                    f"came {'none' if came is None else list(came)}; download the checkpoint again, whole"
                )

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Elements `start` … `stop` of the flattened tensor, by reading the rows that hold them; to be copied."""
        width = math.prod(self._shapes[name][1:])
        first, last = start // width, -(-stop // width)
        with safe_open(self._files[name], framework="pt") as file:
            rows: Tensor = file.get_slice(name)[first:last]
        return rows.flatten()[start - first * width : stop - first * width]
