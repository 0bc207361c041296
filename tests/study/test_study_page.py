"""The page of a study: what it hides, and blinded votes in a real browser."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from page_reader import PageReader
from study_helpers import PROMPTS, StudyRun

from s2video.review.html import digest
from s2video.study.clips import read_study
from s2video.study.votes import pairs_of

EVIL = '</script><script>alert(1)</script>"\' onload="x" <b>猫{{ 7 * 7 }}'
NUM_PAIRS = 4  # two prompts, two settings besides the base


class Reader(PageReader):
    """Collect the text that a closed page shows too: none of scripts, styles and details."""

    def __init__(self, text: str) -> None:
        self.shown: list[str] = []
        super().__init__(text)

    def handle_data(self, data: str) -> None:
        if "article" in self.open and "details" not in self.open and data.strip():
            self.shown.append(data.strip())


def test_a_pair_does_not_show_its_names(made_study: StudyRun) -> None:
    text = (made_study.folder / "study.html").read_text()
    page = Reader(text)
    words = {word for shown in page.shown for word in re.findall(r"\w+", shown)}
    assert {"left", "right"} <= words and not {"cfg", "s2", "strong"} & words
    labels = [str(tag.get(name)) for _, tag in page.tags for name in ("aria-label", "title", "alt") if name in tag]
    assert not [label for label in labels if re.search(r"\b(cfg|s2|strong)\b", label)]
    pairs = [tag for tag_name, tag in page.tags if tag_name == "article"]
    assert [tag["data-pair"] for tag in pairs] == [pair.key for pair in pairs_of(read_study(made_study.folder))]


def test_the_page_needs_nothing_else_and_runs_no_other_script(made_study: StudyRun) -> None:
    text = (made_study.folder / "study.html").read_text()
    page = Reader(text)
    assert not re.search(r"https?://|url\(|@import|<iframe|fetch\(|XMLHttpRequest|import\(", text)
    videos = [tag for name, tag in page.tags if name == "video"]
    assert len(videos) == 2 * NUM_PAIRS and all(str(tag["src"]).startswith("data:video/mp4;base64,") for tag in videos)
    (policy,) = (str(tag["content"]) for _, tag in page.tags if "http-equiv" in tag)
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    for name in ("page.js", "study.js", "page.css", "study.css"):
        assert f"'{digest(name)}'" in policy


def test_large_videos_are_linked(study_copy: StudyRun) -> None:
    assert study_copy.study(study_copy.folder, "--embed", "0") == 0
    page = Reader((study_copy.folder / "study.html").read_text())
    sources = {str(tag["src"]) for name, tag in page.tags if name == "video"}
    assert sources == {f"{name}/00{n}-1.mp4" for name in ("cfg", "s2", "strong") for n in (1, 2)}
    assert all(str(tag["poster"]).startswith("data:image/jpeg") for name, tag in page.tags if name == "video")


def test_all_text_is_escaped(study_copy: StudyRun) -> None:
    manifest = study_copy.folder / "study.json"
    content = json.loads(manifest.read_text())
    content["clips"][0]["prompt"] = EVIL
    manifest.write_text(json.dumps(content))
    before = Reader((study_copy.folder / "study.html").read_text())
    assert study_copy.study(study_copy.folder) == 0
    after = Reader((study_copy.folder / "study.html").read_text())
    assert [(name, list(tag)) for name, tag in before.tags] == [(name, list(tag)) for name, tag in after.tags]
    assert EVIL in after.shown and PROMPTS[1] in after.shown


def test_a_page_of_ones_own_is_not_replaced(study_copy: StudyRun, capsys: pytest.CaptureFixture[str]) -> None:
    page = study_copy.folder / "study.html"
    page.write_text("mine")
    assert study_copy.study(study_copy.folder) == 2
    assert page.read_text() == "mine" and "--overwrite" in capsys.readouterr().err
    assert study_copy.study(study_copy.folder, "--overwrite") == 0


# in a browser


@pytest.fixture
def page(browser: Any, made_study: StudyRun) -> Iterator[Any]:
    """The open page in a fresh profile; at the end nothing was refused by its own policy, and no script failed."""
    problems: list[str] = []
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(f"file://{made_study.folder / 'study.html'}")
    yield page
    context.close()
    assert problems == []


def captions(page: Any, number: int) -> list[str]:
    return list(page.locator("[data-pair]").nth(number).locator("figcaption").all_inner_texts())


def save(page: Any, path: Path) -> dict[str, Any]:
    with page.expect_download() as download:
        page.click("text=Save votes")
    download.value.save_as(path)
    return {"name": download.value.suggested_filename, **json.loads(path.read_text())}


def test_votes_by_keyboard_are_kept_saved_and_counted(
    page: Any, made_study: StudyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = list(pairs_of(read_study(made_study.folder)))
    assert page.locator("[data-part=save]").is_disabled() and captions(page, 0) == ["left", "right"]
    # for s2 and strong wherever they are, but the last pair is the same
    keys = ["a" if pair.right == "cfg" else "d" for pair in pairs[:-1]]
    for number, key in enumerate([*keys, "s"]):
        assert captions(page, number) == ["left", "right"]
        page.keyboard.press(key)
        assert captions(page, number) == [pairs[number].left, pairs[number].right]
    assert page.inner_text("[data-part=count]") == "4 of 4: save your votes"
    page.keyboard.press("a")  # all are voted on
    page.reload()
    assert page.inner_text("[data-part=count]") == "4 of 4: save your votes", "kept by the browser"
    page.fill("[data-part=voter]", "Ann B.")
    saved = save(page, tmp_path / "votes.json")
    assert saved["name"] == "votes-Ann-B.json" and saved["voter"] == "Ann B."
    assert [vote["pair"] for vote in saved["votes"]] == [pair.key for pair in pairs]
    assert all(vote["blind"] for vote in saved["votes"]) and saved["votes"][-1]["choice"] == "same"
    capsys.readouterr()
    output = tmp_path / "counted.html"
    assert made_study.study(made_study.folder, "--votes", tmp_path / "votes.json", "-o", output, "--json") == 0
    found = {each["setting"]: each for each in json.loads(capsys.readouterr().out)["preferences"]}
    assert (found["s2"]["wins"], found["s2"]["same"], found["s2"]["losses"]) == (2, 0, 0)
    assert (found["strong"]["wins"], found["strong"]["same"]) == (1, 1)


def test_a_look_at_the_names_is_recorded(page: Any, tmp_path: Path) -> None:
    first, second = (page.locator("[data-pair]").nth(number) for number in (0, 1))
    first.locator("summary").click()
    first.locator("[data-choice=left]").click()
    second.locator("[data-choice=right]").click()
    second.locator("summary").click()
    second.locator("[data-part=take-back]").click()
    assert captions(page, 1) == ["left", "right"]
    second.locator("[data-choice=left]").click()
    votes = save(page, tmp_path / "votes.json")["votes"]
    assert [(vote["choice"], vote["blind"]) for vote in votes] == [("left", False), ("left", False)]
    page.on("dialog", lambda dialog: dialog.accept())
    page.click("text=New voter")
    assert page.inner_text("[data-part=count]") == f"0 of {NUM_PAIRS}" and captions(page, 0) == ["left", "right"]
    page.keyboard.press("s")
    assert save(page, tmp_path / "again.json")["votes"][0]["blind"] is True


def test_typing_a_name_is_no_vote(page: Any) -> None:
    page.click("[data-part=voter]")
    page.keyboard.type("asd")
    assert page.inner_text("[data-part=count]") == f"0 of {NUM_PAIRS}"
    assert page.input_value("[data-part=voter]") == "asd"


def test_the_next_pair_plays_in_step(page: Any) -> None:
    page.keyboard.press("a")
    playing = "[...document.querySelectorAll('[data-pair]')[1].querySelectorAll('video')].map((v) => v.currentTime)"
    for _ in range(300):
        if all(time > 0 for time in page.evaluate(playing)):
            break
        page.wait_for_timeout(100)
    times = page.evaluate(playing)
    assert all(time > 0 for time in times) and abs(times[0] - times[1]) < 0.3
    assert page.evaluate("document.querySelectorAll('[data-pair]')[1].contains(document.activeElement)")


def test_a_phone_and_unnamed_fields(page: Any) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth <= 360")
    unnamed = "[...document.querySelectorAll('.ballot input')].filter((e) => !e.labels.length).length"
    assert page.evaluate(unnamed) == 0
