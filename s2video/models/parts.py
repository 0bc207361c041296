"""Loading of a transformer with sharded or streamed blocks: created without memory, then read in parts.

Each rank reads only the parts that it keeps (its shards of the blocks, or one streamed block after another), so no
process needs memory for a whole checkpoint. Every rank holds all parameters outside the blocks.
"""

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ..config.sections import ParallelConfig
from ..parallel.mesh import Mesh, in_own_group
from ..parallel.weights import WHOLE, BlockWeights, ShardedWeights, StreamedWeights
from ..parallel.zero3 import Zero3Weights
from .checkpoint import Checkpoint
from .foreign import one_line
from .loading import diffusers_class, load_transformer
from .tensors import check_files
from .weight_files import WeightFile


def place_transformer(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    mesh: Mesh,
    parallel: ParallelConfig,
    component: str = "transformer",
    *,
    offloaded: bool = False,
) -> tuple[Any, BlockWeights]:
    """Load a transformer and place its blocks' weights according to `parallel.weights`.

    All ranks of the mesh call this together. Dtypes and values equal those of `load_transformer`. On a single rank,
    fsdp and zero3 mean replicated.

    Args:
        dtype: dtype of the parameters, except for those that the model's class keeps in float32.
        component: folder of the transformer in the checkpoint.
        offloaded: keep the transformer on the CPU; only for replicated weights.

    Raises:
        InputError: if the files lack a parameter that config.json implies, or have it in another shape.
    """
    if parallel.weights == "replicated" or (parallel.weights != "streamed" and mesh.world.size == 1):
        device = torch.device("cpu") if offloaded else mesh.device
        return load_transformer(checkpoint, dtype, device, component), WHOLE
    assert not offloaded
    model = _empty_transformer(checkpoint, dtype, component)
    check_files(checkpoint.files(component), model, checkpoint.folder / component)
    parts = _TensorParts(checkpoint.files(component))
    block_lists = checkpoint.family.block_lists
    blocks = {
        f"{name}.{index}.": block
        for name in block_lists
        for index, block in enumerate(cast(nn.ModuleList, model.get_submodule(name)))
    }
    # buffers would be lost when a block gets its memory
    assert not any(list(block.buffers()) for block in blocks.values())

    shared = {name: p for name, p in model.named_parameters() if not name.startswith(tuple(blocks))}
    values = {
        name: parts.read(name, 0, p.numel()).view(p.shape).to(mesh.device, p.dtype, copy=True)
        for name, p in shared.items()
    }
    model.load_state_dict(values, strict=False, assign=True)
    for name, child in model.named_children():
        if name not in block_lists:
            child.to(mesh.device)  # moves the rotary tables, which no file holds

    prefixes = tuple(blocks)

    def read(block: int, name: str, start: int, stop: int) -> Tensor:
        return parts.read(prefixes[block] + name, start, stop)

    modules = list(blocks.values())
    if parallel.weights == "streamed":
        return model, StreamedWeights(modules, mesh.device, read)
    sharded = ShardedWeights if parallel.weights == "fsdp" else Zero3Weights
    mesh.watch.meet()  # rank 0 reads the encoders first, which can take longer than a collective may
    return model, sharded(modules, in_own_group(mesh.world, parallel.timeout_seconds), mesh.device, read)


@one_line("transformer")
def _empty_transformer(checkpoint: Checkpoint, dtype: torch.dtype, component: str) -> nn.Module:
    """Return a transformer whose parameters have their final dtypes and no memory; its buffers are computed."""
    from accelerate import init_empty_weights

    kind = diffusers_class(checkpoint, component)
    with init_empty_weights(include_buffers=False):
        model: nn.Module = kind.from_config(checkpoint.config(component).values)
    in_float32 = set(kind._keep_in_fp32_modules or ())
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if in_float32 & set(name.split(".")) else dtype)
    return model.eval().requires_grad_(False)


class _TensorParts:
    """Tensors of safetensors files, read in parts.

    Opens the file for each read, because the pages of an open file count as this process's memory.
    """

    def __init__(self, files: Sequence[WeightFile]) -> None:
        self._files = {name: file.path for file in files for name in file.tensors}
        self._shapes = {name: tuple(tensor["shape"]) for file in files for name, tensor in file.tensors.items()}

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Return elements `start` … `stop` of the flattened tensor, reading only their rows. The caller must copy."""
        width = math.prod(self._shapes[name][1:])
        first, last = start // width, -(-stop // width)
        with safe_open(self._files[name], framework="pt") as file:
            rows: Tensor = file.get_slice(name)[first:last]
        return rows.flatten()[start - first * width : stop - first * width]
