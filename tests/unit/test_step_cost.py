"""Tests of what a plan says a step costs on a mesh: passes, seconds and memory."""

from dataclasses import replace
from typing import Any

import pytest
from plan_helpers import H100, ROOT, planned

from s2video.guidance.masks import MaskSpec
from s2video.models.registry import read_costs
from s2video.planning.cards import CARDS, read_card
from s2video.planning.forecast import forecast
from s2video.planning.step import Degrees, Step
from s2video.planning.work import SubWork


def a_step(family: str, num_tokens: int, **changes: Any) -> Step:
    """Return a step of a published model in bfloat16, with cond and uncond and no sub branch."""
    model = read_costs({"_class_name": f"{family}Transformer3DModel"})
    nothing = SubWork((0.0,) * model.num_blocks, 0.0, 0.0)
    return replace(Step(model, num_tokens, 512, item_bytes=2, has_uncond=True, sub=nothing), **changes)


def sub_of(num_blocks: int) -> SubWork:
    return SubWork.expected(MaskSpec(), num_blocks)


# passes, and what they cost


@pytest.mark.parametrize(
    ("degrees", "has_uncond", "passes"),
    [
        (Degrees(1, 1, 1), True, 2.7),
        (Degrees(1, 8, 1), True, 2.7 / 8),
        (Degrees(1, 4, 2), True, 1 / 4 + 0.7 / 8),
        (Degrees(2, 2, 2), True, 1 / 4 + 0.7 / 8),
        (Degrees(1, 8, 1), False, 1.7 / 8),
    ],
)
def test_passes_on_the_critical_path(degrees: Degrees, has_uncond: bool, passes: float) -> None:
    """Wan 14B, 40 blocks of which 4 are dropped. Text and timestep, embedded on every rank, add less than 1 %."""
    step = a_step("Wan", 75600, has_uncond=has_uncond, sub=sub_of(40))
    assert forecast(degrees, step, H100).passes == pytest.approx(passes, rel=0.01)


def test_a_run_is_dearer_in_the_window_only() -> None:
    step = a_step("Wan", 75600, sub=sub_of(40), window_share=0.8)
    cost = forecast(Degrees(1, 1, 1), step, H100)
    assert cost.passes == pytest.approx(2 + 0.8 * 0.7, rel=0.001)
    without = forecast(Degrees(1, 1, 1), a_step("Wan", 75600), H100)
    assert cost.seconds == pytest.approx(without.seconds * 0.2 + cost.seconds_in_window * 0.8)
    assert cost.seconds_in_window / without.seconds == pytest.approx(1.35, rel=0.001)


def test_other_guidance_has_its_own_passes() -> None:
    """SLG drops fixed blocks in diffusers' strict window, steps 1 to 9 of 50; APG has no such pass."""
    slg = planned(1, "guidance.method=slg", "guidance.slg.layers=[9, 19]")
    assert (slg.computed["sub"], slg.step.sub.passes) == (9, 29 / 40)
    assert slg.best.forecast.passes == pytest.approx(2 + 9 / 50 * 29 / 40, rel=0.01)
    apg = planned(1, "guidance.method=apg")
    assert apg.computed["sub"] == 0
    assert apg.best.forecast.passes == pytest.approx(2, rel=0.01)


@pytest.mark.parametrize(
    ("family", "num_tokens", "has_uncond", "published"),
    [("Wan", 21 * 30 * 52, True, 9.77), ("HunyuanVideo", 33 * 45 * 80, False, 1904 / 50)],
)
def test_one_h100_takes_what_was_published(family: str, num_tokens: int, has_uncond: bool, published: float) -> None:
    """The H100's shares are fitted to diffusers on Wan 14B at 480p and xDiT on HunyuanVideo at 720p."""
    step = a_step(family, num_tokens, has_uncond=has_uncond, num_text=512 if has_uncond else 256)
    assert forecast(Degrees(1, 1, 1), step, H100).seconds == pytest.approx(published, rel=0.05)


def test_on_two_cards_branches_beat_ulysses_under_plain_cfg() -> None:
    """Published for Wan 14B on two H200: 21.3 s against 23.8 s."""
    step = a_step("Wan", 21 * 30 * 52)
    side_by_side, ulysses = (forecast(Degrees(1, *d), step, CARDS["H200"]) for d in ((1, 2), (2, 1)))
    assert side_by_side.seconds < ulysses.seconds
    assert side_by_side.sent_bytes < ulysses.sent_bytes / 1000


def test_the_largest_shard_decides() -> None:
    """With 12 heads, some of 8 ranks hold 2, so attention takes as long as on 6; four of 16 ranks hold none."""
    model = read_costs({"_class_name": "WanTransformer3DModel", "num_attention_heads": 12, "ffn_dim": 8960})
    step = replace(a_step("Wan", 32760), model=model)
    passes = {p: forecast(Degrees(1, p, 1), step, H100).passes for p in (4, 8, 12, 16)}
    assert passes[4] == pytest.approx(2 / 4, rel=0.01)
    assert passes[8] > 1.1 * 2 / 8
    assert passes[16] > 1.2 * 2 / 16
    assert passes[16] < passes[12]  # all ranks still share the tokens, so the feed-forward and other work


def test_where_a_ring_hides_its_transfers() -> None:
    """Doubling the bandwidth changes nothing if transfers are hidden by computation; otherwise it does."""
    step = a_step("Wan", 75600)
    ring, ulysses = Degrees(8, 1, 1), Degrees(1, 8, 1)
    faster = read_card("H100", ["intra_gbs=900"])
    gain = {d: 1 - forecast(d, step, faster).seconds / forecast(d, step, H100).seconds for d in (ring, ulysses)}
    assert 0 < gain[ring] < 1e-4 < gain[ulysses]
    slow = [forecast(ring, step, read_card("H100", [f"intra_gbs={x}"])).seconds for x in (2, 4)]
    assert slow[0] > 1.3 * slow[1]


def test_the_slowest_link_decides() -> None:
    """With 16 ranks, 8 per node, a ring of two nodes uses the network, and all-to-all stays inside the nodes."""
    step = a_step("Wan", 75600)
    slow = read_card("H100", ["inter_gbs=25"])
    for degrees, crosses in ((Degrees(2, 8, 1), False), (Degrees(1, 16, 1), True), (Degrees(1, 8, 2), True)):
        normal, slowed = (forecast(degrees, step, card).seconds for card in (H100, slow))
        assert (slowed > 1.05 * normal) is crosses


def test_where_weights_are() -> None:
    degrees = Degrees(1, 4, 2)
    costs = {w: forecast(degrees, a_step("Wan", 75600, weights=w), H100) for w in ("replicated", "fsdp", "streamed")}
    blocks = sum(map(read_costs({"_class_name": "WanTransformer3DModel"}).block_parameters, range(40))) * 2
    assert costs["fsdp"].sent_bytes - costs["replicated"].sent_bytes == pytest.approx(blocks * 7 / 8)
    saved = costs["replicated"].memory_bytes - costs["fsdp"].memory_bytes
    assert saved == pytest.approx(blocks * (1 - 1 / 8 - 2 / 40))
    assert costs["replicated"].memory_bytes - costs["streamed"].memory_bytes == pytest.approx(blocks * (1 - 2 / 40))
    # prefetching hides them in a long step, but not in a short one
    assert costs["fsdp"].seconds == costs["replicated"].seconds
    short = [forecast(degrees, a_step("Wan", 75, weights=w), H100).seconds for w in ("replicated", "streamed")]
    assert short[1] > 2 * short[0]


def test_memory_is_that_of_the_worst_moment() -> None:
    step = a_step("Wan", 75600, vae_bytes=1e9, decoding_bytes=30e9, text_encoder_bytes=11e9)
    degrees = Degrees(1, 8, 1)
    decoding = forecast(degrees, step, H100)
    encoding = forecast(degrees, replace(step, decoding_bytes=0), H100)
    denoising = forecast(degrees, replace(step, decoding_bytes=0, text_encoder_bytes=0), H100)
    assert [f.phase for f in (decoding, encoding, denoising)] == ["decoding", "text encoding", "denoising"]
    assert decoding.memory_bytes - encoding.memory_bytes == pytest.approx(19e9)
    kept = forecast(degrees, replace(step, keeps_text_encoder=True), H100)
    assert kept.memory_bytes - decoding.memory_bytes == pytest.approx(11e9)


def test_weights_and_decoding_are_as_the_config_says() -> None:
    modes = ("serial", "auto", "tiled")
    plans = {mode: planned(8, f"parallel.decode={mode}") for mode in modes}
    picture, side = 51 * 96 * 1280 * 720 * 4, 160
    assert plans["serial"].best.forecast.phase == "decoding"
    assert plans["auto"].best.forecast.phase == "text encoding"  # eight ranks decode a strip each
    assert {mode: plan.step.decoding_bytes for mode, plan in plans.items()} == {
        "serial": picture,
        "auto": picture * (side // 8) / side,
        # seven by four tiles, of which a rank has at most four: three others keep their features
        "tiled": ((51 + 3 * 20) * 96 * 256**2 + 6 * 1280 * 720 * 4) * 4,
    }
    fsdp, replicated = planned(8, "parallel.weights=fsdp").best.forecast, plans["auto"].best.forecast
    assert fsdp.memory_bytes < replicated.memory_bytes - 20e9 and fsdp.sent_bytes > replicated.sent_bytes + 20e9


def test_the_residual_vae_needs_more_than_the_other() -> None:
    """TI2V 5B: 84 numbers for each pixel of 256 channels, in patches of 2 × 2 pixels."""
    config = ROOT / "configs" / "wan2.2-ti2v-5b.yaml"
    plan = planned(1, config=config)
    assert plan.step.decoding_bytes == 84 * 256 / 4 * 1280 * 704 * 4
    assert planned(8, config=config).step.decoding_bytes == plan.step.decoding_bytes / 8


def test_images_are_encoded_before_denoising() -> None:
    """Wan's encoder gets a whole video for one image; on eight ranks this can be the peak of the first one."""
    overrides = ("model.stream_text_encoder=true", "parallel.weights=streamed")
    config = ROOT / "configs" / "wan2.1-i2v-14b-720p.yaml"
    step = planned(8, *overrides, config=config).step
    assert step.image_encoding_bytes == (37 * 96 + 3 * 81) * 1280 * 720 * 4 + 632076800 * 4
    assert planned(8, *overrides, config=config).best.forecast.phase == "image encoding"
    assert planned(8, *overrides).step.image_encoding_bytes == 0


# reuse


@pytest.mark.parametrize(
    ("overrides", "computed", "passes"),
    [
        ((), (50, 50, 40), 2 + 0.8 * 0.7),
        (("guidance.reuse=deviation",), (50, 50, 10), 2 + 0.2 * 0.7),
        (("guidance.reuse=light",), (50, 30, 20), 1.6 + 0.4 * 0.7),
        (("guidance.reuse=fast",), (30, 30, 10), 1.2 + 0.2 * 0.7),
        (("guidance.reuse=light", "guidance.cfg_scale=1"), (50, 0, 20), 1 + 0.4 * 0.7),
        (("guidance.window_in=noise",), (50, 50, 31), 2 + 31 / 50 * 0.7),
    ],
    ids=["exact", "deviation", "light", "fast", "in-place-of-cfg", "noise"],
)
def test_the_passes_of_a_run_with_reuse(
    overrides: tuple[str, ...], computed: tuple[int, int, int], passes: float
) -> None:
    """Wan 14B, 40 blocks of which 4 are dropped, 50 steps with a shift of 5."""
    plan = planned(1, *overrides)
    assert tuple(plan.computed.values()) == computed
    assert plan.best.forecast.passes == pytest.approx(passes, rel=0.01)


def test_a_step_without_uncond_is_shared_by_all_ranks() -> None:
    """With cond and uncond in parallel on 8 ranks, cond alone takes an 8th of a pass."""
    plan = planned(8, "guidance.reuse=light")
    beside = next(c for c in plan.candidates if c.degrees == Degrees(1, 4, 2))
    assert beside.forecast.passes == pytest.approx(0.6 / 4 + 0.4 / 8 + 0.4 * 0.7 / 8, rel=0.01)
    assert beside.forecast.seconds < planned(8).best.forecast.seconds
    step = a_step("Wan", 75600, sub=sub_of(40))
    plain, keeping = (
        forecast(Degrees(1, 4, 2), replace(step, kept_predictions=kept), H100).memory_bytes for kept in (0, 3)
    )
    assert keeping - plain == 3 * 75600 * 64 * 4  # float32


def test_the_turn_of_two_transformers_is_planned() -> None:
    config = ROOT / "configs" / "wan2.2-t2v-a14b.yaml"
    computed = planned(1, "guidance.reuse=fast", config=config).computed
    assert computed["cond"] == computed["uncond"] > planned(1, "guidance.reuse=fast").computed["cond"] * 40 / 50
    assert computed["cond"] < 40
