"""Tests of plans: the meshes of ranks, what is read, and errors for what cannot be planned."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from plan_helpers import H100, ROOT, WAN_14B, planned
from tiny import MAX_SEQUENCE_LENGTH, SIZE

from s2video.cli.main import main
from s2video.config.run import RunConfig, build_config, read_config
from s2video.config.sections import ParallelConfig
from s2video.errors import InputError
from s2video.models.checkpoint import ASSETS, Checkpoint, open_checkpoint
from s2video.models.limits import check_request
from s2video.models.registry import read_costs
from s2video.parallel.mesh import resolve_degrees
from s2video.planning.cards import CARDS, guess_card, read_card
from s2video.planning.forecast import forecast
from s2video.planning.plan import make_plan, resolve_parallel
from s2video.planning.step import Degrees

# meshes


@pytest.mark.parametrize("world_size", [1, 2, 3, 6, 8, 12])
@pytest.mark.parametrize(
    "overrides",
    [(), ("guidance.cfg_scale=1",), ("model.attention_backend=xformers",), ("model.attention_backend=_native_math",)],
    ids=lambda overrides: " ".join(overrides) or "default",
)
def test_legal_is_what_the_engine_takes(world_size: int, overrides: tuple[str, ...]) -> None:
    config = read_config(WAN_14B, overrides)
    info = Checkpoint(ASSETS / "published" / config.model.path.replace("/", "--")).info
    legal = set()
    for ring in range(1, world_size + 1):
        for ulysses in range(1, world_size + 1):
            for branch in (1, 2):
                values = config.model_dump(mode="json")
                values["parallel"] = {"ring": ring, "ulysses": ulysses, "branch": branch}
                try:
                    check_request(build_config(values), info, world_size=world_size)
                except InputError:
                    continue
                legal.add(Degrees(ring, ulysses, branch))
    plan = make_plan(config, world_size, H100)
    assert {candidate.degrees for candidate in plan.candidates} == legal
    seconds = [candidate.forecast.seconds for candidate in plan.candidates]
    assert seconds == sorted(seconds)


def test_reasons_name_every_factor() -> None:
    odd = dict(planned(3).refused)
    assert list(odd) == ["ring × ulysses × 2"] and "never 3" in odd["ring × ulysses × 2"]
    no_uncond = planned(4, "guidance.cfg_scale=1").refused
    assert [str(mesh) for mesh, _ in no_uncond] == ["1 × 2 × 2", "2 × 1 × 2"]
    assert "ring 1 × ulysses 2 × branch 2 = 4" in no_uncond[0][1] and "no uncond" in no_uncond[0][1]
    no_ring = planned(2, "model.attention_backend=xformers").refused
    assert len(no_ring) == 1
    assert "ring 2 × ulysses 1 × branch 1 = 2" in no_ring[0][1] and "log-sum-exp" in no_ring[0][1]


def test_the_configs_own_mesh_is_pointed_out() -> None:
    plan = planned(8, "parallel.ring=2", "parallel.branch=2")
    own = [c.degrees for c in plan.candidates if "as in the config" in c.notes]
    assert own == [Degrees(2, 2, 2)] and plan.refused == ()
    impossible = planned(8, "parallel.ulysses=3")
    assert not any("as in the config" in c.notes for c in impossible.candidates)
    assert impossible.refused[0][0] == "ulysses 3 × branch 1"


def test_what_fits_comes_first() -> None:
    """On a card of 32 GB, 14B in bfloat16 fits no mesh while decoding, and the notes state it."""
    plan = planned(4, "parallel.decode=serial", card=read_card("H100", ["memory_gb=32"]))
    assert not any(candidate.fits for candidate in plan.candidates)
    assert "does not fit into 32 GB while decoding" in plan.best.notes
    peaks = sorted({round(c.forecast.memory_bytes) for c in planned(4, "sampling.num_frames=321").candidates})
    assert len(peaks) > 1
    between = read_card("H100", [f"memory_gb={sum(peaks[:2]) / 2e9}"])
    mixed = planned(4, "sampling.num_frames=321", card=between).candidates
    assert [c.fits for c in mixed] == sorted((c.fits for c in mixed), reverse=True)
    assert {c.fits for c in mixed} == {True, False}


def test_idle_and_uneven_heads_are_noted() -> None:
    wan = ROOT / "configs" / "wan2.1-t2v-1.3b-480p.yaml"
    notes = {c.degrees: c.notes for c in planned(16, config=wan).candidates}
    assert notes[Degrees(4, 4, 1)] == ()
    assert notes[Degrees(2, 8, 1)] == ("12 heads on 8 ranks: up to 2 each",)
    assert notes[Degrees(1, 16, 1)][0] == "4 of 16 ranks idle in attention: 12 heads"
    assert "all-to-all between nodes" in notes[Degrees(1, 16, 1)]


# checkpoints and cards


def test_a_checkpoint_is_read_from_its_headers() -> None:
    checkpoint, folder = open_checkpoint("shapes-wan"), ASSETS / "shapes-wan"
    costs = read_costs(json.loads((folder / "transformer" / "config.json").read_text()))
    blocks = sum(map(costs.block_parameters, range(costs.num_blocks)))
    assert checkpoint.num_parameters("transformer") == costs.root_parameters() + blocks
    plan = planned(2, config=ROOT / "configs" / "shapes.yaml")
    assert not plan.published
    assert plan.step.text_encoder_bytes == checkpoint.num_parameters("text_encoder") * 4


def test_published_values_stand_in_and_the_output_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--config", str(WAN_14B), "--world", "8"]) == 0
    table = capsys.readouterr().out
    assert "published values, the checkpoint was not read" in table and "predicted, not measured" in table
    rows = [line for line in table.splitlines() if line[:9].count("×") == 2]
    assert main(["plan", "--config", str(WAN_14B), "--world", "8", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["published_values"] and facts["predicted"] and facts["num_tokens"] == 75600
    assert facts["passes"] == {"cond": 1, "uncond": 1, "sub": pytest.approx(0.7)}
    assert len(rows) == len(facts["meshes"]) == 7
    for row, mesh in zip(rows, facts["meshes"], strict=True):
        assert row.startswith(f"{mesh['ring']} × {mesh['ulysses']} × {mesh['branch']}")
        assert f"{mesh['passes']:.3f}" in row and f"{mesh['seconds']:.4g}" in row
        assert f"{mesh['memory_bytes'] / 1e9:.1f}" in row and f"{mesh['sent_bytes'] / 1e6:.1f}" in row


def test_hunyuan_video_is_planned_too() -> None:
    plan = planned(8, config=ROOT / "configs" / "hunyuanvideo-720p.yaml")
    assert plan.published and plan.step.num_tokens == 118800 and not plan.step.has_uncond
    assert plan.step.sub.passes == pytest.approx(53 / 70)
    assert plan.best.degrees == Degrees(1, 8, 1)
    assert [str(mesh) for mesh, _ in plan.refused] == ["1 × 4 × 2", "2 × 2 × 2", "4 × 1 × 2"]


def test_images_are_planned_too() -> None:
    """Images add tokens in cross-attention, and an image encoder, which alternates with the text encoder."""
    i2v = ROOT / "configs" / "wan2.1-i2v-14b-480p.yaml"
    plan = planned(8, config=i2v)
    assert plan.published and plan.step.num_tokens == 32760
    without: Any = plan.step.model
    text_only = forecast(Degrees(1, 8, 1), replace(plan.step, model=replace(without, num_images=0)), H100)
    assert text_only.seconds < forecast(Degrees(1, 8, 1), plan.step, H100).seconds
    text, images = 5680910336 * 2, 632076800 * 4
    assert plan.step.text_encoder_bytes == text
    assert planned(8, "model.offload_text_encoder=false", config=i2v).step.text_encoder_bytes == text + images
    assert planned(8, "model.stream_text_encoder=true", config=i2v).step.text_encoder_bytes == images


def test_two_transformers_weigh_twice_unless_one_rests() -> None:
    a14b = ROOT / "configs" / "wan2.2-t2v-a14b.yaml"
    both, one = (planned(8, f"model.offload_experts={x}", config=a14b).best.forecast for x in ("false", "true"))
    model = planned(8, config=a14b).step.model
    weights = 2 * (model.root_parameters() + sum(map(model.block_parameters, range(40))))
    assert both.memory_bytes - one.memory_bytes == pytest.approx(weights) == pytest.approx(28.6e9, rel=0.01)
    assert both.seconds == one.seconds
    sharded = planned(8, "parallel.weights=fsdp", config=a14b).best.forecast
    assert both.memory_bytes - sharded.memory_bytes > 45e9
    refused = planned(8, "guidance.cfg_scale_2=1", config=a14b)
    assert refused.step.has_uncond and "guidance.cfg_scale_2 1 there is no uncond" in refused.refused[0][1]


@pytest.mark.parametrize("weights", ["fsdp", "zero3", "streamed"])
def test_what_the_engine_refuses_with_shared_out_weights_is_not_planned(weights: str) -> None:
    with pytest.raises(InputError, match=r"model\.offload_experts: needs parallel\.weights replicated"):
        planned(
            8,
            f"parallel.weights={weights}",
            "model.offload_experts=true",
            config=ROOT / "configs" / "wan2.2-t2v-a14b.yaml",
        )


def test_a_time_for_each_token_is_planned() -> None:
    """Wan 2.2 TI2V 5B, 704 x 1280, 121 frames: 31 x 22 x 40 tokens of 32 pixels."""
    plan = planned(8, config=ROOT / "configs" / "wan2.2-ti2v-5b.yaml")
    assert plan.published and plan.step.num_tokens == 27280 and plan.step.model.time_per_token
    model: Any = plan.step.model
    denoising = replace(plan.step, decoding_bytes=0, text_encoder_bytes=0, image_encoding_bytes=0)
    each, once = (
        forecast(Degrees(1, 1, 1), replace(denoising, model=replace(model, time_per_token=x)), H100)
        for x in (True, False)
    )
    modulation = (7 * 2 * 2 + 24) * 27280 * 3072  # two branches in bfloat16, and one block in float32
    assert each.memory_bytes - once.memory_bytes == pytest.approx(modulation)
    assert 1.003 < each.seconds / once.seconds < 1.01


def test_planning_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from s2video.cli.main import main;"
        f"main(['plan', '--config', {str(WAN_14B)!r}, '--world', '8', '--set', 'model.device=cuda']);"
        "print(sorted({'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert finished.stdout.splitlines()[-1] == "[]", finished.stderr


def test_cards_by_name_by_file_and_by_figure(tmp_path: Path) -> None:
    assert read_card("h100") is not H100 and read_card("h100") == H100
    assert read_card("L40S", ["memory_gb=40", "name=half"]) == CARDS["L40S"].model_copy(
        update={"memory_gb": 40.0, "name": "half"}
    )
    path = tmp_path / "mine.yaml"
    path.write_text("base: A100\nintra_gbs: 100\n")
    assert read_card(str(path)) == CARDS["A100"].model_copy(update={"intra_gbs": 100.0, "name": "mine"})
    path.write_text(yaml.safe_dump({**H100.model_dump(), "name": "own"}))
    assert read_card(str(path)) == H100.model_copy(update={"name": "own"})


@pytest.mark.parametrize(
    ("device", "card"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA GeForce RTX 4090", "RTX4090"),
        ("AMD Instinct MI300X", "cpu"),
    ],
)
def test_a_card_is_guessed_from_the_devices_name(device: str, card: str) -> None:
    assert guess_card(device) is CARDS[card]


# parallel: auto


def with_parallel(tiny_checkpoint: Path, parallel: Any) -> RunConfig:
    sampling = {**SIZE, "num_inference_steps": 2, "max_sequence_length": MAX_SEQUENCE_LENGTH}
    model = {"path": str(tiny_checkpoint), "device": "cpu"}
    return build_config({"model": model, "sampling": sampling, "parallel": parallel})


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_auto_is_the_plans_first(tiny_checkpoint: Path, world_size: int) -> None:
    auto = with_parallel(tiny_checkpoint, {"degrees": "auto", "timeout_seconds": 7.0})
    resolved = resolve_parallel(auto, Checkpoint(tiny_checkpoint), world_size)
    best = make_plan(auto, world_size, read_card("cpu", ["node_size=1"])).best.degrees
    expected = ParallelConfig.model_validate({**best._asdict(), "timeout_seconds": 7.0})
    assert resolved == auto.model_copy(update={"parallel": expected})
    assert resolve_degrees(resolved.parallel, world_size) == best._asdict()


def test_given_degrees_stay(tiny_checkpoint: Path) -> None:
    config = with_parallel(tiny_checkpoint, {"ring": 2})
    assert resolve_parallel(config, Checkpoint(tiny_checkpoint), 2) is config


def test_the_word_auto_is_short_for_its_degrees(tiny_checkpoint: Path) -> None:
    auto = with_parallel(tiny_checkpoint, "auto")
    assert auto == with_parallel(tiny_checkpoint, {"degrees": "auto"})
    assert read_config(WAN_14B, ["parallel=auto"]).parallel.degrees == "auto"
    with pytest.raises(InputError, match="leave them out"):
        with_parallel(tiny_checkpoint, {"degrees": "auto", "ring": 2})
    with pytest.raises(InputError, match="resolve_parallel"):
        resolve_degrees(auto.parallel, 2)


# what cannot be planned


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["--world", "0"], ["--world", ">= 1"]),
        (["--world", "two"], ["--world", "whole number"]),
        ([], ["--world", "required"]),
        (["--world", "2", "--card", "H1000"], ["--card", "H100, H200", "'H1000'"]),
        (["--world", "2", "--card", "none.yaml"], ["none.yaml", "No such file"]),
        (["--world", "2", "--set-card", "intra_gb=2"], ["unknown key", "did you mean 'intra_gbs'"]),
        (["--world", "2", "--set-card", "intra_gbs"], ["--set-card", "key=value"]),
        (["--world", "2", "--set-card", "intra_gbs=0"], ["intra_gbs", "> 0"]),
        (["--world", "2", "--set-card", "matmul_share=2"], ["matmul_share", "<= 1"]),
        (["--world", "2", "--set", "model.path=someone/else"], ["someone/else", "Wan-AI/Wan2.1-T2V-14B-Diffusers"]),
        (["--world", "2", "--set", "model.path=/nowhere"], ["/nowhere"]),
        (["--world", "2", "--set", "sampling.width=100"], ["sampling.width", "multiple of 16"]),
        (["--world", "2", "--set", "guidance.never_drop=[40]"], ["never_drop", "0 to 39"]),
        (["--world", "2", "--set", "model.attention_backend=fast"], ["attention_backend"]),
        (["--world", "2", "--set", "parallel=best"], ["parallel", "'best'"]),
    ],
)
def test_bad_input(arguments: list[str], fragments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--config", str(WAN_14B), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("s2video: error: ") and captured.err.count("\n") == 1
    for fragment in fragments:
        assert fragment in captured.err


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("[1]", "expected a mapping"),
        ("name: x\n", "base: H100"),
        ("base: H1\n", "base: expected one of"),
        ("base: H100\ncolour: red\n", "unknown key 'colour'"),
        ("base: [\n", "YAML"),
        ("base: H100\nnode_size: 1.5\n", "node_size"),
    ],
)
def test_bad_card_files(text: str, fragment: str, tmp_path: Path) -> None:
    path = tmp_path / "card.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=fragment):
        read_card(str(path))


def test_other_ways_to_run_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """The passes of facts that are known: 30 blocks, 3 dropped."""
    ways = planned(1, config=ROOT / "configs" / "wan2.1-t2v-1.3b-480p.yaml").other_ways
    expected = {"exact": 1.26, "deviation": 1.065, "light": 0.93, "fast": 0.665}
    assert ways == pytest.approx(
        {f"guidance.reuse={preset}": cost for preset, cost in expected.items()}
        | {
            f"guidance.reuse={preset} guidance.cfg_scale=1": cost
            for preset, cost in {"exact": 0.76, "deviation": 0.565, "light": 0.63, "fast": 0.365}.items()
        }
    )
    arguments = ["plan", "--model", "wan2.1-t2v-14b-720p", "--world", "1", "--set", "guidance.reuse=fast"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "cond in 30, uncond in 30, sub (0.7 of a pass) in 10 of 50 steps" in said
    assert "note: guidance.reuse fast at cfg_scale 5" in said and "guidance.reuse deviation is safer" in said
    assert main([*arguments, "--json", "--set", "guidance.cfg_scale=3"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["computed_steps"] == {"cond": 30, "uncond": 30, "sub": 10}
