"""Tests of training embedded models: targets of the heads against the renderer, and steps from the packaged weights."""

import os
import random
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import train_shapes
from diffusers import AutoencoderKLWan, WanPipeline
from shapes.designs import DESIGNS
from shapes.heads import IGNORED, PATCH_FRAMES, PATCH_PIXELS, VALUES, PlaceHeads, WordHeads, patch_owners, phrase_labels
from shapes.train_vae import reconstruction_errors
from shapes.world import BACKGROUNDS, COLORS, Scene, Thing, caption, render, sample_scene
from torch import Tensor

from s2video.models.checkpoint import find_checkpoint
from s2video.system.locks import held_lock

TEXT = "a small red circle moving left and a large blue square moving up on a gray background"


def named(labels: dict[str, list[int]], name: str) -> list[str | None]:
    return [None if label == IGNORED else VALUES[name][label] for label in labels[name]]


def test_each_word_of_a_phrase_is_asked_for_its_own_phrase() -> None:
    labels = phrase_labels(TEXT, length=20)
    first, second = slice(0, 6), slice(7, 13)
    for name, expected in {
        "color": ("red", "blue"),
        "shape": ("circle", "square"),
        "size": ("small", "large"),
        "direction": ("left", "up"),
    }.items():
        read = named(labels, name)
        assert read[first] == [expected[0]] * 6
        assert read[second] == [expected[1]] * 6
        assert read[6:7] + read[13:] == [None] * 8, "words between phrases belong to no phrase"
    assert labels["phrase"] == [0] * 6 + [IGNORED] + [1] * 6 + [IGNORED] * 7


def test_what_a_phrase_leaves_open_is_not_asked() -> None:
    labels = phrase_labels("a red circle and a large blue square", length=8)
    assert named(labels, "size") == [None] * 4 + ["large"] * 4
    assert named(labels, "direction") == [None] * 8
    assert set(phrase_labels("", length=3)["phrase"]) == {IGNORED}


def test_every_caption_of_the_world_is_understood() -> None:
    rng = random.Random(0)
    for _ in range(200):
        scene = sample_scene(rng, num_things=2)
        labels = phrase_labels(caption(scene), length=64)
        for number, thing in enumerate(scene.things):
            at = labels["phrase"].index(number)
            assert {name: named(labels, name)[at] for name in VALUES} == {name: getattr(thing, name) for name in VALUES}


def test_patches_belong_to_the_shape_that_is_drawn_there() -> None:
    """In rendered pixels, a patch's mean colour is nearest to its owner's."""
    rng = random.Random(1)
    scenes = [sample_scene(rng, num_things=2) for _ in range(20)]
    owners = patch_owners(scenes).view(len(scenes), -1, 4, 4)
    video, _ = render(scenes)
    assert owners.shape[1] == 1 + 16 // PATCH_FRAMES
    checked = 0
    for scene, frames, of_scene in zip(scenes, video / 2 + 0.5, owners, strict=True):
        for t, row, column in [(t, r, c) for t in range(5) for r in range(4) for c in range(4)]:
            times = slice(0, 1) if t == 0 else slice(4 * t - 3, 4 * t + 1)
            rows, columns = (slice(PATCH_PIXELS * i, PATCH_PIXELS * (i + 1)) for i in (row, column))
            pixels = frames[:, times, rows, columns].flatten(1)
            palette = [BACKGROUNDS[scene.background], *(COLORS[thing.color] for thing in scene.things)]
            shares = [share_of(pixels, color) for color in palette]
            owner = int(of_scene[t, row, column])
            if owner:
                assert shares[owner] > max(shares[1:]) - 0.05
                checked += 1
            else:
                assert max(shares[1:]) < 0.1
    assert checked > 200


def share_of(pixels: Tensor, color: tuple[float, float, float]) -> float:
    distance = (pixels - torch.tensor(color)[:, None]).abs().amax(dim=0)
    return float((distance < 0.02).float().mean())


def test_heads_are_wrong_about_swapped_attributes_only_where_they_differ() -> None:
    """With states that contain the answers, the loss is near 0 for the right scene only, not for a swapped one."""
    first = Thing("red", "circle", "small", "left", 7.5, 50.0, 15.0)
    second = Thing("blue", "square", "large", "up", 12.5, 30.0, 46.0)
    scene, swapped = Scene((first, second), "white"), Scene((second, first), "white")
    owners = patch_owners([scene])
    heads = PlaceHeads(3)
    heads.norm = torch.nn.Identity()
    for name, head in heads.heads.items():
        head.weight.data.zero_()
        head.bias.data.zero_()
        for number, thing in enumerate(scene.things):
            head.weight.data[VALUES[name].index(getattr(thing, name)), number + 1] = 20
    heads.heads["color"].weight.data[-1, 0] = 20
    states = torch.nn.functional.one_hot(owners.long(), 3).float()
    assert heads(states, [scene], owners).item() < 1e-3
    assert heads(states, [swapped], owners).item() > 5
    assert WordHeads(3)(states, [""]).item() == 0, "an empty caption asks nothing"


@pytest.mark.filterwarnings("ignore")
def test_a_few_steps_from_the_shipped_weights_make_a_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [
        "--work",
        str(tmp_path / "work"),
        "--output",
        str(tmp_path / "model"),
        "--init",
        str(find_checkpoint("shapes-wan")),
    ]
    arguments += ["--clips", "4", "--family-clips", "4", "--word-steps", "2", "--steps", "2", "--batch-size", "4"]
    monkeypatch.setattr(sys, "argv", ["train_shapes.py", *arguments, "--threads", "1", "--device", "cpu"])
    assert train_shapes.main() == 0
    log = (tmp_path / "work" / "transformer.jsonl").read_text()
    assert '"words"' in log and '"places"' in log
    pipeline = WanPipeline.from_pretrained(tmp_path / "model")
    state = pipeline.text_encoder.state_dict()
    assert not any("heads" in name for name in state), "the heads are of training alone"
    before = WanPipeline.from_pretrained(find_checkpoint("shapes-wan")).text_encoder.state_dict()
    assert any(not torch.equal(state[name], before[name]) for name in state)


FEW = ["--design", "shapes-wan-24", "--clips", "4", "--family-clips", "4", "--vae-steps", "2", "--word-steps", "2"]
FEW += ["--steps", "2", "--batch-size", "4", "--threads", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work folder of a training of a few steps."""
    work = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(sys, "argv", ["train_shapes.py", "--work", str(work), *FEW])
        assert train_shapes.main() == 0
    return work


@pytest.mark.filterwarnings("ignore")
def test_a_new_design_is_trained_from_nothing_and_fits(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path = shutil.copytree(trained, tmp_path / "work")
    pipeline = WanPipeline.from_pretrained(tmp_path / "model")
    config, design = pipeline.transformer.config, DESIGNS["shapes-wan-24"]
    assert (config.num_layers, config.ffn_dim, pipeline.vae.config.decoder_base_dim) == (24, 256, 28)
    assert sum(file.stat().st_size for file in (tmp_path / "model").rglob("*.safetensors")) <= design.max_bytes
    card = (tmp_path / "model" / "README.md").read_text()
    assert "mean error, of 2 from black to white: edges " in card
    assert "# shapes-wan-24" in card and "--design shapes-wan-24" in card and "64x64 pixels, 17 frames" in card
    for damage, said in (
        (lambda: None, "run.json: expected --design shapes-wan, got shapes-wan-24"),
        ((tmp_path / "run.json").unlink, "vae.pt: expected the state of this training"),
    ):
        damage()
        other = ["--design", "shapes-wan", "--work", str(tmp_path), "--threads", "1"]
        monkeypatch.setattr(sys, "argv", ["train_shapes.py", *other])
        assert train_shapes.main() == 2, "its folder is no other design's"
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", ["vae.pt", "latents.safetensors", "transformer.pt", "run.json", "lock"])
@pytest.mark.filterwarnings("ignore")
def test_a_work_folder_that_was_damaged_or_is_in_use_is_refused(
    name: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    work = shutil.copytree(trained, tmp_path / "work")
    monkeypatch.setattr(sys, "argv", ["train_shapes.py", "--work", str(work), *FEW])
    with held_lock(work / "lock") if name == "lock" else nullcontext():
        if name != "lock":
            os.truncate(work / name, 40)
        assert train_shapes.main() == 2
    said = capsys.readouterr().err
    assert said.splitlines()[-1].startswith("train_shapes: error: ") and str(work) in said


@torch.no_grad()
def test_errors_of_a_vae_are_told_by_place() -> None:
    """The shipped one errs most at outlines, least on the background."""
    vae = AutoencoderKLWan.from_pretrained(find_checkpoint("shapes-wan"), subfolder="vae", dtype=torch.float32)
    found = reconstruction_errors(vae, seed=0, count=2)
    assert 0.03 < found["edges"] < 0.2 and found["background"] < found["inside"] < found["edges"]


@pytest.mark.parametrize("init", ["shapes-wan", "missing"])
def test_a_start_of_another_design_is_refused(
    init: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = find_checkpoint("shapes-wan") if init == "shapes-wan" else tmp_path / init
    arguments = ["--design", "shapes-wan-24", "--init", str(folder), "--work", str(tmp_path / "work"), "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["train_shapes.py", *arguments])
    assert train_shapes.main() == 2
    assert "expected" in (said := capsys.readouterr().err) and said.count("\n") == 1
    assert not (tmp_path / "work").exists()
