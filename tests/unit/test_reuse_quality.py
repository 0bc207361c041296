"""tools/reuse_quality.py: what is made once is not made again, and the table pairs clips."""

from pathlib import Path
from typing import Any

import pytest
import reuse_quality
from json_lines import read_lines
from reuse_quality import WAYS, Way, describe


def _records(rights: dict[str, list[float]]) -> list[dict[str, Any]]:
    return [
        {"way": name, "first": first, "passes": 1.0, "right": right[first : first + 2]}
        for name, right in rights.items()
        for first in range(0, len(right), 2)
    ]


def test_every_way_is_held_against_an_earlier_one() -> None:
    names = [way.name for way in WAYS]
    assert len(set(names)) == len(names)
    assert all(way.against in ("", *names[:number]) for number, way in enumerate(WAYS))
    assert [way.name for way in WAYS if way.named] == ["λ 2, fast", "λ 2, light", "λ 5, deviation"]


def test_the_rule_needs_the_whole_interval() -> None:
    exact = [0.8, 1.0] * 20
    table = describe(_records({"λ 2, exact": exact, "λ 2, fast": exact, "λ 2, light": [v - 0.1 for v in exact]}), 2)
    assert "| λ 2, fast | 1.000 | 90.0 (" in table and "| λ 2, exact | +0.0 (+0.0 to +0.0) | holds |" in table
    assert "| λ 2, exact | -10.0 (-10.0 to -10.0) | not shown |" in table
    assert "λ 2, CFG" not in table  # what was not made has no row


def test_a_run_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(reuse_quality, "STEPS", 2)
    monkeypatch.setattr(
        reuse_quality,
        "WAYS",
        (Way("λ 2, exact", {"cfg_scale": 2.0}, steps=2, against=""), Way("λ 1", {"cfg_scale": 1.0}, steps=2)),
    )
    file = tmp_path / "x.jsonl"
    command = ["--clips", "2", "--batch", "1", "--json", str(file)]
    assert reuse_quality.main(command) == 0
    first, printed = file.read_text(encoding="utf-8"), capsys.readouterr().out
    assert len(first.splitlines()) == 1 + 2 * 2
    file.write_text("".join(first.splitlines(keepends=True)[:-1]), encoding="utf-8")
    assert reuse_quality.main(command) == 0
    assert file.read_text(encoding="utf-8") == first and capsys.readouterr().out == printed
    assert reuse_quality.main([*command[:3], "2", *command[4:]]) == 2
    assert "made with other settings" in capsys.readouterr().err
    assert reuse_quality.main(["--show", str(file)]) == 0
    assert capsys.readouterr().out == printed


def test_the_page_shows_the_stored_results() -> None:
    root = Path(__file__).parents[2]
    header, records = read_lines(root / "tools" / "results" / "reuse-quality-2026-11-28.jsonl")
    assert describe(records, header["batch"]) in (root / "docs" / "evidence" / "reuse.md").read_text(encoding="utf-8")
