from fractions import Fraction

import numpy as np
import pytest

from s2video.guidance.masks import MaskSchedule, MaskSpec, dropped_blocks, step_masks


@pytest.mark.parametrize(
    ("ratio", "num_blocks", "count"),
    [
        *[(0.1, 30, 3), (0.1, 40, 4), (0.1, 60, 6), (0.1, 12, 1), (0.1, 4, 1), (0.1, 25, 3), (0.15, 10, 2)],
        *[(0.0, 30, 0), (1.0, 30, 29), (0.05, 30, 2), (0.01, 30, 1), (0.35, 10, 4)],
        (0.29, 50, 15),  # 0.29 * 50 is 14.499… in floats
    ],
)
def test_count_rounds_half_up_in_exact_fractions(ratio: float, num_blocks: int, count: int) -> None:
    spec = MaskSpec(drop_ratio=ratio)
    assert spec.count(num_blocks) == count
    assert len(dropped_blocks(spec, num_blocks=num_blocks, seed=1, step=2)) == count


def test_count_overrides_ratio_and_is_capped_by_the_eligible_blocks() -> None:
    assert MaskSpec(drop_count=5).count(30) == 5
    assert MaskSpec(drop_count=0).count(30) == 0
    spec = MaskSpec(drop_count=5, band=(4, 6), never_drop=(5,))
    assert dropped_blocks(spec, num_blocks=30, seed=0, step=0) == (4, 6)


def test_known_masks_never_change() -> None:
    """Old sidecars must keep their meaning, so these values are part of the file format."""
    spec = MaskSpec()
    drawn = [dropped_blocks(spec, num_blocks=30, seed=seed, step=step) for seed, step in [(0, 0), (0, 1), (7, 3)]]
    assert drawn == KNOWN
    assert dropped_blocks(spec, num_blocks=30, seed=7, step=3, draw=1) == KNOWN_DRAW


KNOWN = [(4, 16, 18), (10, 13, 14), (8, 21, 23)]
KNOWN_DRAW = (6, 16, 18)


def test_masks_do_not_depend_on_global_state_or_order() -> None:
    spec = MaskSpec(drop_ratio=0.2)
    forwards = [dropped_blocks(spec, num_blocks=40, seed=3, step=i) for i in range(20)]
    np.random.seed(0)
    backwards = [dropped_blocks(spec, num_blocks=40, seed=3, step=i) for i in reversed(range(20))]
    assert forwards == backwards[::-1]
    assert len(set(forwards)) > 15


def test_seed_step_and_draw_each_matter() -> None:
    spec = MaskSpec(drop_ratio=0.3)
    base = dropped_blocks(spec, num_blocks=60, seed=0, step=0)
    assert base != dropped_blocks(spec, num_blocks=60, seed=1, step=0)
    assert base != dropped_blocks(spec, num_blocks=60, seed=0, step=1)
    assert base != dropped_blocks(spec, num_blocks=60, seed=0, step=0, draw=1)
    assert dropped_blocks(spec, num_blocks=60, seed=2**64 - 1, step=0)  # the largest seed


def test_draws_are_uniform_over_eligible_blocks() -> None:
    """Chi-square over 6,000 draws of 3 of 29 blocks: mean 28, standard deviation 7.5; 70 is far outside."""
    spec = MaskSpec()
    counts = np.zeros(30)
    for step in range(6000):
        counts[list(dropped_blocks(spec, num_blocks=30, seed=11, step=step))] += 1
    assert counts[0] == 0
    expected = 6000 * 3 / 29
    assert ((counts[1:] - expected) ** 2 / expected).sum() < 70


def test_first_dropped_block_is_where_arithmetic_puts_it() -> None:
    """E[first dropped] = 1 + (L − 1 − d)/(d + 1): 7.5 for 30 blocks and 3 dropped."""
    first = [dropped_blocks(MaskSpec(), num_blocks=30, seed=5, step=step)[0] for step in range(4000)]
    assert np.mean(first) == pytest.approx(7.5, abs=0.4)


@pytest.mark.parametrize("num_steps", [1, 5, 10, 30, 50, 1000])
def test_window_is_exact(num_steps: int) -> None:
    spec = MaskSpec(window=(0.1, 0.9))
    for step in range(num_steps):
        middle = Fraction(2 * step + 1, 2 * num_steps)
        inside = Fraction(1, 10) <= middle <= Fraction(9, 10)
        assert spec.active(step, num_steps) == inside
        assert bool(step_masks(spec, num_blocks=30, seed=0, step=step, num_steps=num_steps)) == inside


def test_window_holds_its_own_edges() -> None:
    """The middle of step 0 of 5 is exactly 0.1, which floats would miss."""
    assert [MaskSpec(window=(0.1, 0.9)).active(i, 5) for i in range(5)] == [True] * 5
    assert [MaskSpec(window=(0.3, 0.7)).active(i, 5) for i in range(5)] == [False, True, True, True, False]


def test_step_masks_gives_each_draw() -> None:
    spec = MaskSpec(num_draws=3)
    masks = step_masks(spec, num_blocks=30, seed=0, step=5, num_steps=10)
    assert masks == tuple(dropped_blocks(spec, num_blocks=30, seed=0, step=5, draw=d) for d in range(3))


def test_a_schedule_records_what_it_hands_out() -> None:
    schedule = MaskSchedule(MaskSpec(num_draws=2), num_blocks=30, seed=3, num_steps=7)
    drawn = {(step, draw): mask for step in range(7) for draw, mask in enumerate(schedule.step(step))}
    assert {(r["step"], r["draw"]): tuple(r["dropped"]) for r in schedule.records()} == drawn and drawn
    without = MaskSchedule(None, num_blocks=30, seed=3, num_steps=7)
    assert without.records() == [] and without.step(3) == ()


def test_a_window_in_noise() -> None:
    """A step with noise level σ is at 1 − σ. With a shift of 5, the central 80 % of the noise are the last steps."""
    spec = MaskSpec(window=(0.1, 0.9), window_in="noise")
    even = [1 - step / 50 for step in range(50)]
    levels = tuple(5 * s / (1 + 4 * s) for s in even)
    active = [spec.active(step, 50, level) for step, level in enumerate(levels)]
    assert active == [0.1 <= 1 - level <= 0.9 for level in levels]
    assert active == [False] * 18 + [True] * 31 + [False]
    by_steps = [MaskSpec(window=(0.1, 0.9)).active(step, 50, level) for step, level in enumerate(levels)]
    assert by_steps == [False] * 5 + [True] * 40 + [False] * 5
    schedule = MaskSchedule(spec, num_blocks=30, seed=3, num_steps=50, levels=levels)
    assert [bool(schedule.step(step)) for step in range(50)] == active
