"""Tests that docs/models.md has the plan's current values for every config."""

from pathlib import Path

from models_table import SPECIAL, row, table

ROOT = Path(__file__).parents[2]


def test_every_config_of_a_published_model_has_a_row() -> None:
    names = {path.stem for path in (ROOT / "configs").glob("*.yaml")}
    assert {name for name in names if "shapes" not in name} == set(SPECIAL)


def test_the_table_is_current() -> None:
    """To update: python tools/models_table.py, into the document."""
    assert table() in (ROOT / "docs" / "models.md").read_text(encoding="utf-8")


def test_a_row() -> None:
    """A guidance-distilled model makes cond only; S² adds 53/70 of a pass in 40 of 50 steps."""
    cells = row("hunyuanvideo-720p").split(" | ")
    assert cells[2:6] == ["60", "118800", "1.00", f"{1 + 0.8 * 53 / 70:.2f}"]
