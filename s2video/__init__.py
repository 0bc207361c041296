"""s2video: text to video with S²-Guidance, on one GPU or many."""

from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .api import load
    from .integrations.guider import S2Guidance
    from .integrations.pipelines import disable, enable

__all__ = ["S2Guidance", "__version__", "disable", "enable", "load"]


def __getattr__(name: str) -> Any:
    """These bring torch and diffusers with them, which takes seconds: loaded when asked for."""
    if name == "load":
        from .api import load

        return load
    if name in ("disable", "enable"):
        from .integrations import pipelines

        return getattr(pipelines, name)
    if name == "S2Guidance":
        from .integrations.guider import S2Guidance

        return S2Guidance
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
