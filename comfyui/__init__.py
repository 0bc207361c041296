"""A node pack for ComfyUI: S²-Guidance for the video models of its core. See docs/comfyui.md."""

from .nodes import comfy_entrypoint

__all__ = ["comfy_entrypoint"]
