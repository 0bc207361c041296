"""The commands of docs/fleet.md that need one machine only, one after the other in one folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from doc_commands import ROOT, commands

from s2video.batch.status import read_status

OPENJD = str(Path(sys.executable).with_name("openjd"))
NOT_HERE = [  # marked with what they need
    "pip install s2video[ray]",
    "s2video batch configs/batch-shapes.yaml --ray auto --replicas 4 --nproc 8",
    "s2video batch configs/batch-shapes.yaml --ray 10.0.0.1:6379 --replicas 4",
    "openjd run runs/bundle/template.json",
    *["python tools/fleet_scale.py"] * 3,
    "python tools/ray_faults.py runs/ray-faults",
]


def test_the_commands_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    monkeypatch.chdir(tmp_path)
    left = []
    for command in commands():
        line = " ".join(command.words)
        if command.document != "docs/fleet.md":
            continue
        if any(map(line.startswith, NOT_HERE)):
            assert command.is_marked, line
            left.append(line)
            continue
        program, *words = command.words
        words = [*words, "--set", "sampling.num_inference_steps=1"] if words[0] == "batch" else words
        start = [OPENJD] if program == "openjd" else [sys.executable, "-m", program]
        done = subprocess.run([*start, *words], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}: {done.stderr}"
        if words[0] == "batch":
            status = read_status(Path("runs/batch-shapes"))
            assert status.count("done") == len(status.records) == 8
            assert len(done.stdout.split()) == 8 and all(Path(path).is_file() for path in done.stdout.split())
    assert [line[: len(head)] for line, head in zip(left, NOT_HERE, strict=True)] == NOT_HERE
