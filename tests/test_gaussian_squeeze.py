"""The Gaussian squeeze against plain loops and its algebra."""

import math

import numpy as np
import pytest
from pettingzoo.test import parallel_api_test

from rllib_mfq.envs.gaussian_squeeze import (
    GaussianSqueezePopulation,
    optimum,
    parallel_env,
    squeeze,
)
from rllib_mfq.population.adapters import AgentDictPopulation


@pytest.mark.parametrize("seed", range(3))
def test_everybody_is_paid_the_squeeze_of_the_sum(seed):
    population = GaussianSqueezePopulation(60, mu=200.0, sigma=80.0)
    population.reset(seed=0)
    actions = np.random.default_rng(seed).integers(10, size=60)
    total = 0
    for action in actions:
        total += int(action)
    expected = total * math.exp(-((total - 200.0) ** 2) / 80.0**2)
    step = population.step({"squeeze": actions})["squeeze"]
    np.testing.assert_allclose(step.rewards, expected, rtol=1e-6)
    assert population.result()["squeeze"]["squeeze"] == pytest.approx(expected)
    assert population.result()["total"]["squeeze"] == total


@pytest.mark.parametrize(("mu", "sigma"), [(400.0, 200.0), (50.0, 10.0), (10.0, 300.0)])
def test_the_optimum_is_the_largest_value_of_a_fine_grid(mu, sigma):
    grid = np.linspace(0, 4 * (mu + sigma), 200_001)
    values = grid * np.exp(-((grid - mu) ** 2) / sigma**2)
    total, best = optimum(mu, sigma)
    assert total == pytest.approx(grid[values.argmax()], abs=0.01)
    assert best == pytest.approx(values.max())


def test_the_papers_squeeze_pays_423_at_the_best_and_nothing_for_a_thousand_at_random():
    total, best = optimum(400.0, 200.0)
    assert round(total, 1) == 444.9 and round(best, 1) == 423.0
    assert np.float32(squeeze(4500.0, 400.0, 200.0)) == 0.0


def test_several_squeezes_are_paid_separately():
    population = GaussianSqueezePopulation(5, mu=[10.0, 20.0], sigma=[5.0, 7.0])
    population.reset(seed=0)
    first, second = np.array([1, 2, 3, 4, 0]), np.array([9, 9, 0, 1, 1])
    steps = population.step({"squeeze0": first, "squeeze1": second})
    assert steps["squeeze0"].rewards[0] == pytest.approx(squeeze(10.0, 10.0, 5.0))
    assert steps["squeeze1"].rewards[0] == pytest.approx(squeeze(20.0, 20.0, 7.0))


def test_an_episode_is_truncated_after_max_cycles():
    population = GaussianSqueezePopulation(3, max_cycles=2)
    population.reset(seed=0)
    cut = [population.step({"squeeze": np.ones(3, int)})["squeeze"] for _ in range(2)]
    assert [step.truncated.all() for step in cut] == [False, True]
    assert not any(step.terminated.any() for step in cut)


def test_the_pettingzoo_environment_passes_pettingzoos_own_test_and_pays_the_same():
    parallel_api_test(parallel_env(num_agents=5, mu=[10.0, 20.0], max_cycles=4), num_cycles=50)
    native, dicts = GaussianSqueezePopulation(7), AgentDictPopulation(parallel_env(num_agents=7))
    for population in (native, dicts):
        population.reset(seed=0)
    actions = {"squeeze": np.arange(7, dtype=np.int32)}
    paid = [population.step(actions)["squeeze"].rewards for population in (native, dicts)]
    assert np.array_equal(*paid)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_agents": 0}, "num_agents is 0"),
        ({"num_actions": 1}, "num_actions is 1"),
        ({"max_cycles": 2.5}, "max_cycles is 2.5"),
        ({"mu": -1.0}, r"mu is \[-1.0\]"),
        ({"sigma": []}, r"sigma is \[\]"),
        ({"mu": [1.0, 2.0], "sigma": [1.0, 2.0, 3.0]}, "mu has 2 values and sigma 3"),
    ],
)
def test_an_argument_that_cannot_be_is_named_with_its_value(arguments, words):
    with pytest.raises(ValueError, match=words):
        GaussianSqueezePopulation(**arguments)
