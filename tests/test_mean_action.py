"""The mean-action postprocessor against a loop over dicts, and the sampler's inner iterations."""

import itertools

import gymnasium as gym
import numpy as np
import pytest

from rllib_mfq.mean_field.mean_action import postprocess_mean_actions
from rllib_mfq.mean_field.neighborhood import Neighborhood
from rllib_mfq.population.player import Player
from rllib_mfq.population.population import Group, Rows, Step
from rllib_mfq.population.sampler import Sampler

SEEDS = range(8)
NUM_ACTIONS = {"red": 3, "blue": 2}
SPECS = ["group", "none", "all", {"radius": 2.5}, {"nearest": 2}]


def columns(rows):
    """`(eps_id, t, group, agent_index, action)` tuples, in this order, as a batch."""
    eps_id, t, group, agent, actions = np.array(rows).T
    names = ("eps_id", "t", "group", "agent_index", "actions")
    return dict(zip(names, (eps_id, t, group, agent, actions), strict=True))


def postprocess(batch, spec="group"):
    batch = postprocess_mean_actions(batch, Neighborhood.parse(spec), NUM_ACTIONS)
    return batch["mean_actions"], batch["next_mean_actions"]


def random_batch(seed):
    """Three episodes of two groups with deaths, newcomers, absences and closing rows, shuffled."""
    rng = np.random.default_rng(seed)
    rows = []
    for eps_id in (7, 3, 900):
        for group, actions in enumerate(NUM_ACTIONS.values()):
            for agent in range(5):  # both groups number their agents from 0
                enters, leaves = sorted(rng.integers(7, size=2))
                absent = rng.integers(20)
                for t in range(enters, leaves + 1):
                    if t != absent:
                        rows.append((eps_id, t, group, agent, rng.integers(actions)))
    batch = columns(rng.permutation(rows))
    batch["positions"] = rng.uniform(0, 5, size=(len(rows), 2))
    batch["loss_mask"] = rng.random(len(rows)) < 0.9
    return batch


def by_hand(batch, spec):
    """One row at a time, asking every other row whether it was there and then."""
    groups = list(NUM_ACTIONS)
    keys = [batch[name].tolist() for name in ("eps_id", "t", "group", "agent_index")]
    keys = list(zip(*keys, strict=True))
    acted = [key for key, ok in zip(keys, batch["loss_mask"], strict=True) if ok]
    action = dict(zip(keys, batch["actions"].tolist(), strict=True))
    place = dict(zip(keys, batch["positions"], strict=True))

    def average(those, num_actions):
        mean = [0.0] * num_actions
        for key in those:
            mean[action[key]] += 1 / len(those)
        return mean

    def produced(key):
        eps_id, t, group, _ = key
        there = [other for other in acted if other[:2] == (eps_id, t) and other != key]
        own = [other for other in there if other[2] == group]
        distance = {other: np.linalg.norm(place[other] - place[key]) for other in own}
        if spec == "none":
            own = []
        elif isinstance(spec, dict) and "radius" in spec:
            own = [other for other in own if distance[other] <= spec["radius"]]
        elif isinstance(spec, dict):
            own = sorted(own, key=distance.__getitem__)[: spec["nearest"]]
        mean = average(own, NUM_ACTIONS[groups[group]])
        for index, name in enumerate(groups):
            if spec == "all" and index != group:
                mean += average([o for o in there if o[2] == index], NUM_ACTIONS[name])
        return mean

    width = 5 if spec == "all" else 3
    before, after = np.zeros((2, len(keys), width))
    for row, key in enumerate(keys):
        earlier = (key[0], key[1] - 1, *key[2:])
        if key in acted:
            mean = produced(key)
            after[row, : len(mean)] = mean
        if key in acted and earlier in acted:
            mean = produced(earlier)
            before[row, : len(mean)] = mean
    return before, after


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("seed", SEEDS)
def test_both_columns_equal_the_loop_over_dicts(seed, spec):
    batch = random_batch(seed)
    expected_before, expected_after = by_hand(batch, spec)
    before, after = postprocess(batch, spec)
    assert before.dtype == after.dtype == np.float32
    np.testing.assert_allclose(after, expected_after, atol=1e-6)
    np.testing.assert_allclose(before, expected_before, atol=1e-6)


def test_an_episode_by_hand_in_which_an_agent_dies_and_another_enters():
    #                 eps t  group agent action
    batch = columns(
        [
            (0, 0, 0, 10, 0),
            (0, 0, 0, 11, 1),
            (0, 0, 0, 12, 1),  # dies of step 0
            (0, 1, 0, 10, 2),
            (0, 1, 0, 11, 0),
            (0, 1, 0, 13, 0),  # enters at step 1
            (1, 1, 0, 14, 1),  # another episode: alone
            (1, 2, 0, 13, 1),  # not the agent 13 above
        ]
    )
    before, after = postprocess(batch)
    assert after.tolist() == [
        [0, 1, 0],
        [0.5, 0.5, 0],
        [0.5, 0.5, 0],
        [1, 0, 0],  # without agent 12
        [0.5, 0, 0.5],
        [0.5, 0, 0.5],
        [0, 0, 0],
        [0, 0, 0],
    ]
    assert before.tolist() == [
        *[[0, 0, 0]] * 3,  # the first step of an episode
        [0, 1, 0],  # the mean of step 0 still holds agent 12
        [0.5, 0.5, 0],
        [0, 0, 0],  # a newcomer has no past
        [0, 0, 0],  # its step 0 is not in the batch
        [0, 0, 0],
    ]


def test_a_chunk_border_and_a_missing_step_give_zero_before():
    rows = [(0, t, 0, agent, 1) for t in (5, 6, 8) for agent in (0, 1)]
    before, after = postprocess(columns(rows))
    assert after.tolist() == [[0, 1, 0]] * 6
    assert before[:, 1].tolist() == [0, 0, 1, 1, 0, 0]


def test_equal_ids_in_two_groups_are_different_agents():
    before, after = postprocess(columns([(0, 0, 0, 3, 2), (0, 0, 0, 4, 0), (0, 1, 1, 4, 1)]))
    assert after.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]
    assert not before.any()  # blue 4 has not played what red 4 did


def test_rows_that_only_close_a_life_neither_count_nor_get_anything():
    batch = columns([(0, 0, 0, 0, 1), (0, 0, 0, 1, 1), (0, 1, 0, 0, 2), (0, 1, 0, 1, 2)])
    batch["loss_mask"] = np.array([True, True, True, False])
    before, after = postprocess(batch)
    assert after.tolist() == [[0, 1, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert before.tolist() == [[0, 0, 0], [0, 0, 0], [0, 1, 0], [0, 0, 0]]
    batch["loss_mask"][:] = False
    assert not any(column.any() for column in postprocess(batch))


@pytest.mark.parametrize(("spec", "missing"), [("graph", "edges"), ({"radius": 1}, "positions")])
def test_a_batch_without_what_the_neighbourhood_reads_is_refused(spec, missing):
    with pytest.raises(ValueError, match=f"gives {missing}"):
        postprocess(columns([(0, 0, 0, 0, 0)]), spec)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_mean_field_approximation_is_exact_for_q_linear_in_the_others_action(seed):
    """The paper's premise: averaging pairwise Q over neighbours = reading Q at the mean action."""
    batch = random_batch(seed)
    table = np.random.default_rng(seed).normal(size=(3, 3))  # [own action, other's action]
    _, mean = postprocess(batch)
    keys = np.stack([batch["eps_id"], batch["t"], batch["group"]], axis=1)
    for row in np.flatnonzero(batch["loss_mask"]):
        hood = (keys == keys[row]).all(1) & batch["loss_mask"]
        hood[row] = False
        if hood.any():
            own = table[batch["actions"][row]]
            assert own @ mean[row] == pytest.approx(own[batch["actions"][hood]].mean(), abs=1e-5)


class Square:
    """Red and blue stand around; every third step a red one dies; what they play is kept."""

    def __init__(self):
        box = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.groups = {g: Group(box, gym.spaces.Discrete(a)) for g, a in NUM_ACTIONS.items()}
        self.played = []

    def reset(self, *, seed=None):
        self.ids = {"red": np.arange(5), "blue": np.arange(3)}
        return {group: Rows(ids) for group, ids in self.ids.items()}

    def step(self, actions):
        self.played.append({group: a.copy() for group, a in actions.items()})
        steps = {}
        for group, ids in self.ids.items():
            dead = (ids == ids.max()) & (group == "red") & (len(self.played) % 3 == 0)
            last = np.full(len(ids), len(self.played) % 7 == 0)
            self.ids[group] = ids[~dead]
            steps[group] = Step(np.zeros(len(ids)), dead, last & ~dead, Rows(ids[~dead]))
        return steps

    def observe(self, group, out):
        out[:, 0] = self.ids[group]


class RandomPlayer:
    """Plays at random and remembers every call."""

    def __init__(self, num_actions):
        self.num_actions, self.rng, self.calls = num_actions, np.random.default_rng(1), []

    def __call__(self, obs, mean_actions, action_mask):
        actions = self.rng.integers(self.num_actions, size=len(obs))
        self.calls.append((mean_actions.copy(), actions))
        return actions


def square(iterations, spec="group"):
    acts = {group: RandomPlayer(actions) for group, actions in NUM_ACTIONS.items()}
    hood = Neighborhood.parse(spec)
    players = {group: Player(group, act, hood, iterations) for group, act in acts.items()}
    return Sampler(lambda index: Square(), 1, players, seed=0), acts


def mean_of_the_others(actions, num_actions):
    one_hot = np.eye(num_actions)[actions]
    return (one_hot.sum(0) - one_hot) / (len(actions) - 1)


@pytest.mark.parametrize("iterations", [1, 3])
def test_every_inner_iteration_sees_the_previous_draw_and_the_last_one_is_played(iterations):
    sampler, acts = square(iterations)
    data = sampler.sample(num_steps=2).columns
    played = sampler.populations[0].played
    for group, num_actions in NUM_ACTIONS.items():
        calls = acts[group].calls
        assert len(calls) == 2 * iterations
        assert not calls[0][0].any()  # nothing has been played yet
        for (_, draw), (seen, _) in itertools.pairwise(calls):
            np.testing.assert_allclose(seen, mean_of_the_others(draw, num_actions), atol=1e-6)
        n = len(played[0][group])
        for step in (0, 1):
            seen, draw = calls[(step + 1) * iterations - 1]
            here = slice(step * n, step * n + n)
            np.testing.assert_array_equal(played[step][group], draw)
            np.testing.assert_array_equal(data[group]["actions"][here], draw)
            np.testing.assert_array_equal(data[group]["mean_actions"][here], seen)
            np.testing.assert_allclose(
                data[group]["next_mean_actions"][here],
                mean_of_the_others(draw, num_actions),
                atol=1e-6,
            )


@pytest.mark.parametrize("spec", ["group", "none", "all"])
def test_the_postprocessor_reproduces_the_samplers_own_columns(spec):
    fragment = square(1, spec)[0].sample(num_episodes=4)
    names = ("eps_id", "t", "group", "agent_index", "actions", "loss_mask")
    batch = {k: np.concatenate([c[k] for c in fragment.columns.values()]) for k in names}
    shuffle = np.random.default_rng(0).permutation(len(batch["t"]))
    before, after = postprocess({k: column[shuffle] for k, column in batch.items()}, spec)
    start = 0
    for data in fragment.columns.values():
        acted = data["loss_mask"]
        mine = np.argsort(shuffle)[start : start + len(acted)][acted]
        start += len(acted)
        width = data["mean_actions"].shape[1]
        np.testing.assert_array_equal(before[mine, :width], data["mean_actions"][acted])
        np.testing.assert_array_equal(after[mine, :width], data["next_mean_actions"][acted])
