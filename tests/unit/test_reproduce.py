"""Tests of the verdict on a second run: bitwise equal, close enough, or different."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from sidecar_helpers import made_video

from s2video.cli.main import main
from s2video.errors import InputError, S2VideoError
from s2video.records.sidecar import latents_record
from s2video.records.sidecar_model import Sidecar
from s2video.review.reproduce import Remade, check_images_again, job_again, judge

LATENTS = torch.randn(1, 4, 2, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Sidecar:
    return made_video(tmp_path_factory.mktemp("made") / "clip.mp4", latents=LATENTS).sidecar


def remade(sidecar: Sidecar, latents: torch.Tensor, **changes: Any) -> Remade:
    """Return a second run that differs only in `changes`, such as mesh={"world_size": 2}."""
    recorded = sidecar.as_json()
    here = {name: recorded[name] | changes.get(name, {}) for name in ("mesh", "machine", "versions")}
    return Remade(latents_record(latents), here)


def test_the_same_to_the_bit(sidecar: Sidecar) -> None:
    assert "same to the bit" in judge(sidecar, remade(sidecar, LATENTS))
    said = judge(sidecar, remade(sidecar, LATENTS, machine={"threads": 96}))
    assert "same to the bit" in said and f"machine.threads was {sidecar.machine.threads} and is 96" in said


def test_a_bit_counts_where_nothing_else_has_changed(sidecar: Sidecar) -> None:
    latents = LATENTS.clone()
    latents[0, 0, 0, 0, 0] = math.nextafter(float(latents[0, 0, 0, 0, 0]), 9)
    latents[0, 1, 1, 1, 1] += 1e-6
    with pytest.raises(S2VideoError, match=r"not reproduced: .*to the bit"):
        judge(sidecar, remade(sidecar, latents))


@pytest.mark.parametrize(
    "change", [{"mesh": {"world_size": 2}}, {"versions": {"torch": "9.9"}}, {"machine": {"device": "H100"}}]
)
def test_probes_decide_where_something_has_changed(sidecar: Sidecar, change: dict[str, Any]) -> None:
    said = judge(sidecar, remade(sidecar, LATENTS + 4e-4, **change))
    assert "64 values compared, largest difference 0.0004, allowed 0.001" in said and "was" in said
    with pytest.raises(S2VideoError, match=r"not reproduced: 64 values compared, largest difference 0\.002"):
        judge(sidecar, remade(sidecar, LATENTS + 2e-3, **change))


def test_other_shapes_are_not_the_same(sidecar: Sidecar) -> None:
    with pytest.raises(S2VideoError, match="shape"):
        judge(sidecar, remade(sidecar, LATENTS[:, :2]))


def test_the_mesh_is_the_recorded_one_where_the_ranks_allow_it(sidecar: Sidecar) -> None:
    four = {"world_size": 4, "ring": 2, "ulysses": 2, "branch": 1, "backend": "gloo", "device": "cpu"}
    recorded = Sidecar.model_validate(sidecar.as_json() | {"mesh": four})
    parallel = job_again(recorded, world_size=4).config.parallel
    assert (parallel.ring, parallel.ulysses, parallel.branch) == (2, 2, 1)
    parallel = job_again(recorded, world_size=3).config.parallel
    assert (parallel.ring, parallel.ulysses, parallel.branch) == (None, None, 1)
    moved = job_again(recorded, world_size=1, own={"model.path": "elsewhere", "model.device": "cuda"}).config.model
    assert (moved.path, moved.device) == ("elsewhere", "cuda")


def test_the_original_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made_video(tmp_path / "clip.mp4")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for name in ("clip.mp4", "clip.mov"):
        assert main(["reproduce", str(tmp_path / "clip.mp4"), "--output", str(tmp_path / name)]) == 2
    assert capsys.readouterr().err.count("expected a new name") == 2
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_checkpoint_that_is_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made_video(tmp_path / "clip.mp4")
    for command in (["reproduce"], ["launch", "--nproc", "2", "reproduce"]):
        assert main([*command, str(tmp_path / "clip.mp4"), "--model", "/no/such/folder"]) == 2
        assert "/no/such/folder" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "message"), [("gone.png", "gone.png"), ("other.png", "expected the picture")])
def test_images_that_are_not_those(tmp_path: Path, name: str, message: str) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "other.png")
    images = [{"path": str(tmp_path / name), "digest": "0" * 64}]
    with pytest.raises(InputError, match=message):
        check_images_again(made_video(tmp_path / "clip.mp4", images=images).sidecar)
