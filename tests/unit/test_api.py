"""Tests of s2video.load: settings, videos, streams, progress and cancelling."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import s2video
from s2video.api import TextToVideo
from s2video.config.run import build_config
from s2video.engine.engine import Engine
from s2video.errors import InputError, StoppedError
from s2video.media.video import probe_video, read_video
from s2video.records.sidecar_model import find_sidecar, read_sidecar
from s2video.review.reproduce import job_again, judge, make_again

ROOT = Path(s2video.__file__).parents[1]
PROMPT = "a large red circle moving left on a gray background"
SHORT = {"num_frames": 9, "num_inference_steps": 2}


@pytest.fixture(scope="module")
def engine() -> TextToVideo:
    loaded = s2video.load("shapes-wan", sampling=SHORT, **{"model.device": "cpu"})
    assert isinstance(loaded, TextToVideo)
    return loaded


def test_a_video_is_the_engines_and_is_saved_with_its_sidecar(engine: TextToVideo, tmp_path: Path) -> None:
    video = engine(PROMPT, seed=7)
    assert video.frames.shape == (9, 64, 64, 3) and video.frames.dtype == torch.float32
    assert 0 <= float(video.frames.min()) < float(video.frames.max()) <= 1
    config = build_config(engine.config.model_dump(mode="json") | {"prompt": PROMPT})
    plain = Engine(config)
    latents = plain.sample([PROMPT], [7])
    assert torch.equal(video.latents, latents)
    assert torch.equal(video.frames, torch.cat(list(plain.decode(latents))))

    path = video.save(tmp_path / "x.mp4", crf=1)
    assert path == tmp_path / "x.mp4" and probe_video(path).metadata["title"] == PROMPT
    assert (read_video(path).float() / 255 - video.frames).abs().mean() < 0.02
    sidecar = read_sidecar(find_sidecar(path))
    assert (sidecar.prompt, sidecar.seed, sidecar.config.output.crf) == (PROMPT, 7, 1)
    assert sidecar.as_json()["masks"] == video.facts["masks"] != []
    again = make_again(Engine(job_again(sidecar, world_size=1).config), sidecar, None)
    assert again is not None and "same to the bit" in judge(sidecar, again)


def test_a_video_prints_no_pixels(engine: TextToVideo) -> None:
    assert "tensor" not in repr(engine(PROMPT, seed=7))


def test_formats(engine: TextToVideo, tmp_path: Path) -> None:
    video = engine(PROMPT, sampling={"num_frames": 1})
    assert video.save(str(tmp_path / "x.mov"), codec="prores") == tmp_path / "x.mov"
    assert video.save(tmp_path / "y.png") == tmp_path / "y"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.json", "x.mov", "y", "y.json"]
    with pytest.raises(InputError, match=r"\.mov"):
        video.save(tmp_path / "z.mp4", codec="prores")


def test_settings_by_section_and_by_dotted_name(engine: TextToVideo) -> None:
    first = engine(PROMPT, seed=1, guidance={"s2_scale": 0.0})
    second = engine(PROMPT, seed=1, **{"guidance.s2_scale": 0.0})
    third = engine(PROMPT, seed=1, **{"guidance.s2_scale": 2.0})
    assert torch.equal(first.frames, second.frames) and not torch.equal(first.frames, third.frames)
    assert first.facts["masks"] == [] and engine.config.guidance.s2_scale == 0.25
    assert first.config.guidance.cfg_scale == engine.config.guidance.cfg_scale, "the rest of the section stays"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidance": {"s2_scal": 1}}, "did you mean 'guidance.s2_scale'"),
        ({"guidence.s2_scale": 1}, "unknown key 'guidence'"),
        ({"prompt.length": 1}, "expected text, got"),
        ({"sampling.width": 70}, "multiple of 16"),
        ({"model": {"dtype": "bfloat16"}}, "load them again"),
        ({"seed": -1}, "sampling.seed"),
        ({"prompt": "  "}, "got '  '"),
    ],
)
def test_settings_that_cannot_be_used(engine: TextToVideo, settings: dict[str, Any], message: str) -> None:
    for call in (engine, engine.stream):
        with pytest.raises(InputError, match=message):
            call(**{"prompt": PROMPT, **settings})


def test_a_stream_is_the_video_in_pieces(engine: TextToVideo) -> None:
    steps: list[tuple[int, int]] = []
    stream = engine.stream(PROMPT, seed=7, on_step=lambda done, total: steps.append((done, total)))
    assert steps == []
    chunks = list(stream)
    assert steps == [(1, 2), (2, 2)] and [len(chunk) for chunk in chunks] == [1, 4, 4]
    assert torch.equal(torch.cat(chunks), engine(PROMPT, seed=7).frames)


def test_a_stream_can_be_left(engine: TextToVideo) -> None:
    stream = engine.stream(PROMPT)
    first = next(stream)
    stream.close()
    assert first.shape == (1, 64, 64, 3)
    assert next(engine.stream(PROMPT)).equal(first), "the models are as they were"


@pytest.mark.parametrize("call", ["__call__", "stream"])
def test_false_calls_off(engine: TextToVideo, call: str) -> None:
    function: Callable[..., Any] = getattr(engine, call)

    def run(on_step: Callable[[int, int], object]) -> list[Tensor]:
        made = function(PROMPT, on_step=on_step)
        return [made.frames] if call == "__call__" else list(made)

    with pytest.raises(StoppedError, match="after step 1 of 2"):
        run(lambda done, total: False)
    assert run(lambda done, total: None), "only False stops"

    def fail(done: int, total: int) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run(fail)


def test_a_yaml_file_can_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("model: {path: shapes-wan, device: cpu}\nsampling: {num_frames: 5}\n")
    engine = s2video.load(tmp_path / "mine.yaml", sampling={"num_inference_steps": 1})
    assert (engine.config.sampling.num_frames, engine.config.sampling.num_inference_steps) == (5, 1)


def test_a_model_that_is_no_name() -> None:
    with pytest.raises(InputError, match="model: expected a name, a path or a Hub id, got NoneType"):
        s2video.load(None)  # type: ignore[arg-type]


def test_one_process_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"s2video\.Engine"):
        s2video.load("shapes-wan")


def test_the_face_is_cheap_to_import() -> None:
    code = "import sys, s2video; print(sorted({'torch', 'numpy', 'pydantic', 'yaml', 'av'} & set(sys.modules)))"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert finished.stdout.strip() == "[]"


def test_a_prompt_that_is_cut_is_said_and_recorded(
    engine: TextToVideo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = engine("red circle " * 300)
    assert "warning: prompt: the model reads" in capsys.readouterr().err
    engine("red circle " * 300, seed=5)
    assert capsys.readouterr().err == "", "once for a prompt, not for each seed"
    engine._engine.sample(["blue circle " * 300, "blue circle " * 300], [1, 2], mask_seed=0)
    assert capsys.readouterr().err.count("warning: prompt: the model reads") == 1
    record = read_sidecar(find_sidecar(video.save(tmp_path / "long.mp4")))
    (cut,) = record.cut_prompts
    assert (cut.field, cut.kept) == ("prompt", engine.config.sampling.max_sequence_length) and cut.tokens > cut.kept
    assert engine(PROMPT).facts["cut_prompts"] == [] and capsys.readouterr().err == ""
