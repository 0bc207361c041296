"""The page of `s2video serve` in a real browser."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import PROMPT, Running, free_port, running

LONG = 240_000  # ms; the machine may be busy


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The folder and the port, for a server that is started twice."""
    return tmp_path_factory.mktemp("web") / "jobs", free_port()


@pytest.fixture(scope="module")
def server(place: tuple[Path, int]) -> Iterator[Running]:
    with running(place[0], port=place[1]) as started:
        yield started.until_ready()


@pytest.fixture
def page(browser: Any, server: Running) -> Iterator[Any]:
    """The open page; at the end nothing was refused by its own policy, and no script failed."""
    problems: list[str] = []
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(server.url)
    yield page
    page.close()
    # the browser logs requests that are refused, or find no server
    assert [text for text in problems if not text.startswith("Failed to load resource")] == []


def _until(page: Any, expression: str, argument: Any = None, *, seconds: float = LONG / 1000) -> None:
    """Wait for a JavaScript expression to be true; playwright's own way is against the page's policy."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression, argument):
        assert time.monotonic() < end, f"{expression}: {page.inner_text('main')}"
        page.wait_for_timeout(100)


ESTIMATE = "(text) => document.querySelector('[data-part=estimate]').textContent.includes(text)"
NEWS = "(text) => document.querySelector('[data-part=news]').textContent.includes(text)"
PLAYING = "[...document.querySelectorAll('video')].every((video) => video.readyState >= 2 && video.currentTime > 0)"


def _fill(page: Any, prompt: str, steps: int, seconds: str = "1", seed: int = 7) -> None:
    for name, value in {"prompt": prompt, "steps": steps, "seconds": seconds, "seed": seed}.items():
        page.fill(f"#{name}", str(value))


def test_from_a_prompt_to_videos_that_play_in_step(page: Any) -> None:
    _fill(page, PROMPT, steps=3)
    _until(page, ESTIMATE, "two videos: 9 frames")
    page.click("text=Make it")
    page.wait_for_selector(f"article:has-text('{PROMPT}') .player.several", timeout=LONG)
    assert page.locator("figcaption strong").all_inner_texts() == ["CFG", "S², ω 0.25"]
    page.click("[data-part=play]")
    _until(page, PLAYING)
    page.click("[data-part=wipe]")
    page.focus("[data-part=divider]")
    page.keyboard.press("ArrowRight")
    assert page.input_value("[data-part=divider]") == "50.5"
    _until(page, ESTIMATE, "by the last videos")
    with page.expect_download() as download:
        page.click("text=download >> nth=1")
    assert download.value.suggested_filename.endswith(".mp4")


def test_again_with_a_change(page: Any) -> None:
    page.click("text=Use these settings")
    assert (page.input_value("#prompt"), page.input_value("#seed"), page.input_value("#steps")) == (PROMPT, "7", "3")
    page.fill("#s2_scale", "1.5")
    page.uncheck("#pair")
    page.click("text=Make it")
    # the third video joins the other two, which differ in ω alone
    _until(page, "document.querySelectorAll('figcaption strong').length === 3")
    assert page.locator("figcaption strong").all_inner_texts() == ["CFG", "S², ω 0.25", "S², ω 1.5"]


def test_a_refused_input_is_told_and_nothing_is_queued(page: Any) -> None:
    before = page.locator("article").count()
    _fill(page, "something else", steps=3, seconds="3000")
    page.wait_for_selector("[role=alert]:has-text('this server makes at most')")
    page.click("text=Make it")
    page.wait_for_timeout(500)
    assert page.locator("article").count() == before


def test_what_is_typed_is_never_markup(page: Any) -> None:
    text = '<img src=x onerror=alert(1)> "quoted" {{ 7 * 7 }}'
    _fill(page, text, steps=2, seconds="0.1", seed=1)
    page.uncheck("#pair")
    page.click("text=Make it")
    _until(page, "(text) => [...document.querySelectorAll('h3')].some((h) => h.textContent === text)", text)
    assert page.locator("h3 img").count() == 0


def test_a_finished_video_is_removed_by_a_second_click(page: Any) -> None:
    article = page.locator("article", has_text="{{ 7 * 7 }}")
    article.locator("video").wait_for(timeout=LONG)
    button = article.locator("[data-act=remove]")
    button.click()
    assert button.inner_text() == "Remove for good?" and article.count() == 1
    _until(page, "() => !document.querySelector('.asking')")  # there was no second click
    assert button.inner_text() == "Remove"
    button.click()
    button.click()
    article.wait_for(state="detached", timeout=LONG)


def test_stop_and_remove(page: Any) -> None:
    _fill(page, "a long one", steps=200, seconds="4")
    page.uncheck("#pair")
    page.focus("#prompt")
    page.keyboard.press("Control+Enter")
    article = page.locator("article", has_text="a long one")
    article.locator("text=/step \\d+ of 200/").wait_for(timeout=LONG)
    article.locator("text=Stop and remove").click()
    article.wait_for(state="detached", timeout=LONG)


def test_labels_and_a_phone(page: Any) -> None:
    """Every field has a name for screen readers, and nothing is wider than a phone."""
    unnamed = page.evaluate(
        "[...document.querySelectorAll('form :is(input, textarea, select)')].filter((e) => !e.labels.length).length"
    )
    assert unnamed == 0
    names = page.evaluate(
        "[...document.querySelectorAll('#history :is(button, a, progress, video)')]"
        ".map((e) => e.closest('article').dataset.key + (e.ariaLabel ?? e.textContent))"
    )
    assert len(names) > 10 and len(set(names)) == len(names) and all(name.strip() for name in names)
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth <= 360")


def test_a_restart_in_mid_job(page: Any, server: Running, place: tuple[Path, int]) -> None:
    """The open page goes on by itself when the server is back."""
    _fill(page, "cut in the middle", steps=200, seconds="2")
    page.uncheck("#pair")
    page.click("text=Make it")
    article = page.locator("article", has_text="cut in the middle")
    article.locator("text=/step \\d+ of 200/").wait_for(timeout=LONG)
    server.process.kill()
    server.process.wait()
    _until(page, NEWS, "does not answer")
    with running(place[0], port=place[1]) as second:
        second.until_ready()
        article.locator("video").wait_for(timeout=LONG)
        page.goto("about:blank")  # so that no request of the page is cut off at the end


def test_a_page_behind_a_key(browser: Any, tmp_path: Path) -> None:
    with running(tmp_path / "jobs", S2VIDEO_API_KEY="secret") as started:
        started.until_ready()
        page = browser.new_page()
        page.goto(started.url)
        page.fill("#key", "wrong")
        page.click("text=Open")
        page.wait_for_selector("text=not the key")
        page.fill("#key", "secret")
        page.click("text=Open")
        page.wait_for_selector("#prompt")
        page.close()
