"""Tests of measures on rendered clips with known answers, and of the network that compares clips."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from shapes.detector import read_scene
from shapes.features import (
    ANSWERS,
    NOTHING,
    WEIGHTS,
    accuracy,
    frechet_distance,
    load_features,
    targets,
    train_features,
    training_scenes,
)
from shapes.world import ATTRIBUTES, COLORS, HELD_OUT, Scene, Thing, render
from studies.clip_measures import flicker, measure_clip, swapped
from torch import Tensor

FIRST = Thing("red", "circle", "large", "right", 12.5, 20.0, 18.0)
SECOND = Thing("blue", "square", "small", "left", 7.5, 44.0, 50.0)
TWO = Scene((FIRST, SECOND), "gray")


def frames_of(scene: Scene) -> Tensor:
    return render([scene])[0][0].permute(1, 2, 3, 0) / 2 + 0.5


def test_a_right_clip() -> None:
    measured = measure_clip(TWO, frames_of(TWO))
    assert measured["scores"]["perfect"] is True and measured["num_extra"] == 0
    assert measured["swapped"] == dict.fromkeys(ATTRIBUTES, False)
    assert measured["saturation"] == pytest.approx(1, abs=1e-3)
    assert measured["static_flicker"] < 1e-6 < measured["flicker"]
    json.dumps(measured, allow_nan=False)


def test_a_still_clip_does_not_flicker_and_a_noisy_one_does() -> None:
    still = frames_of(TWO)[:1].expand(17, -1, -1, -1)
    assert measure_clip(TWO, still)["flicker"] == 0
    pulse = torch.where(torch.arange(17) % 2 == 0, 0.02, -0.02).view(-1, 1, 1, 1)
    pulsing = measure_clip(TWO, still + pulse)
    assert pulsing["flicker"] == pytest.approx(0.04, abs=1e-5)
    assert pulsing["static_flicker"] == pytest.approx(0.04, abs=1e-5)
    assert flicker(np.arange(4.0).reshape(4, 1, 1, 1)) == 1


def test_saturation_follows_the_colors() -> None:
    gray = frames_of(TWO).mean(dim=-1, keepdim=True)
    dull = measure_clip(TWO, 0.8 * frames_of(TWO) + 0.2 * gray)["saturation"]
    assert dull == pytest.approx(0.8, abs=0.01)
    nothing = torch.full((17, 64, 64, 3), 0.45)
    empty = measure_clip(TWO, nothing)
    assert empty["saturation"] is None and empty["scores"]["all"] == pytest.approx(1 / 9)


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_a_swapped_attribute_is_seen(attribute: str) -> None:
    """The clip shows the two things with that attribute exchanged, and only this attribute counts as swapped."""
    sizes = {"half_extent": SECOND.half_extent}, {"half_extent": FIRST.half_extent}
    extra = sizes if attribute == "size" else ({}, {})
    shown = Scene(
        (
            replace(FIRST, **{attribute: getattr(SECOND, attribute)}, **extra[0]),
            replace(SECOND, **{attribute: getattr(FIRST, attribute)}, **extra[1]),
        ),
        "gray",
    )
    if attribute == "direction":
        shown = Scene((replace(shown.things[0], x=44.0), replace(shown.things[1], x=20.0)), "gray")
    measured = measure_clip(TWO, frames_of(shown))
    assert measured["swapped"] == {name: name == attribute for name in ATTRIBUTES}
    assert measured["scores"][attribute] == 0


def test_only_what_differs_can_be_swapped() -> None:
    alike = Scene((FIRST, replace(SECOND, shape="circle")), "gray")
    reading = read_scene(frames_of(alike).permute(3, 0, 1, 2) * 2 - 1, 2)
    assert set(swapped(alike, reading)) == {"color", "size", "direction"}
    assert swapped(Scene((FIRST,), "gray"), reading) == {}


def test_targets_name_what_is_there() -> None:
    wanted = targets([TWO])
    red, blue = list(COLORS).index("red"), list(COLORS).index("blue")
    assert wanted["present"].nonzero().tolist() == [[0, red], [0, blue]]
    for name, values in ANSWERS.items():
        assert values[wanted[name][0, red]] == getattr(FIRST, name)
        assert values[wanted[name][0, blue]] == getattr(SECOND, name)
        assert (wanted[name] != NOTHING).sum() == 2


def test_the_kept_network_is_as_good_as_it_says() -> None:
    """Its accuracy on new held-out clips is within their statistical error."""
    with safe_open(WEIGHTS, "pt") as file:
        said = json.loads(file.metadata()["accuracy_2"])
    scenes = [scene for scene in training_scenes(123, 0, 200) if all(t.key in HELD_OUT for t in scene.things)][:40]
    reached = accuracy(load_features(), scenes)
    assert reached.keys() == said.keys()
    assert all(reached[name] > said[name] - 0.1 for name in said)
    assert min(said.values()) > 0.9
    assert WEIGHTS.stat().st_size < 1_000_000


def test_features_tell_damaged_clips_from_right_ones() -> None:
    network = load_features()
    scenes = training_scenes(7, 0, 40)
    video = render(scenes)[0]
    noise = torch.randn(video.shape, generator=torch.Generator().manual_seed(0))
    circles = [Scene(tuple(replace(thing, shape="circle") for thing in s.things), s.background) for s in scenes]
    sets = [video, video + 0.2 * noise, video + 0.6 * noise, render(circles)[0], video.flip(2)]
    with torch.no_grad():
        features = [network(clips).double().numpy() for clips in sets]
    same, noisy, noisier, round_, backwards = (frechet_distance(features[0], other) for other in features)
    assert abs(same) < 1e-6 < noisy < noisier
    assert min(round_, backwards) > 3 * noisy, "what a clip shows counts for more than a little noise"


def test_training_can_be_taken_up_again(tmp_path) -> None:
    torch.manual_seed(0)
    settings = {"seed": 0, "num_steps": 2, "batch": 2, "learning_rate": 1e-3}
    first = train_features(tmp_path, **settings)
    torch.manual_seed(1)
    again = train_features(tmp_path, **settings)  # no steps are left, so it equals the saved one
    for one, other in zip(first.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
