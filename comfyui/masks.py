"""Find the masks of the s2video package: the installed one, or the one next to or above this folder.

Only `s2video.guidance.masks` is imported, which needs numpy and nothing else.
"""

import importlib.util
import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent  # resolved: the pack may be a link to a checkout's folder


def _find_package() -> None:
    """Make `s2video` importable; raise ImportError, which says how to install it, if it is nowhere."""
    if importlib.util.find_spec("s2video") is not None:
        return
    for folder in (_HERE, _HERE.parent):
        if (folder / "s2video" / "guidance" / "masks.py").is_file():
            sys.path.append(str(folder))  # at the end, so that nothing of ComfyUI's own is hidden
            return
    raise ImportError(
        f"s2video was not found: copy the folder s2video into {_HERE}, or run `pip install --no-deps` on its checkout "
        "in ComfyUI's environment"
    )


_find_package()

from s2video.guidance.masks import MaskSpec, step_masks  # noqa: E402

__all__ = ["MaskSpec", "step_masks"]
