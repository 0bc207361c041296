"""Tests of FLOPs and parameters against torch's counts on the real modules, and of sub passes against enumeration."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import combinations, product
from typing import Any

import pytest
import torch
from diffusers import (
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoTransformer3DModel,
    MiniMaxH3Transformer3DModel,
    WanTransformer3DModel,
    WanVACETransformer3DModel,
)
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from s2video.errors import InputError
from s2video.guidance.masks import MaskSpec
from s2video.models.costs import Share, all_parameters, whole_pass
from s2video.models.hunyuan_video15.costs import HunyuanVideo15Costs
from s2video.models.registry import read_costs
from s2video.planning.work import SubWork

NUM_TEXT = 7


def run_wan(model: WanTransformer3DModel, latents: torch.Tensor) -> None:
    model(latents, torch.empty(1), torch.empty(1, NUM_TEXT, model.config.text_dim))


def run_wan_vace(model: WanVACETransformer3DModel, latents: torch.Tensor) -> None:
    control = torch.empty(1, model.config.vace_in_channels, *latents.shape[2:])
    model(latents, torch.empty(1), torch.empty(1, NUM_TEXT, model.config.text_dim), control_hidden_states=control)


def run_wan_with_times(model: WanTransformer3DModel, latents: torch.Tensor) -> None:
    num_tokens = latents[0, 0].numel() // 4
    model(latents, torch.empty(1, num_tokens), torch.empty(1, NUM_TEXT, model.config.text_dim))


def run_wan_with_images(model: WanTransformer3DModel, latents: torch.Tensor) -> None:
    """Its cross-attention treats the last 512 tokens as text."""
    num_images = 1 if model.config.pos_embed_seq_len is None else 2
    images = torch.empty(num_images, 257, model.config.image_dim)
    model(latents, torch.empty(1), torch.empty(1, 512, model.config.text_dim), images)


def run_hunyuan(model: HunyuanVideoTransformer3DModel, latents: torch.Tensor) -> None:
    model(
        latents,
        torch.empty(1),
        torch.empty(1, NUM_TEXT, model.config.text_embed_dim),
        torch.empty(1, NUM_TEXT, dtype=torch.bool),
        torch.empty(1, model.config.pooled_projection_dim),
        torch.empty(1),
    )


CASES: dict[str, tuple[type[Any], dict[str, Any], Callable[..., None]]] = {
    "Wan": (
        WanTransformer3DModel,
        {"num_attention_heads": 5, "attention_head_dim": 12, "text_dim": 18, "freq_dim": 32, "ffn_dim": 94}
        | {"num_layers": 3, "in_channels": 5, "out_channels": 3, "rope_max_seq_len": 64},
        run_wan,
    ),
    "Wan, a time for each token": (
        WanTransformer3DModel,
        {"num_attention_heads": 2, "attention_head_dim": 12, "text_dim": 6, "freq_dim": 8, "ffn_dim": 50}
        | {"num_layers": 1, "rope_max_seq_len": 64},
        run_wan_with_times,
    ),
    "Wan, patches of 2 frames, no norm before cross-attention": (
        WanTransformer3DModel,
        {"num_attention_heads": 3, "attention_head_dim": 14, "text_dim": 6, "freq_dim": 8, "ffn_dim": 50}
        | {"num_layers": 1, "patch_size": (2, 2, 2), "cross_attn_norm": False, "rope_max_seq_len": 64},
        run_wan,
    ),
    "Wan with an image": (
        WanTransformer3DModel,
        {"num_attention_heads": 5, "attention_head_dim": 12, "text_dim": 18, "freq_dim": 32, "ffn_dim": 94}
        | {"num_layers": 3, "in_channels": 7, "out_channels": 3, "rope_max_seq_len": 64}
        | {"image_dim": 10, "added_kv_proj_dim": 60},
        run_wan_with_images,
    ),
    "Wan with two images": (
        WanTransformer3DModel,
        {"num_attention_heads": 5, "attention_head_dim": 12, "text_dim": 18, "freq_dim": 32, "ffn_dim": 94}
        | {"num_layers": 2, "rope_max_seq_len": 64}
        | {"image_dim": 10, "added_kv_proj_dim": 60, "pos_embed_seq_len": 514},
        run_wan_with_images,
    ),
    "Wan VACE": (
        WanVACETransformer3DModel,
        {"num_attention_heads": 5, "attention_head_dim": 12, "text_dim": 18, "freq_dim": 32, "ffn_dim": 94}
        | {"num_layers": 4, "rope_max_seq_len": 64, "vace_layers": [0, 1, 3], "vace_in_channels": 7},
        run_wan_vace,
    ),
    "HunyuanVideo": (
        HunyuanVideoTransformer3DModel,
        {"num_attention_heads": 3, "attention_head_dim": 8, "num_layers": 2, "num_single_layers": 3}
        | {"text_embed_dim": 18, "pooled_projection_dim": 10, "rope_axes_dim": (2, 2, 4), "mlp_ratio": 3.5},
        run_hunyuan,
    ),
    "HunyuanVideo, image to video": (
        HunyuanVideoTransformer3DModel,
        {"num_attention_heads": 3, "attention_head_dim": 8, "num_layers": 2, "num_single_layers": 3}
        | {"text_embed_dim": 18, "pooled_projection_dim": 10, "rope_axes_dim": (2, 2, 4), "num_refiner_layers": 1}
        | {"image_condition_type": "token_replace"},
        run_hunyuan,
    ),
    "HunyuanVideo without embedded guidance": (
        HunyuanVideoTransformer3DModel,
        {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "num_single_layers": 1}
        | {"text_embed_dim": 6, "pooled_projection_dim": 4, "rope_axes_dim": (2, 2, 4), "num_refiner_layers": 1}
        | {"guidance_embeds": False, "in_channels": 5, "out_channels": 3},
        run_hunyuan,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_flops_and_parameters_are_those_of_the_module(name: str) -> None:
    """They are counted on the meta device, where attention uses a path that the counter knows."""
    kind, settings, run = CASES[name]
    with torch.device("meta"), torch.no_grad():
        model = kind(**settings)
        latents = torch.empty(1, model.config.in_channels, 6, 10, 14)
        with FlopCounterMode(display=False) as counter:
            run(model, latents)
    expands = {"expand_timesteps": run is run_wan_with_times}
    costs = read_costs({"_class_name": kind.__name__, **settings, **expands})
    num_tokens = 5 * 7 * (3 if "2 frames" in name else 6)
    num_text = 512 if run is run_wan_with_images else NUM_TEXT
    assert whole_pass(costs, num_tokens, num_text).total == pytest.approx(counter.get_total_flops(), rel=1e-9)
    assert costs.root_parameters() + sum(all_parameters(costs)) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("image_to_video", [False, True])
def test_flops_and_parameters_of_hunyuan_video_15(image_to_video: bool) -> None:
    """The module reads its masks, so this needs real tensors, and attention uses plain products."""
    settings = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 2,
        "in_channels": 5,
        "out_channels": 3,
        "patch_size": 2,
        "mlp_ratio": 3.5,
        "text_embed_dim": 6,
        "text_embed_2_dim": 10,
        "image_embed_dim": 14,
        "rope_axes_dim": (2, 2, 4),
        "task_type": "i2v" if image_to_video else "t2v",
    }
    model = HunyuanVideo15Transformer3DModel(**settings)
    costs = replace(HunyuanVideo15Costs.from_config(settings), num_glyphs=4, num_image=3 if image_to_video else 0)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(
            torch.randn(1, 5, 2, 6, 10),
            torch.ones(1),
            torch.randn(1, NUM_TEXT, 6),
            torch.ones(1, NUM_TEXT),
            encoder_hidden_states_2=torch.randn(1, 4, 10),
            encoder_attention_mask_2=torch.ones(1, 4),
            image_embeds=torch.randn(1, costs.num_image, 14),
        )
    work = whole_pass(costs, 2 * 3 * 5, costs.num_text(NUM_TEXT))
    assert work.total == pytest.approx(counter.get_total_flops(), rel=1e-9)
    blocks = sum(costs.block_parameters(index) for index in range(costs.num_blocks))
    assert costs.root_parameters() + blocks == sum(p.numel() for p in model.parameters())


def test_flops_and_parameters_of_minimax_h3() -> None:
    """Without rows of sound, which are narrower than patches; with two timesteps."""
    settings = {"num_attention_heads": 3, "attention_head_dim": 12, "hidden_size": 20, "num_layers": 2, "ffn_dim": 28}
    settings |= {"num_refiner_layers": 1, "in_channels": 5, "audio_in_channels": 7, "text_dim": 6, "freq_dim": 16}
    settings |= {"time_embed_hidden_dim": 18, "time_embed_dim": 14, "rope_freq_dim": 2}
    num_tokens = 6 * 5 * 7
    with torch.device("meta"), torch.no_grad():
        model = MiniMaxH3Transformer3DModel(**settings)
        rows = torch.empty(NUM_TEXT + num_tokens, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            model(
                torch.empty(1, num_tokens, 5 * 4),
                torch.empty(1, 0, 7),
                torch.empty(1, NUM_TEXT, 6),
                timestep=torch.empty(2),
                timestep_indices=rows,
                token_tags=rows,
                position_ids=torch.empty(len(rows), 3),
                video_indices=torch.empty(num_tokens, dtype=torch.long),
                audio_indices=torch.empty(0, dtype=torch.long),
                text_indices=torch.empty(NUM_TEXT, dtype=torch.long),
            )
    costs = read_costs({"_class_name": "MiniMaxH3Transformer3DModel", **settings})
    assert whole_pass(costs, num_tokens, NUM_TEXT).total == pytest.approx(counter.get_total_flops(), rel=1e-9)
    blocks = sum(costs.block_parameters(index) for index in range(costs.num_blocks))
    assert costs.root_parameters() + blocks == sum(p.numel() for p in model.parameters())


def test_hunyuan_video_15_has_the_most_text_that_its_pipelines_give() -> None:
    texts = {task: HunyuanVideo15Costs.from_config({"task_type": task}).num_text(1000) for task in ("t2v", "i2v")}
    assert texts == {"t2v": 1000 + 256, "i2v": 1000 + 256 + 729}


@pytest.mark.parametrize(
    "kind",
    [
        WanTransformer3DModel,
        WanVACETransformer3DModel,
        HunyuanVideoTransformer3DModel,
        HunyuanVideo15Transformer3DModel,
        MiniMaxH3Transformer3DModel,
    ],
)
def test_defaults_are_those_of_diffusers(kind: type[Any]) -> None:
    parameters = inspect.signature(kind.__init__.__wrapped__).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    assert len(defaults) > 10
    assert read_costs({"_class_name": kind.__name__}) == read_costs({"_class_name": kind.__name__, **defaults})


def test_attention_is_shared_out_whole() -> None:
    """The work of two ring groups of two ranks (3 + 2 heads, 4 + 3 + 3 + 3 tokens) adds up to that of one rank."""
    costs = read_costs({"_class_name": "WanTransformer3DModel", **CASES["Wan"][1]})
    shares = [Share(tokens, heads, group, 13) for tokens, heads, group in ((4, 3, 7), (3, 2, 7), (3, 3, 6), (3, 2, 6))]
    parts = [costs.block(0, share, NUM_TEXT) for share in shares]
    whole = costs.block(0, Share(13, 5, 13, 13), NUM_TEXT)
    assert sum(part.exchanged for part in parts) == whole.exchanged
    assert sum(part.attention for part in parts) == whole.attention
    # each rank projects the text's keys and values itself
    assert sum(part.linear for part in parts) - whole.linear == 3 * 2 * 2 * NUM_TEXT * costs.width**2


def test_another_model_is_refused() -> None:
    with pytest.raises(InputError, match="'FluxTransformer2DModel'"):
        read_costs({"_class_name": "FluxTransformer2DModel"}, "x/config.json")


@pytest.mark.parametrize(
    ("num_blocks", "dropped", "naive", "shared"),
    [(30, 3, 0.9, 0.65), (40, 4, 0.9, 0.7), (60, 6, 0.9, 53 / 70), (30, 1, 29 / 30, 7 / 15)],
)
def test_a_sub_pass_in_full_passes(num_blocks: int, dropped: int, naive: float, shared: float) -> None:
    spec = MaskSpec(drop_count=dropped)
    assert SubWork.expected(spec, num_blocks).passes == pytest.approx(shared)
    assert SubWork.expected(spec, num_blocks, share_prefix=False).passes == pytest.approx(naive)


def averaged(steps: Sequence[SubWork]) -> tuple[list[Fraction], Fraction, Fraction, list[Fraction]]:
    count = len(steps)
    runs = [Fraction(int(sum(of_block)), count) for of_block in zip(*(step.runs for step in steps), strict=True)]
    started = [Fraction(int(sum(of_block)), count) for of_block in zip(*(step.started for step in steps), strict=True)]
    forks, branches = (Fraction(int(sum(getattr(s, name) for s in steps)), count) for name in ("forks", "count"))
    return runs, forks, branches, started


@pytest.mark.parametrize("share_prefix", [True, False])
@pytest.mark.parametrize(
    "spec",
    [
        MaskSpec(drop_count=2),
        MaskSpec(drop_count=2, num_draws=2),
        MaskSpec(drop_count=3, never_drop=(0, 3), band=(1, 5)),
        MaskSpec(drop_count=1, never_drop=(), num_draws=3),
        MaskSpec(drop_count=0),
    ],
)
def test_expectations_are_averages_over_all_masks(spec: MaskSpec, share_prefix: bool) -> None:
    num_blocks = 7
    masks = list(combinations(spec.eligible(num_blocks), spec.count(num_blocks)))
    steps = [
        SubWork.of_masks(drawn, num_blocks, share_prefix=share_prefix)
        for drawn in product(masks, repeat=spec.num_draws)
    ]
    runs, forks, count, started = averaged(steps)
    expected = SubWork.expected(spec, num_blocks, share_prefix=share_prefix)
    assert expected.runs == pytest.approx([float(x) for x in runs])
    assert expected.started == pytest.approx([float(x) for x in started])
    assert (expected.forks, expected.count) == pytest.approx((float(forks), float(count)))


def test_a_step_with_given_masks() -> None:
    work = SubWork.of_masks([(2, 4), (), (2, 3)], 6)
    assert (work.runs, work.forks, work.count) == ((0, 0, 0, 1, 1, 2), 1, 2)
