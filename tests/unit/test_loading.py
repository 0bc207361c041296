import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from s2video.errors import InputError
from s2video.models.checkpoint import Checkpoint, find_checkpoint
from s2video.models.loading import load_conditioners, load_scheduler, load_transformer, load_vae


@pytest.fixture
def copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "wan"))


def test_a_whole_checkpoint_passes(tiny_checkpoint: Path) -> None:
    Checkpoint(find_checkpoint(str(tiny_checkpoint))).check()


@pytest.mark.parametrize("path", ["./nowhere", "/no/such/folder", "no-such-model", "a/b/c", "wan\\dir"])
def test_what_is_no_model_is_said_so(path: str) -> None:
    with pytest.raises(InputError, match="expected a folder"):
        find_checkpoint(path)


def test_an_unreachable_hub_id_is_one_clear_line() -> None:
    """The tests run with the Hub offline."""
    with pytest.raises(InputError, match="not a local folder and could not be downloaded from the Hub") as caught:
        find_checkpoint("nobody/no-such-model")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["transformer", "vae", "text_encoder"])
@pytest.mark.parametrize("damage", ["cut", "grown", "garbage", "empty", "gone"])
def test_damaged_weights_are_found_without_loading(copy: Path, name: str, damage: str) -> None:
    file = next((copy / name).glob("*.safetensors"))
    content = file.read_bytes()
    damaged = {"cut": content[:-10], "grown": content + b"\0", "garbage": b"x" * len(content), "empty": b""}
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(damaged[damage])
    with pytest.raises(InputError, match=name):
        Checkpoint(copy).check()


def test_missing_shard_is_named(copy: Path) -> None:
    folder = copy / "transformer"
    index = {"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}
    next(folder.glob("*.safetensors")).rename(folder / "part-1.safetensors")
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"part-2\.safetensors: expected a weight file, got none"):
        Checkpoint(copy).check()


def test_another_pipeline_is_refused(copy: Path) -> None:
    (copy / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(
        InputError, match=r"of WanPipeline or WanImageToVideoPipeline or .*HunyuanVideoPipeline .* got 'FluxPipeline'"
    ):
        Checkpoint(copy).check()


def test_digests_are_of_the_bytes(copy: Path) -> None:
    digests = Checkpoint(copy).weight_digests()
    assert len(digests) == 3
    name = next(n for n in digests if n.startswith("vae"))
    content = bytearray((copy / name).read_bytes())
    assert digests[name] == hashlib.sha256(content).hexdigest()
    content[-1] ^= 1
    (copy / name).write_bytes(content)
    assert Checkpoint(copy).weight_digests()[name] != digests[name]


def test_a_name_is_not_believed_to_be_a_digest(copy: Path, tmp_path: Path) -> None:
    """The Hub's cache links to blobs named by their SHA-256, and anybody can make such a link."""
    file = next((copy / "vae").glob("*.safetensors"))
    blob = tmp_path / "blobs" / ("ab" * 32)
    blob.parent.mkdir()
    file.rename(blob)
    file.symlink_to(blob)
    digest = hashlib.sha256(blob.read_bytes()).hexdigest()
    assert Checkpoint(copy).weight_digests()[str(file.relative_to(copy))] == digest


def test_weights_that_change_after_they_were_opened_are_not_hashed(copy: Path) -> None:
    checkpoint = Checkpoint(copy)
    checkpoint.check()
    file = next((copy / "vae").glob("*.safetensors"))
    shutil.copy(file, copy / "again")
    (copy / "again").rename(file)
    with pytest.raises(InputError, match="changed while it was in use"):
        checkpoint.weight_digests()


def test_every_component_gets_its_own_dtype(tiny_checkpoint: Path) -> None:
    cpu = torch.device("cpu")
    assert load_vae(Checkpoint(tiny_checkpoint), torch.bfloat16, cpu).dtype == torch.bfloat16
    assert load_conditioners(Checkpoint(tiny_checkpoint), torch.float16)["text_encoder"].dtype == torch.float16
    transformer = load_transformer(Checkpoint(tiny_checkpoint), torch.float32, cpu)
    assert transformer.dtype == torch.float32 and not transformer.training


def test_scheduler_is_the_checkpoints_own(copy: Path) -> None:
    scheduler = load_scheduler(Checkpoint(copy))
    assert isinstance(scheduler, UniPCMultistepScheduler) and scheduler.config.flow_shift == 3.0
    assert load_scheduler(Checkpoint(copy), 7.5).config.flow_shift == 7.5
    index = json.loads((copy / "model_index.json").read_text())
    index["scheduler"][1] = "FlowMatchEulerDiscreteScheduler"
    (copy / "model_index.json").write_text(json.dumps(index))
    FlowMatchEulerDiscreteScheduler(shift=2.0).save_pretrained(copy / "scheduler")
    assert load_scheduler(Checkpoint(copy)).config.shift == 2.0
    assert load_scheduler(Checkpoint(copy), 7.5).config.shift == 7.5
