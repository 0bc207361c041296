"""Tests of tools/vbench.py: VBench's names, a batch with them, and its measure without weights."""

import json
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from vbench import DIMENSIONS, FLICKER, flicker_score, main, read_info
from video_helpers import LOSSLESS, noise, solid

from s2video.batch.run_file import load_batch
from s2video.cli.main import main as s2video
from s2video.config.run import read_config
from s2video.errors import InputError
from s2video.media.video import VideoSpec, read_video, write_video

CONFIGS = Path(__file__).parents[2] / "configs"
SHAPES = CONFIGS / "shapes.yaml"
INFO = [
    {"prompt_en": "a small red circle moving left on a gray background", "dimension": ["color"]},
    {"prompt_en": "a blue square, still", "dimension": [FLICKER]},
    {"prompt_en": "A blue square, still", "dimension": ["scene", "background_consistency"]},
    {"prompt_en": "a small red circle moving left on a gray background", "dimension": ["scene"]},
]


def info_file(folder: Path, entries: Any = INFO) -> Path:
    path = folder / "info.json"
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path


def prepare(folder: Path, *arguments: Any, config: Path = SHAPES) -> Path:
    output = folder / "run.yaml"
    given = ["prepare", "--info", info_file(folder), "--config", config, "--output", output, *arguments]
    assert main(list(map(str, given))) == 0
    return output


def test_five_videos_a_prompt_and_twenty_five_of_the_flickering_ones(tmp_path: Path) -> None:
    jobs = load_batch(prepare(tmp_path)).jobs
    counts = {prompt: [job.config.prompt for job in jobs].count(prompt) for prompt in read_info(info_file(tmp_path))}
    assert list(counts.values()) == [2 * 5, 2 * 25, 2 * 5]


def test_both_methods_have_the_same_seeds_and_no_two_samples_have(tmp_path: Path) -> None:
    jobs = load_batch(prepare(tmp_path)).jobs
    seeds = {
        scale: [job.config.sampling.seed for job in jobs if job.config.guidance.s2_scale == scale]
        for scale in (0.0, 0.25)
    }
    assert seeds[0.0] == seeds[0.25]
    assert len(set(seeds[0.0])) == len(seeds[0.0]) == 35


def test_the_seeds_of_a_prompt_do_not_depend_on_the_choice(tmp_path: Path) -> None:
    def seeds(*arguments: Any) -> set[tuple[str | None, int]]:
        return {(job.config.prompt, job.config.sampling.seed) for job in load_batch(prepare(tmp_path, *arguments)).jobs}

    some = seeds("--dimensions", "scene", "--samples", 2)
    assert len(some) == 4 and some < seeds()


@pytest.mark.parametrize("name", ["wan2.1-t2v-1.3b-480p", "wan2.1-t2v-14b-720p"])
def test_wan_has_the_papers_settings(tmp_path: Path, name: str) -> None:
    """App. B.4: λ = 5, ω = 0.25, other settings as in the model's recipe."""
    path = CONFIGS / f"{name}.yaml"
    cfg, s2 = load_batch(prepare(tmp_path, "--samples", 1, "--dimensions", "color", config=path)).jobs
    own = read_config(path)
    for job, scale in ((cfg, 0.0), (s2, 0.25)):
        assert (job.config.guidance.cfg_scale, job.config.guidance.s2_scale) == (5.0, scale)
        assert job.config.model == own.model and job.config.negative_prompt == own.negative_prompt
        assert job.config.sampling.model_copy(update={"seed": 0}) == own.sampling
        assert job.config.output.fps == own.output.fps


def test_a_batch_of_shapes_wan_ends_under_vbenchs_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two prompts, one sample, in this process; names that differ only in case do not collide in the batch."""
    settings = ["--set", "sampling.num_inference_steps=2", "--set", "sampling.num_frames=5"]
    choice = ["--samples", 1, "--flicker-samples", 1, "--s2-scales", 0.25, "--dimensions", FLICKER, "scene"]
    run_file = prepare(tmp_path, *choice, *settings, "--set", "model.device=cpu")
    assert main(["collect", str(run_file)]) == 1
    assert "3 videos are missing" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert s2video(["batch", str(run_file)]) == 0
    for _ in range(2):  # the same again
        assert main(["collect", str(run_file)]) == 0
        folder = tmp_path / "run" / "vbench" / "s2_scale-0.25"
        assert sorted(path.name for path in folder.iterdir()) == sorted(
            f"{prompt}-0.mp4" for prompt in {entry["prompt_en"] for entry in INFO}
        )
    capsys.readouterr()
    scores = tmp_path / "scores.json"
    assert main(["flicker", str(folder), "--info", str(info_file(tmp_path)), "--json", str(scores)]) == 0
    (result,) = json.loads(scores.read_text()).values()
    assert list(result["videos"]) == ["a blue square, still-0.mp4"]
    assert 0 < result[FLICKER] < 1
    assert capsys.readouterr().out.startswith(f"{100 * result[FLICKER]:.2f}  1 videos")


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({}, "expected a list of prompts"),
        ([], "expected a list of prompts"),
        (["a prompt"], "entry 1: expected an object with prompt_en"),
        ([*INFO, {"prompt_en": "x", "dimension": "color"}], "entry 5: expected an object with prompt_en"),
        ([{"prompt_en": "x", "dimension": ["colour"]}], "got 'colour'"),
        ([{"prompt_en": "a/b", "dimension": ["color"]}], "no file name can hold 'a/b'"),
        ([{"prompt_en": "ä" * 130, "dimension": ["color"]}], "no file name can hold"),
    ],
)
def test_what_is_not_vbenchs_file_is_refused(tmp_path: Path, entries: Any, words: str) -> None:
    with pytest.raises(InputError) as caught:
        read_info(info_file(tmp_path, entries))
    assert words in str(caught.value)


def test_mistakes_end_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = ["--info", str(tmp_path / "none.json"), "--config", str(SHAPES), "--output", str(tmp_path / "run.yaml")]
    assert main(["prepare", *missing]) == 2
    missing[1] = str(info_file(tmp_path))
    assert main(["prepare", *missing, "--set", "output.codec=prores"]) == 2
    assert main(["prepare", *missing, "--set", "guidance.cfg_scal=3"]) == 2
    assert main(["flicker", str(tmp_path)]) == 2
    said = ("cannot be read", "wants .mp4 files, got prores", "unknown key", "expected .mp4 files, found none")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(said) and all(words in line for words, line in zip(said, lines, strict=True))
    assert [path.name for path in tmp_path.iterdir()] == ["info.json"]


def test_there_are_sixteen_dimensions() -> None:
    assert len(set(DIMENSIONS)) == 16


def film(path: Path, chunks: Iterable[torch.Tensor]) -> Path:
    write_video(chunks, path, LOSSLESS, metadata={})
    return path


def test_flickering_is_one_less_the_mean_difference(tmp_path: Path) -> None:
    still = film(tmp_path / "still.mp4", [solid((0.5, 0.5, 0.5), 3)])
    blinking = film(tmp_path / "blinking.mp4", [solid((0, 0, 0)), solid((1, 1, 1)), solid((1, 1, 1))])
    assert flicker_score(still) == 1
    assert flicker_score(blinking) == 0.5
    noisy = film(tmp_path / "noisy.mp4", noise(4))
    frames = read_video(noisy).double()
    differences = [(frames[i + 1] - frames[i]).abs().mean() for i in range(3)]  # as in VBench
    assert flicker_score(noisy) == pytest.approx(float((255 - torch.stack(differences).mean()) / 255), abs=1e-12)


def test_one_frame_has_no_flickering(tmp_path: Path) -> None:
    path = tmp_path / "one.mp4"
    write_video([solid((1, 0, 0))], path, VideoSpec(Fraction(8)), metadata={})
    with pytest.raises(InputError, match="at least two frames"):
        flicker_score(path)


def test_the_run_file_says_what_its_model_is(tmp_path: Path) -> None:
    values = yaml.safe_load(prepare(tmp_path).read_text(encoding="utf-8"))
    assert values["model"]["path"] == "shapes-wan"
    assert "path" not in values["output"] and "prompt" not in values
