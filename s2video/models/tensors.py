"""Weight files held against the module that they are for, so that no component runs on random or half-read weights.

For diffusers' modules the headers of the files are enough, and nothing is loaded. transformers renames and ties tensors
while it loads, so there its own report is read. Every problem is one line that names the first tensors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .weight_files import WeightFile

if TYPE_CHECKING:
    from torch import nn

_SHOWN = 3  # tensors that a message names
# Tensors that hold the scales of a quantized format, which a plain load would drop.
_SCALES = re.compile(
    r"(^|\.)(scaled_fp8|(weight_|input_)?scale(_weight|_input|_inv|_2)?|(weight|input)_scale\w*"
    r"|weight\.(absmax|quant_map|nested_\w+|quant_state\.\w+)|SCB|qweight|qzeros|comfy_quant)$"
)


def check_files(files: Sequence[WeightFile], module: nn.Module, folder: Path) -> None:
    """Raise InputError unless the files hold every tensor of a diffusers module in its shape, and no others.

    Args:
        module: may be on the meta device.
        folder: the component's, for the message.
    """
    found = {name: tensor for file in files for name, tensor in file.tensors.items()}
    expected = {name: list(tensor.shape) for name, tensor in module.state_dict().items()}
    ignored = [re.compile(pattern) for pattern in getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ()]
    unexpected = [name for name in found if name not in expected and not any(p.search(name) for p in ignored)]
    _refuse_scales(unexpected, folder)
    wrong = [
        f"{name} {list(found[name]['shape'])} instead of {shape}"
        for name, shape in expected.items()
        if name in found and list(found[name]["shape"]) != shape
    ]
    floating = {name for name, tensor in module.state_dict().items() if tensor.is_floating_point()}
    whole = [
        f"{name} ({found[name]['dtype']})" for name in floating & found.keys() if not _is_floating(found[name]["dtype"])
    ]
    _refuse(folder, [name for name in expected if name not in found], unexpected, wrong, whole)


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
    folder: Path,
    missing: Collection[str],
    unexpected: Collection[str],
    wrong: Collection[str],
    whole: Iterable[str] = (),
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
        raise InputError(
            f"{folder}: expected the tensors that config.json calls for, got {', '.join(problems)}; {_ADVICE}"
        )


def _refuse_scales(names: Iterable[str], folder: Path) -> None:
    if scales := [name for name in names if _SCALES.search(name)]:
        raise InputError(
            f"{folder}: expected plain weights, got a quantized format with scales of its own ({_first(scales)}), "
            "which is not supported; take the checkpoint in bfloat16 or float16"
        )


def _first(names: Collection[str]) -> str:
    shown = list(names)[:_SHOWN]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _list_of(name: str) -> str:
    """Return the name up to the first number: the list of layers that a tensor is in."""
    return re.split(r"\.\d+\.", name, maxsplit=1)[0]


def _is_floating(dtype: str) -> bool:
    return dtype.startswith(("F", "BF"))


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
