"""Tests that docs/configs.md matches the models of the settings."""

from pathlib import Path

from config_reference import reference

from s2video.config.run import RunConfig
from s2video.config.text import dotted_keys

DOCUMENT = Path(__file__).parents[2] / "docs" / "configs.md"


def test_the_document_is_current() -> None:
    """To update: python tools/config_reference.py > docs/configs.md"""
    assert DOCUMENT.read_text(encoding="utf-8").rstrip() == reference().rstrip()


def test_every_setting_has_a_row() -> None:
    sections = set(RunConfig.model_fields) | {
        "guidance.cfg_zero_star",
        "guidance.apg",
        "guidance.slg",
        "guidance.reuse",
    }
    single = {"prompt", "negative_prompt", "image", "last_image"}
    settings = set(dotted_keys(RunConfig)) - (sections - single)
    assert [key for key in sorted(settings) if f"| `{key}` | " not in reference()] == []


def test_kinds_bounds_and_defaults() -> None:
    rows = {line.split(" | ")[0]: line.split(" | ")[1:3] for line in reference().splitlines()}
    assert rows["| `guidance.drop_count`"] == ["whole number ≥ 0 or null", "`null`"]
    assert rows["| `sampling.flow_shift`"] == ["number > 0 or null", "`null`"]
    assert rows["| `guidance.window`"] == ["[number ≥ 0 and ≤ 1, number ≥ 0 and ≤ 1]", "`[0.1, 0.9]`"]
    assert rows["| `guidance.never_drop`"] == ["[whole number ≥ 0, ...]", "`[0]`"]
    assert rows["| `parallel.branch`"] == ["1, 2", "`1`"]
    assert rows["| `output.fps`"] == ["number, ratio", "`16`"]
    assert rows["| `negative_prompt`"] == ["text", '`""`']
