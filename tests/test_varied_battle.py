"""Battle from starts that are drawn."""

import numpy as np
import pytest

from rllib_mfq.envs.varied_battle import VariedBattle


def starts(env, seeds):
    return [{g: rows.positions for g, rows in env.reset(seed=seed).items()} for seed in seeds]


@pytest.mark.parametrize("map_size", [40, 45])
def test_sides_are_equal_squares_apart_from_each_other_in_two_halves(map_size):
    env = VariedBattle([2, map_size // 4], map_size=map_size)
    sizes, halves = set(), set()
    for start in starts(env, range(60)):
        red, blue = start["red"], start["blue"]
        width = round(np.sqrt(len(red)))
        sizes.add(width)
        for side in (red, blue):  # on every second cell of a square, inside the walls
            assert len(np.unique(side, axis=0)) == width**2
            assert (np.ptp(side, axis=0) == 2 * width - 2).all()
            assert side.min() >= 1 and side.max() <= map_size - 2
        middle = map_size // 2
        places = {
            (axis, lower is red)
            for lower, upper in ((red, blue), (blue, red))
            for axis in (0, 1)
            if lower[:, axis].max() < middle <= upper[:, axis].min()
        }
        assert places
        halves |= places
    assert sizes == {2, map_size // 4}
    assert len(halves) == 4  # along either axis, either side first


def test_a_seed_repeats_the_starts_that_follow():
    one, other = VariedBattle(), VariedBattle()
    for first, second in zip(starts(one, [3, None]), starts(other, [3, None]), strict=True):
        np.testing.assert_equal(first, second)
    assert not np.array_equal(first["red"], one.reset(seed=3)["red"].positions)


def test_a_match_runs_to_its_end():
    env = VariedBattle([3, 4], map_size=20, max_cycles=5)
    for seed in range(4):
        counts = {group: len(rows.ids) for group, rows in env.reset(seed=seed).items()}
        for _ in range(5):
            steps = env.step({group: np.zeros(n, np.int32) for group, n in counts.items()})
        assert all(len(steps[g].rewards) == n for g, n in counts.items())
        assert all(step.truncated.all() for step in steps.values())


@pytest.mark.parametrize("widths", [[], [0], [6]])
def test_a_square_that_does_not_fit_is_refused(widths):
    with pytest.raises(ValueError, match="all must be 1 to 5, a quarter of map_size 20"):
        VariedBattle(widths, map_size=20)
