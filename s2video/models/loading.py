"""Loading of a checkpoint's components with diffusers and transformers.

Every load passes a dtype: by default, transformers keeps the dtype of the checkpoint and diffusers loads float32. Every
load reads safetensors, because other formats of weights can contain code.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .checkpoint import Checkpoint
from .family import PROCESSORS
from .foreign import check_encoder, one_line
from .tensors import check_files, load_checked

if TYPE_CHECKING:  # the command line checks checkpoints before it spends seconds on importing torch
    import torch


@one_line("transformer")
def load_transformer(
    checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, component: str = "transformer"
) -> Any:
    """Load a transformer on `device` in `dtype`, except for norms and tables that diffusers keeps in float32.

    Raises:
        InputError: if its files do not hold its weights.
    """
    check_component(checkpoint, component)
    model = diffusers_class(checkpoint, component).from_pretrained(
        checkpoint.folder, subfolder=component, dtype=dtype, device_map={"": str(device)}, use_safetensors=True
    )
    return model.eval().requires_grad_(False)


@one_line("vae")
def load_vae(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> Any:
    """Load the VAE on `device`. Raises InputError if its files do not hold its weights."""
    check_component(checkpoint, "vae")
    kind = diffusers_class(checkpoint, "vae")
    vae = kind.from_pretrained(checkpoint.folder, subfolder="vae", dtype=dtype, use_safetensors=True)
    return vae.to(device).eval().requires_grad_(False)


@one_line("text_encoder")
def load_conditioners(
    checkpoint: Checkpoint, dtype: torch.dtype, image_dtype: torch.dtype | None = None
) -> dict[str, Any]:
    """Load the components that encode prompts and images, on the CPU. Return them by the names of their folders.

    Args:
        image_dtype: dtype of the image encoder; None means `dtype`.

    Raises:
        InputError: if an encoder's files do not hold its weights.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()  # it would print a line on every rank
    loaded = {}
    for name in checkpoint.family.conditioners:
        if name.startswith("tokenizer"):
            loaded[name] = load_tokenizer(checkpoint, name)
        elif name in PROCESSORS:
            # of two implementations that differ in the last bits, the one that is always installed
            kind = getattr(transformers, f"{checkpoint.class_of(name)}Pil", None)
            kind = kind or getattr(transformers, checkpoint.class_of(name))
            loaded[name] = kind.from_pretrained(checkpoint.folder / name)
        else:
            own = (name == "image_encoder" and image_dtype) or dtype
            kind = getattr(transformers, checkpoint.class_of(name))
            check_encoder(kind, checkpoint.folder / name, checkpoint.num_parameters(name))
            load = partial(kind.from_pretrained, checkpoint.folder, subfolder=name, dtype=own, use_safetensors=True)
            encoder = load_checked(load, checkpoint.folder / name)
            loaded[name] = encoder.eval().requires_grad_(False)
    return loaded


@one_line("tokenizer")
def load_tokenizer(checkpoint: Checkpoint, name: str = "tokenizer") -> Any:
    """Load a tokenizer, by the name of its folder."""
    import transformers

    # padding after the text: every pipeline here relies on it
    kind = getattr(transformers, checkpoint.class_of(name))
    return kind.from_pretrained(checkpoint.folder / name, padding_side="right")


@one_line("transformer")
def check_component(checkpoint: Checkpoint, component: str) -> None:
    """Raise InputError unless a transformer's or VAE's files hold the tensors of its class, as their headers tell.

    Weights that diffusers quantized are left to diffusers, which gives their tensors other names.
    """
    values = checkpoint.config(component).values
    if "quantization_config" in values:
        return
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=True):
        module = diffusers_class(checkpoint, component).from_config(values)
    check_files(checkpoint.files(component), module, checkpoint.folder / component)


@one_line("scheduler")
def load_scheduler(checkpoint: Checkpoint, flow_shift: float | None = None) -> Any:
    """Load the checkpoint's scheduler; `flow_shift` overrides the shift of its noise schedule.

    Raises:
        InputError: if the class is not a scheduler of diffusers, or `flow_shift` is set and the scheduler has no shift.
    """
    import diffusers

    name = checkpoint.class_of("scheduler")
    kind: Any = getattr(diffusers, name, None)
    is_scheduler = inspect.isclass(kind) and issubclass(kind, diffusers.SchedulerMixin)
    if not is_scheduler:
        raise InputError(
            f"{checkpoint.folder / 'model_index.json'}: scheduler: expected a scheduler of diffusers, got {name!r}; "
            "download the checkpoint again, whole"
        )
    scheduler = kind.from_pretrained(checkpoint.folder, subfolder="scheduler")
    if flow_shift is None:
        return scheduler
    fields = [field for field in ("flow_shift", "shift") if field in scheduler.config]
    if not fields:
        raise InputError(
            f"sampling.flow_shift: expected null for {kind.__name__}, which has no shift, got {flow_shift:g}; "
            "leave it out"
        )
    return kind.from_config(scheduler.config, **{fields[0]: flow_shift})


def diffusers_class(checkpoint: Checkpoint, component: str) -> Any:
    """Return the diffusers class of a component."""
    import diffusers

    return getattr(diffusers, checkpoint.class_of(component))
