"""Ranks that die, in jobs of real processes: the job ends, without a hang and without a file under the final name."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from tiny import PROMPT, tiny_config

DEADLINE = 30.0  # seconds until the last rank has ended


def start_ranks(world_size: int, config_file: Path, output: Path) -> list[subprocess.Popen[str]]:
    """The ranks of one job without torchrun, which would end the others for us."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "s2video", "generate", "--config", str(config_file), "--prompt", PROMPT]
    command += ["--output", str(output), "--set", "sampling.num_inference_steps=1000", "--plain"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            command,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)},
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]


@pytest.mark.parametrize(("world_size", "victim"), [(2, 0), (2, 1), (3, 1)])
def test_a_killed_rank_takes_the_job_down(tiny_checkpoint: Path, tmp_path: Path, world_size: int, victim: int) -> None:
    config_file = tmp_path / "tiny.yaml"
    config_file.write_text(yaml.safe_dump(tiny_config(tiny_checkpoint).model_dump(mode="json")), encoding="utf-8")
    output = tmp_path / "made" / "clip.mp4"
    processes = start_ranks(world_size, config_file, output)
    try:
        assert processes[0].stderr is not None
        for line in processes[0].stderr:
            if "step 100/1000" in line:
                break
        else:
            pytest.fail("the job ended before it could be disturbed")
        processes[victim].send_signal(signal.SIGKILL)
        deadline = time.monotonic() + DEADLINE
        codes = [process.wait(max(0.1, deadline - time.monotonic())) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert all(code != 0 for code in codes)
    assert not output.parent.exists() or not list(output.parent.iterdir())
