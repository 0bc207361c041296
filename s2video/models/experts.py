"""The transformers of a checkpoint (experts), each for its own part of the denoising. Most checkpoints have one.

Wan 2.2 A14B has two: one for high noise, and one for timesteps below a boundary. Does not sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config.run import RunConfig
from ..parallel.backends import check_here
from ..parallel.mesh import Mesh
from ..parallel.offload import Offloaded, keep_on_cpu
from ..parallel.ring import named_backend
from ..parallel.weights import BlockWeights
from .base import BlockModel
from .checkpoint import Checkpoint
from .compiled import compile_blocks, require_compiler
from .gguf_weights import GGUF, check_gguf
from .loading import quantized_by
from .lora import AppliedLora, load_loras
from .parts import place_transformer
from .quantization import require_quantizer


@dataclass(frozen=True)
class Expert:
    """One transformer and the provider of its blocks' weights.

    Attributes:
        module: the diffusers module that `model` runs.
    """

    model: BlockModel
    weights: BlockWeights
    module: nn.Module


def check_machine(checkpoint: Checkpoint, config: RunConfig, device: torch.device) -> None:
    """Raise InputError for settings that this machine or the checkpoint's weights cannot serve. Loads nothing."""
    if config.model.compile == "blocks":
        require_compiler(device.type)
    if (backend := named_backend(config.model.attention_backend)) is not None:
        check_here(backend, device.type, getattr(torch, config.model.dtype))
    by = [quantized_by(checkpoint, name) for name in checkpoint.family.transformers]
    require_quantizer(config, device.type, by)
    if config.model.quantization == GGUF:
        for name in checkpoint.family.transformers:
            check_gguf(checkpoint.files(name), name, checkpoint.class_of(name))


def load_expert(
    checkpoint: Checkpoint, config: RunConfig, mesh: Mesh, component: str
) -> tuple[Expert, list[AppliedLora]]:
    """Load a transformer by its folder, with its LoRAs, and return what became of those. All ranks call it together.

    Raises:
        InputError: if files of the component or of a LoRA cannot be used.
    """
    family, settings = checkpoint.family, config.model
    transformer, weights = place_transformer(
        checkpoint,
        getattr(torch, settings.dtype),
        mesh,
        config.parallel,
        component,
        offloaded=settings.offload_experts,
        quantization=settings.quantization,
    )
    loras = load_loras(transformer, settings.lora, component, family.pipeline)
    model = family.block_model(transformer, named_backend(settings.attention_backend))
    if settings.compile == "blocks":
        compile_blocks(transformer.get_submodule(name) for name in family.block_names(transformer))
    return Expert(model, weights, transformer), loras


class Experts:
    """One or two transformers with the same number of blocks.

    Args:
        boundary: timestep below which the second transformer is active; None if there is only one.
        device: device for the active transformer; both are on the CPU when they are passed, and stay in its memory,
            from which the active one is copied. None disables offloading.
    """

    def __init__(
        self, experts: Sequence[Expert], *, boundary: float | None = None, device: torch.device | None = None
    ) -> None:
        assert (len(experts) == 2) == (boundary is not None)
        self._experts = tuple(experts)
        self._boundary = boundary
        self._offloaded: list[Offloaded] = []
        if device is not None:
            self._offloaded = [keep_on_cpu(expert.module, device) for expert in self._experts]

    @property
    def num_blocks(self) -> int:
        return self._experts[0].model.num_blocks

    @property
    def config(self) -> Any:
        """The settings of the first transformer's module."""
        return getattr(self._experts[0].module, "config", None)

    def index_at(self, timestep: Tensor) -> int:
        """Return the index of the active expert; `timestep` is the scheduler's, in its precision, as in diffusers."""
        return int(self._boundary is not None and not timestep >= self._boundary)

    def second_from(self, timesteps: Tensor) -> int | None:
        """Return the index of the first of these timesteps at which the second expert is active; None if none."""
        return next((step for step, timestep in enumerate(timesteps) if self.index_at(timestep) == 1), None)

    def take_turn(self, index: int) -> Expert:
        """Return an expert that is on the device."""
        for number, other in enumerate(self._offloaded):
            if number != index:  # first, because the device may not hold both
                other.release()
        if self._offloaded:
            self._offloaded[index].bring()
        return self._experts[index]
