"""The pipelines whose checkpoints can be loaded: the only list of them. A new family adds its line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import InputError
from .costs import TransformerCosts
from .family import Family, JsonFile
from .hunyuan_video.family import HunyuanVideo, HunyuanVideoImageToVideo
from .hunyuan_video15.family import HunyuanVideo15, HunyuanVideo15ImageToVideo
from .wan.family import Wan, WanImageToVideo, WanTextImageToVideo

FAMILIES: list[type[Family]] = [
    Wan,
    WanImageToVideo,
    WanTextImageToVideo,
    HunyuanVideo,
    HunyuanVideoImageToVideo,
    HunyuanVideo15,
    HunyuanVideo15ImageToVideo,
]


def family_of(index: JsonFile) -> Family:
    """Return the family that a checkpoint's model_index.json names: the first that claims it.

    Raises:
        InputError: a pipeline that is not known, or a component of another class.
    """
    for family in FAMILIES:
        if family.claims(index):
            return family(index)
    known = dict.fromkeys(family.pipeline for family in FAMILIES)
    raise InputError(
        f"{index.path.parent}: expected a checkpoint in diffusers format of {' or '.join(known)}, but model_index.json "
        f"says {index.values.get('_class_name')!r}"
    )


def read_costs(config: Mapping[str, Any], source: object = "config.json") -> TransformerCosts:
    """Return the costs of a transformer from its config.json; `source` names that in the error.

    Raises:
        InputError: a class of transformer that no family has.
    """
    known = {family.classes["transformer"]: family for family in FAMILIES}
    name = config.get("_class_name")
    if name not in known:
        raise InputError(f"{source}: costs are known for {' and '.join(known)}, got {name!r}")
    return known[name].costs(config)
