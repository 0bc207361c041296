"""Tests of resuming an interrupted run: bitwise equal on the same ranks, within 1e-4 on others."""

import signal
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import FlowMatchEulerDiscreteScheduler
from ranks import RankPool
from test_failures import Job, start  # noqa: F401  (a fixture)
from tiny import PROMPT, job, tiny_config
from tiny_wan22 import a14b_config

from s2video.cli.main import main
from s2video.config.run import RunConfig
from s2video.engine.engine import Engine
from s2video.engine.make_video import make_video
from s2video.errors import StoppedError
from s2video.parallel.mesh import Mesh
from s2video.system.shutdown import Termination

Ranks = Callable[[int], RankPool]


class TermAtStep(Termination):
    """Send a SIGTERM to this process in the given step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self._looks_left = step

    @property
    def requested(self) -> bool:
        self._looks_left -= 1
        return self._looks_left == 0


def engine(mesh: Mesh | None, config: RunConfig, euler: bool, termination: Termination | None = None) -> Engine:
    made = Engine(config, mesh, progress="none", termination=termination)
    if euler:
        made._scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return made


def interrupted(mesh: Mesh | None, config: RunConfig, euler: bool, step: int, path: Path) -> None:
    """Only the last rank gets the request to stop."""
    is_last = mesh is None or mesh.world.rank == mesh.world.size - 1
    maker = engine(mesh, config, euler, TermAtStep(step) if is_last else None)
    with pytest.raises(StoppedError, match=f"after step {step} of 6"):
        make_video(maker, job(config, path))


def resumed(mesh: Mesh | None, config: RunConfig, euler: bool, path: Path) -> torch.Tensor:
    maker = engine(mesh, config, euler)
    kept: list[torch.Tensor] = []

    def keeps(latents: torch.Tensor, *, alone: bool = False) -> Generator[torch.Tensor, None, None]:
        kept.append(latents)
        yield torch.zeros(1, 64, 64, 3)

    maker.decode = keeps
    make_video(maker, job(config, path), resume=True)
    return kept[0] if kept else torch.empty(0)


def whole(mesh: Mesh | None, config: RunConfig, euler: bool) -> torch.Tensor:
    return engine(mesh, config, euler).sample([PROMPT], [3])


def on(ranks: Ranks, world_size: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """Return the main rank's result."""
    return function(None, *arguments) if world_size == 1 else ranks(world_size).run(function, *arguments)[0]


@pytest.mark.parametrize("euler", [False, True], ids=["unipc", "euler"])
@pytest.mark.parametrize("world_size", [1, 2])
def test_taken_up_on_the_same_ranks(
    ranks: Ranks, tiny_checkpoint: Path, tmp_path: Path, world_size: int, euler: bool
) -> None:
    config = tiny_config(tiny_checkpoint)
    expected = on(ranks, world_size, whole, config, euler)
    for step in (1, 3, 6):
        path = tmp_path / f"after{step}.mp4"
        on(ranks, world_size, interrupted, config, euler, step, path)
        assert [p.name for p in tmp_path.glob(f"after{step}.*")] == [f"after{step}.checkpoint.safetensors"]
        assert torch.equal(on(ranks, world_size, resumed, config, euler, path), expected)
        assert sorted(p.suffix for p in tmp_path.glob(f"after{step}.*")) == [".json", ".mp4"]


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_taken_up_on_other_ranks(ranks: Ranks, tiny_checkpoint: Path, tmp_path: Path, before: int, after: int) -> None:
    config = tiny_config(tiny_checkpoint)
    path = tmp_path / "clip.mp4"
    on(ranks, before, interrupted, config, False, 3, path)
    latents = on(ranks, after, resumed, config, False, path)
    torch.testing.assert_close(latents, whole(None, config, False), atol=1e-4, rtol=0)


@pytest.mark.parametrize("step", [1, 2, 4])
def test_on_either_side_of_the_turn_of_two_transformers(
    checkpoint_of: Callable[[str], Path], tmp_path: Path, step: int
) -> None:
    """The second transformer is active after two steps."""
    config = a14b_config(checkpoint_of("wan2.2-t2v"))
    interrupted(None, config, False, step, tmp_path / "clip.mp4")
    assert torch.equal(resumed(None, config, False, tmp_path / "clip.mp4"), whole(None, config, False))


def test_sigterm_while_denoising(
    start: Callable[..., Job],  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One rank gets the signal; all stop after the step with a resume point; --resume continues, here on one rank."""
    arguments = ["--set", "sampling.num_inference_steps=100", "--keep-latents"]
    job = start(2, *arguments)
    job.wait_until(lambda: "step 10/100" in job.said(0))
    job.processes[1].send_signal(signal.SIGTERM)
    assert job.codes() == [143, 143]
    said = [line for rank in (0, 1) for line in job.said(rank).splitlines() if "stopped on request" in line]
    assert len(said) == 1 and f"{job.output.with_suffix('.checkpoint.safetensors')}" in said[0]
    assert "--resume" in said[0] and job.errors() == []
    assert job.files() == ["clip.checkpoint.safetensors"]

    command = ["generate", "--config", str(tmp_path / "tiny.yaml"), "--prompt", PROMPT, "--plain"]
    assert main([*command, "--output", str(job.output), *arguments, "--resume"]) == 0
    err = capsys.readouterr().err
    assert "resuming after step" in err and "step 10/100" not in err
    assert job.files() == ["clip.json", "clip.latents.safetensors", "clip.mp4"]


def test_videos_that_are_whole_are_left_alone(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Videos of this job are kept: mp4 and sidecar exist, and every setting is equal."""
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(tiny_config(tiny_checkpoint).model_dump(mode="json")), encoding="utf-8")
    command = ["generate", "--config", str(config), "--output", str(tmp_path / "clip.mp4"), "--num-videos", "3"]
    command += ["--set", "sampling.num_frames=1", "--set", "sampling.num_inference_steps=2", "--prompt", PROMPT]
    assert main(command) == 0
    videos = [tmp_path / f"clip-00{i}.mp4" for i in range(3)]
    made = [video.stat().st_mtime_ns for video in videos]
    videos[1].unlink()
    videos[2].with_suffix(".json").unlink()
    assert main([*command, "--resume"]) == 2  # nothing says that the last one is from s2video
    assert main([*command, "--resume", "--overwrite"]) == 0
    again = [video.stat().st_mtime_ns for video in videos]
    assert [a == b for a, b in zip(made, again, strict=True)] == [True, False, False]
    assert main([*command, "--resume", "--set", "output.crf=20"]) == 0
    assert all(video.stat().st_mtime_ns != before for video, before in zip(videos, again, strict=True))
