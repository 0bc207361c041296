"""From a transformer's config.json: what it computes and weighs, embed, each block and project."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import InputError
from .costs_hunyuan import HunyuanVideo15Costs, HunyuanVideoCosts
from .costs_wan import WanCosts
from .work import TransformerCosts


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
