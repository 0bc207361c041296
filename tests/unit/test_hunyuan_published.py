"""HunyuanVideo's configs and published settings: what diffusers' pipelines take unasked, and modules of that size."""

import inspect
from pathlib import Path

import diffusers
import pytest
import torch

from s2video.config import load_config
from s2video.costs import read_costs
from s2video.models.loading import ASSETS, read_family, read_json
from s2video.requests import check_request, read_checkpoint

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = ["hunyuanvideo-720p", "hunyuanvideo-i2v-720p"]


@pytest.mark.parametrize("name", NAMES)
def test_configs_have_the_pipelines_defaults(name: str) -> None:
    config = load_config(CONFIGS / f"{name}.yaml")
    folder = ASSETS / "published" / config.model.path.replace("/", "--")
    check_request(config, read_checkpoint(folder))
    pipeline = getattr(diffusers, read_family(folder).pipeline)
    defaults = {key: p.default for key, p in inspect.signature(pipeline.__call__).parameters.items()}
    for field in ("height", "width", "num_frames", "num_inference_steps", "max_sequence_length"):
        assert getattr(config.sampling, field) == defaults[field]
    assert config.guidance.cfg_scale == defaults["true_cfg_scale"] == 1.0
    assert (config.guidance.embedded_scale, config.guidance.s2_scale) == (6.0, 0.25)


@pytest.mark.parametrize("name", NAMES)
def test_published_settings_make_the_published_module(name: str) -> None:
    """Names and shapes as in the published files; on the meta device, so without their 26 gigabytes."""
    folder = ASSETS / "published" / load_config(CONFIGS / f"{name}.yaml").model.path.replace("/", "--")
    settings = read_json(folder / "transformer" / "config.json")
    with torch.device("meta"):
        model = diffusers.HunyuanVideoTransformer3DModel.from_config(settings)
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    expected = {
        "x_embedder.proj.weight": (3072, 16, 1, 2, 2),
        "context_embedder.token_refiner.refiner_blocks.1.norm_out.linear.weight": (6144, 3072),
        "time_text_embed.guidance_embedder.linear_1.weight": (3072, 256),
        "transformer_blocks.19.norm1.linear.weight": (18432, 3072),
        "transformer_blocks.19.norm1_context.linear.weight": (18432, 3072),
        "transformer_blocks.19.attn.norm_added_q.weight": (128,),
        "single_transformer_blocks.39.norm.linear.weight": (9216, 3072),
        "single_transformer_blocks.39.proj_mlp.weight": (12288, 3072),
        "proj_out.weight": (64, 3072),
    }
    assert {key: shapes.get(key) for key in expected} == expected
    costs = read_costs(settings)
    assert costs.num_blocks == 60
    blocks = sum(costs.block_parameters(index) for index in range(costs.num_blocks))
    assert costs.root_parameters() + blocks == sum(p.numel() for p in model.parameters()) == 12_821_012_544
