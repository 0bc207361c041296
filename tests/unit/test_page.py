"""Tests of the page of a run: one file, complete, with all text escaped."""

import base64
import hashlib
import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import pytest
from jinja2 import UndefinedError
from page_reader import PageReader
from sidecar_helpers import NUM_BLOCKS, STEPS, made_video

from s2video.batch.store import Entry, Store
from s2video.cli.main import main
from s2video.errors import InputError
from s2video.review.groups import group_videos
from s2video.review.html import environment, render, source
from s2video.review.page import MAX_NAMED, Failure, mask_picture, read_failures, write_page

EVIL = '</script></h3><script>alert(1)</script>"\' onload="x" &amp;&<b>猫{{ 7 * 7 }}{% raw %}-->'


class Reader(PageReader):
    """Collect the text outside scripts and styles too."""

    def __init__(self, path: Path) -> None:
        self.text = ""
        self.sources: dict[str, str] = {"script": "", "style": ""}
        super().__init__(path.read_text(encoding="utf-8"))

    def handle_data(self, data: str) -> None:
        inside = self.open[-1] if self.open else ""
        if inside in self.sources:
            self.sources[inside] += data
        else:
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
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|url\(|@import|<iframe|fetch\(|XMLHttpRequest|import\(", text)
    assert page.all("script") == [{}] and [tag["href"] for tag in page.all("link")] == ["data:,"]
    for expected in ("a red wall", "seed 1", "seed 2", "guidance.s2_scale", videos[0].sidecar.latents.sha256):
        assert expected in page.text
    names = {attributes.get("name") for attributes in page.all("meta")}
    assert "viewport" in names and "prefers-color-scheme: dark" in text


def structure(path: Path) -> list[tuple[str, list[str]]]:
    """Return tags with the names of their attributes."""
    return [(tag, list(attributes)) for tag, attributes in Reader(path).tags]


def test_all_text_is_escaped(tmp_path: Path) -> None:
    name = "a <b> \"#?&%'.mp4"
    videos = [made_video(tmp_path / name, prompt=EVIL)]
    write_page(videos, [Failure(EVIL, EVIL)], tmp_path / "index.html", title=EVIL)
    page = Reader(tmp_path / "index.html")
    assert page.all("b") == []
    assert page.text.count(EVIL) == 5  # twice the title, prompt, name and reason of the failure
    links = [unquote(tag["href"] or "") for tag in page.all("a")]
    assert links == ["#main", name]


def test_nothing_from_outside_breaks_out_of_its_place(tmp_path: Path) -> None:
    """With any text, the page has the same elements, attributes, script and style."""
    for folder, text in (("plain", "word"), ("evil", EVIL)):
        images = [{"path": text, "digest": "0" * 64}]
        videos = [
            made_video(tmp_path / folder / f"{text.replace('/', '')}{n}{suffix}", prompt=text, seed=seed, s2_scale=n)
            for seed, suffix in ((1, ".mp4"), (2, ".mov"))
            for n in (0, 1)
        ]
        videos.append(made_video(tmp_path / folder / "single.mp4", prompt=text, seed=3, images=images))
        write_page(videos, [Failure(text, text)], tmp_path / folder / "index.html", title=text)
    plain, evil = tmp_path / "plain" / "index.html", tmp_path / "evil" / "index.html"
    assert structure(plain) == structure(evil)
    page = Reader(evil)
    assert page.sources == {"script": source("page.js"), "style": source("page.css")}
    assert not {name for _, names in structure(evil) for name in names if name.startswith("on") or name == "style"}
    urls = [tag.get(name) or "" for _, tag in page.tags for name in ("src", "href", "poster") if name in tag]
    assert [url for url in urls if not re.fullmatch(r"data:.*|#\w+|[\w./%~-]+", url)] == []


def test_the_browser_is_told_to_refuse_other_scripts_and_hosts(tmp_path: Path) -> None:
    write_page([made_video(tmp_path / "a.mp4")], [], tmp_path / "index.html", title="run")
    page = Reader(tmp_path / "index.html")
    (policy,) = (tag["content"] or "" for tag in page.all("meta") if "http-equiv" in tag)
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy
    for kind in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(page.sources[kind].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy


def test_templates_escape_and_name_what_they_lack() -> None:
    assert environment().from_string("<p title='{{ x }}'>").render(x="'>") == "<p title='&#39;&gt;'>"
    with pytest.raises(UndefinedError, match="title"):
        render("base.html")
    sources = [environment().loader.get_source(environment(), name)[0] for name in environment().list_templates()]  # type: ignore[union-attr]
    assert not [text for text in sources if re.search(r"\|\s*safe|autoescape", text)]


def test_large_and_unplayable_videos_are_linked(tmp_path: Path) -> None:
    """Links are relative to the page, so both can be moved together."""
    videos = [made_video(tmp_path / "run" / name) for name in ("a b.mp4", "c.mov", "d.png")]
    write_page(videos, [], tmp_path / "pages" / "index.html", title="run", embed_below=10)
    page = Reader(tmp_path / "pages" / "index.html")
    (video,) = page.all("video")
    assert video["src"] == "../run/a%20b.mp4" and (video["poster"] or "").startswith("data:image/jpeg;base64,")
    stills = page.all("img")
    assert len(stills) == 2 and all((still["src"] or "").startswith("data:image/jpeg;base64,") for still in stills)
    assert [tag["href"] for tag in page.all("a")] == ["#main", "../run/a%20b.mp4", "../run/c.mov", "../run/d"]


def test_settings_stand_once_where_they_are_shared(tmp_path: Path) -> None:
    videos = [made_video(tmp_path / f"{n}.mp4", s2_scale=n / 10) for n in (1, 2)]
    write_page(videos, [], tmp_path / "index.html", title="run")
    text = Reader(tmp_path / "index.html").text
    assert text.count("guidance.s2_scale") == 2 and text.count("guidance.rescale") == 1


def test_images_are_named(tmp_path: Path) -> None:
    images = [{"path": "/shots/first <1>.png", "digest": "0" * 64}]
    write_page([made_video(tmp_path / "a.mp4", images=images)], [], tmp_path / "index.html", title="run")
    assert "/shots/first <1>.png" in Reader(tmp_path / "index.html").text


def test_videos_that_differ_in_settings_stand_side_by_side(tmp_path: Path) -> None:
    """All groups have a wipe; videos with another seed or prompt are not grouped; differences are named."""
    videos = [
        *(made_video(tmp_path / f"three-{n}.mp4", s2_scale=n / 10, seed=1) for n in (10, 9, 0)),
        *(made_video(tmp_path / f"pair-{n}.mp4", s2_scale=n / 10, seed=2) for n in (3, 0)),
        made_video(tmp_path / "seed.mp4", seed=3),
        made_video(tmp_path / "prompt.mp4", seed=3, prompt="a blue wall"),
    ]
    write_page(videos, [], tmp_path / "index.html", title="run")
    page = Reader(tmp_path / "index.html")
    players = [tag["class"] or "" for tag in page.all("div") if "data-player" in tag]
    assert ["several" in player for player in players] == [True, True, False, False]
    named = re.findall(r"guidance.s2_scale</span> <strong>(.*?)</strong>", (tmp_path / "index.html").read_text())
    assert named == ["0.0", "0.9", "1.0", "0.0", "0.3"]  # by value
    parts = [tag.get("data-part") for tag in page.all("button")]
    assert parts.count("play") == 4 and parts.count("wipe") == 2
    assert [tag["hidden"] for tag in page.all("div") if tag.get("data-part") == "controls"] == [None] * 4
    assert all("controls" in tag for tag in page.all("video"))  # so that they play without the script too


def test_only_what_differs_makes_a_group(tmp_path: Path) -> None:
    same = [made_video(tmp_path / f"{n}.mp4") for n in (1, 2)]
    other = made_video(tmp_path / "3.mp4", s2_scale=0.9)
    assert group_videos(same) == [[same[0]], [same[1]]]
    assert group_videos([*same, other]) == [[*same, other]]
    assert group_videos([]) == []


def test_many_differences_are_named_in_a_table_too(tmp_path: Path) -> None:
    many = {"never_drop": [1], "s2_scale": 0.4, "rescale": 0.5, "num_draws": 2, "form": "original", "drop_ratio": 0.3}
    videos = [made_video(tmp_path / "a.mp4"), made_video(tmp_path / "b.mp4", **many)]
    write_page(videos, [], tmp_path / "index.html", title="run")
    page = Reader(tmp_path / "index.html")
    assert len([tag for tag in page.all("span") if tag.get("class") == "named"]) == 2 * MAX_NAMED
    assert {key: page.text.count(f"guidance.{key}") for key in many} == dict.fromkeys(many, 2)


def test_stills_of_a_group_have_no_player(tmp_path: Path) -> None:
    videos = [made_video(tmp_path / f"{n}.mov", s2_scale=n) for n in (0, 1)]
    write_page(videos, [], tmp_path / "index.html", title="run")
    page = Reader(tmp_path / "index.html")
    assert len(page.all("img")) == 2 and page.all("button") == page.all("video") == []


def test_masks_are_drawn(tmp_path: Path) -> None:
    video = made_video(tmp_path / "a.mp4", num_draws=2)
    write_page([video], [], tmp_path / "index.html", title="run")
    page = Reader(tmp_path / "index.html")
    (picture,) = (tag for tag in page.all("svg") if tag.get("role") == "img")
    drawn = [tag["d"] or "" for tag in page.all("path") if ".8v.8h" in (tag["d"] or "")]
    marks = {(int(x), int(y)) for x, y in re.findall(r"M(\d+)\.1 (\d+)\.1", drawn[0])}
    expected = {(mask.step, block) for mask in video.sidecar.masks for block in mask.dropped}
    assert marks == expected != set()
    assert picture["viewbox"] == f"0 0 {STEPS} {NUM_BLOCKS}"
    assert mask_picture(made_video(tmp_path / "b.mp4", s2_scale=0.0).sidecar) is None


def test_failures_come_from_the_state_of_a_batch(tmp_path: Path) -> None:
    made_video(tmp_path / "a.mp4")
    for shard, failing in ((None, "b.mp4"), ((1, 2), "c.mp4")):
        store = Store(tmp_path, shard)
        store.create()
        job = Entry(name=failing, place="shots.csv, line 3", models="", config="{}", key="", work=None)
        store.put([job, replace(job, name="a.mp4")], frozenset())
        assert store.draw("one") is not None
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
    assert page.text.count("night") == 2 and page.all("a")[1]["href"] == "shots/a.mp4"


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
