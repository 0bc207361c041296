"""Loading of a checkpoint's components with diffusers and transformers.

Every load passes a dtype: by default, transformers keeps the dtype of the checkpoint and diffusers loads float32. Every
load reads safetensors, because other formats of weights can contain code.
"""

from __future__ import annotations

import copy
import importlib.util
import inspect
import warnings
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .checkpoint import Checkpoint
from .family import PROCESSORS
from .foreign import check_encoder, one_line
from .gguf_weights import GGUF, load_gguf
from .layout import Layout, read_layout, whole_state
from .quantization import description, diffusers_settings, require_quantized
from .tensors import check_layout, check_loaded, load_checked
from .weight_files import DIFFUSERS_PARTS

if TYPE_CHECKING:  # the command line checks checkpoints before it spends seconds on importing torch
    import torch


@one_line("transformer")
def load_transformer(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device,
    component: str = "transformer",
    *,
    quantization: str | None = None,
) -> Any:
    """Load a transformer on `device` in `dtype`, except for norms and tables that diffusers keeps in float32.

    Args:
        quantization: the setting `model.quantization`.

    Raises:
        InputError: if its files do not hold its weights.
    """
    layout = check_component(checkpoint, component)
    if quantization is not None:
        return _quantized(checkpoint, component, layout, dtype, device, quantization)
    if layout is not None and not is_standard(checkpoint, component, layout):
        model = empty_component(checkpoint, component, dtype)
        fill_component(model, layout, device)
        return model
    placed = _placed(device) if layout is None else {"device_map": {"": str(device)}}
    model = _from_pretrained(checkpoint, component, dtype=dtype, **placed)
    return model.eval().requires_grad_(False)


def _quantized(
    checkpoint: Checkpoint, component: str, layout: Layout | None, dtype: torch.dtype, device: torch.device, name: str
) -> Any:
    """Load a transformer whose blocks' linear layers diffusers quantises, or keeps as a GGUF file stores them."""
    block_lists = (*checkpoint.family.block_lists, *checkpoint.family.control_lists)
    if name == GGUF and layout is not None:
        empty, folder = empty_component(checkpoint, component, dtype), checkpoint.folder / component
        model, kept = load_gguf(empty, layout, folder, block_lists, dtype, device)
        checkpoint.conversions[component] = kept
        return model.eval().requires_grad_(False)
    if layout is None or not is_standard(checkpoint, component, layout):
        raise InputError(
            f"model.quantization: {name} needs weights as diffusers stores them, because diffusers quantises while it "
            f"loads, got others in {checkpoint.folder / component}; leave it out"
        )
    settings = diffusers_settings(name, block_lists, dtype)
    model = _from_pretrained(checkpoint, component, dtype=dtype, quantization_config=settings, **_placed(device))
    require_quantized([block for blocks in block_lists for block in getattr(model, blocks)], name)
    checkpoint.conversions[component] = description(name)
    return model.eval().requires_grad_(False)


def _placed(device: torch.device) -> dict[str, Any]:
    """Return where `from_pretrained` places quantised weights; for a CPU nothing, as it would offload weights there."""
    return {} if device.type == "cpu" else {"device_map": {"": str(device)}}


@one_line("vae")
def load_vae(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> Any:
    """Load the VAE on `device`. Raises InputError if its files do not hold its weights."""
    return _load_autoencoder(checkpoint, "vae", dtype, device)


def _load_autoencoder(checkpoint: Checkpoint, component: str, dtype: torch.dtype, device: torch.device) -> Any:
    layout = check_component(checkpoint, component)
    if layout is not None and not is_standard(checkpoint, component, layout):
        vae = empty_component(checkpoint, component, dtype)
        fill_component(vae, layout, device)
        return vae
    vae = _from_pretrained(checkpoint, component, dtype=dtype)
    return vae.to(device).eval().requires_grad_(False)


@one_line("audio_vae")
def load_sound_vae(checkpoint: Checkpoint, device: torch.device) -> Any:
    """Load the VAE of the sound on `device`, in float32. Raises InputError if its files do not hold its weights."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # diffusers' module uses an older form of weight norm
        return _load_autoencoder(checkpoint, "audio_vae", torch.float32, device)


def _from_pretrained(checkpoint: Checkpoint, component: str, **options: Any) -> Any:
    """Load a transformer or VAE as diffusers does, and refuse tensors that diffusers would fill at random."""
    model, info = diffusers_class(checkpoint, component).from_pretrained(
        checkpoint.folder,
        subfolder=component,
        use_safetensors=True,
        output_loading_info=True,
        **_variant(checkpoint, component),
        **options,
    )
    check_loaded(info, checkpoint.source(component))  # of quantized weights only diffusers knows the names
    return model


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
            encoder = load_checked(_encoder_load(checkpoint, name, kind, own), checkpoint.source(name))
            loaded[name] = encoder.eval().requires_grad_(False)
    return loaded


@one_line("tokenizer")
def load_tokenizer(checkpoint: Checkpoint, name: str = "tokenizer") -> Any:
    """Load a tokenizer, by the name of its folder."""
    import transformers

    # padding after the text: every pipeline here relies on it
    kind = getattr(transformers, checkpoint.class_of(name))
    tokenizer = kind.from_pretrained(checkpoint.folder / name, padding_side="right")
    tokenizer("a word")  # junk in its settings shows when it is used
    return tokenizer


def _encoder_load(checkpoint: Checkpoint, name: str, kind: Any, dtype: torch.dtype) -> Callable[..., Any]:
    """Return `from_pretrained` of an encoder: from its folder, or from files whose tensors have to be converted."""
    layout = encoder_layout(checkpoint, name)
    if layout is None or is_standard(checkpoint, name, layout):
        return partial(
            kind.from_pretrained,
            checkpoint.folder,
            subfolder=name,
            dtype=dtype,
            use_safetensors=True,
            **_variant(checkpoint, name),
        )
    config = kind.config_class.from_pretrained(checkpoint.folder / name)
    return partial(kind.from_pretrained, None, config=config, state_dict=whole_state(layout), dtype=dtype)


def encoder_layout(checkpoint: Checkpoint, name: str) -> Layout | None:
    """Return where the tensors of a text or image encoder are; None if transformers quantized them."""
    values, files = checkpoint.config(name).values, checkpoint.files(name)
    if quantized_by(checkpoint, name) is not None:
        return None
    names = [tensor for file in files for tensor in file.tensors]
    is_converted = any("SelfAttention" in tensor or "self_attn" in tensor for tensor in names)
    layout = read_layout(files, name, checkpoint.class_of(name), values, names if is_converted else ())
    if any(tensor.startswith("blk.") for tensor in layout.shapes):
        raise InputError(
            f"{checkpoint.source(name)}: expected a text encoder in transformers' names, got a language model in "
            "llama.cpp's, whose rows are in another order; take its .safetensors file"
        )
    _note(checkpoint, name, layout)
    return layout


@one_line("transformer")
def check_component(checkpoint: Checkpoint, component: str) -> Layout | None:
    """Return where a transformer's or VAE's tensors are, after holding them against its class on the meta device.

    Returns None for weights that diffusers quantized: diffusers gives their tensors other names, so what it reports is
    looked at after loading.

    Raises:
        InputError: if tensors are missing, of another shape, or not of this model.
    """
    from accelerate import init_empty_weights

    values = checkpoint.config(component).values
    if quantized_by(checkpoint, component) is not None:
        return None
    with init_empty_weights(include_buffers=True):
        module = diffusers_class(checkpoint, component).from_config(values)
    kind = checkpoint.class_of(component)
    layout = read_layout(checkpoint.files(component), component, kind, values, module.state_dict().keys())
    check_layout(layout, module, checkpoint.source(component))
    _note(checkpoint, component, layout)
    return layout


def _note(checkpoint: Checkpoint, component: str, layout: Layout) -> None:
    if layout.description:
        checkpoint.conversions[component] = layout.description


def is_standard(checkpoint: Checkpoint, component: str, layout: Layout) -> bool:
    """Whether `from_pretrained` loads the same: plain tensors, in files that it finds by their names."""
    if component in checkpoint.named or not layout.is_plain:
        return False
    folder, files = checkpoint.folder / component, checkpoint.files(component)
    stem = "diffusion_pytorch_model" if component.startswith(DIFFUSERS_PARTS) else "model"
    variant = "".join(f".{name}" for name in _variant(checkpoint, component).values())
    if len(files) == 1 and files[0].path.name == f"{stem}{variant}.safetensors":
        return True
    return (folder / f"{stem}.safetensors.index{variant}.json").is_file()


def _variant(checkpoint: Checkpoint, component: str) -> dict[str, str]:
    """The argument `variant` of `from_pretrained`, where the component's files have it."""
    variant = checkpoint.variant
    has_it = variant is not None and any(f".{variant}" in file.path.name for file in checkpoint.files(component))
    return {"variant": variant} if variant is not None and has_it else {}


@one_line("transformer")
def empty_component(checkpoint: Checkpoint, component: str, dtype: torch.dtype) -> Any:
    """Return a diffusers module whose parameters have their final dtypes and no memory; its buffers are computed."""
    import torch
    from accelerate import init_empty_weights

    kind = diffusers_class(checkpoint, component)
    with init_empty_weights(include_buffers=False):
        model = kind.from_config(checkpoint.config(component).values)
    in_float32 = set(kind._keep_in_fp32_modules or ())
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if in_float32 & set(name.split(".")) else dtype)
    return model.eval().requires_grad_(False)


def fill_component(model: Any, layout: Layout, device: torch.device) -> None:
    """Read all parameters of a module from `empty_component`, and move its buffers to `device`."""
    for name, parameter in model.named_parameters():
        value = layout.tensor(name).to(device, parameter.dtype, copy=True)
        model.load_state_dict({name: value}, strict=False, assign=True)
    model.to(device)


_QUANTIZERS = {"bitsandbytes": "bitsandbytes", "torchao": "torchao", "quanto": "optimum.quanto", "gguf": "gguf"}
_QUANTIZERS |= {"modelopt": "modelopt", "nunchaku_lite": "nunchaku", "auto-round": "auto_round", "sdnq": "sdnq"}


def quantized_by(checkpoint: Checkpoint, component: str) -> str | None:
    """Return the method by which a component's weights are quantized in its files, or None.

    Raises:
        InputError: if the library that it needs is not installed, or the weights are in a file of their own.
    """
    file = checkpoint.config(component)
    settings = file.values.get("quantization_config")
    if settings is None or component in checkpoint.named:
        return None
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    if not isinstance(method, str):
        raise InputError(f"{file.path}: quantization_config: expected quant_method as text, got {method!r}; {_PLAIN}")
    library = _QUANTIZERS.get(method)
    if library is not None and importlib.util.find_spec(library.partition(".")[0]) is None:
        raise InputError(
            f"{checkpoint.folder / component}: its weights are quantized by {method}: expected {library} to be "
            f"installed, got none; pip install {library.replace('.', '-')}, or {_PLAIN}"
        )
    return method


_PLAIN = "take the checkpoint in bfloat16 or float16"


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
            f"{checkpoint.family.index.path}: scheduler: expected a scheduler of diffusers, got {name!r}; "
            "download the checkpoint again, whole"
        )
    scheduler = kind.from_pretrained(checkpoint.folder, subfolder="scheduler")
    _try_schedule(checkpoint, scheduler)
    scheduler = scheduler if flow_shift is None else _shifted(scheduler, flow_shift)
    return checkpoint.family.complete_scheduler(scheduler, checkpoint.folder, checkpoint.info)


def _shifted(scheduler: Any, flow_shift: float) -> Any:
    """Return the scheduler with another shift."""
    kind = type(scheduler)
    fields = [field for field in ("flow_shift", "shift") if field in scheduler.config]
    if not fields:
        raise InputError(
            f"sampling.flow_shift: expected null for {kind.__name__}, which has no shift, got {flow_shift:g}; "
            "leave it out"
        )
    return kind.from_config(scheduler.config, **{fields[0]: flow_shift})


def _try_schedule(checkpoint: Checkpoint, scheduler: Any) -> None:
    """Set timesteps on a copy: junk in a scheduler's settings shows when it is used, which is long after loading."""
    import torch

    checkpoint.family.set_timesteps(copy.deepcopy(scheduler), 4, torch.device("cpu"))


def diffusers_class(checkpoint: Checkpoint, component: str) -> Any:
    """Return the diffusers class of a component."""
    import diffusers

    return getattr(diffusers, checkpoint.class_of(component))
