"""Review copies with slate and burn-in, and the page that plays, wipes and compares versions."""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from editing import EditRun, generate

from s2video.batch.picks import decide
from s2video.cli.main import main
from s2video.errors import InputError
from s2video.media.video import probe_video, read_video
from s2video.review.copies import Facts, write_copy


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def is_text(frame: torch.Tensor, rows: slice, columns: slice = slice(None)) -> bool:
    """Whether there are white letters on a dark ground."""
    part = frame[rows, columns].float().mean(2)
    return bool((part > 200).any()) and 0 < float((part > 120).float().mean()) < 0.5


def timecode_of(path: Path) -> str | None:
    with av.open(str(path)) as container:
        streams = [*container.streams, container]
        return next((stream.metadata["timecode"] for stream in streams if "timecode" in stream.metadata), None)


def test_copies_have_a_slate_and_facts_and_leave_the_masters_alone(
    edit_run: EditRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    decide(edit_run.folder, ["sh030_s0"], "rejected")
    before, output = digests(edit_run.folder), tmp_path / "review"
    assert main(["copies", str(edit_run.folder), "-o", str(output), "--height", "96"]) == 0
    captured = capsys.readouterr()
    assert "sh030: no take of it is usable; it gets no copy" in captured.err
    names = ["sh010_s0_review.mp4", "sh020_v002_s0_review.mp4"]
    assert sorted(path.name for path in output.iterdir()) == names
    assert captured.out.split() == [str(output / name) for name in names]
    copy = output / names[1]
    master = edit_run.folder / "sh020_v002_s0.mp4"
    info = probe_video(copy)
    assert (info.num_frames, info.fps) == (10, probe_video(master).fps)  # the slate and nine
    assert (info.width, info.height, info.matrix, info.color_range) == (480, 96 + 2 * 28, "bt709", "tv")
    assert timecode_of(copy) == "00:59:59:23"  # the slate's
    frames = read_video(copy)
    assert is_text(frames[0], slice(0, 150)) and frames[0, -2:, :2].float().mean() > 10  # a dark gray slate
    for frame in frames[1:]:
        assert is_text(frame, slice(0, 28), slice(0, 200)) and is_text(frame, slice(0, 28), slice(300, 480))
        assert is_text(frame, slice(-28, None), slice(0, 300)) and is_text(frame, slice(-28, None), slice(400, 480))
    assert not torch.equal(frames[1][-28:, 400:], frames[2][-28:, 400:])  # 1001, 1002
    picture = frames[1:, 28:-28, 192:288].float()[:, 1::3, 1::3]  # 3 times as large
    assert (picture - read_video(master).float()).abs().mean() < 6
    assert digests(edit_run.folder) == before
    assert (
        main(["copies", str(edit_run.folder), "-o", str(output), "--height", "96", "--all"]) == 0
    )  # its own are replaced
    assert len(list(output.iterdir())) == 4


def test_plain_proxies_are_the_pictures_alone(made_run: EditRun, tmp_path: Path) -> None:
    source = made_run.folder / "sh010_s0.mp4"
    assert main(["copies", str(source), "-o", str(tmp_path), "--no-slate", "--no-burn-in", "--height", "64"]) == 0
    proxy = tmp_path / "sh010_s0_proxy.mp4"
    info = probe_video(proxy)
    assert (info.width, info.height, info.num_frames) == (64, 64, 5) and timecode_of(proxy) == "01:00:00:00"
    assert (read_video(proxy).float()[:, ::2, ::2] - read_video(source).float()).abs().mean() < 6


def test_a_changed_video_gets_no_words_of_its_sidecar(
    edit_run: EditRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = edit_run.folder / "sh010_s0.mp4"
    source.write_bytes((edit_run.folder / "sh030_s0.mp4").read_bytes() + b"\0" * 8)
    assert main(["copies", str(source), "-o", str(tmp_path / "x"), "--height", "64"]) == 0
    assert "its copy says nothing of its sidecar" in capsys.readouterr().err
    name = os.fsdecode(b"an old name\xff.mp4")
    shutil.copy(source, tmp_path / name)
    assert main(["copies", str(tmp_path / name), "-o", str(tmp_path / "x"), "--height", "64"]) == 0


def test_a_sheet_says_shots_versions_and_picks(
    edit_run: EditRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide(edit_run.folder, ["sh020_v002"], "picked")
    shown: list[str] = []
    monkeypatch.setattr(
        "s2video.review.sheet.contact_sheet", lambda rows, *_, **__: shown.extend(c.title for _, c in rows)
    )
    assert main(["sheet", str(edit_run.folder), "-o", str(tmp_path / "sheet.png")]) == 0
    assert shown[1:3] == ["sh020 v001: sh020_s0", "sh020 v002, picked: sh020_v002_s0"]


def test_copies_that_cannot_be_made(made_run: EditRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = str(made_run.folder / "sh010_s0.mp4")
    (tmp_path / "sh010_s0_review.mp4").write_bytes(b"mine")
    for arguments, message in [
        ([str(tmp_path / "none.mp4"), "-o", str(tmp_path)], "expected a video, or a folder of videos, found none"),
        ([str(tmp_path), "-o", str(tmp_path)], "expected videos with their sidecars, found none"),
        ([source, "-o", str(tmp_path), "--height", "10"], "--height: expected pixels from 64"),
        ([source, source, "-o", str(tmp_path)], "both copies would be"),
        ([source, "-o", str(tmp_path)], "expected no file, or an unchanged one of s2video"),
        ([source, str(tmp_path / "sh010_s0_review.mp4"), "-o", str(tmp_path), "--overwrite"], "which is read"),
    ]:
        assert main(["copies", *arguments]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(InputError, match=r"expected a name that ends in \.mp4"):
        write_copy(Path(source), tmp_path / "x.mov", Facts("a", "b", ()))


# The page


def test_the_page_plays_wipes_and_compares_versions(edit_run: EditRun, browser: Any) -> None:
    assert edit_run.batch("--version", "3", "--only", "sh020", "--set", "guidance.s2_scale=1") == 0
    decide(edit_run.folder, ["sh020_v002"], "picked", note="the door <opens>")
    decide(edit_run.folder, ["sh020_v003"], "rejected")
    assert main(["page", str(edit_run.folder)]) == 0
    page = browser.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto((edit_run.folder / "index.html").as_uri())
    group = page.locator("article", has=page.locator("h3", has_text="sh020"))
    said = group.locator("figcaption strong").all_inner_texts()
    assert said == ["v001", "0.25", "v002 · picked", "0.5", "v003 · rejected", "1.0"]
    assert "the door <opens>" in group.inner_text()
    assert group.locator("figure.rejected").count() == 1
    assert page.locator("#videos + .cards article").count() == 2  # the shots with one version
    first, second = group.locator("[data-part=first]"), group.locator("[data-part=second]")
    assert not first.is_visible()
    group.locator("[data-part=wipe]").click()
    shown = [figure.get_attribute("class") or "" for figure in group.locator("figure:has(video)").all()]
    assert shown == ["", "first", "rejected second"]
    first.select_option("0")
    second.select_option("1")
    visible = [video.is_visible() for video in group.locator("video").all()]
    assert visible == [True, True, False]
    group.locator("[data-part=forward]").click()
    assert group.locator("[data-part=frame]").inner_text() == "2 / 9"
    group.locator("[data-part=wipe]").click()
    assert all(video.is_visible() for video in group.locator("video").all()) and not second.is_visible()
    assert errors == []
    page.close()


LOADED = """Promise.all([...document.querySelectorAll("video")].map((video) => new Promise((resolve, reject) => {
    const answer = () => resolve([video.videoWidth, video.duration]);
    if (video.readyState >= 2) answer();
    video.addEventListener("loadeddata", answer);
    video.addEventListener("error", () => reject(video.error.message));
})))"""


def test_the_page_plays_proxies_of_masters_that_browsers_do_not(
    tiny_checkpoint: Path, tmp_path: Path, browser: Any
) -> None:
    """Two ProRes masters with a proxy each, an EXR master of which a proxy was made later, and one without any."""
    folder = tmp_path / "run"
    for scale in ("0.25", "0.5"):
        more = ["--also", "{name}_proxy.mp4", "--set", f"guidance.s2_scale={scale}", "--set", "output.fps=24"]
        assert generate(tiny_checkpoint, folder / f"a{scale[2:]}.mov", *more) == 0
    for name, seed in (("b.exr", "1"), ("c.mov", "2")):
        assert generate(tiny_checkpoint, folder / name, "--seed", seed) == 0
    copies = ["copies", str(folder / "b"), "-o", str(folder / "copies"), "--height", "64"]
    assert main([*copies, "--no-slate", "--no-burn-in"]) == 0 == main(copies)
    assert main(["page", str(folder)]) == 0
    page = browser.new_page()
    page.goto((folder / "index.html").as_uri())
    assert page.locator("header").inner_text().count("4 videos") == 1  # takes, not files
    found = page.evaluate(LOADED)
    assert [width for width, _ in found] == [32, 32, 64] and found[0][1] == pytest.approx(5 / 24, abs=0.01)
    pair = page.locator("article.group")
    assert pair.locator("video").count() == 2 and pair.locator("[data-part=wipe]").count() == 1
    pair.locator("[data-part=forward]").click()
    assert pair.locator("[data-part=frame]").inner_text() == "2 / 5"
    said = page.locator("main").inner_text()
    assert said.count(", which is shown") == 3 and "a25.mov · a25_proxy.mp4, which is shown" in said
    assert "b · b_proxy.mp4, which is shown · b_review.mp4" in said
    assert page.locator("img.still").count() == 1  # of the one without a proxy
    page.close()
    # a proxy of frames that were made again since is none of theirs
    assert generate(tiny_checkpoint, folder / "b.exr", "--seed", "3") == 0
    assert main(["page", str(folder)]) == 0
    text = (folder / "index.html").read_text(encoding="utf-8")
    assert text.count(", which is shown") == 2 and text.count("no sidecar") == 2
