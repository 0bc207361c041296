"""Tests of images: reading, fitting, requirements of checkpoints, and caching."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from diffusers.video_processor import VideoProcessor
from icc import display_p3
from PIL import Image, ImageCms, ImageOps
from tiny_wan_i2v import KINDS, image

from s2video.errors import InputError
from s2video.models.checkpoint import Checkpoint
from s2video.models.images import Images, read_images
from s2video.models.limits import check_images, check_inputs, check_request
from s2video.records.identity import first_difference
from s2video.records.sidecar import job_facts

Checkpoints = Callable[[str], Path]


def saved(path: Path, picture: Image.Image, **options: Any) -> Path:
    picture.save(path, **options)
    return path


def read(path: Path) -> Image.Image:
    images = read_images(path, None)
    assert images is not None and images.last is None
    return images.first


def test_pixels_come_as_they_are(tmp_path: Path) -> None:
    first, last = saved(tmp_path / "a.png", image(1)), saved(tmp_path / "b.png", image(2, (30, 20)))
    assert read_images(first, last) == Images(image(1), image(2, (30, 20)))
    assert read_images(None, None) is None
    gray = read(saved(tmp_path / "gray.png", image(1).convert("L")))
    assert gray == image(1).convert("L").convert("RGB")


def test_a_camera_s_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the picture is rotated by 90°
    turned, expected = (
        read(saved(tmp_path / "a.png", image(1), exif=exif)),
        image(1).transpose(Image.Transpose.ROTATE_270),
    )
    assert (turned.size, turned.tobytes()) == (expected.size, expected.tobytes())


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_becomes_white(tmp_path: Path, mode: str) -> None:
    picture = Image.new("RGBA", (8, 8), (200, 200, 200, 255))
    picture.paste((0, 0, 0, 0), (0, 0, 4, 8))
    got = read(saved(tmp_path / "a.png", picture.convert(mode)))
    assert got.mode == "RGB" and got.getpixel((1, 1)) == (255, 255, 255) and got.getpixel((6, 6)) == (200, 200, 200)


def spoilt(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


UNREADABLE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda folder: folder / "x.png", "No such file"),
    "a folder": (lambda folder: folder, "directory"),
    "text": (lambda folder: spoilt(folder / "x.png", b"no picture"), "expected an image"),
    "empty": (lambda folder: spoilt(folder / "x.png", b""), "expected an image"),
    "cut off": (
        lambda folder: spoilt(folder / "y.png", saved(folder / "x.png", image(1)).read_bytes()[:900]),
        "cannot be read",
    ),
    "16 bits": (lambda folder: saved(folder / "x.png", Image.new("I;16", (8, 8))), "8 bits"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable_files(tmp_path: Path, name: str) -> None:
    make, message = UNREADABLE[name]
    with pytest.raises(InputError, match=message) as caught:
        read_images(make(tmp_path), None)
    assert str(caught.value).startswith(f"image {tmp_path}") and "\n" not in str(caught.value)
    with pytest.raises(InputError, match="last_image"):
        read_images(saved(tmp_path / "first.png", image(1)), make(tmp_path))


def test_fitted_images_cover_the_video() -> None:
    wide = image(1, (300, 80))
    first, last = Images(wide, image(2, (112, 80))).fitted(112, 80)
    assert first == wide.crop((94, 0, 206, 80))  # not scaled, both sides are cropped
    assert last == image(2, (112, 80))
    high = image(1, (112, 400)).resize((224, 800))
    fitted = Images(high).fitted(112, 80).first
    assert fitted == ImageOps.fit(high, (112, 80), Image.Resampling.LANCZOS) and fitted.size == (112, 80)


def test_of_the_video_s_shape_they_are_scaled_as_by_diffusers() -> None:
    picture, processor = image(1, (336, 240)), VideoProcessor(vae_scale_factor=8)
    ours = processor.preprocess(Images(picture).fitted(112, 80).first, height=80, width=112)
    theirs = processor.preprocess(picture, height=80, width=112)
    assert ours.shape == (1, 3, 80, 112)
    torch.testing.assert_close(ours, theirs, atol=2 / 127.5 + 1e-6, rtol=0)  # two gray levels of 255


def test_digests_tell_pixels_and_sizes_apart() -> None:
    picture = image(1, (4, 6))
    other = picture.copy()
    other.putpixel((0, 0), (1, 2, 3))
    turned = Image.frombytes("RGB", (6, 4), picture.tobytes())
    digests = [Images(each).digests()[0] for each in (picture, other, turned)]
    assert len(set(digests)) == 3 and Images(picture, other).digests() == digests[:2]


@pytest.mark.parametrize(
    ("name", "takes", "refused"),
    [
        ("wan", [(False, False)], {(True, False): "image: expected none", (False, True): "expected a first image too"}),
        (
            "wan-i2v",
            [(True, False)],
            {(False, False): "image: expected one", (True, True): "last_image: expected none"},
        ),
        (
            "wan-flf2v",
            [(True, True)],
            {(False, False): "image: expected one", (True, False): "last_image: expected one"},
        ),
        ("wan2.2-i2v", [(True, False), (True, True)], {(False, False): "image: expected one"}),
    ],
)
def test_what_checkpoints_take(
    checkpoint_of: Checkpoints,
    name: str,
    takes: list[tuple[bool, bool]],
    refused: dict[tuple[bool, bool], str],
) -> None:
    checkpoint = Checkpoint(checkpoint_of(name)).info
    for first, last in takes:
        check_images(checkpoint, image=first, last_image=last)
    for (first, last), message in refused.items():
        with pytest.raises(InputError, match=message):
            check_images(checkpoint, image=first, last_image=last)


def test_a_video_of_one_frame_has_no_place_for_a_last_image(checkpoint_of: Checkpoints) -> None:
    folder = checkpoint_of("wan-flf2v")
    config = KINDS["wan-flf2v"].config(folder).patched({"image": "a.png", "last_image": "b.png"})
    check_inputs(Checkpoint(folder).info, config)
    with pytest.raises(InputError, match=r"last_image: expected none for a video of one frame"):
        check_inputs(Checkpoint(folder).info, config.patched({"sampling.num_frames": 1}))


@pytest.mark.parametrize("name", KINDS)
def test_text_beside_image_tokens_has_one_length(checkpoint_of: Checkpoints, name: str) -> None:
    """Diffusers' cross-attention treats the last 512 tokens as text."""
    folder = checkpoint_of(name)
    values = KINDS[name].config(folder).model_dump(mode="json")
    check_request(tiny.build_config(values), Checkpoint(folder).info)
    values["sampling"]["max_sequence_length"] = 226
    if KINDS[name].num_features:
        with pytest.raises(InputError, match=r"sampling.max_sequence_length: expected 512, .* got 226"):
            check_request(tiny.build_config(values), Checkpoint(folder).info)
    else:
        check_request(tiny.build_config(values), Checkpoint(folder).info)


def test_an_image_encoder_that_is_missing(checkpoint_of: Checkpoints, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint_of("wan-i2v"), tmp_path / "copy"))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"image_encoder": [None, None]}))
    with pytest.raises(InputError, match=r"expected image_encoder and image_processor, .* got none"):
        _ = Checkpoint(folder).info


def test_bad_images_are_answered_before_torch_is_imported(checkpoint_of: Checkpoints, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    values = KINDS["wan-i2v"].config(checkpoint_of("wan-i2v")).model_dump(mode="json")
    config.write_text(yaml.safe_dump(values | {"prompt": "a circle"}))
    code = (
        "import sys; from s2video.cli.main import main\n"
        "code = main(sys.argv[1:]); assert not {'torch', 'diffusers'} & set(sys.modules); sys.exit(code)"
    )
    arguments = ["generate", "--config", str(config), "--output", str(tmp_path / "x.mp4"), "--image", __file__]
    finished = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        timeout=120,
    )
    assert finished.returncode == 2, finished.stderr
    assert finished.stderr.startswith(f"s2video: error: image {__file__}: expected an image")
    assert finished.stderr.count("\n") == 1


def test_a_sidecar_remembers_pixels_not_paths(checkpoint_of: Checkpoints, tmp_path: Path) -> None:
    def facts(path: str, digest: str) -> dict[str, Any]:
        config = KINDS["wan-i2v"].config(Path("model"))
        images = [{"path": path, "digest": digest}]
        masks = config.guidance.mask_schedule(num_blocks=6, seed=1, num_steps=4)
        made = job_facts(config.patched({"prompt": "a"}), images=images, masks=masks)
        return made | {"weights": {}}

    made = facts("a.png", "1")
    assert first_difference(made, facts("elsewhere/a.png", "1")) is None
    assert first_difference(made, facts("a.png", "2")) == 'images was ["1"], now it is ["2"]'
    assert first_difference(made, facts("a.png", "1") | {"images": []}) == 'images was ["1"], now it is []'


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_colours_of_a_profile_are_converted_to_srgb(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"p3.{suffix}"
    lossless = {"quality": 100, "subsampling": 0} if suffix == "jpg" else {"lossless": True} if suffix == "webp" else {}
    saved(path, Image.new("RGB", (16, 16), (201, 80, 61)), icc_profile=display_p3(), **lossless)
    found = read(path).getpixel((8, 8))
    assert isinstance(found, tuple) and max(abs(a - b) for a, b in zip(found, (217, 69, 51), strict=True)) <= 2


def test_transparent_gray_and_palette_images_are_converted_too(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (4, 4), (201, 80, 61, 255))
    clear.putpixel((0, 0), (0, 0, 0, 0))
    found = read(saved(tmp_path / "a.png", clear, icc_profile=display_p3()))
    assert found.getpixel((0, 0)) == (255, 255, 255) and found.getpixel((2, 2)) != (201, 80, 61)
    palette = Image.new("RGB", (4, 4), (201, 80, 61)).quantize(4)
    assert read(saved(tmp_path / "p.png", palette, icc_profile=display_p3())) == Image.new(
        "RGB", (4, 4), found.getpixel((2, 2))
    )


def test_pixels_of_an_srgb_profile_stay(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert read(saved(tmp_path / "a.png", image(1), icc_profile=profile)) == image(1)
    assert read(saved(tmp_path / "b.png", image(1), icc_profile=display_p3("sRGB IEC61966-2.1"))) == image(1)


@pytest.mark.parametrize("profile", [b"no profile at all", display_p3()[:200], display_p3().replace(b"RGB ", b"CMYK")])
def test_a_profile_that_cannot_be_used_is_refused(tmp_path: Path, profile: bytes) -> None:
    with pytest.raises(InputError, match=r"^image .*a\.png: its ICC colour profile cannot be used") as caught:
        read(saved(tmp_path / "a.png", image(1), icc_profile=profile))
    assert "\n" not in str(caught.value)
