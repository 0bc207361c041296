"""Tests of the shapes data and its detector, on ground truth and on defective clips."""

import itertools
import random
from collections import Counter
from dataclasses import replace
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from shapes.detector import Found, Reading, read_scene, score
from shapes.world import (
    ATTRIBUTES,
    BACKGROUNDS,
    COLORS,
    DIRECTIONS,
    HEIGHT,
    HELD_OUT,
    NUM_FRAMES,
    SHAPES,
    SIZES,
    WIDTH,
    Scene,
    Thing,
    caption,
    render,
    sample_scene,
    variants,
)
from torch import Tensor

VALUES = {"color": COLORS, "shape": SHAPES, "size": SIZES, "direction": DIRECTIONS}
LONE = Scene((Thing("red", "circle", "large", "left", 12.5, 45.0, 32.0),), "gray")
PAIR = Scene(
    (
        Thing("red", "circle", "small", "left", 7.5, 50.0, 15.0),
        Thing("blue", "square", "large", "up", 12.5, 30.0, 46.0),
    ),
    "white",
)


@cache
def scenes(num_things: int) -> list[Scene]:
    """Return 200 scenes, every second one with held-out triples."""
    rng = random.Random(f"test-{num_things}")
    return [sample_scene(rng, num_things=num_things, held_out=i % 2 == 1) for i in range(200)]


def clip(scene: Scene) -> Tensor:
    return render([scene])[0][0]


def soften(video: Tensor, seed: int) -> Tensor:
    """Apply a Gaussian blur of 1 pixel, noise of 0.05 in units of [0, 1], and 8-bit rounding."""
    kernel = torch.exp(-torch.arange(-4.0, 5.0).square() / 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, 9)
    frames = F.pad((video.transpose(0, 1) + 1) / 2, (4, 4, 4, 4), mode="replicate")
    frames = F.conv2d(F.conv2d(frames, kernel, groups=3), kernel.transpose(2, 3), groups=3)
    frames += 0.05 * torch.randn(frames.shape, generator=torch.Generator().manual_seed(seed))
    return (frames.clamp(0, 1) * 255).round().transpose(0, 1) / 255 * 2 - 1


def rates(all_scores: list[dict[str, bool | float]]) -> dict[str, float]:
    return {name: sum(s[name] for s in all_scores) / len(all_scores) for name in (*ATTRIBUTES, "background")}


# The detector on ground truth


@pytest.mark.parametrize("num_things", [1, 2])
def test_detector_reads_rendered_scenes(num_things: int) -> None:
    found = rates([score(scene, read_scene(clip(scene), num_things)) for scene in scenes(num_things)])
    assert min(found.values()) >= 0.99, found


@pytest.mark.parametrize("num_things", [1, 2])
def test_detector_reads_soft_and_noisy_scenes(num_things: int) -> None:
    found = rates(
        [score(s, read_scene(soften(clip(s), seed), num_things)) for seed, s in enumerate(scenes(num_things))]
    )
    assert min(found.values()) >= 0.95, found


def test_track_follows_the_centre() -> None:
    thing = scenes(1)[0].things[0]
    found = read_scene(clip(scenes(1)[0]), 1).objects[0]
    dx, dy = DIRECTIONS[thing.direction]
    assert [frame for frame, _, _ in found.track] == list(range(NUM_FRAMES))
    for frame, x, y in found.track:
        assert abs(x - thing.x - dx * frame) < 0.3 and abs(y - thing.y - dy * frame) < 0.3
    assert abs(found.half_extent - thing.half_extent) < 0.3
    assert found.displacement == pytest.approx((16 * dx, 16 * dy), abs=0.1)


# The detector on possible outputs of a model


def test_static_thing_has_no_direction() -> None:
    video = clip(LONE)[:, :1].expand(3, NUM_FRAMES, HEIGHT, WIDTH)
    reading = read_scene(video, 1)
    assert reading.objects[0].direction is None
    judged = score(LONE, reading)
    assert (judged["direction"], judged["color"], judged["all"], judged["perfect"]) == (0, 1, 0.8, False)


def test_oblique_thing_has_no_direction() -> None:
    left, down = (clip(Scene((replace(LONE.things[0], y=20.0, direction=d),), "gray")) for d in ("left", "down"))
    shift = [left[:, t].roll(t, dims=1) for t in range(NUM_FRAMES)]  # both at once: left and down
    assert read_scene(torch.stack(shift, dim=1), 1).objects[0].direction is None
    assert read_scene(down, 1).objects[0].direction == "down"


@pytest.mark.parametrize("scene", [LONE, PAIR])
def test_empty_clip_counts_all_wrong(scene: Scene) -> None:
    video = clip(Scene((), "black"))
    reading = read_scene(video, len(scene.things))
    assert reading == Reading("black", (), 0)
    judged = score(scene, reading)
    assert judged["all"] == 0 and not judged["background"]
    assert all(judged[name] == 0 for name in ATTRIBUTES)


def test_noise_alone_is_no_scene() -> None:
    video = torch.rand(3, NUM_FRAMES, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert score(LONE, read_scene(video, 1))["all"] <= 0.2


def test_missing_thing_counts_all_its_attributes_wrong() -> None:
    reading = read_scene(clip(Scene(PAIR.things[:1], PAIR.background)), 2)
    judged = score(PAIR, reading)
    assert [judged[f"objects.0.{name}"] for name in ATTRIBUTES] == [True] * 4
    assert [judged[f"objects.1.{name}"] for name in ATTRIBUTES] == [False] * 4
    assert judged["all"] == pytest.approx(5 / 9)


def test_two_things_of_one_color_are_two() -> None:
    scene = Scene(tuple(replace(thing, color="green") for thing in PAIR.things), PAIR.background)
    reading = read_scene(clip(scene), 2)
    assert len(reading.objects) == 2 and score(scene, reading)["perfect"]
    assert score(PAIR, reading)["color"] == 0 and score(PAIR, reading)["shape"] == 1


def test_gray_thing_has_no_color() -> None:
    thing = clip(LONE)
    video = torch.where(thing[:1] > 0.5, torch.tensor(BACKGROUNDS["white"]).view(3, 1, 1, 1) * 2 - 1, thing)
    judged = score(LONE, read_scene(video, 1))
    assert judged["color"] == 0 and judged["direction"] == 1


def test_third_blob_is_reported_and_does_not_disturb() -> None:
    blob = Scene((Thing("cyan", "circle", "small", "left", 4.0, 58.0, 58.0),), PAIR.background)
    still = clip(blob)[:, :1]
    video = torch.where((still - still[:, :, :1, :1]).abs().amax(0) > 0.1, still, clip(PAIR))
    reading = read_scene(video, 2)
    assert reading.num_extra == 1
    assert score(PAIR, reading)["perfect"]


@pytest.mark.parametrize("scene", [LONE, PAIR])
def test_fading_and_smearing_are_forgiven(scene: Scene) -> None:
    video = clip(scene)
    ground = clip(Scene((), scene.background))
    strength = torch.linspace(1, 0.6, NUM_FRAMES).view(1, -1, 1, 1)
    faded = ground + (video - ground) * strength
    assert score(scene, read_scene(faded, len(scene.things)))["perfect"]
    smeared = [video[:, 0]]
    for t in range(1, NUM_FRAMES):
        smeared.append(0.5 * video[:, t] + 0.5 * smeared[-1])
    assert score(scene, read_scene(torch.stack(smeared, dim=1), len(scene.things)))["perfect"]


@pytest.mark.parametrize("frames_shown, seen", [(5, 0), (10, 1)])
def test_thing_must_last(frames_shown: int, seen: int) -> None:
    video, ground = clip(LONE), clip(Scene((), LONE.background))
    video = torch.cat([video[:, :frames_shown], ground[:, frames_shown:]], dim=1)
    assert len(read_scene(video, 1).objects) == seen


def test_bar_is_no_shape() -> None:
    video = clip(Scene((), "black"))
    for t in range(NUM_FRAMES):
        video[0, t, 30:35, 10 + t : 40 + t] = 0.8
    found = read_scene(video, 1).objects[0]
    assert (found.color, found.shape, found.direction) == ("red", None, "right")


def test_upside_down_triangle_is_no_triangle() -> None:
    scene = Scene((Thing("red", "triangle", "large", "left", 12.5, 45.0, 32.0),), "gray")
    assert read_scene(clip(scene), 1).objects[0].shape == "triangle"
    assert read_scene(clip(scene).flip(2), 1).objects[0].shape != "triangle"


def test_wrong_video_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[3, T, H, W\], got \(17, 64, 64, 3\)"):
        read_scene(torch.zeros(17, 64, 64, 3), 1)


# Scores of captions that do not match


def test_each_changed_attribute_is_wrong() -> None:
    reading = read_scene(clip(LONE), 1)
    assert score(LONE, reading)["perfect"]
    for name, values in VALUES.items():
        for value in values:
            if value == getattr(LONE.things[0], name):
                continue
            judged = score(Scene((replace(LONE.things[0], **{name: value}),), LONE.background), reading)
            assert {key: judged[f"objects.0.{key}"] for key in ATTRIBUTES} == {key: key != name for key in ATTRIBUTES}
            assert judged["all"] == 0.8 and not judged["perfect"]
    for background in set(BACKGROUNDS) - {LONE.background}:
        judged = score(replace(LONE, background=background), reading)
        assert not judged["background"] and judged["all"] == 0.8


def test_each_changed_attribute_of_two_is_wrong() -> None:
    reading = read_scene(clip(PAIR), 2)
    assert score(PAIR, reading)["perfect"]
    for i, name in itertools.product(range(2), ATTRIBUTES):
        other = next(
            v
            for v in VALUES[name]
            if v not in [getattr(thing, name) for thing in PAIR.things] or len(VALUES[name]) == 2
        )
        if other == getattr(PAIR.things[i], name):
            other = next(v for v in VALUES[name] if v != other)
        things = list(PAIR.things)
        things[i] = replace(things[i], **{name: other})
        judged = score(Scene(tuple(things), PAIR.background), reading)
        assert judged["all"] == pytest.approx(8 / 9), (i, name)
        assert not judged[f"objects.{i}.{name}"]


def test_order_of_things_does_not_matter_but_binding_does() -> None:
    reading = read_scene(clip(PAIR), 2)
    assert score(Scene(PAIR.things[::-1], PAIR.background), reading)["perfect"]
    a, b = PAIR.things
    swapped = Scene((replace(a, color=b.color), replace(b, color=a.color)), PAIR.background)
    judged = score(swapped, reading)
    assert judged["color"] == 0 and judged["shape"] == judged["size"] == judged["direction"] == 1


def test_among_equal_assignments_colors_are_kept_right() -> None:
    def found(color: str, shape: str) -> Found:
        return Found(color, shape, None, None, 8.0, (0.0, 0.0), (), 100.0, 0.9, 1.0)

    reading = Reading("white", (found("blue", "circle"), found("red", "square")), 0)
    judged = score(PAIR, reading)  # a red circle and a blue square
    assert judged["color"] == 1 and judged["shape"] == 0


# The data


def test_captions() -> None:
    assert caption(LONE) == "a large red circle moving left on a gray background"
    assert caption(PAIR) == ("a small red circle moving left and a large blue square moving up on a white background")
    rng = random.Random(0)
    drawn = Counter(caption(LONE, rng) for _ in range(2000))
    assert drawn[caption(LONE)] > 0.88 * 2000
    assert {
        "a red circle",
        "a large red circle",
        "a red circle moving left",
        "a red circle on a gray background",
    } <= set(drawn)
    assert all(f"{LONE.things[0].color} {LONE.things[0].shape}" in text for text in drawn)


def test_held_out_triples_leave_every_pair_in_training() -> None:
    triples = set(itertools.product(COLORS, SHAPES, DIRECTIONS))
    training = triples - HELD_OUT
    assert len(HELD_OUT) == 12 and triples >= HELD_OUT
    for i, j in itertools.combinations(range(3), 2):
        assert {(t[i], t[j]) for t in training} == {(t[i], t[j]) for t in triples}


@pytest.mark.parametrize("num_things", [1, 2])
def test_sampled_scenes_keep_their_promises(num_things: int) -> None:
    for index, scene in enumerate(scenes(num_things)):
        assert len(scene.things) == num_things
        assert len({thing.color for thing in scene.things}) == num_things
        for thing in scene.things:
            assert (thing.key in HELD_OUT) == (index % 2 == 1)
            low, high = SIZES[thing.size]
            assert low <= thing.half_extent <= high


def test_sampling_draws_every_value() -> None:
    seen = Counter(value for s in scenes(1) for t in s.things for value in (t.color, t.shape, t.size, t.direction))
    seen.update(scene.background for scene in scenes(1))
    assert set(seen) == {*COLORS, *SHAPES, *SIZES, *DIRECTIONS, *BACKGROUNDS}


def test_sampling_is_a_function_of_the_generator() -> None:
    first, again, other = (sample_scene(random.Random(seed), num_things=2) for seed in (5, 5, 6))
    assert first == again and first != other
    state = random.getstate()
    sample_scene(random.Random(7), num_things=2)
    assert random.getstate() == state


@pytest.mark.parametrize("num_things", [1, 2])
def test_things_stay_inside_and_never_touch(num_things: int) -> None:
    for scene in scenes(num_things)[:60]:
        alone = [render([Scene((thing,), scene.background)])[1][0, 0] for thing in scene.things]
        for coverage in alone:
            border = torch.cat([coverage[:, [0, -1]].flatten(), coverage[:, :, [0, -1]].flatten()])
            assert border.max() < 0.25  # at most the soft fringe of a corner
            areas = coverage.flatten(1).sum(1)
            assert areas.min() > 80 and areas.max() - areas.min() < 2  # the shape stays inside the picture
        if num_things == 2:
            grown = F.max_pool2d(alone[0], 3, stride=1, padding=1) > 0
            assert not (grown & (alone[1] > 0)).any()


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_variants_differ_in_one_attribute_and_stay_training_scenes(attribute: str) -> None:
    rng = random.Random(attribute)
    families = 0
    for _ in range(15):
        scene = sample_scene(rng, num_things=2)
        family = variants(scene, 1, attribute, rng)
        assert scene in family  # one of them is the unchanged value
        families += len(family) > 1
        for other in family:
            old, new = scene.things[1], other.things[1]
            assert other.things[0] == scene.things[0] and other.background == scene.background
            assert all(getattr(old, name) == getattr(new, name) for name in ATTRIBUTES if name != attribute)
            assert all(thing.key not in HELD_OUT for thing in other.things)
            assert other.things[0].color != new.color
            centres = [(t.x + 8 * DIRECTIONS[t.direction][0], t.y + 8 * DIRECTIONS[t.direction][1]) for t in (old, new)]
            assert centres[0] == pytest.approx(centres[1])
            pixels = coverage_apart(other)
            assert (pixels[0] * pixels[1]).max() == 0  # they never touch
            for coverage in pixels:
                border = torch.cat([coverage[:, [0, -1]].flatten(), coverage[:, :, [0, -1]].flatten()])
                assert border.max() < 0.25  # at most the soft fringe of a corner
    assert families > 3  # growing often fails for lack of room


def coverage_apart(scene: Scene) -> list[Tensor]:
    """Return the coverage [T, H, W] of each thing without the other."""
    return [render([Scene((thing,), scene.background)])[1][0, 0] for thing in scene.things]


def test_render_shapes_and_range() -> None:
    video, coverage = render([LONE, PAIR])
    assert video.shape == (2, 3, 17, 64, 64) and coverage.shape == (2, 1, 17, 64, 64)
    assert video.dtype == coverage.dtype == torch.float32
    assert video.min() >= -1 and video.max() <= 1
    assert coverage.min() == 0 and coverage.max() == 1
    assert video[0, :, 0, 0, 0].tolist() == pytest.approx([2 * c - 1 for c in BACKGROUNDS["gray"]])
    assert video[0, :, 0, 32, 45].tolist() == pytest.approx([2 * c - 1 for c in COLORS["red"]])
    video, coverage = render([LONE], num_frames=3, height=40, width=56)
    assert video.shape == (1, 3, 3, 40, 56) and coverage.shape == (1, 1, 3, 40, 56)


def test_things_move_a_pixel_a_frame() -> None:
    for direction, (dx, dy) in DIRECTIONS.items():
        scene = Scene((Thing("red", "circle", "small", direction, 7.5, 32.0, 32.0),), "black")
        video = clip(scene)
        moved = video[:, 0].roll((int(16 * dy), int(16 * dx)), dims=(1, 2))
        torch.testing.assert_close(moved, video[:, 16])


def test_triangle_points_up() -> None:
    covered = render([Scene((Thing("red", "triangle", "large", "left", 12.0, 40.0, 32.0),), "black")])[1][0, 0, 0]
    widths = covered.sum(dim=1)[20:44]
    assert widths[1] < 3 and widths[-2] > 20
    assert (widths[1:] >= widths[:-1] - 1e-4)[:-1].all()
