"""Loading of a transformer with sharded or streamed blocks: created without memory, then read in parts.

Each rank reads only the parts that it keeps (its shards of the blocks, or one streamed block after another), so no
process needs memory for a whole checkpoint. Every rank holds all parameters outside the blocks.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ..config.sections import ParallelConfig
from ..errors import InputError
from ..parallel.mesh import Mesh, in_own_group
from ..parallel.weights import WHOLE, BlockWeights, ShardedWeights, StreamedWeights
from ..parallel.zero3 import Zero3Weights
from .checkpoint import Checkpoint
from .loading import check_component, empty_component, load_transformer


def place_transformer(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    mesh: Mesh,
    parallel: ParallelConfig,
    component: str = "transformer",
    *,
    offloaded: bool = False,
    quantization: str | None = None,
) -> tuple[Any, BlockWeights]:
    """Load a transformer and place its blocks' weights according to `parallel.weights`.

    All ranks of the mesh call this together. Dtypes and values equal those of `load_transformer`. On a single rank,
    fsdp and zero3 mean replicated.

    Args:
        dtype: dtype of the parameters, except for those that the model's class keeps in float32.
        component: folder of the transformer in the checkpoint.
        offloaded: keep the transformer on the CPU; only for replicated weights.
        quantization: as in `load_transformer`; only for replicated weights.

    Raises:
        InputError: if the files lack a parameter that config.json implies, or have it in another shape.
    """
    if parallel.weights == "replicated" or (parallel.weights != "streamed" and mesh.world.size == 1):
        device = torch.device("cpu") if offloaded else mesh.device
        return load_transformer(checkpoint, dtype, device, component, quantization=quantization), WHOLE
    assert not offloaded and quantization is None
    parts = check_component(checkpoint, component)
    if parts is None:
        raise InputError(
            f"parallel.weights: expected replicated for the quantized weights of {checkpoint.folder / component}, got "
            f"{parallel.weights}; set it to replicated"
        )
    model: nn.Module = empty_component(checkpoint, component, dtype)
    family = checkpoint.family
    blocks = {f"{name}.": model.get_submodule(name) for name in family.block_names(model)}
    # buffers would be lost when a block gets its memory
    assert not any(list(block.buffers()) for block in blocks.values())

    shared = {name: p for name, p in model.named_parameters() if not name.startswith(tuple(blocks))}
    values = {
        name: parts.read(name, 0, p.numel()).view(p.shape).to(mesh.device, p.dtype, copy=True)
        for name, p in shared.items()
    }
    model.load_state_dict(values, strict=False, assign=True)
    for name, child in model.named_children():
        if name not in (*family.block_lists, *family.control_lists):
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
