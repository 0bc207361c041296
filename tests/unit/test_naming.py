"""Tests of names from templates: results, replacement in values, refusal of bad templates."""

import unicodedata
from pathlib import Path, PurePath

import pytest

from s2video.errors import InputError
from s2video.media.naming import MAX_NAME_BYTES, find_collisions, render_name, slug
from s2video.media.output_paths import OutputPaths

FIELDS = {"show": "Moon", "shot": "sh010", "version": 7, "seed": 2**63 - 1, "scale": 0.25, "ext": "exr", "empty": ""}
STUDIO = "{show}_{shot}_v{version:03d}_s{seed}.{ext}"


@pytest.mark.parametrize(
    ("template", "name"),
    [
        (STUDIO, "Moon_sh010_v007_s9223372036854775807.exr"),
        ("{show}/{shot}/{shot}.{ext}", "Moon/sh010/sh010.exr"),
        ("plain.mp4", "plain.mp4"),
        ("{version}{version:d}{version:02}.mov", "7707.mov"),
        ("a{scale:.2f}_{scale:06.3f}_{scale}.mp4", "a0.25_00.250_0.25.mp4"),
        ("{show:.2}.mp4", "Mo.mp4"),
        ("{{{show}}}.mp4", "{Moon}.mp4"),
        ("{show}{empty}.mp4", "Moon.mp4"),
        ("a b.mp4", "a b.mp4"),
        ("a..b%04d.mp4", "a..b%04d.mp4"),
        ("CONSOLE.COM.mp4", "CONSOLE.COM.mp4"),
    ],
)
def test_templates(template: str, name: str) -> None:
    assert render_name(template, FIELDS) == PurePath(name)


def test_whole_numbers_may_come_as_text() -> None:
    """Numbers in a CSV file are text."""
    assert render_name("v{version:03d}.mp4", {"version": "12"}) == PurePath("v012.mp4")
    assert render_name("v{version}.mp4", {"version": "012"}) == PurePath("v012.mp4")


@pytest.mark.parametrize(
    ("value", "safe"),
    [
        ("a/b", "a_b"),
        ("a\\b", "a_b"),
        ("../../etc/passwd", ".._.._etc_passwd"),
        ('<>:"|?*', "_"),
        ("two  words\tand\nlines", "two_words_and_lines"),
        ("nul\0and\x1b[0m", "nul_and_[0m"),
        ("right\u202eto left", "right_to_left"),
        ("zero\u200bwidth", "zero_width"),
        ("lone\ud800", "lone_"),
        ("no\u00a0break", "no_break"),
        ("e\u0301", "é"),
        ("小さな円 🎬", "小さな円_🎬"),
        ("{seed}", "{seed}"),
        ("%s%n", "%s%n"),
    ],
)
def test_what_cannot_stand_in_a_name_is_replaced_in_values(value: str, safe: str) -> None:
    assert render_name("x{shot}x.mp4", {"shot": value, "seed": 1}) == PurePath(f"x{safe}x.mp4")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{verson}.mp4", "unknown field 'verson'; did you mean 'version'?"),
        ("{zzz}.mp4", "unknown field 'zzz'; expected one of show, shot"),
        ("{}.mp4", "unknown field ''"),
        ("{0}.mp4", "unknown field '0'"),
        ("{show.__class__}.mp4", "unknown field 'show.__class__'"),
        ("{show[0]}.mp4", r"unknown field 'show\[0\]'"),
        ("{show!r}.mp4", "without !r"),
        ("{show!s}.mp4", "without !s"),
        ("{show:>40}.mp4", "format '>40' does not fit"),
        ("{show:03d}.mp4", "format '03d' does not fit"),
        ("{version:3d}.mp4", "format '3d' does not fit"),
        ("{version:09999999d}.mp4", "does not fit"),
        ("{version:x}.mp4", "does not fit"),
        ("{version:.2}.mp4", "does not fit"),
        ("{scale:03d}.mp4", "does not fit"),
        ("{show:{version}}.mp4", "does not fit"),
        ("{show.mp4", "expected '}'"),
        ("show}.mp4", "Single '}'"),
        ("/{show}.mp4", "expected a relative path"),
        ("//server/{show}.mp4", "expected a relative path"),
        ("../{show}.mp4", 'begins with "\\."'),
        ("{show}/../../x.mp4", 'begins with "\\."'),
        ("./{show}.mp4", 'begins with "\\."'),
        ("~/{show}.mp4", 'begins with "~"'),
        ("-{show}.mp4", 'begins with "-"'),
        (".{show}.mp4", 'begins with "\\."'),
        ("C:\\{show}.mp4", "expected no"),
        ("C:{show}.mp4", "expected no"),
        ("{show}?.mp4", "expected no"),
        ("{show}\0.mp4", "expected no"),
        ("{show}\n.mp4", "expected no"),
        ("a//{show}.mp4", "is not a name"),
        ("{empty}/x.mp4", "is not a name"),
        ("{show}/", "is not a name"),
        ("", "is not a name"),
        ("{show}./x.mp4", "ends in a dot"),
        ("{show} /x.mp4", "ends in a dot or a space"),
        ("{show}.mp4.", "ends in a dot"),
        ("aux.mp4", "device on Windows"),
        ("x/NUL", "device on Windows"),
        ("com1.tar.mp4", "device on Windows"),
        ("lpt².mp4", "device on Windows"),
        ("con .mp4", "device on Windows"),
        ("x" * 197 + ".mp4", "longer than 200 bytes"),
    ],
)
def test_what_is_refused(template: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        render_name(template, FIELDS)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "value", ["", "..", ".", ".hidden", "-rf", "~root", "aux", "COM9", "/", "\0", "x" * 300, "円" * 80]
)
def test_values_that_would_be_the_whole_name_of_a_bad_one(value: str) -> None:
    for template in ("{shot}", "{shot}/x.mp4"):
        with pytest.raises(InputError):
            render_name(template, {"shot": value})


@pytest.mark.parametrize("value", [None, True, ["a"], {"a": 1}, Path("x"), b"x"])
def test_values_that_are_neither_text_nor_numbers(value: object) -> None:
    with pytest.raises(InputError, match=r"field shot: expected text or a number, got "):
        render_name("{shot}.mp4", {"shot": value})


def test_no_value_leaves_the_folder() -> None:
    """With any value, the path has as many parts as the template, and no part goes up."""
    tricks = ["..", "../..", "/etc", "\\\\host\\share", "C:\\x", "a/../../b", "\u2215", "%2e%2e%2f", "‥", "．．/"]
    for value in tricks:
        path = render_name("shots/x{shot}x/{shot:.0}y.mp4", {"shot": value})
        assert len(path.parts) == 3 and ".." not in path.parts and not path.is_absolute()


def test_the_longest_name_leaves_room_for_the_files_beside_it(tmp_path: Path) -> None:
    path = tmp_path / render_name("x" * (MAX_NAME_BYTES - 4) + ".mp4", {})
    path.with_suffix(".checkpoint.safetensors").touch()
    path.with_name(f"{path.stem}.1001{path.suffix}").touch()


def collisions(*names: str) -> list[tuple[int, int, str]]:
    found = find_collisions(OutputPaths(Path(name)).all for name in names)
    return [(first, later, path.as_posix()) for first, later, path in found]


def test_collisions() -> None:
    composed, apart = (unicodedata.normalize(form, "é/x.mp4") for form in ("NFC", "NFD"))
    names = ["a.mp4", "b/a.mp4", "A.mp4", "c.mp4", "a.mov", composed, "c-000.mp4", apart, "STRASSE.exr", "straße.exr"]
    assert [found[:2] for found in collisions(*names)] == [(0, 2), (0, 4), (5, 7), (8, 9)]
    assert collisions() == []


@pytest.mark.parametrize(
    ("first", "later", "path"),
    [
        ("a.png", "a.json.png", "a.json"),
        ("x.mp4", "x.mp4.png", "x.mp4"),
        ("x.mp4.exr", "X.mp4", "X.mp4"),
        ("a.png", "a/b.mp4", "a/b.mp4"),
        ("a/b/c.mp4", "A.png", "A"),
        ("x.mp4", "x.mp4/y.mp4", "x.mp4/y.mp4"),
        ("a.mov", "a.latents.safetensors.png", "a.latents.safetensors"),
        ("a.mov", "a.checkpoint.safetensors.png", "a.checkpoint.safetensors"),
    ],
)
def test_files_of_other_kinds_and_folders_collide_too(first: str, later: str, path: str) -> None:
    assert collisions("other.mp4", first, later) == [(1, 2, path)]


def test_names_that_only_look_alike_do_not_collide() -> None:
    assert collisions("a.mp4", "a.b.mp4", "ab.png", "a-000.png", "b/a.mp4", "b.c/a.mp4", "a.mp4.mp4") == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A large red circle, moving left!", "a-large-red-circle-moving-left"),
        ("../../etc", "etc"),
        ("小さな 赤い円", "小さな-赤い円"),
        ("!!!", "video"),
        ("", "video"),
        ("one two three four five six seven eight nine ten eleven", "one-two-three-four-five-six-seven-eight-nine-ten"),
        ("x" * 100, "x" * 48),
        ("snake_case_here", "snake-case-here"),
    ],
)
def test_slugs(text: str, expected: str) -> None:
    assert slug(text) == expected
    assert render_name("{prompt}.mp4", {"prompt": slug(text)}).name == f"{expected}.mp4"


def test_slugs_of_wide_letters_are_names_too() -> None:
    assert render_name("{prompt}.mp4", {"prompt": slug("🀄円" * 300)})
