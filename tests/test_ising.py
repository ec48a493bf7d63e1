"""The Ising model against plain loops, physics, and its own PettingZoo interface."""

import itertools

import numpy as np
import pytest
import torch
from pettingzoo.test import parallel_api_test

from rllib_mfq.envs.ising import (
    CURIE_TEMPERATURE,
    GROUP,
    TRUE_Q,
    IsingPopulation,
    exact_magnetization,
    heat_bath,
    parallel_env,
)
from rllib_mfq.mean_field.neighborhood import Neighborhood
from rllib_mfq.mean_field.objective import boltzmann
from rllib_mfq.population.adapters import AgentDictPopulation, as_population
from rllib_mfq.population.player import Player
from rllib_mfq.population.sampler import Sampler


def around(size, row, column):
    """The four sites around one, as one would count them on paper."""
    return [
        ((row + 1) % size, column),
        ((row - 1) % size, column),
        (row, (column + 1) % size),
        (row, (column - 1) % size),
    ]


def legal_actions(rows, rng):
    """One legal action per site, drawn where there is a choice."""
    drawn = rng.integers(2, size=len(rows.ids))
    return np.where(rows.action_mask.all(1), drawn, rows.action_mask.argmax(1))


def play(population, steps, seed=0):
    """Random legal actions: yields what each step did and the spins after it."""
    rng = np.random.default_rng(seed)
    rows = population.reset(seed=seed)[GROUP]
    for _ in range(steps):
        actions = legal_actions(rows, rng)
        step = population.step({GROUP: actions})[GROUP]
        yield rows, actions, step
        rows = step.rows


@pytest.mark.parametrize("size", [3, 4, 7])
def test_every_site_has_its_four_neighbours_also_across_the_border(size):
    edges = IsingPopulation(size).reset(seed=0)[GROUP].edges
    for row, column in itertools.product(range(size), repeat=2):
        mine = edges[edges[:, 0] == row * size + column][:, 1]
        assert sorted(mine) == sorted(r * size + c for r, c in around(size, row, column))
    assert {tuple(pair) for pair in edges} == {tuple(pair[::-1]) for pair in edges}  # mutual


@pytest.mark.parametrize("seed", range(3))
def test_rewards_energy_and_order_equal_the_loop(seed):
    size = 5
    population = IsingPopulation(size, start="random", update_share=0.5)
    figures = []
    for _, actions, step in play(population, 6, seed):
        spins = (2 * actions - 1).reshape(size, size)
        energy, expected = 0.0, []
        for row, column in itertools.product(range(size), repeat=2):
            total = sum(spins[site] for site in around(size, row, column))
            expected.append(0.5 * spins[row, column] * total)
            energy -= 0.25 * spins[row, column] * total / size**2  # every bond counted twice
        np.testing.assert_allclose(step.rewards, expected)
        ups = int((spins > 0).sum())
        figures.append((abs(ups - (size**2 - ups)) / size**2, energy))
    order, energy = np.mean(figures[2:], axis=0)  # the second half, the start being the first of 7
    assert population.result()["order_parameter"][GROUP] == pytest.approx(order)
    assert population.result()["energy"][GROUP] == pytest.approx(energy)


def test_the_true_table_is_the_reward_of_every_action_and_number_of_neighbours():
    for action, up in itertools.product(range(2), range(5)):
        total = up - (4 - up)
        assert TRUE_Q[action, up] == 0.5 * (2 * action - 1) * total


def test_only_sites_that_were_drawn_change_and_nobody_does_in_the_first_step():
    population = IsingPopulation(6, start="random", update_share=0.3)
    shares, before = [], None
    for rows, _, step in play(population, 200):
        spins = population._spins.ravel() > 0
        free = rows.action_mask.all(1)
        if before is None:
            assert not free.any()
        else:
            assert (spins[~free] == before[~free]).all()
            shares.append(free.mean())
        assert rows.action_mask[np.arange(36), spins.astype(int)][~free].all()
        assert not step.terminated.any()
        before = spins
    assert np.mean(shares) == pytest.approx(0.3, abs=0.02)


def test_an_action_of_a_site_that_was_not_drawn_does_nothing():
    population = IsingPopulation(4)
    population.reset(seed=0)
    step = population.step({GROUP: np.zeros(16, int)})[GROUP]  # all say down, nobody may
    assert (step.rewards == 2.0).all()


def test_the_mean_action_an_agent_acts_on_is_the_share_of_its_neighbours_that_are_up():
    population = IsingPopulation(4, start="random", max_cycles=50)
    seen = []

    def act(obs, mean_actions, mask):
        spins = (population._spins.ravel() > 0).reshape(4, 4)
        seen.append((mean_actions.copy(), spins.copy()))
        return heat_bath(2.0, len(seen))(obs, mean_actions, mask)

    sampler = Sampler(lambda i: population, 1, {GROUP: Player("p", act, Neighborhood("graph"))}, 0)
    sampler.sample(num_steps=6)
    assert not seen[0][0].any()  # nothing is known before the first step
    for mean_actions, spins in seen[1:6]:
        for row, column in itertools.product(range(4), repeat=2):
            up = np.mean([spins[site] for site in around(4, row, column)])
            np.testing.assert_allclose(mean_actions[4 * row + column], [1 - up, up])


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_glauber_dynamics_is_the_boltzmann_policy_of_the_true_rewards(temperature):
    up = np.arange(5) / 4
    fields = np.stack([1 - up, up], axis=1).astype(np.float32)
    rows = np.repeat(fields, 20_000, axis=0)
    drawn = heat_bath(temperature, 0)(np.zeros((len(rows), 1)), rows, None)
    policy = boltzmann(torch.from_numpy(TRUE_Q.T.copy()), temperature)[:, 1].numpy()
    by_hand = 1 / (1 + np.exp(-(8 * up - 4) / temperature))  # sum of spins = 8 up - 4
    np.testing.assert_allclose(policy, by_hand)
    np.testing.assert_allclose(drawn.reshape(5, -1).mean(1), by_hand, atol=0.012)


def test_the_exact_magnetisation_has_the_limits_of_physics():
    assert pytest.approx(2 / np.log(1 + np.sqrt(2)) / 2) == CURIE_TEMPERATURE
    cold, warm = CURIE_TEMPERATURE * np.array([1 - 1e-12, 1 + 1e-12])
    assert exact_magnetization(0.05) == 1.0
    assert exact_magnetization(cold) < 0.05
    assert exact_magnetization(warm) == exact_magnetization(5.0) == 0.0
    values = exact_magnetization(np.linspace(0.2, CURIE_TEMPERATURE, 50))
    assert (np.diff(values) <= 0).all()
    assert exact_magnetization(1.0) == pytest.approx((1 - np.sinh(1.0) ** -4) ** 0.125)


def order(temperature, size=8, steps=400, **arguments):
    sampler = Sampler(
        lambda i: IsingPopulation(size, steps, **arguments),
        8,
        {GROUP: Player("glauber", heat_bath(temperature, 0), Neighborhood("graph"))},
        0,
    )
    episodes = sampler.sample(num_episodes=8, keep=False).episodes
    return np.mean([episode.result["order_parameter"][GROUP] for episode in episodes])


def test_a_cold_lattice_stays_ordered_as_the_exact_one_and_a_hot_one_does_not():
    assert order(0.7) == pytest.approx(float(exact_magnetization(0.7)), abs=0.01)
    assert order(4.0) < 0.25


def test_the_same_seed_plays_the_same_lattice():
    runs = [
        [step.rewards for _, _, step in play(IsingPopulation(5, start="random"), 5, seed)]
        for seed in (1, 1, 2)
    ]
    assert np.array_equal(runs[0], runs[1]) and not np.array_equal(runs[0], runs[2])


def test_each_site_observes_its_number_if_asked():
    population, out = IsingPopulation(3, observe_site=True), np.empty((9, 1), np.float32)
    population.reset(seed=0)
    population.observe(GROUP, out)
    assert out.ravel().tolist() == list(range(9))
    assert population.groups[GROUP].observation_space.high.tolist() == [8.0]


def test_the_pettingzoo_environment_passes_pettingzoos_own_test():
    parallel_api_test(parallel_env(size=4, max_cycles=10), num_cycles=100)


def test_the_native_path_equals_the_pettingzoo_path():
    arguments = {"size": 4, "max_cycles": 12, "start": "random", "observe_site": True}
    native, dicts = IsingPopulation(**arguments), AgentDictPopulation(parallel_env(**arguments))
    mine, theirs = (population.reset(seed=3)[GROUP] for population in (native, dicts))
    rng, seen = np.random.default_rng(0), np.empty((2, 16, 1), np.float32)
    for _ in range(12):
        assert np.array_equal(mine.ids, theirs.ids)
        assert np.array_equal(mine.action_mask, theirs.action_mask)
        native.observe(GROUP, seen[0])
        dicts.observe(GROUP, seen[1])
        assert np.array_equal(seen[0], seen[1])
        actions = {GROUP: legal_actions(mine, rng).astype(np.int32)}
        first, second = (population.step(actions)[GROUP] for population in (native, dicts))
        for name in ("rewards", "terminated", "truncated"):
            assert np.array_equal(getattr(first, name), getattr(second, name)), name
        mine, theirs = first.rows, second.rows
    assert first.truncated.all()


def test_this_package_plays_the_population_in_a_pettingzoo_environment_of_its_own():
    env = parallel_env(size=4)
    assert as_population(env) is env.population


def test_up_and_down_have_different_colours():
    population = IsingPopulation(4, start="random", render_mode="rgb_array")
    population.reset(seed=0)
    picture = population.render()
    assert picture.shape == (400, 400, 3) and picture.dtype == np.uint8
    for row, column in itertools.product(range(4), repeat=2):
        same = population._spins == population._spins[row, column]
        colours = picture[50::100, 50::100]
        assert np.array_equal((colours == colours[row, column]).all(-1), same)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("size", 2),
        ("size", 4.0),
        ("max_cycles", 0),
        ("update_share", 0),
        ("update_share", 1.5),
        ("start", "down"),
        ("render_mode", "human"),
    ],
)
def test_an_argument_that_cannot_be_is_named_with_its_value(argument, value):
    with pytest.raises(ValueError, match=f"{argument} is {value!r}"):
        IsingPopulation(**{argument: value})
