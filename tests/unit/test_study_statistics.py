"""Tests of intervals, paired differences and spreads on synthetic numbers with known answers."""

import math

import numpy as np
import pytest
from shapes.features import FrechetReference, frechet_distance
from studies.spread import spread

from s2video.study.bootstrap import Bootstrap, Sample, estimate

CAPTIONS = 200


def sample(values: np.ndarray, captions: np.ndarray | None = None) -> Sample:
    return Sample(values, np.arange(len(values)) if captions is None else captions)


def test_an_interval_has_the_width_of_theory() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, CAPTIONS)
    found = Bootstrap(CAPTIONS, resamples=4000).mean(sample(values))
    half = 1.96 * values.std() / CAPTIONS**0.5
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.04)


def test_a_paired_difference_is_far_surer_than_its_two_sides() -> None:
    rng = np.random.default_rng(1)
    base = rng.normal(0.0, 5.0, CAPTIONS)
    better = base + 0.3 + rng.normal(0.0, 0.1, CAPTIONS)
    bootstrap = Bootstrap(CAPTIONS, resamples=2000)
    change = bootstrap.difference(sample(better), sample(base))
    assert change.value == pytest.approx((better - base).mean())
    assert change.high - change.low == pytest.approx(2 * 1.96 * 0.1 / CAPTIONS**0.5, rel=0.2)
    assert bootstrap.mean(sample(base)).high - bootstrap.mean(sample(base)).low > 30 * (change.high - change.low)
    same = bootstrap.difference(sample(base), sample(base))
    assert same == (0, 0, 0)


def test_clips_of_a_caption_are_drawn_together() -> None:
    """Ten equal clips of a caption give the same interval as one."""
    values = np.random.default_rng(2).normal(0.0, 1.0, 60)
    once = Bootstrap(60, resamples=3000).mean(sample(values))
    ten = Bootstrap(60, resamples=3000).mean(sample(values.repeat(10), np.arange(60).repeat(10)))
    assert ten == pytest.approx(once)


def test_captions_that_differ_in_their_number_of_clips_can_be_compared() -> None:
    """The ground truth has one clip per caption, a method two, and some values are missing."""
    twice = sample(np.array([1.0, 3.0, 5.0, math.nan]), np.array([0, 0, 1, 1]))
    once = sample(np.array([1.0, 4.0]))
    change = Bootstrap(2, resamples=500).difference(twice, once)
    assert change.value == pytest.approx(0.5)
    assert (change.low, change.high) == pytest.approx((0.5, 1.0)), "each caption alone says 1, both together 0.5"
    nothing = Bootstrap(2, resamples=10).mean(sample(np.array([math.nan, math.nan])))
    assert all(map(math.isnan, nothing))


def test_spread_tells_runs_from_clips() -> None:
    clips = np.array([1.0, 2.0, 3.0, 4.0])
    runs = [clips + shift for shift in (-1.0, 0.0, 1.0)]
    found = spread(runs)
    assert found == pytest.approx((2.5, 1.0, 1.0, 0.4))
    opposed = spread([clips + np.array([d, -d, d, -d]) for d in (-1.0, 0.0, 1.0)])
    assert opposed.of_means == 0 and opposed.of_clips == pytest.approx(1.0)
    assert spread([*runs[:2], np.array([2.0, 3.0, 4.0, math.nan])]).mean == pytest.approx(2.0)


def test_frechet_distance_is_the_formula() -> None:
    rng = np.random.default_rng(3)
    features = rng.normal(size=(3000, 4))
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-9)
    shift = np.array([1.0, -2.0, 0.0, 0.5])
    assert frechet_distance(features, features + shift) == pytest.approx(shift @ shift)
    assert frechet_distance(features, 3 * features - 2 * features.mean(0)) == pytest.approx(
        4 * np.cov(features.T).trace()
    )
    near, far = (frechet_distance(features, features + step) for step in (0.1, 0.2))
    assert 0 < near < far
    other = rng.normal(size=(2000, 4)) @ rng.normal(size=(4, 4))
    assert frechet_distance(features, other) == pytest.approx(frechet_distance(other, features))


def test_frechet_weights_count_clips() -> None:
    rng = np.random.default_rng(4)
    reference, features = FrechetReference(rng.normal(size=(50, 3))), rng.normal(size=(20, 3))
    weights = rng.integers(0, 4, 20)
    assert reference.distance(features, weights) == pytest.approx(reference.distance(features.repeat(weights, axis=0)))


def test_a_statistic_of_sets_sees_the_same_draws_everywhere() -> None:
    bootstrap, captions = Bootstrap(30, resamples=400), np.arange(30).repeat(2)
    values = np.random.default_rng(5).normal(size=60)
    value, resampled = bootstrap.of_sets(captions, lambda weights: float(np.average(values, weights=weights)))
    assert estimate(value, resampled) == pytest.approx(bootstrap.mean(sample(values, captions)))
