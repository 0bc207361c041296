"""The only list of pipelines whose checkpoints can be loaded. A new family adds a line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import InputError
from .costs import TransformerCosts
from .family import Family, JsonFile
from .hunyuan_video.family import HunyuanVideo, HunyuanVideoImageToVideo
from .hunyuan_video15.family import HunyuanVideo15, HunyuanVideo15ImageToVideo
from .minimax_h3.family import MiniMaxH3
from .wan.family import Wan, WanImageToVideo, WanTextImageToVideo
from .wan_vace.family import WanVace

FAMILIES: list[type[Family]] = [
    Wan,
    WanImageToVideo,
    WanTextImageToVideo,
    WanVace,
    HunyuanVideo,
    HunyuanVideoImageToVideo,
    HunyuanVideo15,
    HunyuanVideo15ImageToVideo,
    MiniMaxH3,
]


def family_of(index: JsonFile) -> Family:
    """Return the first family that claims a checkpoint's model_index.json or modular_model_index.json.

    Raises:
        InputError: if the pipeline is unknown, or a component has another class.
    """
    for family in FAMILIES:
        if family.claims(index):
            return family(index)
    known = dict.fromkeys(family.pipeline for family in FAMILIES)
    raise InputError(
        f"{index.path.parent}: expected a checkpoint in diffusers format of {' or '.join(known)}, got "
        f"{index.values.get('_class_name')!r} in {index.path.name}; choose another checkpoint"
    )


def read_costs(config: Mapping[str, Any], source: object = "config.json") -> TransformerCosts:
    """Return the costs of a transformer from its config.json; `source` names that file in the error.

    Raises:
        InputError: if no family has this class of transformer.
    """
    known = {family.classes["transformer"]: family for family in FAMILIES}
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in known:
        raise InputError(f"{source}: expected _class_name {' or '.join(known)}, got {name!r}; choose another model")
    return known[name].costs(config)
