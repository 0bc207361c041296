"""The README's tree is true, and so are the paths and commands it names."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def listed() -> list[str]:
    """Paths of the tree, folders with a slash at the end."""
    block = re.search(r"## The house.*?```\n(.*?)```", README, re.DOTALL)
    assert block is not None
    paths, parents = [], []
    for line in block.group(1).splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        parents[depth:] = [name]
        paths.append("".join(parents))
    return paths


def tracked() -> list[str]:
    output = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    )
    return output.stdout.decode().splitlines()


def test_everything_in_the_tree_exists() -> None:
    assert len(listed()) > 40
    assert [path for path in listed() if not (ROOT / path).exists()] == []


def test_every_file_is_in_the_tree() -> None:
    """By its own line, or by that of a folder whose files are not listed one by one."""
    lines = listed()
    closed = [path for path in lines if path.endswith("/") and not any(o.startswith(path) and o != path for o in lines)]
    top = tuple(path for path in lines if path.endswith("/") and path.count("/") == 1)
    files = [path for path in tracked() if path.startswith(top) and (ROOT / path).exists()]
    marks = ("__init__.py", "py.typed")
    missing = [
        path for path in files if path not in lines and not path.startswith(tuple(closed)) and not path.endswith(marks)
    ]
    assert missing == []


def test_named_paths_exist() -> None:
    text = README.split("## The house")[0]
    named = set(re.findall(r"\b(?:configs|launch|tests|tools|docs)/[\w./-]+\.\w+", text))
    assert len(named) > 8
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
