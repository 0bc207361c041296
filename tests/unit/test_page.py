"""The page of a run: whole in itself, harmless, and true."""

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from sidecar_helpers import NUM_BLOCKS, STEPS, made_video

from s2video.batch.store import Entry, Store
from s2video.cli.main import main
from s2video.errors import InputError
from s2video.review.page import Failure, mask_picture, read_failures, write_page

EVIL = "</h3><script>alert(1)</script>\"'&<b>猫"


class Reader(HTMLParser):
    """Tags with their attributes, the text, and whether all that was opened is closed."""

    VOID = ("meta", "img", "path", "rect")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def test_a_page_needs_nothing_else(tmp_path: Path) -> None:
    videos = [made_video(tmp_path / f"{seed}.mp4", seed=seed, s2_scale=seed / 10) for seed in (1, 2)]
    write_page(videos, [], tmp_path / "index.html", title="run")
    page = Reader(tmp_path / "index.html")
    embedded = [tag["src"] or "" for tag in page.all("video")]
    contents = [base64.b64decode(source.removeprefix("data:video/mp4;base64,")) for source in embedded]
    assert contents == [video.path.read_bytes() for video in videos]
    source = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|url\(|@import|<script|<link|<iframe", source)
    for expected in ("a red wall", "seed 1", "seed 2", "guidance.s2_scale", videos[0].sidecar.latents.sha256):
        assert expected in page.text
    names = {attributes.get("name") for attributes in page.all("meta")}
    assert "viewport" in names and "prefers-color-scheme: dark" in source


def test_all_text_is_escaped(tmp_path: Path) -> None:
    name = "a <b> \"#?&%'.mp4"
    videos = [made_video(tmp_path / name, prompt=EVIL)]
    write_page(videos, [Failure(EVIL, EVIL)], tmp_path / "index.html", title=EVIL)
    page = Reader(tmp_path / "index.html")
    assert page.all("script") == page.all("b") == []
    assert page.text.count(EVIL) == 5  # twice the title, prompt, name and reason of the failure
    assert [unquote(tag["href"] or "") for tag in page.all("a")] == [name]


def test_large_and_unplayable_videos_are_linked(tmp_path: Path) -> None:
    """By names relative to the page, so that both can be moved together."""
    videos = [made_video(tmp_path / "run" / name) for name in ("a b.mp4", "c.mov", "d.png")]
    write_page(videos, [], tmp_path / "pages" / "index.html", title="run", embed_below=10)
    page = Reader(tmp_path / "pages" / "index.html")
    (video,) = page.all("video")
    assert video["src"] == "../run/a%20b.mp4" and (video["poster"] or "").startswith("data:image/jpeg;base64,")
    stills = page.all("img")
    assert len(stills) == 2 and all((still["src"] or "").startswith("data:image/jpeg;base64,") for still in stills)
    assert [tag["href"] for tag in page.all("a")] == ["../run/a%20b.mp4", "../run/c.mov", "../run/d"]


def test_settings_stand_once_where_they_are_shared(tmp_path: Path) -> None:
    videos = [made_video(tmp_path / f"{n}.mp4", s2_scale=n / 10) for n in (1, 2)]
    write_page(videos, [], tmp_path / "index.html", title="run")
    text = Reader(tmp_path / "index.html").text
    assert text.count("guidance.s2_scale") == 2 and text.count("guidance.rescale") == 1


def test_images_are_named(tmp_path: Path) -> None:
    images = [{"path": "/shots/first <1>.png", "digest": "0" * 64}]
    write_page([made_video(tmp_path / "a.mp4", images=images)], [], tmp_path / "index.html", title="run")
    assert "/shots/first <1>.png" in Reader(tmp_path / "index.html").text


def test_masks_are_drawn(tmp_path: Path) -> None:
    sidecar = made_video(tmp_path / "a.mp4", num_draws=2).sidecar
    picture = mask_picture(sidecar)
    marks = {(int(x), int(y)) for x, y in re.findall(r"M(\d+)\.1 (\d+)\.1", picture)}
    assert marks == {(mask.step, NUM_BLOCKS - 1 - block) for mask in sidecar.masks for block in mask.dropped} != set()
    assert f'viewBox="0 0 {STEPS} {NUM_BLOCKS}"' in picture


def test_failures_come_from_the_state_of_a_batch(tmp_path: Path) -> None:
    made_video(tmp_path / "a.mp4")
    for shard, failing in ((None, "b.mp4"), ((1, 2), "c.mp4")):
        store = Store(tmp_path, shard)
        store.create()
        job = Entry(name=failing, place="shots.csv, line 3", models="", config="{}", key="", work=None)
        store.put([job, replace(job, name="a.mp4")], frozenset())
        assert store.draw("one", None) is not None
        assert store.fail(failing, "one", "no image x.png")
    expected = [Failure(name, "shots.csv, line 3: no image x.png") for name in ("c.mp4", "b.mp4")]
    assert read_failures(tmp_path) == expected
    assert main(["page", str(tmp_path)]) == 0
    text = Reader(tmp_path / "index.html").text
    assert "1 video, 2 failed" in text and text.count("no image x.png") == 2


def test_a_page_of_a_run_in_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made_video(tmp_path / "night" / "shots" / "a.mp4")
    assert main(["page", str(tmp_path / "night")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'night' / 'index.html'}\n"
    page = Reader(tmp_path / "night" / "index.html")
    assert page.text.count("night") == 2 and page.all("a")[0]["href"] == "shots/a.mp4"


def test_a_sidecar_without_its_video(tmp_path: Path) -> None:
    videos = [made_video(tmp_path / name) for name in ("a.mp4", "b.mp4")]
    videos[0].path.unlink()
    write_page(videos, [], tmp_path / "index.html", title="run")
    page = Reader(tmp_path / "index.html")
    assert "1 video, 1 failed" in page.text and len(page.all("video")) == 1


def test_nothing_to_show(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no videos"):
        write_page([], [], tmp_path / "index.html", title="run")
    assert not (tmp_path / "index.html").exists()
