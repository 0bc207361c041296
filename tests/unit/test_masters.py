"""What masters say about themselves: exact rates, timecode, reel, shot and version, where the format can hold them."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import OpenImageIO as oiio
import pytest
from PIL import Image
from video_helpers import solid

from s2video.batch.run_file import load_batch
from s2video.config.run import RunConfig, build_config
from s2video.errors import InputError, S2VideoError
from s2video.media.formats import FORMATS, Codec, place_of
from s2video.media.png_text import add_texts
from s2video.media.video import probe_video, write_videos
from s2video.records.targets import targets_of

NTSC = {23.976: "24000/1001", 29.97: "30000/1001", 59.94: "60000/1001", "23.98": "24000/1001", "47.952": "48000/1001"}
PROMPT = 'a röd square = "red"\nand more'


def written(tmp_path: Path, output: dict[str, Any]) -> RunConfig:
    """Write frames under some settings of `output`, and return the job."""
    config = build_config({"prompt": PROMPT, "output": {**output, "path": str(tmp_path / output["path"])}})
    facts = {"prompt": PROMPT, "seed": 7, "model": "m", "config": config.model_dump(mode="json")}
    targets = [
        target.__class__(target.path, target.spec, target.metadata) for target in targets_of(config, facts, dict)
    ]
    write_videos([solid((0.5, 0.25, 0.75), 3)], targets)
    return config


def header(path: Path) -> dict[str, Any]:
    image = oiio.ImageInput.open(str(path))
    assert image is not None, oiio.geterror()
    found = {attribute.name: attribute.value for attribute in image.spec().extra_attribs}
    image.close()
    return found


@pytest.mark.parametrize(("given", "ratio"), NTSC.items(), ids=map(str, NTSC))
def test_rounded_ntsc_rates_mean_the_ratios_everywhere(given: Any, ratio: str, tmp_path: Path) -> None:
    config = written(tmp_path, {"path": "x.mov", "fps": given, "also": ["h264", "exr"]})
    assert config.model_dump(mode="json")["output"]["fps"] == ratio
    assert [probe_video(tmp_path / name).fps for name in ("x.mov", "x.mp4")] == [Fraction(ratio)] * 2
    stored = header(tmp_path / "x" / "x.1001.exr")["framesPerSecond"]
    assert Fraction(*stored) == Fraction(ratio)


def test_headers_of_exr_are_read_back(tmp_path: Path) -> None:
    named = {"reel": "A001C002", "shot": "sh010", "version": "v002"}
    written(tmp_path, {"path": "x.exr", "fps": 29.97, "timecode": "00:00:59;28", **named})
    for number, label in ((1001, 28), (1002, 29), (1003, 2)):
        found = header(tmp_path / "x" / f"x.{number}.exr")
        assert Fraction(*found["framesPerSecond"]) == Fraction(30000, 1001)
        packed = found["smpte:TimeCode"][0]
        assert (packed & 0x3F) == label // 10 << 4 | label % 10 and packed >> 6 & 1  # drop-frame
        assert found["chromaticities"] == pytest.approx((0.64, 0.33, 0.3, 0.6, 0.15, 0.06, 0.3127, 0.329))
        assert (found["shot"], found["shotVersion"], found["reelName"]) == ("sh010", "v002", "A001C002")
        assert (found["prompt"], found["seed"]) == (PROMPT, "7")


def test_a_reel_is_stored_with_the_timecode_of_a_mov(tmp_path: Path) -> None:
    written(tmp_path, {"path": "x.mov", "reel": "A001C002", "timecode": "01:00:00:00", "also": ["h264", "png"]})
    found: dict[str, Any] = {}
    with av.open(str(tmp_path / "x.mov")) as container:
        for stream in container.streams:
            found |= stream.metadata
    assert (found["reel_name"], found["timecode"]) == ("A001C002", "01:00:00:00")
    with av.open(str(tmp_path / "x.mp4")) as container:
        assert not any("reel_name" in stream.metadata for stream in container.streams)


def test_png_files_have_texts(tmp_path: Path) -> None:
    written(tmp_path, {"path": "x.png", "fps": 23.976, "reel": "A1", "shot": "sh 010", "version": "v003"})
    for frame in sorted((tmp_path / "x").iterdir()):
        with Image.open(frame) as image:
            image.load()
            texts = image.text  # type: ignore[attr-defined]
        assert texts["Title"] == PROMPT and texts["Comment"].endswith(": m, seed 7")
        expected = {"FrameRate": "24000/1001", "Reel": "A1", "Shot": "sh 010", "ShotVersion": "v003"}
        assert expected.items() <= texts.items() and texts["Software"].startswith("s2video ")


def test_texts_leave_the_pixels_as_they_are(tmp_path: Path) -> None:
    Image.new("RGB", (3, 2), (1, 2, 3)).save(tmp_path / "a.png")
    add_texts(tmp_path / "a.png", {"Title": "t", "Empty": ""})
    with Image.open(tmp_path / "a.png") as image:
        assert image.getpixel((2, 1)) == (1, 2, 3) and image.text == {"Title": "t"}  # type: ignore[attr-defined]
    (tmp_path / "b.png").write_bytes(b"GIF89a")
    with pytest.raises(S2VideoError, match=r"wrote no PNG file to b\.png"):
        add_texts(tmp_path / "b.png", {})


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ({"path": "x.mp4", "reel": "A1"}, "h264 files cannot hold the name of a reel; set output.reel to null"),
        ({"path": "x.mov", "reel": "A1"}, "MOV stores it with the timecode; set output.timecode too"),
        ({"path": "x.exr", "reel": "A 1"}, "expected 1 to 32 letters"),
        ({"path": "x.exr", "reel": "A" * 33}, "expected 1 to 32 letters"),
        ({"path": "x.exr", "reel": "A\n"}, "expected 1 to 32 letters"),
    ],
)
def test_reels_that_cannot_be_stored_are_refused(output: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_config({"output": output}).output.specs()


@pytest.mark.parametrize("codec", FORMATS)
def test_a_further_file_leaves_out_what_its_format_cannot_hold(codec: Codec) -> None:
    settings = {"path": "x.exr", "reel": "A1", "timecode": "01:00:00:00"}
    name = {"name": "{name}_2.{ext}", "codec": codec}
    [copy] = build_config({"output": {**settings, "also": [name]}}).output.copies()
    spec = copy.spec(Path(copy.path))
    assert (spec.reel is not None) == FORMATS[codec].has_reel
    assert (spec.timecode is not None) == FORMATS[codec].has_timecode
    assert place_of(Path(copy.path)).stem == "x_2"


def test_a_batch_names_shot_and_version(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "folder: out\nfields: {version: 3}\noutput: {codec: exr}\n"
        "shots: [{shot: sh010, prompt: a}, {shot: sh020, prompt: b, output.shot: other, fields.version: v12}, c]\n",
        encoding="utf-8",
    )
    said = [(job.config.output.shot, job.config.output.version) for job in load_batch(path).jobs]
    assert said == [("sh010", "v003"), ("other", "v012"), ("003", "v003")]
