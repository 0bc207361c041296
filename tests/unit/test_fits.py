"""Tests of the settings that fit a run into a card: in the plan, and in the message when memory runs out."""

import json

import pytest
import torch

from s2video.cli.main import main
from s2video.config.named import named_config
from s2video.errors import S2VideoError, memory_reported
from s2video.planning import fits
from s2video.planning.cards import CARDS
from s2video.planning.fits import advice, fitting, ways_to_run
from s2video.planning.plan import find_json, make_plan


def ways(model: str, world_size: int) -> list[fits.Way]:
    config = named_config(model)
    return ways_to_run(config, world_size, *find_json(config))


def test_the_first_way_is_the_config_with_the_plans_memory() -> None:
    first = ways("wan2.1-t2v-14b-720p", 8)[0]
    plan = make_plan(named_config("wan2.1-t2v-14b-720p"), 8, CARDS["H100"])
    least = min(candidate.forecast.memory_bytes for candidate in plan.candidates)
    assert not first.settings and str(first) == "as configured"
    assert first.memory_gb == pytest.approx(least / 1e9)


@pytest.mark.parametrize(
    ("model", "world_size", "size", "expected"),
    [
        ("wan2.1-t2v-1.3b-480p", 1, 24, {}),
        ("wan2.1-t2v-14b-720p", 1, 80, {}),
        ("wan2.1-t2v-14b-720p", 1, 24, {"parallel.weights": "streamed"}),
        ("wan2.1-t2v-14b-720p", 8, 24, {"parallel.weights": "fsdp"}),
        ("wan2.2-t2v-a14b", 8, 48, {"model.offload_experts": True}),
        ("wan2.2-ti2v-5b", 1, 24, {"model.stream_text_encoder": True, "model.vae_dtype": "bfloat16"}),
    ],
)
def test_the_cheapest_way_that_fits(model: str, world_size: int, size: float, expected: dict[str, object]) -> None:
    way = fitting(ways(model, world_size), size)
    assert way is not None and way.settings == expected and way.memory_gb <= size
    patched = named_config(model).patched(dict(way.settings))  # they are settings
    assert fitting(ways_to_run(patched, world_size, *find_json(patched)), size) is not None


def test_ways_are_only_settings_that_the_model_has() -> None:
    assert not any("model.offload_experts" in way.settings for way in ways("wan2.1-t2v-14b-720p", 8))
    assert fitting(ways("hunyuanvideo-720p", 1), 4) is None


def test_a_plan_says_what_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--model", "wan2.1-t2v-14b-720p", "--world", "1", "--card", "RTX4090"]) == 0
    said = capsys.readouterr().out
    assert "  24 GB: parallel.weights=streamed (" in said and "  80 GB: as configured (" in said
    assert main(["plan", "--model", "wan2.1-t2v-14b-720p", "--world", "1", "--json"]) == 0
    found = {row["memory_gb"]: row["settings"] for row in json.loads(capsys.readouterr().out)["fits"]}
    assert found == {24.0: {"parallel.weights": "streamed"}, 48.0: {"parallel.weights": "streamed"}, 80.0: {}}


def test_the_message_when_memory_runs_out_names_settings() -> None:
    config = named_config("wan2.1-t2v-14b-720p")
    said = advice(config, 1, 24)
    assert said.startswith("; by the plan, it fits into 24 GB with --set parallel.weights=streamed (")
    assert "no setting fits into 4 GB on 1 rank(s)" in advice(config, 1, 4)
    assert advice(config.patched({"model.path": "some/where"}), 1, 24) == ""
    # `reproduce` takes its settings from the sidecar
    assert "fits into 24 GB with generate --set parallel.weights=streamed (" in advice(config, 1, 24, "generate")
    with (
        pytest.raises(S2VideoError, match=r"out of memory \(full\).*fits into 24 GB with --set"),
        memory_reported(lambda: said),
    ):
        raise torch.OutOfMemoryError("full. And more")
