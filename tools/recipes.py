"""The settings of configs/ for s2video/assets/recipes.yaml, by model, for `s2video.load`: python tools/recipes.py

Run it when a config has changed; a test says when.
"""

from pathlib import Path
from typing import Any

import yaml

from s2video.config.run import RunConfig, load_config

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "s2video" / "assets" / "recipes.yaml"
HEAD = "# The settings of configs/, by model, less those that are the defaults. Written by tools/recipes.py.\n"


def recipes() -> dict[str, dict[str, Any]]:
    """Model -> settings that are not the defaults, of every config that is one model's."""
    found = {}
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        if path.stem.startswith("batch-"):
            continue
        values = load_config(path).model_dump(mode="json")
        del values["prompt"], values["output"]["path"]
        model = values["model"].pop("path")
        assert model not in found, f"{model}: two configs, and one recipe"
        found[model] = changed(values, RunConfig().model_dump(mode="json"))
    return found


def changed(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Those values that are not the defaults, sections without any left out."""
    pairs = ((k, changed(v, defaults[k]) if isinstance(v, dict) else v) for k, v in values.items())
    return {key: value for key, value in pairs if value != ({} if isinstance(value, dict) else defaults[key])}


def main() -> None:
    RECIPES.write_text(HEAD + yaml.safe_dump(recipes(), allow_unicode=True, sort_keys=False, width=1000), "utf-8")


if __name__ == "__main__":
    main()
