"""Tests of comparison videos, contact sheets, and their captions."""

import os
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont
from sidecar_helpers import made_video
from video_helpers import BLUE, GREEN, RED, SPEC, assert_tagged_bt709, bt709, noise, solid, stored_planes

from s2video.cli.main import main
from s2video.errors import InputError
from s2video.media.formats import VideoSpec
from s2video.media.video import probe_video, read_video, write_video
from s2video.review import captions
from s2video.review.captions import Caption, caption_bar, label_runs
from s2video.review.compare import compare_videos
from s2video.review.sheet import contact_sheet

LABELS = (Caption("CFG"), Caption("S²"))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pair")
    left, right = folder / "left.mp4", folder / "right.mp4"
    spec = VideoSpec(Fraction(24000, 1001), crf=0)
    dots = torch.rand(1, 64, 64, 1, generator=torch.Generator().manual_seed(0)).round().expand(5, 64, 64, 3)
    write_video([dots], left, spec, metadata={})
    write_video([solid(GREEN, num_frames=5)], right, spec, metadata={})
    return left, right


def test_side_by_side(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    path = tmp_path / "both.mp4"
    info = compare_videos(*pair, path, LABELS)
    assert info == probe_video(path)
    assert (info.num_frames, info.fps) == (5, Fraction(24000, 1001))
    assert_tagged_bt709(path)
    luma = stored_planes(path)[0]
    bar = luma.shape[0] - 384
    assert luma.shape == (bar + 384, 384 + 8 + 384)
    # Each pixel of 64x64 is a square of 6x6 with hard edges.
    squares = luma[bar:, :384].reshape(64, 6, 64, 6).transpose(0, 2, 1, 3)
    sources = stored_planes(pair[0])[0]
    assert np.abs(squares[..., 1:-1, 1:-1].mean(axis=(2, 3)) - sources).max() < 12
    assert np.abs(luma[bar + 4 : -4, 396:-4] - bt709(GREEN)[0]).max() <= 3
    # White letters on black over each video, near its middle.
    for start in (0, 392):
        caption = luma[: bar - 4, start : start + 384]
        assert caption.max() > 200
        columns = np.flatnonzero((caption > 100).any(axis=0))
        assert columns.min() + columns.max() == pytest.approx(383, abs=8)
        assert caption[:, [0, -1]].max() < 30


def test_captions_stand_for_the_whole_video(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    compare_videos(*pair, tmp_path / "both.mp4", LABELS)
    frames = read_video(tmp_path / "both.mp4")[:, :48].float()
    torch.testing.assert_close(frames[-1], frames[0], atol=40, rtol=0)
    assert frames[-1].max() > 200


def test_large_videos_keep_their_size(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    write_video(noise(2, height=400, width=320), clip, SPEC, metadata={})
    info = compare_videos(clip, clip, tmp_path / "both.mp4", (Caption("a"), Caption("x" * 200)))
    assert (info.width, info.height) == (320 + 8 + 320, 400 + 50)


def test_videos_of_any_size_rate_and_length(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    """The lower one is enlarged, the slower one repeats frames, the shorter one holds its last frame."""
    other = tmp_path / "other.mp4"
    write_video([solid(RED, 6, 96, 160), solid(BLUE, 6, 96, 160)], other, VideoSpec(Fraction(8), crf=0), metadata={})
    info = compare_videos(pair[1], other, tmp_path / "both.mp4", LABELS)
    assert info.fps == Fraction(24000, 1001) and abs(info.num_frames - 36) <= 1
    assert info.width == 384 + 8 + 640
    frames = read_video(tmp_path / "both.mp4")[:, -200]
    for column, start, end in ((200, GREEN, GREEN), (700, RED, BLUE)):
        for colour, frame in ((start, frames[1]), (end, frames[-2])):
            assert (frame[column].float() - 255 * torch.tensor(colour)).abs().max() < 16


def test_a_wipe_goes_over_and_back(tmp_path: Path) -> None:
    left, right = tmp_path / "left.mp4", tmp_path / "right.mp4"
    for path, colour in ((left, GREEN), (right, BLUE)):
        write_video([solid(colour, num_frames=8)], path, VideoSpec(Fraction(8), crf=0), metadata={})
    info = compare_videos(left, right, tmp_path / "wipe.mp4", LABELS, mode="wipe")
    assert (info.num_frames, info.width) == (8, 384)
    assert_tagged_bt709(tmp_path / "wipe.mp4")
    row = read_video(tmp_path / "wipe.mp4")[:, -100].float()
    green = (row[..., 1] > 200) & (row[..., 0] < 60)
    expected = [(0.5 - 0.5 * np.cos(2 * np.pi * n / 8)) * 384 for n in range(8)]
    assert [int(frame.sum()) for frame in green] == pytest.approx(expected, abs=6)
    assert row[2, 192].min() > 200, "the line is white"
    assert not green[2, 200:].any()


def test_titles_the_font_does_not_have(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match=r"ω.*--font"):
        compare_videos(*pair, tmp_path / "both.mp4", (Caption("CFG"), Caption("ω")))
    assert os.listdir(tmp_path) == []


def test_a_font_that_is_damaged_inside(tmp_path: Path) -> None:
    """FreeType opens it, and finds the damage when it draws."""
    content = bytearray(ImageFont.load_default(20).path.getvalue())
    start = int.from_bytes(content[content.index(b"glyf") + 8 :][:4], "big")
    content[start : start + 60_000] = b"\xff" * 60_000
    (tmp_path / "x.ttf").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.ttf: expected a font, got an error"):
        caption_bar([(Caption("a"), 0, 100)], 100, size=20, font=tmp_path / "x.ttf")


def test_a_font_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "x.ttf").write_bytes(b"none")
    with pytest.raises(InputError, match=r"x\.ttf"):
        caption_bar([(Caption("a"), 0, 100)], 100, size=20, font=tmp_path / "x.ttf")


def test_superscripts_are_raised() -> None:
    assert label_runs("S²-Guidance") == [("S", False), ("2", True), ("-Guidance", False)]


def test_long_texts_are_wrapped_and_cut() -> None:
    """No letter leaves its columns, and the bar grows by lines."""
    bars = [
        caption_bar([(Caption("a", text), 20, 160)], 200, size=20)
        for text in ("", "seed 7", "word " * 12, "word " * 400, "x" * 400, "猫é–")
    ]
    for bar in bars:
        assert bar.shape[0] % 2 == 0
        assert bar[:, :18].max() == bar[:, -18:].max() == 0
    heights = [bar.shape[0] for bar in bars]
    assert heights[0] < heights[1] < heights[2] <= heights[3] == heights[4] and heights[5] == heights[1]
    assert all((bar[40:] > 100).any() for bar in bars[1:])


def test_a_contact_sheet(tmp_path: Path) -> None:
    write_video([solid(RED, 3, 32, 48), solid(BLUE, 4, 32, 48)], tmp_path / "a.mp4", SPEC, metadata={})
    write_video([solid(GREEN, 2, 300, 480)], tmp_path / "b.mp4", SPEC, metadata={})
    videos = [(tmp_path / "a.mp4", Caption("a", "seed 1")), (tmp_path / "b.mp4", Caption("b"))]
    contact_sheet(videos, tmp_path / "sheet.png", columns=3)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB")).astype(int)
    assert sheet.shape[1] == 3 * 248 + 8
    first, second = sheet[120], sheet[-60]
    for row, x, colour in ((first, 20, RED), (first, 270, BLUE), (first, 520, BLUE), (second, 20, GREEN)):
        assert np.abs(row[x] - 255 * np.array(colour)).max() <= 6
    assert np.abs(second[270] - 255 * np.array(GREEN)).max() <= 6
    assert second[520].max() == 0, "b has two frames"


@pytest.mark.parametrize("name", ["clip.png", "clip.exr"])
def test_a_sheet_of_a_sequence(tmp_path: Path, name: str) -> None:
    video = made_video(tmp_path / name)
    write_video([solid((0.5, 0.1, 0.9), 5)], tmp_path / name, VideoSpec(Fraction(8), codec=name[-3:]), metadata={})
    assert main(["sheet", str(video.path), "-o", str(tmp_path / "sheet.jpg"), "--columns", "2"]) == 0
    sheet = np.asarray(Image.open(tmp_path / "sheet.jpg").convert("RGB")).astype(int)
    assert np.abs(sheet[-60, [20, 270]] - 255 * np.array([0.5, 0.1, 0.9])).max() <= 6


@pytest.mark.parametrize("mode", ["side", "wipe", "sheet"])
def test_the_command_names_prompt_and_seed(tmp_path: Path, mode: str) -> None:
    """The caption of a video with a sidecar is higher than that of one without."""
    made, bare = made_video(tmp_path / "made.mp4"), tmp_path / "bare.mp4"
    write_video([solid(RED, num_frames=5)], bare, SPEC, metadata={})
    heights = {}
    for left in (made.path, bare):
        output = tmp_path / f"{left.stem}-{mode}.{'png' if mode == 'sheet' else 'mp4'}"
        assert main(["compare", str(left), str(bare), "--mode", mode, "-o", str(output)]) == 0
        heights[left] = Image.open(output).height if mode == "sheet" else probe_video(output).height
    assert heights[made.path] > heights[bare]


def test_a_sheet_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.mp4", "b.mp4"):
        made_video(tmp_path / "run" / name)
    assert main(["sheet", str(tmp_path / "run"), "-o", str(tmp_path / "sheet.png"), "--columns", "1"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'sheet.png'}\n"
    assert Image.open(tmp_path / "sheet.png").height > 2 * 192


@pytest.mark.parametrize(
    "arguments",
    [
        ["compare", "none.mp4", "none.mp4", "-o", "x.mp4"],
        ["compare", "{clip}", "{text}", "-o", "{folder}/x.mp4"],
        ["compare", "{clip}", "{clip}", "-o", "{folder}/x.mov"],
        ["sheet", "{folder}/empty", "-o", "{folder}/x.png"],
        ["sheet", "{clip}", "-o", "{folder}/x.gif"],
        ["sheet", "{clip}", "-o", "{folder}/x.png", "--columns", "0"],
        ["page", "{folder}/empty"],
        ["page", "{clip}"],
    ],
)
def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    (tmp_path / "empty").mkdir()
    write_video([solid(RED)], tmp_path / "clip.mp4", SPEC, metadata={})
    (tmp_path / "text.mp4").write_text("no video")
    names = {"clip": tmp_path / "clip.mp4", "text": tmp_path / "text.mp4", "folder": tmp_path}
    before = {path.name for path in tmp_path.rglob("*")}
    assert main([argument.format(**names) for argument in arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert {path.name for path in tmp_path.rglob("*")} == before


def test_a_sheet_that_no_jpeg_can_hold_is_refused_before_any_frame_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video([solid(RED, 2, 32, 48)], tmp_path / "a.mp4", SPEC, metadata={})
    videos = [(tmp_path / "a.mp4", Caption("a"))] * 3
    contact_sheet(videos, tmp_path / "sheet.jpg", columns=2)
    with Image.open(tmp_path / "sheet.jpg") as sheet:
        height = sheet.height
    monkeypatch.setattr("s2video.review.sheet.MAX_JPEG", height)
    contact_sheet(videos, tmp_path / "sheet.jpg", columns=2)
    monkeypatch.setattr("s2video.review.sheet.MAX_JPEG", height - 1)
    monkeypatch.setattr("s2video.review.sheet.strip", None)
    with pytest.raises(InputError, match=rf"got 504x{height}; write a \.png, or name fewer videos"):
        contact_sheet(videos, tmp_path / "sheet.jpg", columns=2)
    monkeypatch.undo()
    monkeypatch.setattr("s2video.review.sheet.MAX_JPEG", height - 1)
    contact_sheet(videos, tmp_path / "sheet.png", columns=2)


@pytest.mark.parametrize("command", [["compare", "--mode", "side"], ["compare", "--mode", "sheet"], ["sheet"]])
def test_an_input_is_not_replaced(
    tmp_path: Path, pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    copies = [Path(shutil.copy(video, tmp_path)) for video in pair]
    output = copies[1] if command[-1] == "side" else tmp_path / "picture.png"
    if output != copies[1]:
        output.symlink_to(copies[1])
    before = [video.read_bytes() for video in copies]
    assert main([*command, *map(str, copies), "--output", str(output)]) == 2
    assert f"is the file of the input {copies[1]}, which is read" in capsys.readouterr().err
    assert [video.read_bytes() for video in copies] == before


def test_the_cost_of_a_caption_does_not_grow_with_its_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """The letters that are measured, which a line of 10,000 once measured 50 million times."""
    measured = 0
    getlength = ImageFont.FreeTypeFont.getlength

    def counted(font: Any, text: str, *arguments: Any, **keywords: Any) -> float:
        nonlocal measured
        measured += len(text)
        return getlength(font, text, *arguments, **keywords)

    monkeypatch.setattr(ImageFont.FreeTypeFont, "getlength", counted)
    costs = []
    for text in ("word " * 2_000, "word " * 200_000, "w" * 10_000, "w" * 1_000_000, "\u0301" * 100_000):
        measured = 0
        caption_bar([(Caption("title", text), 0, 500)], 500, size=20)
        costs.append(measured)
    assert max(costs) < 40_000


@pytest.mark.parametrize("columns", [1, 7, 60, 500])
def test_lines_are_as_long_as_fits(columns: int) -> None:
    font = captions.load_font(None, 14)
    for text in ("", "i", "iiiiiiiiiiiii", "a word and another", "WWWWWWWWWWWW", "AVAVAVAV To Ty " * 20):
        line = captions._fitting(text, font, columns)
        slow = len(text)
        while slow > 1 and font.getlength(text[:slow]) > columns:
            slow -= 1
        assert line == text[:slow]
