"""Tests that the README is short and that its tree lists the folders that exist."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def folders_of(document: str, heading: str) -> list[str]:
    """Return the folders in the tree below a heading, with a final slash. Each line has one and its description."""
    block = re.search(rf"^## {heading}\n\n```\n(.*?)```", document, re.DOTALL | re.MULTILINE)
    assert block is not None
    paths, parents = [], []
    for line in block.group(1).splitlines():
        name, *description = line.split()
        assert description, line
        depth = (len(line) - len(line.lstrip())) // 2
        parents[depth:] = [name]
        paths.append("".join(parents))
    return paths


def tracked_folders() -> set[str]:
    """Return the top folders with files in git and the package's folders, with a final slash."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    )
    files = [Path(name) for name in listed.stdout.decode().splitlines() if (ROOT / name).exists()]
    top = {f"{file.parts[0]}/" for file in files if len(file.parts) > 1 or (ROOT / file).is_dir()}  # also a link
    package = {f"s2video/{file.parts[1]}/" for file in files if file.parts[0] == "s2video" and len(file.parts) > 2}
    return {folder for folder in top | package if not folder.startswith(".")}


def test_it_has_at_most_180_lines() -> None:
    assert len(README.splitlines()) <= 180


def test_the_tree_lists_every_folder_and_nothing_else() -> None:
    assert sorted(folders_of(README, "Folders")) == sorted(tracked_folders())


def test_the_architecture_lists_the_other_folders() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed = folders_of(page, "Other folders")
    assert [folder for folder in listed if not (ROOT / folder).is_dir()] == []
    assert {folder for folder in tracked_folders() if not folder.startswith("s2video/")} <= set(listed)


def test_its_sections_stand_in_order() -> None:
    assert re.findall(r"^## (.+)$", README, re.MULTILINE) == [
        "Two commands",
        "A first video",
        "In your own diffusers pipeline",
        "Eight GPUs",
        "A batch",
        "Models",
        "Measured",
        "Folders",
        "Documents",
    ]


def test_the_two_commands_and_the_environment() -> None:
    section = README.split("## Two commands")[1].split("## ")[0]
    assert [
        text for text in ("bash launch/demo.sh", "bash tests/run.sh", ".venv/bin/activate") if text not in section
    ] == []


def test_every_config_of_a_model_is_named() -> None:
    names = {path.stem for path in (ROOT / "configs").glob("*.yaml")} - {"batch-shapes"}
    own = {"shapes": "shapes-wan", "shapes-24": "shapes-wan-24"}  # names of the embedded models
    assert own.keys() <= names
    assert sorted(name for name in names if f"`{own.get(name, name)}`" not in README) == []
