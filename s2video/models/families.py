"""The pipelines whose checkpoints can be loaded."""

from __future__ import annotations

from ..errors import InputError
from .family import Family, JsonFile
from .hunyuan15_family import HunyuanVideo15, HunyuanVideo15ImageToVideo
from .hunyuan_family import HunyuanVideo, HunyuanVideoImageToVideo
from .wan_family import Wan, WanImageToVideo, WanTextImageToVideo

FAMILIES: dict[str, type[Family]] = {
    family.pipeline: family
    for family in (
        Wan,
        WanImageToVideo,
        HunyuanVideo,
        HunyuanVideoImageToVideo,
        HunyuanVideo15,
        HunyuanVideo15ImageToVideo,
    )
}


def family_of(index: JsonFile) -> Family:
    """The family that a checkpoint's model_index.json names.

    Raises:
        InputError: a pipeline that is none of them, or a component of another class.
    """
    name = index.values.get("_class_name")
    if name in (Wan.pipeline, WanTextImageToVideo.pipeline) and index.values.get("expand_timesteps"):
        return WanTextImageToVideo(index)
    if name not in FAMILIES:
        raise InputError(
            f"{index.path.parent}: a checkpoint in diffusers format of {' or '.join(FAMILIES)} was expected, but "
            f"model_index.json says {name!r}"
        )
    return FAMILIES[name](index)
