"""docs/configs.md from the pydantic models: every setting of a run and of a batch, its kind, default and meaning.

    python tools/config_reference.py > docs/configs.md

Which values suit a checkpoint is not in it: `s2video.models.limits` checks that.
"""

from collections.abc import Iterable, Iterator

from pydantic import BaseModel

from s2video.batch.run_file import RunFile
from s2video.config.reference import Setting, describe_setting, section_model
from s2video.config.run import RunConfig
from s2video.config.sections import LoraConfig

HEAD = """# Settings

Made by `python tools/config_reference.py` from the models that check the settings (`s2video/config/`,
`s2video/batch/run_file.py`); a test keeps it current. `s2video config` prints the same table, `s2video config
guidance.s2_scale` one row of it; `configs/shapes.yaml` has all settings of a run in one file.

A config is a YAML file with these sections. Settings that it does not set come from its model's recipe, the config that
`s2video models` lists for the model, or else have the default given here. `--set guidance.s2_scale=0.3` changes one for
a run; in Python, `s2video.load(..., guidance={"s2_scale": 0.3})`. Unknown keys, wrong kinds and values out of
bounds are refused in one line, with exit code 2.
"""


def reference() -> str:
    """Return the document, as Markdown."""
    own = [name for name in RunFile.model_fields if name not in RunConfig.model_fields]
    parts = [HEAD, *_table("A run", _plain(RunConfig, ""))]
    for name in RunConfig.model_fields:
        if (section := section_model(RunConfig, name)) is not None:
            parts += _sections(name, section)
    parts += _table("`model.lora`, each", _plain(LoraConfig, ""))
    parts += _table("A batch, in addition to all of these", (describe_setting(RunFile, name) for name in own))
    return "\n".join(parts)


def _sections(name: str, model: type[BaseModel]) -> Iterator[str]:
    """A section, and those within it."""
    yield from _table(f"`{name}`", _plain(model, f"{name}."))
    for key in model.model_fields:
        if (inner := section_model(model, key)) is not None:
            yield from _sections(f"{name}.{key}", inner)


def _plain(model: type[BaseModel], prefix: str) -> Iterator[Setting]:
    names = (name for name in model.model_fields if section_model(model, name) is None)
    return (describe_setting(model, name, prefix) for name in names)


def _table(title: str, settings: Iterable[Setting]) -> Iterator[str]:
    yield f"## {title}\n"
    yield "| setting | kind | default | meaning |\n|---|---|---|---|"
    for setting in settings:
        default = setting.default if setting.default == "required" else f"`{setting.default}`"
        cells = (f"`{setting.key}`", setting.kind, default, setting.meaning)
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
    yield ""


if __name__ == "__main__":
    print(reference())
