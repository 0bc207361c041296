"""Tests of pairs, measures without weights, costs, intervals and verdicts."""

import json
import math
import os
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from studies.cells import evaluations
from study_helpers import StudyRun, write_clip

from s2video.config.run import RunConfig
from s2video.errors import InputError
from s2video.media.video import read_video
from s2video.records.sidecar_model import ComputedSteps, read_sidecar
from s2video.study import measures as measuring
from s2video.study.bootstrap import Bootstrap, Estimate, Sample, prompts_needed
from s2video.study.clips import Clip, Study, Video, pair_folders, read_study
from s2video.study.costs import passes_of, seconds_of
from s2video.study.gather import measured_study
from s2video.study.measures import MEASURES, Measured, measure_frames, measure_video
from s2video.study.results import SAME, TOO_FEW, Results, compare
from s2video.study.text import as_text

HERE = Path("frames")


def moving_noise(dx: int, dy: int = 0, *, size: int = 64, num_frames: int = 4) -> list[np.ndarray]:
    """Smooth random patches that move by whole pixels a frame."""
    rng = np.random.default_rng(0)
    field = rng.uniform(0, 255, (size + 64, size + 64))
    field = (field + np.roll(field, 1, 0) + np.roll(field, 1, 1) + np.roll(field, (1, 1), (0, 1))) / 4
    starts = [(32 - dy * n, 32 - dx * n) for n in range(num_frames)]
    return [np.repeat(field[y : y + size, x : x + size, None], 3, 2).astype(np.uint8) for y, x in starts]


# measures


def test_flicker_is_vbenchs(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", torch.rand(5, 32, 48, 3, generator=torch.Generator().manual_seed(0)))
    change = float(read_video(path).double().diff(dim=0).abs().mean())
    assert measure_video(path)["temporal_flickering"] == pytest.approx(1 - change / 255, abs=1e-9)
    still = [np.full((16, 16, 3), 90, np.uint8)] * 3
    assert measure_frames(still, HERE)["temporal_flickering"] == 1


@pytest.mark.parametrize(("dx", "dy"), [(0, 0), (2, 0), (3, -4)])
def test_motion_is_the_displacement_in_percent_of_the_width(dx: int, dy: int) -> None:
    found = measure_frames(moving_noise(dx, dy), HERE)["motion"]
    assert found == pytest.approx(100 * math.hypot(dx, dy) / 64, abs=0.6)  # blocks at the edge come from outside


def test_flat_frames_and_small_noise_do_not_move() -> None:
    rng = np.random.default_rng(1)
    frames = [np.clip(128 + rng.normal(0, 1, (64, 64, 3)), 0, 255).astype(np.uint8) for _ in range(3)]
    assert measure_frames(frames, HERE)["motion"] < 0.3


def test_motion_does_not_depend_on_the_resolution() -> None:
    small = moving_noise(2)
    large = [frame.repeat(4, 0).repeat(4, 1) for frame in small]  # 256 px wide
    assert measure_frames(large, HERE)["motion"] == pytest.approx(measure_frames(small, HERE)["motion"], rel=0.1)


def test_contrast_saturation_and_sharpness_of_known_pictures() -> None:
    halves = np.zeros((16, 16, 3), np.uint8)
    halves[:, 8:] = 255
    assert measure_frames([halves], HERE)["contrast"] == pytest.approx(127.5, abs=0.1)
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 200
    assert measure_frames([red, halves], HERE)["saturation"] == pytest.approx(100)
    assert measure_frames([red], HERE)["sharpness"] == 0
    checks = ((np.indices((16, 16)).sum(0) % 2) * 255)[..., None].repeat(3, 2).astype(np.uint8)
    assert measure_frames([checks], HERE)["sharpness"] == pytest.approx(4 * 255, rel=1e-5)
    blurred = moving_noise(0)[0].astype(float)
    blurred = (blurred + np.roll(blurred, 1, 0) + np.roll(blurred, 1, 1)) / 3
    sharp, soft = (measure_frames([f.astype(np.uint8)], HERE)["sharpness"] for f in (moving_noise(0)[0], blurred))
    assert soft < 0.7 * sharp


def test_a_single_frame_has_no_flicker_and_no_motion() -> None:
    found = measure_frames([np.zeros((2, 2, 3), np.uint8)], HERE)
    assert math.isnan(found["temporal_flickering"]) and math.isnan(found["motion"]) and found["contrast"] == 0


def test_files_that_are_no_videos_are_left_out_and_named(elsewhere: dict[str, Path], tmp_path: Path) -> None:
    broken = elsewhere["mine"] / "prompt 0-0.mp4"
    broken.write_bytes(b"no video")
    study, scores = measured_study(pair_folders(elsewhere), tmp_path / "cache.json")
    assert "mine" not in study.clips[0].videos and any(str(broken) in note for note in study.notes)
    assert len(scores["contrast"]) == 15
    with pytest.raises(InputError, match=r"cannot read .* as a video"):
        measure_video(broken)


def test_videos_that_browsers_do_not_play_are_named(elsewhere: dict[str, Path], tmp_path: Path) -> None:
    study, _ = measured_study(pair_folders(elsewhere), tmp_path / "cache.json")
    assert not study.notes
    for name in ("prompt 0-0", "prompt 0-1"):
        (elsewhere["mine"] / f"{name}.mp4").rename(elsewhere["mine"] / f"{name}.mov")
    study, _ = measured_study(pair_folders(elsewhere), tmp_path / "cache.json")
    assert study.notes == (
        "browsers do not play prompt 0-0 of mine (h264 in .mov) and 1 more: convert to H.264 in .mp4 before you vote",
    )


def test_measures_are_kept_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_clip(tmp_path / "a.mp4", torch.rand(2, 16, 16, 3))
    calls = []
    monkeypatch.setattr(measuring, "measure_video", lambda video: calls.append(video) or measure_video(video))
    cache = tmp_path / "cache.json"

    def measured() -> dict[str, float]:
        kept = Measured(cache)
        found = kept.of(path)
        kept.save()
        return found

    assert measured() == measured() and len(calls) == 1
    cache.write_text('{"version": 1, "videos": {"x": NaN, "y": {"stamp": [1], "measures": {}}}}')
    measured()
    cache.write_text("[")
    measured()
    write_clip(path, torch.rand(2, 16, 16, 3))
    measured()
    assert len(calls) == 4


# pairs


def test_videos_made_elsewhere_are_paired_by_name(elsewhere: dict[str, Path]) -> None:
    write_clip(elsewhere["mine"] / "only here.mp4", torch.zeros(1, 16, 16, 3))
    study = read_study(elsewhere["cfg"].parent)
    assert study.settings == ("cfg", "mine") and study.num_prompts == 4 and len(study.clips) == 8
    assert study.clips[0].prompt == "prompt 0" and "1 videos are in one folder only" in study.notes[0]
    assert read_study(elsewhere["cfg"].parent, base="mine").base == "mine"
    with pytest.raises(InputError, match="--base: expected one of cfg, mine, got 'x'"):
        read_study(elsewhere["cfg"].parent, base="x")


def test_prompts_of_videos_made_elsewhere(elsewhere: dict[str, Path], tmp_path: Path) -> None:
    table = tmp_path / "prompts.csv"
    table.write_text('video,prompt\nprompt 0-0.MP4,"a wall, red"\ncfg/prompt 0-1,another\n')
    prompts = {clip.name: clip.prompt for clip in pair_folders(elsewhere, prompts=table).clips}
    assert prompts["prompt 0-0"] == "a wall, red" and prompts["prompt 0-1"] == "another"
    assert prompts["prompt 1-0"] == "prompt 1"
    for folder in elsewhere.values():
        for path in folder.glob("prompt [123]*"):
            path.unlink()
    assert pair_folders(elsewhere).num_prompts == 2, "all clips would be one prompt"
    for text, message in (
        ("a,b\n", "expected a header video,prompt"),
        ("video,prompt\nx.mp4,a\n", "expected names of the videos, such as prompt 0-0, got others, such as x"),
        ("video,prompt\nx.mp4,a\nx,b\n", "line 3: expected x once"),
    ):
        table.write_text(text)
        with pytest.raises(InputError, match=message):
            pair_folders(elsewhere, prompts=table)


def test_folders_that_cannot_be_paired(elsewhere: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: expected a folder of videos"):
        pair_folders({**elsewhere, "empty": tmp_path / "empty"})
    shutil.move(elsewhere["mine"] / "prompt 0-0.mp4", tmp_path / "empty" / "other.mp4")
    with pytest.raises(InputError, match="expected videos with the same file name"):
        pair_folders({"cfg": elsewhere["cfg"], "other": tmp_path / "empty"})


def test_a_video_that_was_changed_loses_its_sidecar(study_copy: StudyRun) -> None:
    with (study_copy.folder / "s2" / "001-1.mp4").open("ab") as file:
        file.write(b"x")
    study = read_study(study_copy.folder)
    assert study.clips[0].videos["s2"].sidecar is None and "001-1.mp4: changed" in study.notes[0]


def test_other_noise_in_a_pair_is_told(study_copy: StudyRun) -> None:
    for name in ("001-1.mp4", "001-1.json"):
        shutil.copy(study_copy.folder / "s2" / name.replace("001", "002"), study_copy.folder / "s2" / f"x{name}")
    (study_copy.folder / "study.json").unlink()
    for suffix in ("mp4", "json"):
        (study_copy.folder / "s2" / f"x001-1.{suffix}").replace(study_copy.folder / "s2" / f"001-1.{suffix}")
    sidecar = study_copy.folder / "s2" / "001-1.json"
    sidecar.write_text(sidecar.read_text().replace('"name": "002-1.mp4"', '"name": "001-1.mp4"'))
    notes = " ".join(read_study(study_copy.folder).notes)
    assert "different seeds" in notes and "different prompts" in notes


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{",
        '{"study": 2}',
        '{"study": 1, "settings": {"a": {}, "b": {}}, "clips": [{"name": "../x", "prompt": ""}]}',
        '{"study": 1, "settings": {"a": {}, "b": {}}, "clips": [{"name": "001-1", "prompt": "\\ud800"}]}',
        '{"study": 1, "settings": {"..": {}, "b": {}}, "clips": [{"name": "x", "prompt": ""}]}',
    ],
)
def test_a_damaged_manifest_is_one_line(study_copy: StudyRun, text: str) -> None:
    (study_copy.folder / "study.json").write_text(text)
    with pytest.raises(InputError, match="run the study again, which writes it"):
        read_study(study_copy.folder)


# costs


def test_passes_are_those_of_the_drawn_masks(made_study: StudyRun) -> None:
    for setting in ("cfg", "s2", "strong"):
        sidecar = read_sidecar(made_study.folder / setting / "002-1.json")
        counted = evaluations(
            sidecar.config.guidance,
            num_blocks=sidecar.num_blocks,
            num_steps=sidecar.steps_taken,
            mask_seed=sidecar.mask_seed,
        )
        assert passes_of(sidecar) == pytest.approx(counted)
    assert passes_of(read_sidecar(made_study.folder / "cfg" / "001-1.json")) == 6


def test_passes_of_reuse_and_of_other_methods(made_study: StudyRun) -> None:
    sidecar = read_sidecar(made_study.folder / "s2" / "001-1.json")
    first = next(mask for mask in sidecar.masks)
    computed = ComputedSteps(cond=(0, 2), uncond=(0,), sub=(first.step,))
    one = sidecar.model_copy(update={"computed": computed, "masks": (first,)})
    exact = passes_of(sidecar.model_copy(update={"masks": (first,)}))
    assert exact is not None and passes_of(one) == pytest.approx(exact - 6 + 3)

    def under(**guidance: object) -> float | None:
        values = sidecar.config.model_dump(mode="json")
        values["guidance"] |= {"s2_scale": 0.25, **guidance}
        config = RunConfig.model_validate(values)
        return passes_of(sidecar.model_copy(update={"config": config, "masks": ()}))

    assert under(method="cfg_zero_star") == 6 and under(cfg_scale=1.0) == 3
    assert under(cfg_scale=1.0, cfg_scale_2=3.0) is None
    slg = under(method="slg", slg={"layers": [6], "start": 0.0, "stop": 1.0})
    assert slg is not None and 6 < slg < 9


def test_seconds_of_a_resumed_clip_do_not_count(made_study: StudyRun) -> None:
    sidecar = read_sidecar(made_study.folder / "cfg" / "001-1.json")
    assert seconds_of(sidecar) == sidecar.timings["denoise_seconds"]
    assert seconds_of(sidecar.model_copy(update={"resumed_after_step": 2})) is None


# verdicts


def numbers_study(num_prompts: int, takes: int = 1) -> Study:
    video = Video(Path("x.mp4"), None)
    clips = [
        Clip(f"{prompt}-{take}", f"prompt {prompt}", {"cfg": video, "s2": video})
        for prompt in range(num_prompts)
        for take in range(takes)
    ]
    return Study("s", ("cfg", "s2"), tuple(clips), {"cfg": {}, "s2": {}})


def judged(differences: list[float], takes: int = 1) -> Results:
    study = numbers_study(len(differences) // takes, takes)
    rng = np.random.default_rng(0)
    values = {}
    for clip, difference in zip(study.clips, differences, strict=True):
        base = rng.normal(0, 50)  # clips differ far more than settings
        values |= {(clip.name, "cfg"): base, (clip.name, "s2"): base + difference}
    return compare(study, {"m": values}, {})


def test_verdicts() -> None:
    rng = np.random.default_rng(0)

    def verdict(values: list[float]) -> tuple[str, int | None]:
        (difference,) = judged(values).rows[0].differences
        return difference.verdict, difference.needed

    assert verdict([1.0 + 0.1 * x for x in rng.normal(size=30)]) == ("higher", None)
    assert verdict([-1.0 + 0.1 * x for x in rng.normal(size=30)]) == ("lower", None)
    text, needed = verdict([0.1 + x for x in rng.normal(size=30)])
    assert text == TOO_FEW and needed is not None and needed > 30
    assert verdict([1.0] * 5) == (TOO_FEW, 6), "five of five with the same sign are a chance of 6 %"
    assert verdict([1.0] * 6) == ("higher", None)
    assert verdict([0.0] * 9) == (SAME, None)
    assert verdict([math.nan] * 9) == (TOO_FEW, None)


def test_clips_of_a_prompt_are_one_observation() -> None:
    values = np.random.default_rng(3).normal(0.4, 1, 30)
    once, often = judged(list(values)), judged(list(values.repeat(8)), takes=8)
    (one,), (eight,) = once.rows[0].differences, often.rows[0].differences
    assert eight.estimate == pytest.approx(one.estimate) and (eight.num_clips, eight.num_prompts) == (240, 30)


def test_the_needed_number_is_that_of_a_power_calculation() -> None:
    """An effect of half a standard deviation needs ((1.96 + 0.84) / 0.5)² = 31 prompts."""
    values = np.random.default_rng(0).normal(size=2000)
    values = 0.5 + (values - values.mean()) / values.std()
    found = Bootstrap(2000, resamples=1000).mean(Sample(values, np.arange(2000)))
    assert prompts_needed(found, 2000) == pytest.approx(31.4, rel=0.12)
    assert prompts_needed(Estimate(1e-9, -1, 1), 30) is None and prompts_needed(Estimate(0, -1, 1), 30) is None
    assert prompts_needed(Estimate(math.nan, math.nan, math.nan), 30) is None


def test_missing_videos_are_told_and_pairs_stay_whole(elsewhere: dict[str, Path], tmp_path: Path) -> None:
    extra = tmp_path / "third"
    shutil.copytree(elsewhere["mine"], extra)
    (extra / "prompt 0-0.mp4").unlink()
    study, scores = measured_study(pair_folders({**elsewhere, "third": extra}), tmp_path / "c.json")
    results = compare(study, scores, MEASURES)
    assert "1 of 8 videos of third are missing" in " ".join(results.notes)
    counts = {each.setting: each.num_clips for each in results.rows[0].differences}
    assert counts == {"mine": 8, "third": 7}
    assert [cost.passes for cost in results.costs] == [None] * 3


def test_the_command_on_videos_made_elsewhere(
    elsewhere: dict[str, Path], capsys: pytest.CaptureFixture[str], made_study: StudyRun
) -> None:
    folder = elsewhere["cfg"].parent
    capsys.readouterr()
    assert made_study.study(folder) == 0
    text = capsys.readouterr().out
    assert "4 prompts, 8 clips of each setting; cfg is the base" in text
    assert text.splitlines()[-1] == str(folder / "study.html") and (folder / "study.html").is_file()
    assert f"{TOO_FEW}: at least 6 prompts are needed, there are 4" in text
    named = [f"{name}={path}" for name, path in elsewhere.items()]
    assert made_study.study("--videos", *named, "--base", "mine", "-o", folder / "p.html", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["base"] == "mine" and answer["page"] == str(folder / "p.html") and (folder / "p.html").is_file()
    (contrast,) = (row for row in answer["rows"] if row["measure"] == "contrast")
    assert contrast["differences"][0]["estimate"][0] < 0, "the other one is darker"


def test_file_names_can_hold_any_bytes(elsewhere: dict[str, Path], made_study: StudyRun) -> None:
    for folder in elsewhere.values():
        (folder / "prompt 0-0.mp4").rename(folder / os.fsdecode(b"caf\xe9.mp4"))
    assert made_study.study(elsewhere["cfg"].parent, "--embed", "0") == 0
    assert 'src="cfg/caf%E9.mp4"' in (elsewhere["cfg"].parent / "study.html").read_text(encoding="utf-8")


def test_the_table_has_true_minus_signs_and_even_digits() -> None:
    text = as_text(judged([-1.0 + 0.01 * n for n in range(20)]))
    line = next(line for line in text.splitlines() if line.startswith("m "))
    assert "−0.905" in line and "lower" in line and "-" not in line


def test_a_measured_file_is_a_video_that_ffmpeg_wrote(elsewhere: dict[str, Path]) -> None:
    """The fixture's files are what they say, so that the tests above can fail."""
    with av.open(str(elsewhere["cfg"] / "prompt 0-0.mp4")) as container:
        assert len(list(container.decode(video=0))) == 3
