"""From images on the command line to files: two ranks under torchrun, then the same command again."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny import PROMPT
from tiny_wan_i2v import KINDS, image

from s2video.cli.main import main
from s2video.engine.engine import Engine
from s2video.media.video import probe_video
from s2video.models.images import Images

REPOSITORY = Path(__file__).parents[2]
FIRST, LAST = image(1, (200, 80)), image(2, (56, 40))  # neither has the video's size


@pytest.fixture(scope="module")
def made(checkpoint_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The arguments of a run by launch/i2v.py; its video is there."""
    folder = tmp_path_factory.mktemp("images")
    FIRST.save(folder / "first.png")
    LAST.save(folder / "last.png")
    config = KINDS["wan-flf2v"].config(checkpoint_of("wan-flf2v")).model_dump(mode="json")
    config["sampling"]["num_inference_steps"] = 2
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {"image": str(folder / "first.png")}))
    arguments = ["--config", str(folder / "config.yaml"), "--last-image", str(folder / "last.png")]
    arguments += ["--output", str(folder / "x.mp4"), "--prompt", PROMPT, "--seed", "3", "--keep-latents", "--plain"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    finished = subprocess.run(
        [*torchrun, "launch/i2v.py", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr
    return arguments


def test_two_ranks_make_the_video_of_one(made: list[str], checkpoint_of: Callable[[str], Path]) -> None:
    output = Path(made[made.index("--output") + 1])
    info = probe_video(output)
    assert (info.width, info.height, info.num_frames) == (112, 80, 17)
    config = KINDS["wan-flf2v"].config(checkpoint_of("wan-flf2v"))
    config = config.model_copy(update={"sampling": config.sampling.model_copy(update={"num_inference_steps": 2})})
    alone = Engine(config).sample([PROMPT], [3], images=Images(FIRST, LAST))
    latents = load_file(output.with_suffix(".latents.safetensors"))["latents"]
    torch.testing.assert_close(latents, alone, atol=1e-4, rtol=0)


def test_the_sidecar_names_the_images_and_resume_compares_them(made: list[str], tmp_path: Path) -> None:
    output = Path(made[made.index("--output") + 1])
    facts = json.loads(output.with_suffix(".json").read_text())
    folder = output.parent
    digests = Images(FIRST, LAST).digests()
    paths = [str(folder / "first.png"), str(folder / "last.png")]
    assert facts["images"] == [{"path": p, "digest": d} for p, d in zip(paths, digests, strict=True)]
    assert any(name.startswith("image_encoder/") for name in facts["weights"])

    before = output.stat().st_mtime_ns
    FIRST.save(tmp_path / "copy.png")  # the same pixels elsewhere
    assert main(["generate", *made, "--resume", "--image", str(tmp_path / "copy.png")]) == 0
    assert output.stat().st_mtime_ns == before
    image(3).save(tmp_path / "other.png")
    assert main(["generate", *made, "--resume", "--image", str(tmp_path / "other.png")]) == 0
    assert output.stat().st_mtime_ns != before
    assert json.loads(output.with_suffix(".json").read_text())["images"][0]["digest"] != digests[0]
