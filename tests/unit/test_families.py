"""Tests of the values that families read from checkpoints, and of refusals."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_hunyuan
import torch

from s2video.config.run import build_config
from s2video.errors import InputError
from s2video.models.checkpoint import Checkpoint
from s2video.models.limits import CheckpointInfo, check_request
from s2video.models.loading import load_conditioners


@pytest.fixture
def copy(tiny_hunyuan_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_hunyuan_checkpoint, tmp_path / "hunyuan"))


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_bounds(tiny_checkpoint: Path, tiny_hunyuan_checkpoint: Path) -> None:
    for folder in (tiny_checkpoint, tiny_hunyuan_checkpoint):
        Checkpoint(folder).check()
    assert Checkpoint(tiny_checkpoint).info == CheckpointInfo(
        num_blocks=tiny.NUM_BLOCKS,
        patch_size=(1, 2, 2),
        max_positions=64,
        spatial_factor=8,
        temporal_factor=4,
        latent_channels=16,
    )
    assert Checkpoint(tiny_hunyuan_checkpoint).info == CheckpointInfo(
        num_blocks=tiny_hunyuan.NUM_BLOCKS,
        patch_size=(1, 2, 2),
        max_positions=None,
        spatial_factor=8,
        temporal_factor=4,
        latent_channels=16,
        vae_class="AutoencoderKLHunyuanVideo",
    )


@pytest.mark.parametrize(("field", "value"), [("height", 72), ("width", 104), ("num_frames", 16)])
def test_sizes_of_hunyuan_video(tiny_hunyuan_checkpoint: Path, field: str, value: int) -> None:
    values = tiny_hunyuan.tiny_config(tiny_hunyuan_checkpoint).model_dump(mode="json")
    checkpoint = Checkpoint(tiny_hunyuan_checkpoint).info
    values["sampling"] |= {"height": 16 * 99, "num_frames": 4001}  # unlimited positions
    check_request(build_config(values), checkpoint)
    values["sampling"][field] = value
    with pytest.raises(InputError, match=f"sampling.{field}: expected .* got {value}"):
        check_request(build_config(values), checkpoint)


SPOILT: dict[str, tuple[Callable[[Path], None], str]] = {
    "image to video": (
        lambda folder: edit_json(folder / "transformer/config.json", image_condition_type="token_replace"),
        "image_condition_type: expected None with HunyuanVideoPipeline, got 'token_replace'",
    ),
    "another transformer": (
        lambda folder: edit_json(folder / "model_index.json", transformer=["diffusers", "WanTransformer3DModel"]),
        "transformer: expected HunyuanVideoTransformer3DModel, got",
    ),
    "no VAE named": (
        lambda folder: edit_json(folder / "model_index.json", vae=None),
        "vae: expected AutoencoderKLHunyuanVideo",
    ),
    "a text encoder missing": (
        lambda folder: shutil.rmtree(folder / "text_encoder_2"),
        "expected a folder text_encoder_2/",
    ),
    "a tokenizer missing": (lambda folder: (folder / "tokenizer_2/tokenizer_config.json").unlink(), "tokenizer_2"),
    "blocks not counted": (
        lambda folder: edit_json(folder / "transformer/config.json", num_single_layers=0),
        "num_single_layers: expected a whole number > 0, got 0",
    ),
}


@pytest.mark.parametrize("name", SPOILT)
def test_what_is_refused(copy: Path, name: str) -> None:
    spoil, message = SPOILT[name]
    spoil(copy)
    with pytest.raises(InputError, match=message):
        Checkpoint(copy).check()
        _ = Checkpoint(copy).info


@pytest.mark.parametrize("kind", ["latent_concat", None])
def test_other_forms_of_image_to_video_are_refused(
    tiny_hunyuan_image_checkpoint: Path, tmp_path: Path, kind: str | None
) -> None:
    assert Checkpoint(tiny_hunyuan_image_checkpoint).info.image == "required"
    folder = Path(shutil.copytree(tiny_hunyuan_image_checkpoint, tmp_path / "image"))
    edit_json(folder / "transformer/config.json", image_condition_type=kind)
    with pytest.raises(InputError, match=f"expected 'token_replace' .*, got {kind!r}.*HunyuanVideo-I2V$"):
        _ = Checkpoint(folder).info


def test_llama_3_is_tokenized_as_its_file_says(tiny_hunyuan_checkpoint: Path) -> None:
    """model_index.json names LlamaTokenizerFast, which would split the text wrongly for a byte-level tokenizer."""
    index = json.loads((tiny_hunyuan_checkpoint / "model_index.json").read_text())
    assert index["tokenizer"][1].startswith("LlamaTokenizer")
    text = "a small red circle, twice"
    got = load_conditioners(Checkpoint(tiny_hunyuan_checkpoint), torch.float32)["tokenizer"]
    assert got(text).input_ids == tiny_hunyuan.build_llama_tokenizer()(text).input_ids
    assert got.padding_side == "right"


def test_digests_cover_both_text_encoders(tiny_hunyuan_checkpoint: Path) -> None:
    names = {name.split("/")[0] for name in Checkpoint(tiny_hunyuan_checkpoint).weight_digests()}
    assert names == {"text_encoder", "text_encoder_2", "transformer", "vae"}


def test_strips_are_for_wans_vae(tiny_hunyuan_checkpoint: Path) -> None:
    config = build_config({"sampling": {"num_frames": 5}, "parallel": {"decode": "sharded"}})
    with pytest.raises(InputError, match="got AutoencoderKLHunyuanVideo"):
        check_request(config, Checkpoint(tiny_hunyuan_checkpoint).info)
