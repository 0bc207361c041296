"""The tests that docs/testing.md names for each trouble exist; and the script of a batch on Slurm."""

import os
import re
import subprocess
from pathlib import Path

import pytest

import s2video

ROOT = Path(s2video.__file__).resolve().parents[1]
ROW = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def test_every_trouble_has_a_test_that_exists() -> None:
    text = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
    table = text[text.index("### Each trouble and its test") :]
    table = table[: table.index("\n## ")]
    rows = [line for line in table.splitlines() if line.startswith("| ") and not line.startswith("| trouble")]
    assert len(rows) >= 50
    for row in rows:
        found = ROW.findall(row)
        assert found, row
        for file, name in found:
            assert re.search(rf"^ *def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), row


@pytest.mark.parametrize(
    ("array", "shards", "expected"),
    [("1 1 16 16", "", "1/16"), ("7 7 7 1", "16", "7/16"), ("7 7 7 1", "", None), ("2 2 16 15", "", None)],
)
def test_a_task_that_is_submitted_again_makes_its_own_shard(
    array: str, shards: str, expected: str | None, tmp_path: Path
) -> None:
    """Slurm counts the tasks of one submission, not those that share the batch."""
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/sh\necho "$@"\n', encoding="utf-8")
    srun.chmod(0o755)
    names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX", "SLURM_ARRAY_TASK_COUNT")
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SHARDS": shards}
    environment |= dict(zip(names, array.split(), strict=True))
    command = ["bash", str(ROOT / "launch" / "slurm" / "batch.sbatch"), "run.yaml"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    if expected is None:
        assert done.returncode == 2 and "submit with SHARDS=N" in done.stderr and not done.stdout
    else:
        assert done.returncode == 0 and f"--shard {expected} run.yaml" in done.stdout
