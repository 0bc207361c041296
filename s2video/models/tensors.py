"""Weight files held against the module that they are for, so that no component runs on random or half-read weights.

For diffusers' modules the headers of the files are enough, and nothing is loaded. transformers renames and ties tensors
while it loads, so there its own report is read. Every problem is one line that names the first tensors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .formats import look_of
from .gguf_header import BLOCKS
from .layout import Layout

if TYPE_CHECKING:
    from torch import nn

_SHOWN = 3  # tensors that a message names
# Tensors that hold the scales of a quantized format, which a plain load would drop.
_SCALES = re.compile(
    r"(^|\.)(scaled_fp8|(weight_|input_)?scale(_weight|_input|_inv|_2)?|(weight|input)_scale\w*"
    r"|weight\.(absmax|quant_map|nested_\w+|quant_state\.\w+)|SCB|qweight|qzeros|comfy_quant)$"
)


def check_layout(layout: Layout, module: nn.Module, source: object) -> None:
    """Raise InputError unless a layout has every tensor of a diffusers module in its shape, and no others.

    Args:
        module: may be on the meta device.
        source: the component's folder or file, for the message.
    """
    found = layout.shapes
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    ignored = [re.compile(pattern) for pattern in getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ()]
    unexpected = [name for name in found if name not in expected and not any(p.search(name) for p in ignored)]
    _refuse_scales(unexpected, source)
    wrong = [
        f"{name} {list(found[name])} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    floating = {name for name, tensor in module.state_dict().items() if tensor.is_floating_point()}
    whole = [
        f"{name} ({layout.dtypes[name]})" for name in floating & found.keys() if not _is_floating(layout.dtypes[name])
    ]
    missing = [name for name in expected if name not in found]
    look = look_of(unexpected) if len(missing) > len(expected) / 2 else None
    _refuse(source, missing, unexpected, wrong, whole, look)


def check_loaded(info: Mapping[str, Any], source: Path) -> None:
    """Raise InputError if diffusers reports that a module lacks tensors, or that some have another shape.

    Args:
        info: the loading info of `from_pretrained`.
        source: the component's folder or file, for the message.
    """
    wrong = [str(entry[0] if isinstance(entry, (tuple, list)) else entry) for entry in info["mismatched_keys"]]
    _refuse(source, sorted(info["missing_keys"]), [], wrong)


def load_checked(load: Callable[..., tuple[Any, Mapping[str, Any]]], folder: Path) -> Any:
    """Return a transformers model that took every tensor it needs from its files.

    Args:
        load: calls `from_pretrained` with these arguments, and returns the model and its loading info.
        folder: the component's, for the message.

    Raises:
        InputError: tensors are missing or have another shape, belong to layers that the model does not have, or hold
            the scales of a quantized format. Other extra tensors, such as those of an unused head, are ignored.
    """
    with _quiet_transformers():
        try:
            model, info = load(output_loading_info=True, ignore_mismatched_sizes=True)
        except RuntimeError as error:  # tensors that cannot be converted
            reason = str(error).strip().splitlines()[-1].strip()
            raise InputError(f"{folder}: its weights do not fit config.json ({reason}); {_ADVICE}") from None
    unexpected = sorted(info["unexpected_keys"])
    _refuse_scales(unexpected, folder)
    lists = {name for name, module in model.named_modules() if type(module).__name__ == "ModuleList"}
    wrong = [f"{name} {list(got)} instead of {list(want)}" for name, got, want in sorted(info["mismatched_keys"])]
    _refuse(folder, sorted(info["missing_keys"]), [k for k in unexpected if _list_of(k) in lists], wrong)
    return model


_ADVICE = "download the component again, whole, with its own config.json, in diffusers' format"


def _refuse(
    source: object,
    missing: Collection[str],
    unexpected: Collection[str],
    wrong: Collection[str],
    whole: Iterable[str] = (),
    look: str | None = None,
) -> None:
    """Raise InputError if any of these is not empty."""
    kinds = {
        "missing": missing,
        "not of this model": unexpected,
        "of another shape": wrong,
        "not floating-point numbers": sorted(whole),
    }
    problems = [f"{len(names)} {kind} ({_first(names)})" for kind, names in kinds.items() if names]
    if problems:
        seems = "" if look is None else f"; this looks like {look}"
        raise InputError(
            f"{source}: expected the tensors that config.json calls for, got {', '.join(problems)}{seems}; {_ADVICE}"
        )


def _refuse_scales(names: Iterable[str], source: object) -> None:
    if scales := [name for name in names if _SCALES.search(name)]:
        raise InputError(
            f"{source}: expected plain weights, got a quantized format with scales of its own ({_first(scales)}), "
            "which is not supported; take the checkpoint in bfloat16 or float16, or a file with scaled fp8 or GGUF"
        )


def _first(names: Collection[str]) -> str:
    shown = list(names)[:_SHOWN]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _list_of(name: str) -> str:
    """Return the name up to the first number: the list of layers that a tensor is in."""
    return re.split(r"\.\d+\.", name, maxsplit=1)[0]


def _is_floating(dtype: str) -> bool:
    return dtype.startswith("F") or dtype in BLOCKS


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without transformers' own table of missing tensors, which would repeat our line."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
