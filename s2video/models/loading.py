"""A diffusers-format checkpoint -> its components: embedded model, folder, or Hub id.

Files are checked before anything heavy is loaded, so that a missing or cut-off download is one clear line. Every
load names its dtype: transformers would keep a checkpoint's own, diffusers would load float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .checkpoint import read_family, read_json
from .family import PROCESSORS

if TYPE_CHECKING:  # the command line checks checkpoints before it spends seconds on importing torch
    import torch


def load_transformer(folder: Path, dtype: torch.dtype, device: torch.device, component: str = "transformer") -> Any:
    """A transformer on `device`; norms and tables that diffusers keeps in float32 stay so."""
    model = _class_of(folder, component).from_pretrained(
        folder, subfolder=component, dtype=dtype, device_map={"": str(device)}
    )
    return model.eval().requires_grad_(False)


def load_vae(folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    vae = _class_of(folder, "vae").from_pretrained(folder, subfolder="vae", dtype=dtype)
    return vae.to(device).eval().requires_grad_(False)


def load_conditioners(folder: Path, dtype: torch.dtype, image_dtype: torch.dtype | None = None) -> dict[str, Any]:
    """What turns prompts and images into conditioning, by the names of the folders: encoders on the CPU.

    Args:
        image_dtype: of the image encoder; None: `dtype`, as all others.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()  # ours is the only one: theirs would print a line a rank
    loaded = {}
    family = read_family(folder)
    for name in family.conditioners:
        # of two implementations that differ in the last bits, the one that is always there
        of_pil = getattr(transformers, f"{family.components[name]}Pil", None) if name in PROCESSORS else None
        kind = of_pil or getattr(transformers, family.components[name])
        if name.startswith("tokenizer"):
            # text first, padding behind it: every pipeline here counts on that
            loaded[name] = kind.from_pretrained(folder / name, padding_side="right")
        elif name in PROCESSORS:
            loaded[name] = kind.from_pretrained(folder / name)
        else:
            own = (name == "image_encoder" and image_dtype) or dtype
            loaded[name] = kind.from_pretrained(folder, subfolder=name, dtype=own).eval().requires_grad_(False)
    return loaded


def _class_of(folder: Path, component: str) -> Any:
    import diffusers

    return getattr(diffusers, read_family(folder).components[component])


def load_scheduler(folder: Path, flow_shift: float | None = None) -> Any:
    """The checkpoint's own scheduler, of its own class; `flow_shift` overrides the shift of its noise schedule."""
    import diffusers

    name = read_json(folder / "model_index.json")["scheduler"][1]
    scheduler = getattr(diffusers, name).from_pretrained(folder, subfolder="scheduler")
    if flow_shift is None:
        return scheduler
    fields = [field for field in ("flow_shift", "shift") if field in scheduler.config]
    if not fields:
        raise InputError(f"sampling.flow_shift: the checkpoint's scheduler, {name}, has no shift; leave the field out")
    return type(scheduler).from_config(scheduler.config, **{fields[0]: flow_shift})
