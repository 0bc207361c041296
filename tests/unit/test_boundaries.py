"""What comes from outside: YAML, paths, environment, images. Every failure is one InputError, at a bounded cost."""

import difflib
import io
import os
import random
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from PIL import Image

from s2video.batch.run_file import load_batch
from s2video.batch.shots import read_shots
from s2video.cli.main import main
from s2video.config.run import build_config, parse_override, read_config
from s2video.config.text import read_fraction
from s2video.config.yaml_reader import MAX_BYTES, MAX_DEPTH, parse_yaml
from s2video.engine.job import plan_jobs, read_prompt_file
from s2video.errors import InputError
from s2video.media.formats import VideoSpec
from s2video.media.video import probe_video, write_video
from s2video.models.images import FORMATS, MAX_PIXELS, read_images
from s2video.models.recipes import load_model_config
from s2video.planning.cards import read_card
from s2video.system import ranks
from s2video.system.files import user_path

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 10)}]\n" for i in range(8)
)
HOSTILE_YAML = {
    "int without digits": "!!int ''",
    "float of a list": "!!float [1]",
    "int of a mapping": "!!int {a: 1}",
    "time of a word": "!!timestamp x",
    "day that is none": "2024-99-99",
    "bool of a word": "!!bool x",
    "bytes": "!!binary x",
    "a set": "!!set {a, b}",
    "pairs": "!!pairs [a: 1]",
    "an object": "!!python/object:os.system x",
    "an unknown tag": "!thing x",
    "aliases in aliases": BOMB,
    "an alias inside itself": "&a [*a]",
    "a mapping inside itself": "&a {x: *a}",
    "merges of merges": "a: &a {k: [1, 2, 3]}\nb: &b ["
    + ", ".join(["*a"] * 2000)
    + "]\nc: [{<<: *b}"
    + ", *b" * 300
    + "]",
    "deep": "[" * 100_000,
    "deep, closed": "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1),
    "deep blocks": "- " * 100_000,
    "many digits": "9" * 5000,
    "surrogate": "a\ud800",
    "control character": "a: \x00",
    "two documents": "a\n---\nb",
    "an undefined alias": "*a",
    "a list as a key": "? [a]\n: b",
}


@pytest.mark.parametrize("text", HOSTILE_YAML.values(), ids=HOSTILE_YAML.keys())
def test_yaml_that_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"^x(, line \d+)?: not usable as YAML: .") as caught:
        parse_yaml(text, "x")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_yaml_that_is_read() -> None:
    assert parse_yaml("[" * MAX_DEPTH + "]" * MAX_DEPTH, "x") is not None
    shots = "base: &base {a: 1, b: 2}\nshots: [" + ", ".join(["{<<: *base, c: 3}"] * 500) + "]"
    assert parse_yaml(shots, "x")["shots"] == [{"a": 1, "b": 2, "c": 3}] * 500
    assert parse_yaml('{a: !!str 1, b: !!float 1, c: !!int "2", d: ~, e: on}', "x") == {
        "a": "1",
        "b": 1.0,
        "c": 2,
        "d": None,
        "e": True,
    }
    with pytest.raises(InputError, match="expected at most"):
        parse_yaml(" " * (MAX_BYTES + 1), "x")


@pytest.mark.parametrize("text", ["!!int ''", "!!float [1]", "!!timestamp x", "1e999999999", "[" * 5000, "9" * 5000])
def test_wherever_yaml_is_read(text: str, tmp_path: Path) -> None:
    """A config, `--set`, a run file, a cell of a table, and a card."""
    (tmp_path / "x.yaml").write_text(f"output: {{fps: {text}}}", encoding="utf-8")
    with pytest.raises(InputError):
        read_config(tmp_path / "x.yaml")
    with pytest.raises(InputError):
        build_config({"output": {"fps": parse_override(f"output.fps={text}")["output.fps"]}})
    (tmp_path / "run.yaml").write_text(f"shots: [{{prompt: p, output.fps: {text}}}]", encoding="utf-8")
    with pytest.raises(InputError):
        if problems := load_batch(tmp_path / "run.yaml").problems:
            raise InputError(problems[0])
    (tmp_path / "run.yaml").write_text("shots: shots.csv", encoding="utf-8")
    (tmp_path / "shots.csv").write_text(f'prompt,output.fps\np,"{text}"\n', encoding="utf-8")
    assert len(load_batch(tmp_path / "run.yaml").problems) == 1
    with pytest.raises(InputError):
        read_card("H100", [f"intra_gbs={text}"])


@pytest.mark.parametrize(
    "rate", ["1e999999999", "1E99999", "-1e-999999999", "1" * 5000, "1/" + "1" * 5000, "0x1", "1e", "1/0", "nan", "٣"]
)
def test_rates_that_are_refused(rate: str) -> None:
    with pytest.raises(ValueError, match="expected a frame rate"):
        read_fraction(rate)


@pytest.mark.parametrize(
    "setting",
    [
        "sampling.width=1e300",
        "sampling.height=65552",
        "sampling.num_frames=1000000000001",
        "sampling.max_sequence_length=1e9",
        "guidance.num_draws=1e9",
    ],
)
def test_sizes_have_bounds(setting: str) -> None:
    with pytest.raises(InputError, match=r"expected a value <= \d+"):
        build_config({}).patched(parse_override(setting))


def test_the_number_of_videos_has_a_bound() -> None:
    with pytest.raises(InputError, match="--num-videos"):
        plan_jobs(build_config({}), ["a prompt"], 10**12)


LONG = "x" * 256


@pytest.mark.parametrize("path", [LONG, f"folder/{LONG}", "x/" * 3000, "a\0b", "a\ud800b", "~no-such-user/x"])
def test_paths_that_no_system_has(path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="expected"):
        user_path(path)
    with pytest.raises(InputError, match="expected"):
        load_model_config(path, {})
    if "\0" in path or "\ud800" in path:  # refused as text already
        return
    for key in ("model.path", "output.path", "output.audio", "output.ffmpeg", "image"):
        assert main(["generate", "--prompt", "p", "--set", f"{key}={path}"]) == 2
    assert main(["generate", "--prompt", "p", "--set", f"model.lora=[{{path: {path}}}]"]) == 2
    for command in (
        ["inspect", path],
        ["page", path],
        ["status", path],
        ["batch", path],
        ["sheet", path, "-o", "x.png"],
    ):
        assert main(command) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if "using the embedded model" not in line]) == 11


@pytest.mark.parametrize("shots", ["a\\0b.csv", "a\\uD800.csv"])
def test_shots_of_no_file(shots: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(f'shots: "{shots}"', encoding="utf-8")
    with pytest.raises(InputError):
        load_batch(tmp_path / "run.yaml")


def test_text_files(tmp_path: Path) -> None:
    for read in (read_prompt_file, read_shots, read_config):
        for name in ("gone.txt", LONG + ".txt", "a\0.txt"):
            with pytest.raises(InputError):
                read(tmp_path / name)
        (tmp_path / "folder.txt").mkdir(exist_ok=True)
        with pytest.raises(InputError, match="cannot be read"):
            read(tmp_path / "folder.txt")
        with (tmp_path / "large.txt").open("wb") as file:
            file.truncate(2**40)  # takes no room on the disk
        with pytest.raises(InputError, match="at most 33554432 bytes"):
            read(tmp_path / "large.txt")
    (tmp_path / "bom.txt").write_bytes("\ufeffone\r\ntwo\r\n".encode())
    assert read_prompt_file(tmp_path / "bom.txt") == ["one", "two"]


TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}


@pytest.mark.parametrize(
    ("changes", "read"),
    [
        ({"WORLD_SIZE": "abc"}, ranks.world_size),
        ({"WORLD_SIZE": "0"}, ranks.world_size),
        ({"WORLD_SIZE": "-1"}, ranks.world_size),
        ({"WORLD_SIZE": "9" * 5000}, ranks.world_size),
        ({"WORLD_SIZE": "٣"}, ranks.world_size),
        ({"WORLD_SIZE": ""}, ranks.world_size),
        ({"RANK": "two"}, ranks.rank),
        ({"RANK": "2"}, ranks.rank),
        ({"RANK": "1.5"}, ranks.rank),
        ({"LOCAL_RANK": "junk"}, ranks.local_rank),
        ({"LOCAL_RANK": "2"}, ranks.local_rank),
        ({"LOCAL_WORLD_SIZE": "0"}, ranks.local_world_size),
        ({"MASTER_PORT": "abc"}, ranks.store_address),
        ({"MASTER_PORT": "0"}, ranks.store_address),
        ({"MASTER_PORT": "65536"}, ranks.store_address),
        ({"MASTER_PORT": None}, ranks.store_address),
        ({"MASTER_ADDR": None}, ranks.store_address),
        ({"MASTER_ADDR": ""}, ranks.store_address),
    ],
)
def test_the_environment(
    changes: dict[str, str | None], read: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**TORCHRUN, "MASTER_PORT": "29500", **changes}.items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"^{next(iter(changes))}: expected .* torchrun$"):
        read()
    assert ranks.speaks_for_host() in (True, False) and ranks.shown_rank()


@pytest.mark.parametrize("changes", [{"WORLD_SIZE": "abc"}, {"RANK": "7"}, {"MASTER_ADDR": ""}, {"MASTER_PORT": "abc"}])
def test_a_command_with_that_environment(
    changes: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {**TORCHRUN, "MASTER_PORT": "29500", "LOCAL_RANK": "0", **changes}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("s2video.cli.main.follow_launcher", lambda: None)  # the tests' parent launches no ranks
    assert main(["generate", "--model", "shapes-wan", "--prompt", "p", "--output", str(tmp_path / "v.mp4")]) == 2
    assert f"error: {next(iter(changes))}: expected" in capsys.readouterr().err


def picture(format: str, **options: object) -> bytes:
    pixels = random.Random(0).randbytes(24 * 16 * 3)
    content = io.BytesIO()
    Image.frombytes("RGB", (24, 16), pixels).save(content, format, **options)
    return content.getvalue()


@pytest.mark.parametrize("format", FORMATS)
def test_images_of_each_format(format: str, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(picture(format))
    images = read_images(tmp_path / "image", None)
    assert images is not None and images.first.size == (24, 16) and images.first.mode == "RGB"
    content = picture(format)
    for damaged in (content[:20], content[: len(content) // 2], content[:-40] if format != "WEBP" else b"RIFF"):
        (tmp_path / "image").write_bytes(damaged)
        with pytest.raises(InputError, match=r"^image .*; (check the path and the file|convert it to PNG)$"):
            read_images(tmp_path / "image", None)


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    images = read_images(tmp_path / "a.gif", None)
    assert images is not None and images.first.getpixel((0, 0)) == (255, 0, 0)


def damaged_exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = bytearray(picture("JPEG", exif=exif))
    start = content.index(b"Exif\0\0") + 6
    content[start + 4 : start + 8] = b"\x7f\xff\xff\xff"  # where its table begins
    return bytes(content)


def without_pillows_bound(format: str) -> bytes:
    bomb = io.BytesIO()
    Image.new("1", (20_000, 10_000)).save(bomb, format)
    return bomb.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("DDS", picture("DDS")),
        ("BLP", b"BLP2" + b"\1\0\0\0" + b"\2" + b"\0" * 1200),
        ("ICO", picture("ICO")),
        ("PDF", b"%PDF-1.4\n"),
        ("EPS", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        ("nothing", b""),
        ("JPEG with damaged EXIF", damaged_exif()),
        ("AVIF header alone", picture("AVIF")[:60]),
        ("a bomb", without_pillows_bound("PNG")),
    ],
)
def test_images_that_are_refused(name: str, content: bytes, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    (tmp_path / "image").write_bytes(content)
    with pytest.raises(InputError, match=r"^image ") as caught:
        read_images(tmp_path / "image", None)
    assert "\n" not in str(caught.value)
    assert not recwarn.list


def test_the_bound_of_pixels_is_below_pillows(tmp_path: Path) -> None:
    assert Image.MAX_IMAGE_PIXELS is not None and MAX_PIXELS < 2 * Image.MAX_IMAGE_PIXELS
    header = bytearray(picture("BMP"))
    header[18:26] = (12_001).to_bytes(4, "little") + (10_000).to_bytes(4, "little")  # of a file that has no such pixels
    (tmp_path / "image").write_bytes(header)
    with pytest.raises(InputError, match="12001x10000 pixels, at most"):
        read_images(tmp_path / "image", None)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="not a regular file"):
        read_images(tmp_path / "pipe", None)


@pytest.mark.parametrize("path", [".", "/", "..", "x/.."])
def test_folders_have_no_sidecar(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", path]) == 2
    assert "s2video: error: " in capsys.readouterr().err


def test_a_long_message_is_cut_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--prompt", "p", "--set", "guidance.s2_scale=" + "x" * 100_000]) == 2
    assert all(len(line) < 3200 for line in capsys.readouterr().err.splitlines())


def test_a_long_key_is_compared_by_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison takes time with the square of the length."""
    compared: list[int] = []
    matcher = difflib.SequenceMatcher

    def counted(junk: object, a: str, b: str) -> difflib.SequenceMatcher[str]:
        compared.append(len(a))
        return matcher(None, a, b)

    monkeypatch.setattr(difflib, "SequenceMatcher", counted)
    with pytest.raises(InputError, match="unknown key"):
        parse_override("x" * 100_000 + ".guidance" * 1000 + "=1")
    assert compared and max(compared) <= 80


def test_a_video_in_an_unknown_codec(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The container is whole, and FFmpeg has no decoder for what is in it."""
    write_video([torch.zeros(2, 16, 16, 3)], tmp_path / "v.mp4", VideoSpec(Fraction(8)), metadata={})
    content = (tmp_path / "v.mp4").read_bytes()
    (tmp_path / "v.mp4").write_bytes(content.replace(b"avc1", b"zzzz"))
    with pytest.raises(InputError, match=r"v\.mp4"):
        probe_video(tmp_path / "v.mp4")
    assert main(["sheet", str(tmp_path / "v.mp4"), "-o", str(tmp_path / "s.png")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
