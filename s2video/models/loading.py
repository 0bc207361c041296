"""A checkpoint's components, loaded by diffusers and transformers.

Every load names its dtype: transformers would keep a checkpoint's own, diffusers would load float32. And every load is
of safetensors: other formats of weights can hold code.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .checkpoint import Checkpoint
from .family import PROCESSORS

if TYPE_CHECKING:  # the command line checks checkpoints before it spends seconds on importing torch
    import torch


def load_transformer(
    checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, component: str = "transformer"
) -> Any:
    """Load a transformer on `device`; norms and tables that diffusers keeps in float32 stay so."""
    model = diffusers_class(checkpoint, component).from_pretrained(
        checkpoint.folder, subfolder=component, dtype=dtype, device_map={"": str(device)}, use_safetensors=True
    )
    return model.eval().requires_grad_(False)


def load_vae(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> Any:
    """Load the VAE on `device`."""
    kind = diffusers_class(checkpoint, "vae")
    vae = kind.from_pretrained(checkpoint.folder, subfolder="vae", dtype=dtype, use_safetensors=True)
    return vae.to(device).eval().requires_grad_(False)


def load_conditioners(
    checkpoint: Checkpoint, dtype: torch.dtype, image_dtype: torch.dtype | None = None
) -> dict[str, Any]:
    """Load what turns prompts and images into conditioning, by the names of the folders: encoders on the CPU.

    Args:
        image_dtype: of the image encoder; None: `dtype`, as all others.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()  # theirs would print a line for every rank
    loaded = {}
    for name in checkpoint.family.conditioners:
        # of two implementations that differ in the last bits, the one that is always installed
        of_pil = getattr(transformers, f"{checkpoint.class_of(name)}Pil", None) if name in PROCESSORS else None
        kind = of_pil or getattr(transformers, checkpoint.class_of(name))
        if name.startswith("tokenizer"):
            # padding after the text: every pipeline here relies on it
            loaded[name] = kind.from_pretrained(checkpoint.folder / name, padding_side="right")
        elif name in PROCESSORS:
            loaded[name] = kind.from_pretrained(checkpoint.folder / name)
        else:
            own = (name == "image_encoder" and image_dtype) or dtype
            encoder = kind.from_pretrained(checkpoint.folder, subfolder=name, dtype=own, use_safetensors=True)
            loaded[name] = encoder.eval().requires_grad_(False)
    return loaded


def load_scheduler(checkpoint: Checkpoint, flow_shift: float | None = None) -> Any:
    """Load the checkpoint's own scheduler, of its own class; `flow_shift` overrides the shift of its noise schedule.

    Raises:
        InputError: a class that is no scheduler of diffusers, or a shift for a scheduler that has none.
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
            f"sampling.flow_shift: the checkpoint's scheduler, {kind.__name__}, has no shift; leave the field out"
        )
    return kind.from_config(scheduler.config, **{fields[0]: flow_shift})


def diffusers_class(checkpoint: Checkpoint, component: str) -> Any:
    """Return diffusers' class of a component."""
    import diffusers

    return getattr(diffusers, checkpoint.class_of(component))
