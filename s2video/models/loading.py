"""A checkpoint's components, loaded by diffusers and transformers.

Every load names its dtype: transformers would keep a checkpoint's own, diffusers would load float32.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .checkpoint import Checkpoint
from .family import PROCESSORS
from .tensors import check_files, load_checked

if TYPE_CHECKING:  # the command line checks checkpoints before it spends seconds on importing torch
    import torch


def load_transformer(
    checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, component: str = "transformer"
) -> Any:
    """Load a transformer on `device`; norms and tables that diffusers keeps in float32 stay so. Raises InputError."""
    check_component(checkpoint, component)
    model = diffusers_class(checkpoint, component).from_pretrained(
        checkpoint.folder, subfolder=component, dtype=dtype, device_map={"": str(device)}
    )
    return model.eval().requires_grad_(False)


def load_vae(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> Any:
    """Load the VAE on `device`. Raises InputError."""
    check_component(checkpoint, "vae")
    vae = diffusers_class(checkpoint, "vae").from_pretrained(checkpoint.folder, subfolder="vae", dtype=dtype)
    return vae.to(device).eval().requires_grad_(False)


def load_conditioners(
    checkpoint: Checkpoint, dtype: torch.dtype, image_dtype: torch.dtype | None = None
) -> dict[str, Any]:
    """Load what turns prompts and images into conditioning, by the names of the folders: encoders on the CPU.

    Args:
        image_dtype: of the image encoder; None: `dtype`, as all others.

    Raises:
        InputError: an encoder's files do not hold its weights.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()  # theirs would print a line for every rank
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
            load = partial(kind.from_pretrained, checkpoint.folder, subfolder=name, dtype=own)
            encoder = load_checked(load, checkpoint.folder / name)
            loaded[name] = encoder.eval().requires_grad_(False)
    return loaded


def load_tokenizer(checkpoint: Checkpoint, name: str = "tokenizer") -> Any:
    """Load a tokenizer, by the name of its folder."""
    import transformers

    # padding after the text: every pipeline here relies on it
    kind = getattr(transformers, checkpoint.class_of(name))
    return kind.from_pretrained(checkpoint.folder / name, padding_side="right")


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


def load_scheduler(checkpoint: Checkpoint, flow_shift: float | None = None) -> Any:
    """Load the checkpoint's own scheduler, of its own class; `flow_shift` overrides the shift of its noise schedule.

    Raises:
        InputError: a shift for a scheduler that has none.
    """
    kind = diffusers_class(checkpoint, "scheduler")
    scheduler = kind.from_pretrained(checkpoint.folder, subfolder="scheduler")
    if flow_shift is None:
        return scheduler
    fields = [field for field in ("flow_shift", "shift") if field in scheduler.config]
    if not fields:
        raise InputError(
            f"sampling.flow_shift: the checkpoint's scheduler, {kind.__name__}, has no shift; leave the field out"
        )
    return kind.from_config(scheduler.config, **{fields[0]: flow_shift})


def diffusers_class(checkpoint: Checkpoint, component: str) -> Any:
    """Return diffusers' class of a component."""
    import diffusers

    return getattr(diffusers, checkpoint.class_of(component))
