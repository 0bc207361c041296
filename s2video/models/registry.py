"""The pipelines whose checkpoints can be loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import InputError
from .costs import TransformerCosts
from .family import Family, JsonFile
from .hunyuan_video.costs import HunyuanVideoCosts
from .hunyuan_video.family import HunyuanVideo, HunyuanVideoImageToVideo
from .hunyuan_video15.costs import HunyuanVideo15Costs
from .hunyuan_video15.family import HunyuanVideo15, HunyuanVideo15ImageToVideo
from .wan.costs import WanCosts
from .wan.family import Wan, WanImageToVideo, WanTextImageToVideo

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


def read_costs(config: Mapping[str, Any], source: object = "config.json") -> TransformerCosts:
    """From a transformer's config.json; `source` names it in the error. Raises InputError for another family."""
    known: dict[Any, type[WanCosts | HunyuanVideoCosts | HunyuanVideo15Costs]] = {
        "WanTransformer3DModel": WanCosts,
        "HunyuanVideoTransformer3DModel": HunyuanVideoCosts,
        "HunyuanVideo15Transformer3DModel": HunyuanVideo15Costs,
    }
    name = config.get("_class_name")
    if name not in known:
        raise InputError(f"{source}: costs are known for {' and '.join(known)}, came {name!r}")
    return known[name].from_config(config)
