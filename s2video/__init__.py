"""S²-Guidance for video diffusion transformers, on one GPU or many.

The names below are public and stay from version to version. What needs torch is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .system.quiet import quiet_imports
from .version import __version__

if TYPE_CHECKING:
    from .api import TextToVideo, Video, load
    from .batch.run import BatchVideo, run_batch
    from .config.run import RunConfig, build_config
    from .engine.decode_latents import decode_latents
    from .engine.engine import Engine
    from .errors import AgreementError, InputError, NumericalError, S2VideoError, StoppedError
    from .integrations.guider import S2Guidance
    from .integrations.pipelines import disable, enable
    from .models.checkpoint import find_checkpoint
    from .models.recipes import load_config
    from .parallel.mesh import init_mesh
    from .records.sidecar_model import Sidecar, read_sidecar, videos_in
    from .review.page import write_page

__all__ = [
    "AgreementError",
    "BatchVideo",
    "Engine",
    "InputError",
    "NumericalError",
    "RunConfig",
    "S2Guidance",
    "S2VideoError",
    "Sidecar",
    "StoppedError",
    "TextToVideo",
    "Video",
    "__version__",
    "build_config",
    "decode_latents",
    "disable",
    "enable",
    "find_checkpoint",
    "init_mesh",
    "load",
    "load_config",
    "read_sidecar",
    "run_batch",
    "videos_in",
    "write_page",
]

quiet_imports()

_NAMES_OF = {
    ".api": "TextToVideo Video load",
    ".batch.run": "BatchVideo run_batch",
    ".config.run": "RunConfig build_config",
    ".engine.decode_latents": "decode_latents",
    ".engine.engine": "Engine",
    ".errors": "AgreementError InputError NumericalError S2VideoError StoppedError",
    ".integrations.guider": "S2Guidance",
    ".integrations.pipelines": "disable enable",
    ".models.checkpoint": "find_checkpoint",
    ".models.recipes": "load_config",
    ".parallel.mesh": "init_mesh",
    ".records.sidecar_model": "Sidecar read_sidecar videos_in",
    ".review.page": "write_page",
}
_HOME = {name: module for module, names in _NAMES_OF.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: torch and diffusers take seconds."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name], __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
