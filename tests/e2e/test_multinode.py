"""Two torchruns of one rank each on this host, which meet on loopback as two nodes would, and make one video."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny import PROMPT, tiny_config

REPOSITORY = Path(__file__).parents[2]
NODES = 2

# Slurm's part, played on one host: every node runs the command that srun is given.
SRUN = f"""#!/bin/sh
while case "$1" in --*) true;; *) false;; esac; do shift; done
for node in $(seq {NODES}); do "$@" & nodes="$nodes $!"; done
for node in $nodes; do wait "$node" || exit 1; done
"""
SCONTROL = "#!/bin/sh\necho 127.0.0.1\necho 127.0.0.2\n"


@pytest.fixture
def arguments(tiny_checkpoint: Path, tmp_path: Path) -> list[str]:
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(tiny_config(tiny_checkpoint).model_dump(mode="json")), encoding="utf-8")
    return ["--config", str(config), "--prompt", PROMPT, "--output", str(tmp_path / "made" / "clip.mp4"), "--plain"]


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def finish(processes: list[subprocess.Popen[str]]) -> tuple[str, str]:
    """What they wrote, together, after all have ended well."""
    try:
        written = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * len(processes), written
    return "".join(out for out, _ in written), "".join(err for _, err in written)


def check_made(folder: Path, stdout: str) -> None:
    assert stdout.split() == [str(folder / "clip.mp4")]
    assert sorted(path.name for path in folder.iterdir()) == ["clip.json", "clip.mp4"]
    assert json.loads((folder / "clip.json").read_text())["mesh"]["world_size"] == NODES


def popen(command: list[str], **variables: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=pipe, stderr=pipe, text=True)


def test_the_slurm_script(arguments: list[str], port: int, tmp_path: Path) -> None:
    for name, script in (("srun", SRUN), ("scontrol", SCONTROL)):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(script)
        path.chmod(0o755)
    slurm = {"SLURM_JOB_ID": "4711", "SLURM_NNODES": str(NODES), "SLURM_JOB_NODELIST": "n[1-2]"}
    own = {"PYTHON": sys.executable, "RDZV_PORT": str(port), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    stdout, stderr = finish([popen(["bash", "launch/slurm/t2v.sbatch", *arguments], **slurm, **own)])
    check_made(tmp_path / "made", stdout)
    assert "starting with the first step" in stderr


def test_launch_on_two_nodes(arguments: list[str], port: int, tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "s2video", "launch", "--nproc", "1", "--nnodes", str(NODES)]
    meet = ["--rdzv-endpoint", f"127.0.0.1:{port}", "t2v", *arguments]
    stdout, _ = finish([popen([*launch, "--node-rank", str(node), *meet]) for node in range(NODES)])
    check_made(tmp_path / "made", stdout)
