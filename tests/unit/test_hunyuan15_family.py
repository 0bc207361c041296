"""Tests of HunyuanVideo 1.5's checkpoints: values, refusals, and the published ones."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_hunyuan15
import torch
from tiny_hunyuan15 import CHANNELS, NUM_BLOCKS

from s2video.config.run import read_config
from s2video.errors import InputError
from s2video.models.checkpoint import ASSETS, Checkpoint
from s2video.models.family import Prompts
from s2video.models.hunyuan_video15.family import HunyuanVideo15
from s2video.models.limits import CheckpointInfo
from s2video.models.loading import load_conditioners
from s2video.planning.cards import read_card
from s2video.planning.plan import make_plan

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
PUBLISHED = {
    # config: size, shift
    "t2v-480p": ((848, 480), 5.0),
    "t2v-720p": ((1280, 720), 9.0),
    "i2v-480p": ((848, 480), 5.0),
    "i2v-720p": ((1280, 720), 7.0),
}


@pytest.mark.parametrize("image", ["none", "required"])
def test_bounds(request: pytest.FixtureRequest, image: str) -> None:
    folder: Path = request.getfixturevalue(f"tiny_hunyuan15_{'image_' if image == 'required' else ''}checkpoint")
    Checkpoint(folder).check()
    assert Checkpoint(folder).info == CheckpointInfo(
        num_blocks=NUM_BLOCKS,
        patch_size=(1, 1, 1),
        max_positions=None,
        spatial_factor=16,
        temporal_factor=4,
        latent_channels=CHANNELS,
        vae_class="AutoencoderKLHunyuanVideo15",
        image=image,
        takes_lora=False,
    )
    weighted = {"text_encoder", "text_encoder_2", "transformer", "vae"}
    weighted |= {"image_encoder"} if image == "required" else set()
    assert {file.name.split("/")[0] for file in Checkpoint(folder).weights()} == weighted


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_meanflow": True}, "use_meanflow: expected false, got true"),
        ({"in_channels": 98}, f"in_channels: expected {2 * CHANNELS + 1}.* got 98"),
    ],
)
def test_other_forms_are_refused(
    tiny_hunyuan15_checkpoint: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    copy = Path(shutil.copytree(tiny_hunyuan15_checkpoint, tmp_path / "copy"))
    path = copy / "transformer" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(InputError, match=message):
        _ = Checkpoint(copy).info


def test_masks_are_counted_right_whatever_the_dtype(tiny_hunyuan15_checkpoint: Path) -> None:
    """The pipeline gives masks the encoder's dtype, and a sum of 1000 ones in bfloat16 is not 1000."""
    family = Checkpoint(tiny_hunyuan15_checkpoint).family
    assert isinstance(family, HunyuanVideo15)
    conditioners = load_conditioners(Checkpoint(tiny_hunyuan15_checkpoint), torch.bfloat16)
    pipeline = family.build_pipeline(conditioners, tiny_hunyuan15.build_vae())
    prompt = "word " * 40
    with torch.no_grad():
        rows = family.encode(pipeline, Prompts([prompt, f'"{prompt}"'], 1000, torch.device("cpu")))
    plain, quoted = (family.conditioning(*(tensor[i : i + 1] for tensor in rows)) for i in range(2))
    tokens = conditioners["tokenizer"](prompt).input_ids
    assert plain.text_lengths is not None and 0 < plain.text_lengths[0] - len(tokens) < 20  # parts of the template
    assert plain.text.shape[1] == plain.text_lengths[0] and plain.text_2_lengths == (0,)
    glyphs = f'Text "{prompt}". '
    assert quoted.text_2_lengths == (len(glyphs) + 1,)  # one token per byte, and one for the end
    assert quoted.text_2 is not None and quoted.text_2.shape[1] == len(glyphs) + 1


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_checkpoints(name: str) -> None:
    """Test their configs and a plan of their runs."""
    config = read_config(CONFIGS / f"hunyuanvideo-1.5-{name}.yaml")
    (size, shift), (task, resolution) = PUBLISHED[name], name.split("-")
    assert config.model.path == f"hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-{resolution}_{task}"
    sampling = config.sampling
    assert (sampling.width, sampling.height, sampling.num_frames) == (*size, 121)
    assert (sampling.num_inference_steps, sampling.flow_shift, sampling.max_sequence_length) == (50, shift, 1000)
    assert (config.guidance.cfg_scale, config.guidance.s2_scale) == (6.0, 0.25)

    folder = ASSETS / "published" / config.model.path.replace("/", "--")
    info = Checkpoint(folder).info
    assert (info.num_blocks, info.image) == (54, "required" if task == "i2v" else "none")

    plan = make_plan(config, 8, read_card("H100", []))
    assert plan.step.num_tokens == 31 * (size[1] // 16) * (size[0] // 16)
    assert plan.step.num_text == 1000 + 256 + (729 if task == "i2v" else 0)
    assert plan.best.fits and plan.step.has_uncond
