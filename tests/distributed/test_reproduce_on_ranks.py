"""Tests that reproduce a video of one rank on one and two ranks, and with other weights."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from ranks import RankError, RankPool
from tiny import NUM_BLOCKS, job, tiny_config

from s2video.cli.main import main
from s2video.config.run import build_config
from s2video.engine.engine import Engine
from s2video.engine.make_video import make_video
from s2video.parallel.mesh import Mesh
from s2video.records.sidecar_model import Sidecar, read_sidecar
from s2video.review.reproduce import Remade, job_again, judge, make_again

Ranks = Callable[[int], RankPool]


@pytest.fixture(scope="module")
def made(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    values = tiny_config(tiny_checkpoint).model_dump(mode="json")
    values["sampling"]["num_inference_steps"] = 3
    config = build_config(values)
    make_video(Engine(config), job(config, folder / "clip.mp4", seed=5))
    return folder / "clip.mp4"


def again(mesh: Mesh, sidecar: Sidecar, output: Path | None = None) -> Remade | None:
    return make_again(Engine(job_again(sidecar, world_size=mesh.world.size).config, mesh), sidecar, output)


def test_on_one_rank(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "again.mp4"
    assert main(["reproduce", str(made), "--output", str(output), "--plain"]) == 0
    assert "same to the bit" in capsys.readouterr().out
    first, second = read_sidecar(made.with_suffix(".json")), read_sidecar(tmp_path / "again.json")
    assert second.latents == first.latents and second.output.sha256 == first.output.sha256


def test_on_two_ranks(made: Path, tmp_path: Path, ranks: Ranks) -> None:
    sidecar = read_sidecar(made.with_suffix(".json"))
    main_rank, other = ranks(2).run(again, sidecar, tmp_path / "again.mp4")
    said = judge(sidecar, main_rank)
    assert said.startswith("reproduced:") and "mesh.world_size was 1 and is 2" in said
    assert other is None
    assert read_sidecar(tmp_path / "again.json").latents == main_rank.latents


def test_a_difference_is_found(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A sidecar with another seed than that of the latents gives exit code 1."""
    values = json.loads(made.with_suffix(".json").read_text(encoding="utf-8"))
    values["config"]["sampling"]["seed"] = values["seed"] = 6
    values["mask_seed"] = 6
    masks = build_config(values["config"]).guidance.mask_schedule(num_blocks=NUM_BLOCKS, seed=6, num_steps=3)
    values["masks"] = masks.records()
    (tmp_path / "other.json").write_text(json.dumps(values), encoding="utf-8")
    assert main(["reproduce", str(tmp_path / "other.json"), "--plain"]) == 1
    assert "not reproduced" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["other.json"]


def test_other_weights_are_refused_on_all_ranks(made: Path, ranks: Ranks) -> None:
    sidecar = read_sidecar(made.with_suffix(".json"))
    spoilt = sidecar.model_copy(update={"weights": {name: "0" * 64 for name in sidecar.weights}})
    with pytest.raises(RankError) as caught:
        ranks(2).run(again, spoilt)
    assert caught.value.kinds == ["InputError"] * 2
    assert "not the one that made the video" in str(caught.value.messages[0])
